"""Axial, coronal and sagittal slices: where they lie, what is recorded of them, and models of several views as one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import test_adapt
import train
from data.errors import InputError
from data.prepared.manifest import read_manifest
from data.prepared.slice_spacing import through_mm
from data.values.intensity import IntensityMap
from data.volumes.slice_frame import VIEWS, SliceFrame, view_direction
from data.volumes.volume import Volume, read_volume, same_grid, write_volume
from models.ensemble import check_ensemble, synthesize_ensemble
from models.inference_settings import check_compatible, model_sha256, read_inference_settings
from models.shape_extractor import ExtractorSettings, ShapeExtractor, open_extractor, save_extractor
from models.synthesis import Synthesiser, load_synthesiser, synthesize_volume
from models.test_model import TestModel
from scripts import prepare_dataset
from tests.cohort_data import NAME, patient_mr, write_model
from tests.cohort_data import SETTINGS as TINY_SETTINGS
from tests.test_direction import Constant
from tests.test_preparation import ct_volume, mr_volume, raw  # noqa: F401
from tests.test_slice_frame import SIGNED_PERMUTATIONS, random_volume
from tests.test_synthesis import SETTINGS, ramp_mr

CPU = torch.device("cpu")
# Of each view: the patient axis (L, P, S), and its sign, along which slices, rows and columns count.
RUNS = {
    "axial": ((2, 1), (1, 1), (0, 1)), "coronal": ((1, 1), (2, -1), (0, 1)), "sagittal": ((0, -1), (2, -1), (1, 1)),
}  # fmt: skip


def coordinate(volume: Volume, axis: int) -> Volume:
    """Return a volume of each voxel's patient coordinate along L, P or S, in mm."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in volume.array.shape), indexing="ij"), axis=-1)[..., ::-1]
    position = (index * volume.spacing) @ np.reshape(volume.direction, (3, 3)).T
    return volume.with_array(position[..., axis].astype(np.float32))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("direction", SIGNED_PERMUTATIONS[::5])
def test_slices_rows_and_columns_run_as_they_are_said_to(view, direction):
    volume = random_volume((6, 7, 9), (1.0, 1.0, 1.0), direction)
    for dimension, (axis, sign) in enumerate(RUNS[view]):
        frame = SliceFrame.of(volume, 12, 1.0, view=view)
        slices = frame.prepare(coordinate(volume, axis), fill=np.nan)
        steps = np.diff(slices, axis=dimension)
        np.testing.assert_allclose(steps[~np.isnan(steps)], sign, atol=1e-4)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("direction", SIGNED_PERMUTATIONS[::3])
def test_every_view_comes_back_voxel_by_voxel(view, direction):
    volume = random_volume((5, 8, 11), (1.5, 1.5, 1.5), direction)
    frame = SliceFrame.from_dict(json.loads(json.dumps(SliceFrame.of(volume, 14, 1.5, view=view).to_dict())))
    back = frame.restore(frame.prepare(volume, fill=-7.0), -1000)
    np.testing.assert_array_equal(back.array, volume.array)
    assert same_grid(back, volume)
    mask = volume.array > 0
    np.testing.assert_array_equal(frame.inside(mask), mask)
    assert frame.slices_with(mask).shape == (frame.slices,)


@pytest.mark.parametrize("view", VIEWS)
def test_prepared_slices_are_a_volume_of_their_own(view):
    direction = view_direction(view)
    assert np.linalg.det(np.reshape(direction, (3, 3))) == pytest.approx(1)
    volume = random_volume((12, 12, 5), direction=direction)
    np.testing.assert_array_equal(SliceFrame.of(volume, 12, 1.0, view=view).prepare(volume, 0), volume.array)


def test_thick_slices_become_square_pixels():
    """Axial slices 6 mm apart: rows of a coronal slice lie 2 mm apart, between them by straight lines."""
    volume = Volume(np.zeros((10, 8, 8), np.float32), (2.0, 2.0, 6.0))
    heights = coordinate(volume, 2)
    frame = SliceFrame.of(heights, 32, 2.0, view="coronal")
    assert (frame.slices, frame.through_mm, frame.in_plane_mm, frame.resamples) == (8, 2.0, 2.0, True)
    column = frame.prepare(heights, fill=-1.0)[4, :, 16]
    np.testing.assert_allclose(np.diff(column[(column > 0.5) & (column < 53.5)]), -2.0, atol=1e-3)
    np.testing.assert_allclose(
        frame.restore(frame.prepare(heights, 0.0), 0.0).array[1:-1], heights.array[1:-1], atol=0.5
    )


