"""Tissue in the air around the body: how much there is, where, and when somebody is told."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

import test_adapt
import test_pipeline
from cohort.outside_tissue import FAR_MM, OutsideTissue, clear_outside, outside_tissue
from data.volumes.volume import Volume, read_volume, write_volume
from tests.cohort_data import patient_mr, write_model
from tests.test_adapt_options import NAME, adapt
from tests.test_cohort import converted, truth

SHAPE, SPACING = (10, 60, 60), (2.0, 2.0, 5.0)
VOXEL_ML = 0.02


def body() -> np.ndarray:
    y, x = np.mgrid[:60, :60]
    return np.broadcast_to(np.hypot(y - 40, x - 40) < 12, SHAPE).copy()


def ct(*boxes) -> Volume:
    hu = np.where(body(), 40, -1000).astype(np.int16)
    for box in boxes:
        hu[box] = 0
    return Volume(hu, SPACING)


def test_what_lies_far_outside_is_counted_in_ml_and_slices():
    found = outside_tissue(ct(np.s_[2:5, 2:10, 2:12], np.s_[7, 2:12, 2:12]), body())
    assert found.ml == pytest.approx((3 * 80 + 100) * VOXEL_ML)
    assert found.slices == [3, 4, 5, 8]
    assert found.share == pytest.approx(340 / body().sum())


@pytest.mark.parametrize(("gap_mm", "counted"), [(6.0, False), (FAR_MM + 8, True)])
def test_skin_and_blur_beside_the_body_do_not_count(gap_mm, counted):
    """The box begins `gap_mm` left of the disc, whose first column is 29, and is 4 mm wide."""
    column = 29 - round(gap_mm / 2)
    found = outside_tissue(ct(np.s_[:, 40, column : column + 2]), body())
    assert (found.ml > 0) == counted


def test_slices_without_any_body_count_where_no_body_is_near_them():
    """Slices of 5 mm: the third from the body is the first that is farther than 10 mm from it."""
    there = body()
    there[:4] = False
    volume = ct()
    found = outside_tissue(volume, there)
    assert found.slices == [1, 2] and found.ml == pytest.approx(2 * body()[0].sum() * VOXEL_ML)
    clear_outside(volume, there)
    assert np.array_equal(volume.array[2:], ct().array[2:]) and (volume.array[:2] == -1000).all()


def test_slices_are_numbered_from_the_lowest():
    volume = ct(np.s_[2:4, 2:20, 2:30])
    turned = replace(volume, array=volume.array[::-1].copy(), direction=(1, 0, 0, 0, 1, 0, 0, 0, -1))
    assert outside_tissue(turned, body()).slices == outside_tissue(volume, body()).slices == [3, 4]


@pytest.mark.parametrize(("ml", "share", "told"), [(9.9, 0.1, False), (10.1, 0.0019, False), (10.1, 0.0021, True)])
def test_little_is_not_told(ml, share, told):
    text = OutsideTissue(ml, share, [1, 2, 3, 9]).describe()
    assert bool(text) == told
    if text:
        assert text.startswith("10 ml of tissue more than 10 mm outside the body")
        assert "(axial slices 1 to 3, 9)" in text


def test_a_result_says_it():
    def with_false_tissue(mr):
        hu = truth(mr)
        hu[:, :12, :] = 50
        return hu

    (warning,) = [text for text in converted(with_false_tissue).warnings if "ml of tissue" in text]
    assert "false tissue in the air" in warning
    assert not any("ml of tissue" in text for text in converted().warnings)


def test_what_is_counted_is_what_is_set_to_air():
    near, far = np.s_[:, 40, 26:28], np.s_[2:5, 2:10, 2:12]
    volume = ct(near, far)
    assert clear_outside(volume, body()) == pytest.approx(3 * 80 * VOXEL_ML)
    assert np.array_equal(volume.array, ct(near).array)
    assert clear_outside(volume, body()) == 0


def test_what_becomes_air_is_certain():
    far = np.s_[2:5, 2:10, 2:12]
    volume, deviation = ct(far), Volume(np.full(SHAPE, 7, np.float32), SPACING)
    clear_outside(volume, body(), deviation)
    expected = np.full(SHAPE, 7.0)
    expected[far] = 0
    assert np.array_equal(deviation.array, expected)


@pytest.fixture
def masked(tmp_path):
    """A patient with a mask of part of the body, around which there is much that then lies outside."""
    write_model(tmp_path)
    mr = patient_mr()
    _, y, x = np.indices(mr.array.shape)
    inside = np.hypot(y - mr.array.shape[1] / 2, x - mr.array.shape[2] / 2) < 4
    write_volume(mr, tmp_path / "in/mr.nii.gz")
    write_volume(mr.with_array(inside.astype(np.uint8)), tmp_path / "mask.nii.gz")
    (tmp_path / "list.csv").write_text("id,path,mask\nmr,in/mr.nii.gz,mask.nii.gz\n")
    return tmp_path, inside


def without_far_tissue(ct: Volume, inside: np.ndarray) -> np.ndarray:
    """Computed in another way: the axial distance of every voxel to the body, which is the same in all slices."""
    distance = np.stack([ndimage.distance_transform_edt(~plane, sampling=ct.spacing[1::-1]) for plane in inside])
    far = (distance > FAR_MM) & (ct.array > -300)
    assert far.any()
    return np.where(far, -1000, ct.array)


def test_the_option_sets_it_to_air_and_says_so(masked):
    root, inside = masked
    arguments = adapt(root, root / "in/mr.nii.gz", "--mask", root / "mask.nii.gz")
    assert test_adapt.main([*arguments, "--output", str(root / "as_it_is.nii.gz")]) == 0
    assert test_adapt.main([*arguments, "--output", str(root / "cleared.nii.gz"), "--air_outside"]) == 0
    before, after = (read_volume(root / f"{name}.nii.gz") for name in ("as_it_is", "cleared"))
    assert np.array_equal(after.array, without_far_tissue(before, inside))
    reports = [json.loads((root / f"{name}.json").read_text()) for name in ("as_it_is", "cleared")]
    ml = reports[0]["checks"]["outside_tissue_ml"]
    assert reports[1]["checks"]["outside_tissue_ml"] == ml == pytest.approx(outside_tissue(before, inside).ml, rel=1e-5)
    assert [any("ml of tissue" in text for text in report["warnings"]) for report in reports] == [True, False]
    (note,) = [text for text in reports[1]["notes"] if "ml of tissue" in text]
    assert note.startswith(f"{ml:.1f} ml of tissue more than 10 mm outside the body")
    assert "air_outside" not in reports[0] and reports[1]["air_outside"]


def test_a_cohort_is_converted_anew_with_it_and_without_it(masked):
    root, inside = masked
    where = ["--name", NAME, "--checkpoints_dir", str(root / "checkpoints"), "--results_dir", str(root / "out")]
    arguments = [*where, "--device", "cpu", "--precision", "fp32", "--list", str(root / "list.csv"), "--no_html"]
    volumes = []
    for more in ([], ["--air_outside"], []):
        assert test_pipeline.main([*arguments, *more]) == 0
        volumes.append(read_volume(root / "out" / NAME / "mr.nii.gz"))
    assert np.array_equal(volumes[1].array, without_far_tissue(volumes[0], inside))
    assert np.array_equal(volumes[2].array, volumes[0].array)


def test_the_mean_of_several_models_is_cleared_once(masked):
    root, inside = masked
    (write_model(root, seed=1) / NAME).rename(root / "checkpoints/b")
    write_model(root)
    arguments = adapt(root, root / "in/mr.nii.gz", "--mask", root / "mask.nii.gz")
    arguments[1:2] = [NAME, "b"]
    assert test_adapt.main([*arguments, "--output", str(root / "as_it_is.nii.gz")]) == 0
    assert test_adapt.main([*arguments, "--output", str(root / "cleared.nii.gz"), "--air_outside"]) == 0
    before, after = (read_volume(root / f"{name}.nii.gz") for name in ("as_it_is", "cleared"))
    assert np.array_equal(after.array, without_far_tissue(before, inside))
