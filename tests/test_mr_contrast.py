"""An MR of another contrast than the model expects: told by its DICOM header, by dark borders, by dark fat."""

from dataclasses import replace

import numpy as np
import pydicom
import pytest
from scipy import ndimage

from cohort.checks import Check
from cohort.findings import Findings
from cohort.mr_contrast import LEAST_BORDERS, below_skin, check_contrast, dark_borders
from data.volumes.dicom_contrasts import other_than_t1
from data.volumes.volume import Volume, read_volume
from models.inference_settings import InferenceSettings
from models.synthesis import prepare_volume
from tests.cohort_data import write_dicom_patient
from tests.test_cohort import MR_SETTINGS

FAT, MUSCLE = 900.0, 300.0
T1 = replace(MR_SETTINGS, mr_window="tissue")


def stripes(border: float | None, spacing: tuple[float, float, float] = (2.0, 2.0, 5.0)) -> Volume:
    """Stripes of fat and muscle, 6 voxels wide, and a voxel of `border` between each two (None: none)."""
    row = []
    for k in range(10):
        row += [FAT if k % 2 else MUSCLE] * 6 + ([] if border is None else [border])
    array = np.tile(np.array(row, np.float32), (4, len(row), 1))
    return Volume(array, spacing, (0.0,) * 3, tuple(np.eye(3).ravel()))


def test_a_border_is_dark_where_it_is_darker_than_both_of_its_sides():
    rows = stripes(0).size[1] * 4
    assert dark_borders(stripes(0), FAT) == (9 * rows, 9 * rows)
    assert dark_borders(stripes(130), FAT) == (9 * rows, 9 * rows)
    assert dark_borders(stripes(220), FAT)[0] == 9 * rows
    assert dark_borders(stripes(230), FAT)[0] == 0  # more than three quarters of muscle
    assert dark_borders(stripes(600), FAT)[0] == 0
    # Without a voxel between them each border counts for the voxels on both of its sides; none is dark.
    rows = stripes(None).size[1] * 4
    assert dark_borders(stripes(None), FAT) == (0, 2 * 9 * rows)


def test_borders_are_looked_for_along_the_two_finest_axes():
    volume = stripes(0)
    turned = Volume(volume.array.T.copy(), (5.0, 2.0, 2.0), volume.origin, volume.direction)
    assert dark_borders(turned, FAT) == dark_borders(volume, FAT)
    across = Volume(volume.array, (5.0, 2.0, 2.0), volume.origin, volume.direction)  # stripes along the coarse axis
    assert dark_borders(across, FAT) == (0, 0)


def test_noise_about_a_border_is_no_dark_border():
    volume = stripes(None)
    noisy = volume.array + np.random.default_rng(0).normal(0, 30, volume.array.shape).astype(np.float32)
    dark, borders = dark_borders(volume.with_array(noisy), FAT)
    assert borders > LEAST_BORDERS and dark / borders < 0.01