class Negative(torch.nn.Module):
    def forward(self, x):
        return -x


def known(net: torch.nn.Module, **changes) -> Synthesiser:
    settings = replace(SETTINGS, **changes)
    model = TestModel.__new__(TestModel)
    super(TestModel, model).__init__(net.eval(), settings.slab, CPU)
    return Synthesiser(settings, model)


@pytest.mark.parametrize("view", VIEWS)
def test_a_known_network_gives_known_hu_in_every_view(view):
    mr = ramp_mr(spacing=(2.0, 2.0, 2.0))
    ct = synthesize_volume(mr, known(Negative(), view=view), np.ones(mr.array.shape, bool))
    assert same_grid(ct, mr)
    np.testing.assert_allclose(ct.array, 1400 - mr.array * 4.8, atol=0.51)


class RowOfSlice(torch.nn.Module):
    """What it gives depends on the row alone, from -1 to 1."""

    def forward(self, x):
        rows = torch.linspace(-1, 1, x.shape[-2])
        return rows[:, None].expand_as(x)


def test_a_model_sees_the_slices_of_its_view():
    """Rows of axial slices run to the back, those of coronal and sagittal ones to the feet."""
    mr = Volume(np.linspace(0, 500, 16**3).reshape(16, 16, 16).astype(np.float32), (2.0, 2.0, 2.0))
    body = np.ones(mr.array.shape, bool)
    axial, coronal, sagittal = (
        synthesize_volume(mr, known(RowOfSlice(), view=view, size=16), body).array for view in VIEWS
    )
    line = np.linspace(-1000, 1400, 16)
    np.testing.assert_allclose(axial, np.broadcast_to(line[None, :, None], axial.shape), atol=1)
    for array in (coronal, sagittal):
        np.testing.assert_allclose(array, np.broadcast_to(line[::-1, None, None], array.shape), atol=1)


def fused(levels: list[float], fusion: str) -> tuple[np.ndarray, np.ndarray]:
    mr = ramp_mr(spacing=(2.0, 2.0, 2.0))
    models = [known(Constant(level), view=view) for level, view in zip(levels, VIEWS, strict=False)]
    ct, deviation = synthesize_ensemble(mr, models, np.ones(mr.array.shape, bool), fusion=fusion)
    return ct.array, deviation.array


def test_views_are_fused_by_mean_or_median():
    """Three views say 0, 0.1 and 0.5 of 1200 HU about 200 HU."""
    levels = [0.0, 0.1, 0.5]
    mean, deviation = fused(levels, "mean")
    median, about_mean = fused(levels, "median")
    assert mean.dtype == median.dtype == np.int16
    assert np.all(mean == 200 + 1200 * 0.2) and np.all(median == 200 + 1200 * 0.1)
    np.testing.assert_allclose(deviation, 1200 * np.std(levels), rtol=1e-3)
    np.testing.assert_allclose(about_mean, deviation)


def test_a_fusion_of_few_is_refused():
    one = SETTINGS
    with pytest.raises(InputError, match="--fusion mean: a is one model; name several"):
        check_ensemble(["a"], [one], False, "mean")
    with pytest.raises(InputError, match="--fusion median: for two models, a and b, the median is the mean"):
        check_ensemble(["a", "b"], [one, one], False, "median")
    check_ensemble(["a", "b"], [one, one], False, "mean")
    check_ensemble(["a", "b", "c"], [one] * 3, False, "median")


