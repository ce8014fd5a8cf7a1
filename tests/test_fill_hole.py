"""Hole filling: the same as SimpleITK's, known holes close after known votes, and folders survive a bad file."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import fill_hole
from data.errors import InputError
from data.volumes.volume import Volume, read_volume, same_grid, write_volume
from fill_hole import fill_holes

GRID = {"spacing": (0.8, 0.9, 3.0), "origin": (-10.0, 5.0, 20.0), "direction": (0.0, 1, 0, -1, 0, 0, 0, 0, 1)}


def block_with_hole(hole: int, size: int = 15) -> np.ndarray:
    """Return a cube that fills the volume but for two voxels at each side, with a cubic hole in its middle."""
    array = np.zeros((size, size, size), np.uint8)
    array[2:-2, 2:-2, 2:-2] = 1
    start = (size - hole) // 2
    array[(slice(start, start + hole),) * 3] = 0
    return array


def vote_by_hand(array: np.ndarray, radius: tuple[int, int, int], majority: int) -> np.ndarray:
    """Return the mask after one vote, by the definition; radius along z, y, x."""
    padded = np.pad(array, [(r, r) for r in radius], mode="edge")
    box = [2 * r + 1 for r in radius]
    counts = np.lib.stride_tricks.sliding_window_view(padded, box).sum(axis=(3, 4, 5), dtype=int)
    return (array | (counts >= (np.prod(box) - 1) // 2 + majority)).astype(np.uint8)


@given(
    seed=st.integers(0, 2**32 - 1),
    radius=st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(1, 2)),
    majority=st.integers(1, 2),
    iterations=st.integers(1, 3),
)
@settings(max_examples=30, deadline=None)
def test_each_vote_follows_its_definition(seed, radius, majority, iterations):
    array = (np.random.default_rng(seed).random((6, 7, 8)) < 0.5).astype(np.uint8)
    expected = array
    for _ in range(iterations):
        expected = vote_by_hand(expected, radius, majority)
    filled = fill_holes(Volume(array, **GRID), iterations, radius[::-1], majority)
    np.testing.assert_array_equal(filled.array, expected)


def test_the_result_is_simpleitk_s_on_the_same_grid():
    mask = Volume((np.random.default_rng(1).random((9, 10, 11)) < 0.55).astype(np.uint8), **GRID)
    filled = fill_holes(mask, 4, (2, 1, 1), 3)
    itk = sitk.VotingBinaryIterativeHoleFillingImageFilter()
    itk.SetRadius((2, 1, 1))
    itk.SetMaximumNumberOfIterations(4)
    itk.SetMajorityThreshold(3)
    itk.SetForegroundValue(1)
    itk.SetBackgroundValue(0)
    np.testing.assert_array_equal(filled.array, sitk.GetArrayFromImage(itk.Execute(mask.to_sitk())))
    assert same_grid(filled, mask)
    assert filled.array.dtype == np.uint8


@pytest.mark.parametrize(("hole", "iterations"), [(1, 1), (2, 1), (3, 2)])
def test_a_hole_closes_after_known_votes_and_not_before(hole, iterations):
    full = block_with_hole(0)
    mask = Volume(block_with_hole(hole))
    np.testing.assert_array_equal(fill_holes(mask, iterations).array, full)
    if iterations > 1:
        assert np.count_nonzero(fill_holes(mask, iterations - 1).array != full) == 1 + 6


def test_foreground_never_dies_and_a_cube_does_not_grow():
    cube = block_with_hole(0)
    cube[7, 7, 13] = 1
    np.testing.assert_array_equal(fill_holes(Volume(cube), 10).array, cube)


def test_majority_is_the_surplus_over_one_half():
    array = np.zeros((3, 3, 3), np.uint8)
    array.flat[:13] = 1  # the centre, voxel 13 of 27, has 13 neighbours in the foreground
    array.flat[26] = 1  # ... and now 14: half of the others and one
    assert fill_holes(Volume(array), 1, 1, 1).array[1, 1, 1] == 1
    assert fill_holes(Volume(array), 1, 1, 2).array[1, 1, 1] == 0


def test_a_slit_of_two_voxels_needs_a_radius_of_two():
    # In a box of radius r the slit takes 2 of 2r + 1 layers: 2/3 of the votes at radius 1, 2/5 at radius 2.
    array = np.ones((9, 9, 9), np.uint8)
    array[:, 4:6] = 0
    np.testing.assert_array_equal(fill_holes(Volume(array), 20, 1).array, array)
    assert fill_holes(Volume(array), 1, 2).array.all()
    assert fill_holes(Volume(array), 1, (1, 2, 1)).array.all()
    np.testing.assert_array_equal(fill_holes(Volume(array), 20, (2, 1, 2)).array, array)


@pytest.mark.parametrize("foreground", [255, 1.0, True, -1])
def test_any_one_foreground_value_counts(foreground):
    array = np.where(block_with_hole(1) > 0, foreground, 0)
    np.testing.assert_array_equal(fill_holes(Volume(array)).array, block_with_hole(0))


@pytest.mark.parametrize("array", [[0, 1, 2], [1, 2, 2], [0.0, 0.5, 1.0]])
def test_more_than_one_label_is_refused(array):
    with pytest.raises(
        InputError, match=rf"{len(set(array))} values, {', '.join(f'{v:g}' for v in sorted(set(array)))};"
    ):
        fill_holes(Volume(np.broadcast_to(np.array(array), (3, 3, 3))))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"iterations": 0}, "iterations 0"),
        ({"radius": 0}, r"radius \(0, 0, 0\)"),
        ({"radius": (1, -1, 1)}, r"radius \(1, -1, 1\)"),
        ({"majority": 0}, "majority 0; expected 1 to 14"),
        ({"majority": 15}, "majority 15; expected 1 to 14"),
    ],
)
def test_settings_that_cannot_vote_are_refused(arguments, named):
    with pytest.raises(InputError, match=named):
        fill_holes(Volume(block_with_hole(1)), **arguments)


def test_command_on_one_file(tmp_path):
    mask = Volume(block_with_hole(3), **GRID)
    write_volume(mask, tmp_path / "mask.nii.gz")
    source = tmp_path / "mask.nii.gz"
    target = tmp_path / "new" / "filled.mha"
    assert fill_hole.main(["--input", str(source), "--output", str(target)]) == 0
    filled = read_volume(target)
    np.testing.assert_array_equal(filled.array, block_with_hole(0))
    assert filled.array.dtype == np.uint8
    assert same_grid(filled, mask)
    once = ["--iterations", "1", "--radius", "1", "1", "1"]
    with pytest.raises(InputError, match="exists already"):
        fill_hole.main(["--input", str(source), "--output", str(target), *once])
    fill_hole.main(["--input", str(source), "--output", str(target), *once, "--overwrite"])
    assert np.count_nonzero(read_volume(target).array != block_with_hole(0)) == 7


def test_command_never_replaces_its_input_unless_told(tmp_path):
    path = write_volume(Volume(block_with_hole(1), **GRID), tmp_path / "mask.nii.gz")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"is the input.*--overwrite"):
        fill_hole.main(["--input", str(path), "--output", str(tmp_path / "." / "mask.nii.gz")])
    assert path.read_bytes() == before
    with pytest.raises(InputError, match=r"is the input.*--overwrite"):
        fill_hole.main(["--input", str(tmp_path), "--output", str(tmp_path)])
    assert path.read_bytes() == before
    assert fill_hole.main(["--input", str(tmp_path), "--output", str(tmp_path), "--overwrite"]) == 0
    np.testing.assert_array_equal(read_volume(path).array, block_with_hole(0))


def test_command_on_a_folder_resumes_after_a_bad_file_and_lists_it(tmp_path, caplog):
    source, target = tmp_path / "in", tmp_path / "out"
    write_volume(Volume(block_with_hole(1), **GRID), source / "a.nii.gz")
    write_volume(Volume(block_with_hole(1) * np.arange(15, dtype=np.uint8), **GRID), source / "b.nii.gz")
    write_volume(Volume(block_with_hole(1), **GRID), source / "deeper" / "d.mha")
    (source / "c.nrrd").write_bytes(b"no volume")
    (source / "notes.txt").write_text("no mask")
    with caplog.at_level("INFO"):
        assert fill_hole.main(["--input", str(source), "--output", str(target)]) == 1
    assert sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()) == [
        "a.nii.gz",
        "deeper/d.mha",
    ]
    np.testing.assert_array_equal(read_volume(target / "deeper" / "d.mha").array, block_with_hole(0))
    failed = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(failed) == 2
    assert "b.nii.gz" in failed[0] and "12 values" in failed[0]
    assert "c.nrrd" in failed[1]
    assert "2 of 4 masks filled" in caplog.text


def test_png_slices_are_filled_in_2d(tmp_path):
    array = np.zeros((9, 10), np.uint8)
    array[2:7, 2:7] = 255
    full = array.copy()
    array[4, 4] = 0
    array[2, 2] = full[2, 2] = 0
    (tmp_path / "in").mkdir()
    Image.fromarray(array).save(tmp_path / "in" / "mrmask_01.png")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "in" / "mrmask_02.png")
    assert fill_hole.main(["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mrmask_01.png"]
    filled = np.array(Image.open(tmp_path / "out" / "mrmask_01.png"))
    np.testing.assert_array_equal(filled, full)
    five_of_nine = np.array([[[1, 1, 1], [1, 0, 1], [0, 0, 0]]], np.uint8)
    assert fill_holes(Volume(five_of_nine), 1, 1, 1).array[0, 1, 1] == 1
    assert fill_holes(Volume(five_of_nine), 1, 1, 2).array[0, 1, 1] == 0
    with pytest.raises(InputError, match="is a slice; expected the same kind"):
        fill_hole.main(["--input", str(tmp_path / "in" / "mrmask_01.png"), "--output", str(tmp_path / "a.nii.gz")])


def test_a_folder_without_masks_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"no mask in it; expected \.nii\.gz"):
        fill_hole.main(["--input", str(tmp_path), "--output", str(tmp_path / "out")])


def test_exit_codes_of_the_command(tmp_path):
    script = Path(fill_hole.__file__)
    path = write_volume(Volume(block_with_hole(1)), tmp_path / "in" / "mask.nii.gz")
    call = [sys.executable, str(script), "--input", str(path), "--output"]
    good = subprocess.run([*call, str(tmp_path / "filled.nii.gz")], capture_output=True, text=True)
    assert (good.returncode, good.stderr) == (0, "")
    bad = subprocess.run([*call, str(path)], capture_output=True, text=True)
    assert bad.returncode == 2
    assert "is the input" in bad.stderr and "Traceback" not in bad.stderr
