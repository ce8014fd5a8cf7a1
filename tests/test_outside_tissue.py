"""Tissue in the air around the body: how much there is, where, and when somebody is told."""

from dataclasses import replace

import numpy as np
import pytest

from cohort.outside_tissue import FAR_MM, OutsideTissue, outside_tissue
from data.volumes.volume import Volume
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


def test_slices_without_any_body_count_whole():
    there = body()
    there[0] = False
    found = outside_tissue(ct(), there)
    assert found.slices == [1] and found.ml == pytest.approx(body()[0].sum() * VOXEL_ML)


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