def limb(below: float, deep: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A disc of 60 mm radius in pixels of 2 mm: skin of 2 mm, 9 mm of `below`, and `deep`; where it is, and all."""
    y, x = np.mgrid[:80, :80]
    radius = 2 * np.hypot(y - 40, x - 40)
    return np.where(radius < 49, deep, np.where(radius < 58, below, 0.0)), radius < 60, np.ones((80, 80), bool)


@pytest.mark.parametrize(("below", "deep"), [(900, 300), (300, 900), (500, 500)])
def test_what_lies_below_the_skin_is_compared_with_what_lies_deep(below, deep):
    assert below_skin(*limb(below, deep), 2.0) == pytest.approx(below / deep)


def test_too_little_of_either_says_nothing():
    mr, body, seen = limb(900, 300)
    assert np.isnan(below_skin(mr, body, seen, 0.5))  # 15 mm: nothing lies deep
    assert np.isnan(below_skin(mr, np.zeros_like(body), seen, 2.0))
    assert np.isnan(below_skin(np.where(mr == 300, 0, mr), body, seen, 2.0))
    assert np.isnan(below_skin(mr, seen, seen, 2.0))  # no outline


def test_the_edge_of_the_field_of_view_is_no_skin():
    mr, body, seen = limb(900, 300)
    seen[:, :20] = seen[:, 60:] = False  # muscle at both edges
    body &= seen
    assert below_skin(mr, body, seen, 2.0) == 3.0


HEADERS = {
    "a water image": {"ImageType": ["DERIVED", "PRIMARY", "DIXON", "WATER"]},
    "a fat image": {"ImageType": ["DERIVED", "PRIMARY", "F"]},
    "an opposed-phase image": {"ImageType": ["ORIGINAL", "PRIMARY", "M", "OUT_PHASE"], "EchoTime": 4.6},
    "an opposed-phase image (echo time 2.3 ms at 1.5 T)": {
        "ScanningSequence": ["GR"], "EchoTime": 2.3, "MagneticFieldStrength": 1.5,
    },
    "T2-weighted (echo time 90 ms)": {"ScanningSequence": ["SE"], "EchoTime": 90, "RepetitionTime": 1400},
    "an opposed-phase image (echo time 1.15 ms at 3 T)": {
        "EchoPulseSequence": "GRADIENT", "EchoTime": 1.15, "MagneticFieldStrength": 3,
    },
}  # fmt: skip
T1_HEADERS = [
    {},
    {"ImageType": ["DERIVED", "PRIMARY", "DIXON", "IN_PHASE"], "EchoTime": 2.3, "ScanningSequence": "GR",
     "MagneticFieldStrength": 1.5},
    {"ScanningSequence": "GR", "EchoTime": 4.6, "MagneticFieldStrength": 1.5},
    {"ScanningSequence": "SE", "EchoTime": 2.3, "MagneticFieldStrength": 1.5},  # spin echoes are in phase
    {"ScanningSequence": "GR", "EchoTime": 2.3},
    {"ScanningSequence": "SE", "EchoTime": 12, "RepetitionTime": 600},
    {"EchoTime": None, "RepetitionTime": None},
]  # fmt: skip


def header(values: dict) -> pydicom.Dataset:
    made = pydicom.Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("said", HEADERS)
def test_a_header_says_what_an_image_is(said):
    assert other_than_t1(header(HEADERS[said])) == said


@pytest.mark.parametrize("values", T1_HEADERS)
def test_a_header_that_may_be_of_t1_in_phase_says_nothing(values):
    assert other_than_t1(header(values)) is None


def scan(kind: str) -> Volume:
    """A thigh of 24 slices: T1, opposed phase, or with dark fat; noise of 1 %."""
    y, x = np.mgrid[:96, :96]
    radius = 2 * np.hypot(y - 48, x - 48)
    fat, muscle = (MUSCLE, FAT) if kind == "water" else (FAT, MUSCLE)
    mr = np.where(radius < 60, muscle, np.where(radius < 80, fat, 0.0))
    if kind == "opposed":
        mr[(radius > 59) & (radius < 61)] = 60
    noise = np.random.default_rng(1).normal(0, 9, (24, 96, 96))
    return Volume(np.abs(mr + noise).astype(np.float32), (2.0, 2.0, 5.0), (0.0,) * 3, tuple(np.eye(3).ravel()))


def checked(volume: Volume, settings: InferenceSettings) -> Findings:
    """What the checks of a conversion find of an MR; its own slices stand for the network's."""
    slices, plan = prepare_volume(volume, settings)
    check = Check(plan, None)
    for index in range(len(slices)):
        check.add(slices[index])
    check.finish(plan.source)
    return check.findings


def warnings(volume: Volume) -> str:
    return "; ".join(checked(volume, T1).warnings)


def test_a_synthesis_warns_of_opposed_phase_and_of_dark_fat_and_not_of_t1():
    expected = "the model expects T1-weighted MR in phase"
    assert expected not in warnings(scan("T1"))
    opposed, water = warnings(scan("opposed")), warnings(scan("water"))
    assert "are dark lines, as in opposed-phase" in opposed and expected in opposed
    assert "0.33 times as bright" in water and "as in water images" in water and expected in water


@pytest.mark.parametrize("factor", [2, 3])
def test_opposed_phase_is_found_in_interpolated_images(factor):
    for kind, found in (("opposed", True), ("T1", False)):
        coarse = scan(kind)
        fine = ndimage.zoom(coarse.array, (1, factor, factor), order=1, grid_mode=True, mode="nearest")
        side = 2.0 / factor
        volume = Volume(fine, (side, side, 5.0), coarse.origin, coarse.direction)
        assert ("dark lines" in warnings(volume)) == found


def test_a_model_of_other_contrasts_is_not_told_that_it_expects_t1():
    settings = replace(T1, contrasts=("water", "fat"), generator=replace(T1.generator, input_nc=2))
    _, plan = prepare_volume(scan("water"), settings, further=[scan("T1")])
    assert plan.own_scale and not plan.t1_in_phase
    _, plan = prepare_volume(scan("T1"), replace(settings, contrasts=("in_phase", "fat")), further=[scan("water")])
    assert plan.t1_in_phase


def test_a_model_without_a_scale_of_its_own_is_not_asked():
    assert "dark_border_share" not in checked(scan("opposed"), MR_SETTINGS).figures


def test_the_header_of_a_series_is_believed(tmp_path):
    def water(k, header):
        header.ImageType = ["DERIVED", "PRIMARY", "DIXON", "WATER"]

    write_dicom_patient(tmp_path / "water", change=water)
    volume = read_volume(tmp_path / "water")
    assert volume.dicom.other_contrast == "a water image"
    _, plan = prepare_volume(volume, T1)
    findings = Findings()
    check_contrast(findings, plan, np.array([]))
    assert findings.warnings[0].startswith("its DICOM header says that it is a water image: the model expects T1")
    write_dicom_patient(tmp_path / "plain")
    assert read_volume(tmp_path / "plain").dicom.other_contrast is None