def test_the_command_fuses_models_of_three_views(tmp_path):
    for seed, view in enumerate(VIEWS):
        write_model(tmp_path, seed=seed, settings=replace(TINY_SETTINGS, view=view))
        (tmp_path / "checkpoints" / NAME).rename(tmp_path / "checkpoints" / view)
    mr = write_volume(patient_mr(), tmp_path / "p7.nii.gz")
    words = [
        "--checkpoints_dir",
        f"{tmp_path}/checkpoints",
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--input",
        str(mr),
    ]
    out = ["--output", f"{tmp_path}/out.nii.gz"]
    assert test_adapt.main(["--name", *VIEWS, *words, *out, "--fusion", "median"]) == 0
    models = [load_synthesiser(tmp_path / "checkpoints" / view, "latest", CPU) for view in VIEWS]
    singles = [synthesize_volume(read_volume(mr), one).array for one in models]
    assert np.std(singles, axis=0).max() > 1
    np.testing.assert_array_equal(read_volume(tmp_path / "out.nii.gz").array, np.median(singles, axis=0))
    assert json.loads((tmp_path / "out.json").read_text())["fusion"] == "median"


def prepare(raw: Path, view: str, *more: str) -> Path:  # noqa: F811
    words = ["--mr", f"{raw}/mr/*", "--ct", f"{raw}/ct/*", "--out", f"{raw}/set", "--size", "32", "--workers", "1"]
    assert prepare_dataset.main([*words, "--view", view, *more]) == 0
    return raw / "set"


def test_a_data_set_and_its_models_record_their_view(raw, caplog):  # noqa: F811
    root = prepare(raw, "coronal")
    manifest = read_manifest(root)
    assert manifest.view == "coronal" and {case.view for case in manifest.cases} == {"coronal"}
    case = manifest.select("train", "A")[0]
    volume = mr_volume()
    # 60 x 60 pixels of 2 mm and 6 slices of 4 mm: coronal slices lie 2 mm apart, with pixels of the body's width.
    assert (case.slices, case.in_plane_mm, through_mm(case)) == (60, 2.0, 2.0)
    frame = SliceFrame.of(volume, 32, manifest.spacing_mm, view="coronal")
    expected = frame.prepare(volume, fill=float(volume.array.min()))
    np.testing.assert_allclose(np.load(root / case.image_file), expected, rtol=1e-5)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.npy")}
    prepare(raw, "coronal")
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.npy")} == times
    words = ["--dataroot", str(root), "--checkpoints_dir", f"{raw}/c", "--name", "n", "--netG", "resnet_6blocks"]
    small = ["--ngf", "2", "--ndf", "2", "--lambda_shape", "0", "--lambda_shape_gan", "0", "--max_dataset_size", "1"]
    assert train.main([*words, *small, "--n_epochs", "1", "--n_epochs_decay", "0", "--device", "cpu", "--no_html"]) == 0
    settings = read_inference_settings(raw / "c/n")
    assert settings.view == "coronal"
    mr = read_volume(raw / "mr/p0.nii.gz")
    assert same_grid(synthesize_volume(mr, load_synthesiser(raw / "c/n", "latest", CPU)), mr)
    prepare(raw, "sagittal")
    assert {case.view for case in read_manifest(root).cases} == {"sagittal"}
    with pytest.raises(InputError, match="view: coronal there, sagittal here"):
        train.main([*words, *small, "--n_epochs", "2", "--continue_train", "--device", "cpu", "--no_html"])
    check_compatible("n", settings, replace(settings, view="axial"))
    assert "view: coronal there, axial here" in caplog.text


def test_a_model_of_axial_slices_keeps_the_hash_that_it_had(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"weights")
    hashes = {view: model_sha256(replace(SETTINGS, view=view), tmp_path / "w.pth") for view in VIEWS}
    assert len(set(hashes.values())) == 3
    record = json.loads(replace(SETTINGS).write(tmp_path).read_text())
    del record["view"]  # as earlier versions wrote it
    (tmp_path / "inference.json").write_text(json.dumps(record))
    assert model_sha256(read_inference_settings(tmp_path), tmp_path / "w.pth") == hashes["axial"]


def test_an_extractor_of_another_view_is_refused(tmp_path):
    ct_map = IntensityMap.window(-1000, 1400)
    save_extractor(ShapeExtractor(ExtractorSettings(4, 1, ct_map, 32, 1.0, view="coronal")), tmp_path / "e.pth")
    with pytest.raises(InputError, match=r"was trained on coronal slices, but .* has axial ones"):
        open_extractor(tmp_path / "e.pth", tmp_path, CPU, ct_map, 1.0)
