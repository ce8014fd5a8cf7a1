"""`scripts.resample`: closed forms on another grid, what lies outside, labels, and what is never written over."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data.errors import InputError
from data.masks.body_mask import read_mask
from data.values.modality import kind_of
from data.volumes.resampling import INTERPOLATIONS, resample
from data.volumes.volume import Volume, read_volume, same_grid, write_volume
from evaluation.cases import read_reference
from scripts import resample as command
from tests.test_preparation import ct_volume, mr_volume

TURNED = tuple(Rotation.from_euler("xyz", [0.2, -0.3, 0.1]).as_matrix().ravel())
INNER = Volume(np.zeros((6, 7, 8), np.float32), (1.3, 1.7, 2.1), (6.0, 5.0, 9.0), TURNED)


def coordinates(volume: Volume) -> np.ndarray:
    """Return the patient coordinates (mm) of every voxel, shape (z, y, x, 3)."""
    index = np.stack(np.meshgrid(*map(np.arange, volume.array.shape), indexing="ij"), axis=-1)[..., ::-1]
    return index * volume.spacing @ np.reshape(volume.direction, (3, 3)).T + volume.origin


def filled(function, dtype=np.float64) -> Volume:
    """A volume of 30 mm with a function of place in it."""
    grid = Volume(np.zeros((21, 26, 31), dtype), (1.0, 1.2, 1.5), (0.0, -2.0, 1.0))
    values = function(coordinates(grid))
    return grid.with_array((np.rint(values) if np.issubdtype(dtype, np.integer) else values).astype(dtype))


def plane(place: np.ndarray) -> np.ndarray:
    return 100 + place @ (3.0, -2.0, 1.5)


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_a_linear_function_of_place_stays_it_on_an_oblique_grid(interpolation):
    result, covered = resample(filled(plane), INNER, interpolation, 0)
    assert same_grid(result, INNER, tolerance=0) and covered.all()
    inner = slice(1, -1)  # splines are mirrored at the ends of a volume
    np.testing.assert_allclose(
        result.array[inner, inner, inner], plane(coordinates(INNER))[inner, inner, inner], atol=0.02
    )


def test_a_cubic_is_nearer_to_a_smooth_function_than_a_line():
    def wave(place):
        return 100 * np.sin(place @ (0.5, 0.4, 0.3))

    errors = {
        name: np.abs(resample(filled(wave), INNER, name, 0)[0].array - wave(coordinates(INNER))).mean()
        for name in INTERPOLATIONS
    }
    assert errors["cubic"] < errors["linear"] / 5 < errors["nearest"] / 10


def test_nearest_takes_the_nearest_voxel():
    source = filled(lambda place: np.random.default_rng(0).integers(0, 9, place.shape[:3]), np.uint8)
    result, _ = resample(source, INNER, "nearest", 0)
    index = (coordinates(INNER) - source.origin) / source.spacing
    away_from_ties = np.all(np.abs(index % 1 - 0.5) > 1e-6, axis=-1)
    i, j, k = np.moveaxis(np.rint(index).astype(int), -1, 0)
    assert away_from_ties.all() and result.array.dtype == np.uint8
    np.testing.assert_array_equal(result.array, source.array[k, j, i])


def test_whole_numbers_are_rounded_and_stay_in_their_range():
    source = filled(plane, np.int16)
    result, _ = resample(source, INNER, "linear", 0)
    assert result.array.dtype == np.int16
    assert np.abs(result.array - plane(coordinates(INNER))).max() <= 1.0  # half a unit of storage, half of rounding
    edge = filled(lambda place: np.where(place[..., 0] > 12.5, 255, 0), np.uint8)
    cubic, _ = resample(edge, INNER, "cubic", 0)  # splines overshoot at an edge
    assert cubic.array.dtype == np.uint8 and {0, 255} <= set(np.unique(cubic.array))
    big = filled(lambda place: np.full(place.shape[:3], 2**31 - 5), np.int32)
    assert np.all(resample(big, INNER, "linear", 0)[0].array == 2**31 - 5)  # more digits than float32 has


def test_the_same_grid_gives_the_same_voxels():
    ct = ct_volume()
    for name in INTERPOLATIONS:
        np.testing.assert_array_equal(resample(ct, ct, name, 0)[0].array, ct.array)


def test_there_and_back_is_near_and_outside_is_what_was_said():
    source = filled(plane)
    wide = replace(INNER, array=np.zeros((40, 50, 60), np.float32), origin=(-10.0, -12.0, -20.0))
    there, covered = resample(source, wide, "linear", -1000)
    index = (coordinates(wide) - source.origin) / source.spacing
    within = np.all((index > -0.5) & (index < np.array(source.size) - 0.5), axis=-1)
    np.testing.assert_array_equal(there.array == -1000, ~within)
    np.testing.assert_array_equal(covered, within)
    back, _ = resample(resample(source, wide, "linear", 0)[0], source, "linear", 0)
    inner = (slice(4, -4),) * 3  # away from the rim, where what lies outside was mixed in
    np.testing.assert_allclose(back.array[inner], source.array[inner], atol=0.05)


def test_volumes_that_do_not_overlap_are_refused():
    with pytest.raises(
        InputError,
        match=r"the volumes do not overlap: one lies at x .* mm, the other at x .* mm: .*Register them first",
    ):
        resample(filled(plane), replace(INNER, origin=(500.0, 0.0, 0.0)), "linear", 0)


def run(tmp_path, *arguments) -> Volume:
    command.main([str(argument) for argument in arguments])
    return read_volume(tmp_path / "out.nii.gz")


@pytest.mark.parametrize(
    ("kind", "volume", "outside"),
    [
        ("CT", ct_volume(), -1000),
        ("MR", mr_volume(), 0),
        ("labels", ct_volume().with_array((ct_volume().array > 0).astype(np.uint8)), 0),
    ],
)
def test_the_command_fills_ct_with_air_and_keeps_labels(tmp_path, caplog, kind, volume, outside):
    assert kind_of(volume) == kind
    grid = replace(volume, array=np.zeros((9, 80, 80), np.int16), spacing=(1.7, 1.7, 3.1), direction=TURNED)
    write_volume(volume, tmp_path / "a.nii.gz")
    write_volume(grid, tmp_path / "b.mha")
    files = ["--input", tmp_path / "a.nii.gz", "--like", tmp_path / "b.mha", "--output", tmp_path / "out.nii.gz"]
    with caplog.at_level("INFO"):
        result = run(tmp_path, *files)
    way = "nearest" if kind == "labels" else "linear"
    expected, covered = resample(read_volume(tmp_path / "a.nii.gz"), read_volume(tmp_path / "b.mha"), way, outside)
    np.testing.assert_array_equal(result.array, expected.array)
    assert same_grid(result, grid) and result.array.dtype == volume.array.dtype
    assert (
        f"{way} of" in caplog.text
        and f"{100 * (1 - covered.mean()):.1f} % of it lies outside and is {outside}" in caplog.text
    )
    assert covered.mean() < 0.95 and result.array[-1, -1, -1] == outside
    other = [*files, "--interpolation", "cubic", "--outside", "-7", "--overwrite"]
    if kind == "labels":
        with pytest.raises(InputError, match="--outside -7: the voxels are whole numbers from 0 to 255"):
            run(tmp_path, *other)
    else:
        assert run(tmp_path, *other).array[-1, -1, -1] == -7


def test_the_default_name_and_what_is_not_written_over(tmp_path):
    for name in ("a", "b"):
        write_volume(mr_volume(), tmp_path / f"{name}.nii.gz")
    files = ["--input", str(tmp_path / "a.nii.gz"), "--like", str(tmp_path / "b.nii.gz")]
    assert command.main(files) == 0
    assert same_grid(read_volume(tmp_path / "a_like_b.nii.gz"), mr_volume())
    with pytest.raises(InputError, match=r"a_like_b.nii.gz: exists already; .*--overwrite"):
        command.main(files)
    with pytest.raises(InputError, match=r"b.nii.gz: is one of the inputs"):
        command.main([*files, "--output", str(tmp_path / "b.nii.gz"), "--overwrite"])
    write_volume(replace(mr_volume(), origin=(900.0, 0.0, 0.0)), tmp_path / "far.nii.gz")
    with pytest.raises(InputError, match=r"a.nii.gz, .*far.nii.gz: the volumes do not overlap"):
        command.main([*files[:3], str(tmp_path / "far.nii.gz")])
    for more in (["--output", str(tmp_path / "x.dcm")], ["--outside", "nan"]):
        with pytest.raises(SystemExit):
            command.main([*files, *more])


def test_messages_on_grids_say_the_command_that_puts_it_right(tmp_path):
    """The commands in the messages are run as they stand, with what they leave to the reader put in."""
    mr = mr_volume()
    write_volume(mr, tmp_path / "mr.nii.gz")
    ct = ct_volume()
    noise = np.random.default_rng(0).normal(0, 8, ct.array.shape)
    moved = replace(ct.with_array(np.rint(ct.array + noise).astype(np.int16)), spacing=(1.9, 2.0, 4.0))
    write_volume(moved, tmp_path / "ct.nii.gz")
    write_volume(moved.with_array((ct.array > -500).astype(np.uint8)), tmp_path / "mask.nii.gz")
    for name, read, word in (("ct", read_reference, "MR"), ("mask", read_mask, "VOLUME")):
        path = tmp_path / f"{name}.nii.gz"
        with pytest.raises(InputError) as error:
            read(path, mr)
        _, found, arguments = str(error.value).partition("python -m scripts.resample ")
        assert found
        words = arguments.replace(f"--like {word}", f"--like {tmp_path}/mr.nii.gz").split()
        command.main(words)
        read(tmp_path / f"{name}_like_mr.nii.gz", mr)


@pytest.mark.parametrize(("slices", "level"), [(4, "WARNING"), (3, "INFO")])
def test_a_true_ct_that_most_of_the_grid_lies_outside_of_is_warned_of(tmp_path, caplog, slices, level):
    """A CT moved along z by some of the 6 slices of an MR: the others are outside it."""
    caplog.set_level("INFO")
    ct = ct_volume()
    x, y, z = ct.origin
    write_volume(replace(ct, origin=(x, y, z + slices * ct.spacing[2])), tmp_path / "ct.nii.gz")
    read_reference(tmp_path / "ct.nii.gz", ct, resampled=True, whose="result")
    (said,) = caplog.records
    share = f"{tmp_path}/ct.nii.gz: resampled to the result's grid; {100 * slices / 6:.1f} % of that grid lies outside"
    assert (said.levelname, share in said.getMessage()) == (level, True)
    assert ("probably the CT of another patient" in said.getMessage()) == (level == "WARNING")
