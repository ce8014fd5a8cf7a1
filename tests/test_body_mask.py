"""Bodies of known shape are found at any scale, spacing and axis order; couch, noise and markers are not."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from data.errors import InputError
from data.masks.body_mask import ct_body_mask, mr_body_mask, read_mask, remove_couch
from data.phantom.labels import COUCH_LABELS, arm_mask, body_mask
from data.phantom.patients import PhantomSettings, make_patient
from data.volumes.volume import Volume, from_sitk, read_volume, write_volume

SHARED = Path(__file__).parents[1].parent / "shared" / "data" / "sts"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason=f"no development data at {SHARED}")

FIELD_MM = (240.0, 240.0, 160.0)
FAT, MUSCLE, LUNG_MR = 1.0, 0.3, 0.03
SPACINGS = [(3.0, 3.0, 3.0), (0.98, 0.98, 3.3), (1.5, 1.5, 2.0), (1.2, 1.2, 10.0)]


def coordinates(spacing, field_mm=FIELD_MM) -> tuple[np.ndarray, ...]:
    """Return z, y, x of the voxel centres in mm, 0 in the middle, ready to broadcast."""
    x, y, z = (
        np.arange(round(mm / s)) * s - (round(mm / s) - 1) * s / 2 for s, mm in zip(spacing, field_mm, strict=True)
    )
    return z[:, None, None], y[:, None], x


def ellipsoid(grid, centre, radii) -> np.ndarray:
    """Return an ellipsoid's mask; centre and radii along x, y, z in mm."""
    return sum(((c - m) / r) ** 2 for c, m, r in zip(grid[::-1], centre, radii, strict=True)) < 1


def trunk(grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return masks of a trunk, its muscle below the fat, and a lung inside."""
    shape = [(0, 0, 0), (95, 75, 400)]
    return (
        ellipsoid(grid, *shape),
        ellipsoid(grid, shape[0], (85, 65, 390)),
        ellipsoid(grid, (30, -5, 20), (35, 45, 50)),
    )


def mr_trunk(spacing) -> tuple[np.ndarray, np.ndarray]:
    """Return an MR of the trunk without noise, and the body's mask."""
    body, muscle, lung = trunk(coordinates(spacing))
    return np.where(lung, LUNG_MR, np.where(muscle, MUSCLE, np.where(body, FAT, 0))).astype(np.float32), body


def rician(image, sigma, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.hypot(image + sigma * rng.standard_normal(image.shape), sigma * rng.standard_normal(image.shape)).astype(
        np.float32
    )


def ct_trunk(spacing, couch_y_mm=75.0, noise_hu=30.0) -> tuple[Volume, np.ndarray, np.ndarray]:
    """Return a CT of the trunk on a hollow couch, the body's mask and the couch's (its foam included)."""
    grid = coordinates(spacing)
    body, muscle, lung = trunk(grid)
    _, y, x = grid
    inside = (np.abs(x) < 110) & (y > couch_y_mm) & (y < couch_y_mm + 30)
    foam = (np.abs(x) < 107) & (y > couch_y_mm + 3) & (y < couch_y_mm + 27)
    couch = np.broadcast_to(inside, body.shape) & ~body
    hu = np.where(foam, -920.0, 50.0) * inside - 1000.0 * ~inside
    hu = np.where(lung, -850.0, np.where(muscle, 50.0, np.where(body, -100.0, hu)))
    hu += noise_hu * np.random.default_rng(0).standard_normal(hu.shape)
    return Volume(np.rint(np.clip(hu, -1024, 3071)).astype(np.int16), spacing), body, couch


def dice(a, b) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_mr_body_is_the_whole_ellipsoid_with_its_lung(spacing):
    image, body = mr_trunk(spacing)
    mask = mr_body_mask(Volume(rician(image, 0.03), spacing))
    assert mask.dtype == bool
    assert dice(mask, body) > 0.98
    assert mask[body].mean() > 0.999


@pytest.mark.parametrize("scale", [1e-4, 1.0, 750.0, 1e6])
def test_mr_scale_does_not_matter(scale):
    image, _ = mr_trunk((3.0, 3.0, 3.0))
    noisy = rician(image, 0.03)
    reference = mr_body_mask(Volume(noisy, (3.0, 3.0, 3.0)))
    assert dice(mr_body_mask(Volume(noisy * np.float32(scale), (3.0, 3.0, 3.0))), reference) > 0.9999


def test_mr_standardised_to_zero_mean_gives_the_same_body():
    image, body = mr_trunk((3.0, 3.0, 3.0))
    noisy = rician(image, 0.03)
    mask = mr_body_mask(Volume((noisy - noisy.mean()) / noisy.std(), (3.0, 3.0, 3.0)))
    assert dice(mask, body) > 0.97


def test_mr_survives_low_signal_and_a_bias_field():
    spacing = (1.5, 1.5, 3.0)
    image, body = mr_trunk(spacing)
    z, y, x = coordinates(spacing)
    bias = np.exp(0.5 * np.sin(x / 80 + 1) + 0.4 * np.cos(y / 90) + 0.3 * z / 80)
    assert bias.max() / bias.min() > 3
    assert dice(mr_body_mask(Volume(rician(image * bias, 0.07), spacing)), body) > 0.96


def test_mr_spikes_do_not_move_the_threshold():
    spacing = (3.0, 3.0, 3.0)
    image, body = mr_trunk(spacing)
    image = rician(image, 0.03)
    image[25, 40, 20:23] = 1e4
    assert dice(mr_body_mask(Volume(image, spacing)), body) > 0.97


def test_mr_legs_cut_by_the_field_of_view_are_both_kept_and_markers_are_not():
    spacing = (1.0, 1.0, 4.0)
    grid = coordinates(spacing)
    legs = ellipsoid(grid, (-100, 20, 0), (85, 80, 1e4)) | ellipsoid(grid, (95, 20, 0), (60, 70, 1e4))
    marker = ellipsoid(grid, (30, -105, 0), (8, 8, 8))
    image = rician(np.where(legs, MUSCLE, 0) + marker * FAT, 0.02)
    seen = np.broadcast_to(grid[1] + 0.3 * grid[2] < 90, image.shape)  # a rotated field of view
    mask = mr_body_mask(Volume(np.where(seen, image, 0).astype(np.float32), spacing))
    assert dice(mask, legs & seen) > 0.98
    assert not mask[marker].any()


@pytest.mark.parametrize(
    ("body_mm", "part_mm", "kept"),
    [((92, 110), 16, False), ((92, 110), 30, True), ((40, 45), 12, False), ((40, 45), 15, True)],
)
def test_a_part_is_kept_from_half_a_percent_of_the_largest_and_10_ml_on(body_mm, part_mm, kept):
    spacing = (2.0, 2.0, 3.0)
    grid = coordinates(spacing)
    body = ellipsoid(grid, (25, 0, 0), (*body_mm, 1e4))
    part = ellipsoid(grid, (-95, -80, 20), (part_mm, part_mm, part_mm))
    assert kept == (part.sum() / body.sum() > 0.005 and part.sum() * 12 / 1000 > 10)
    for find, image in (
        (mr_body_mask, rician(np.where(body | part, FAT, 0), 0.02)),
        (ct_body_mask, np.where(body | part, 0, -1000)),
    ):
        mask = find(Volume(image.astype(np.float32), spacing))
        assert mask[body].mean() > 0.99
        assert (mask[part].mean() > 0.9) == kept
        assert mask[part].any() == kept


def test_mr_dark_cortex_right_under_the_skin_is_filled():
    spacing = (1.0, 1.0, 4.0)
    grid = coordinates(spacing)
    depth = 90 - np.hypot(grid[1], grid[2]) + 0 * grid[0]
    cortex = (depth > 2) & (depth < 7) & (np.abs(grid[2]) < 40)
    image = rician(np.where(cortex, 0.01, np.where(depth > 0, FAT, 0)), 0.01)
    mask = mr_body_mask(Volume(image, spacing))
    assert mask[cortex].all()
    assert dice(mask, depth > 0) > 0.98


def test_mr_without_any_background_is_all_body():
    grid = coordinates((3.0, 3.0, 3.0))
    image = np.where(ellipsoid(grid, (0, 0, 0), (90, 90, 1e4)), MUSCLE, FAT)
    assert mr_body_mask(Volume(rician(image, 0.02), (3.0, 3.0, 3.0))).all()


def test_mr_cavity_cut_by_the_border_is_filled_but_air_at_a_corner_is_not():
    spacing = (3.0, 3.0, 3.0)
    grid = coordinates(spacing)
    _, y, x = grid
    body = np.broadcast_to(x + y < 120, np.broadcast_shapes(*(axis.shape for axis in grid))).copy()
    lung = ellipsoid(grid, (-20, -120, 0), (50, 80, 1e4))
    mask = mr_body_mask(Volume(rician(np.where(lung, LUNG_MR, np.where(body, FAT, 0)), 0.03), spacing))
    assert mask[lung].mean() > 0.99
    assert mask[~body].mean() < 0.03


@pytest.mark.parametrize("spacing", [*SPACINGS, (4.0, 4.0, 13.0)])
@pytest.mark.parametrize("gap_mm", [0.0, 8.0])
def test_ct_body_without_the_couch(spacing, gap_mm):
    ct, body, couch = ct_trunk(spacing, couch_y_mm=72 + gap_mm)
    mask = ct_body_mask(ct)
    assert dice(mask, body) > 0.98
    assert mask[couch].mean() < (0.02 if spacing[0] < 4 else 0.04)


def test_ct_body_on_a_couch_without_noise_and_with_much():
    for noise_hu in (0.0, 150.0):
        ct, body, couch = ct_trunk((1.5, 1.5, 3.0), noise_hu=noise_hu)
        mask = ct_body_mask(ct)
        assert dice(mask, body) > 0.985
        assert mask[couch].mean() < 0.02


def test_ct_legs_on_the_couch_are_both_kept_and_the_air_between_them_stays_air():
    spacing = (1.0, 1.0, 3.0)
    grid = coordinates(spacing)
    _, y, x = grid
    legs = ellipsoid(grid, (-60, 0, 0), (55, 60, 1e4)) | ellipsoid(grid, (75, 0, 0), (70, 60, 1e4))
    couch = np.broadcast_to((y > 62) & (y < 65), legs.shape)
    ct = Volume(np.where(legs | couch, 0, -1000).astype(np.int16), spacing)
    mask = ct_body_mask(ct)
    assert dice(mask, legs) > 0.985
    assert not mask[couch].any()
    assert not mask[:, (y[:, 0] > 35) & (y[:, 0] < 60)][:, :, np.abs(x) < 5].any()


def test_ct_arms_that_close_a_ring_do_not_make_the_air_in_it_body():
    spacing = (2.0, 2.0, 3.0)
    grid = coordinates(spacing)
    ring = ellipsoid(grid, (0, 0, 20), (105, 100, 45)) & ~ellipsoid(grid, (0, 0, 20), (75, 70, 1e4))
    head = ellipsoid(grid, (0, 0, 0), (45, 45, 75))
    mask = ct_body_mask(Volume(np.where(ring | head, 30, -1000).astype(np.int16), spacing))
    assert dice(mask, ring | head) > 0.98


def test_ct_lung_that_a_wide_airway_opens_is_filled():
    spacing = (1.5, 1.5, 3.0)
    grid = coordinates(spacing)
    ct, body, _ = ct_trunk(spacing, couch_y_mm=90)
    opening = ellipsoid(grid, (30, -60, 20), (20, 40, 20))
    ct.array[opening] = -1000
    mask = ct_body_mask(ct)
    lung_elsewhere = trunk(grid)[2] & (np.abs(grid[0] - 20) > 25)
    assert mask[lung_elsewhere].mean() > 0.99
    assert dice(mask, body) > 0.94


@pytest.mark.parametrize(("way_mm", "filled"), [(4, True), (40, False)])
def test_a_cavity_is_filled_through_a_narrow_way_but_not_through_a_wide_one(way_mm, filled):
    spacing = (1.5, 1.5, 3.0)
    grid = coordinates(spacing)
    _, y, x = grid
    cavity = ellipsoid(grid, (0, 0, 0), (50, 50, 1e4))
    way = (np.abs(x) < way_mm / 2) & (y < 0)
    body = ellipsoid(grid, (0, 0, 0), (80, 80, 1e4)) & ~cavity & ~way
    mask = ct_body_mask(Volume(np.where(body, 0, -1000).astype(np.int16), spacing))
    assert (mask[cavity].mean() > 0.95) == filled
    assert mask[cavity].any() == filled


def test_a_cover_that_sticks_to_the_back_with_pockets_is_left_out():
    spacing = (1.0, 1.0, 3.0)
    grid = coordinates(spacing)
    _, y, x = grid
    body = np.broadcast_to((np.abs(x) < 90) & (np.abs(y) < 60), ellipsoid(grid, (0, 0, 0), (1, 1, 1)).shape)
    cover = (y > 62) & (y < 65) | (y > 60) & (y < 63) & (x % 30 < 3)
    cover = np.broadcast_to(cover & (np.abs(x) < 110), body.shape)
    mask = ct_body_mask(Volume(np.where(body | cover, 0, -1000).astype(np.int16), spacing))
    assert dice(mask, body) > 0.995
    assert mask[cover & (y > 63)].mean() < 0.01


def test_ct_thin_parts_in_front_and_at_the_side_are_kept():
    spacing = (1.0, 1.0, 3.0)
    grid = coordinates(spacing)
    z, y, x = grid
    head = ellipsoid(grid, (0, 0, 0), (70, 80, 1e4))
    ear = (np.abs(x - 74) < 6) & (np.abs(y) < 3) & (np.abs(z) < 30)
    nose = (np.abs(x) < 3) & (np.abs(y + 84) < 8) & (np.abs(z) < 30)
    mask = ct_body_mask(Volume(np.where(head | ear | nose, 0, -1000).astype(np.int16), spacing))
    assert mask[ear].mean() > 0.95
    assert mask[nose].mean() > 0.95


@pytest.mark.parametrize("axes", ["RAI", "ASR", "SLP"])
def test_stored_axis_order_does_not_matter(axes):
    spacing = (2.0, 1.5, 5.0)
    image, _ = mr_trunk(spacing)
    mr = Volume(rician(image, 0.03), spacing)
    ct, _, _ = ct_trunk(spacing)
    for volume, find in ((mr, mr_body_mask), (ct, ct_body_mask)):
        turned = from_sitk(sitk.DICOMOrient(volume.to_sitk(), axes))
        back = sitk.DICOMOrient(turned.with_array(find(turned)).to_sitk(), "LPS")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(back) > 0, find(volume))


# How axes lie when the patient is turned and the couch is not: prone, prone with head and feet exchanged, on a side.
LYING = {
    "prone": (1, 0, 0, 0, -1, 0, 0, 0, -1),
    "front and back exchanged": (1, 0, 0, 0, -1, 0, 0, 0, 1),
    "on the left": (0, 1, 0, -1, 0, 0, 0, 0, 1),
    "on the right": (0, -1, 0, 1, 0, 0, 0, 0, 1),
}


@pytest.mark.parametrize("gap_mm", [0, 2, 10])
@pytest.mark.parametrize("lying", LYING)
def test_the_couch_is_found_on_whatever_side_the_patient_lies(lying, gap_mm):
    ct, body, couch = ct_trunk((2.0, 2.0, 3.0), couch_y_mm=72 + gap_mm)
    supine = ct_body_mask(ct)
    turned = ct_body_mask(Volume(ct.array, ct.spacing, direction=tuple(map(float, LYING[lying]))))
    np.testing.assert_array_equal(turned, supine)
    assert turned[couch].mean() < 0.04
    assert dice(turned, body) > 0.99


def test_fingers_in_front_make_no_patient_prone():
    spacing = (2.0, 2.0, 3.0)
    ct, body, couch = ct_trunk(spacing, couch_y_mm=74)
    z, y, x = coordinates(spacing)
    fingers = np.broadcast_to((np.abs(x) < 20) & (y > -84) & (y < -78) & (np.abs(z) < 30), body.shape)
    ct.array[fingers & ~body] = 0
    mask = ct_body_mask(ct)
    assert mask[couch].mean() < 0.04
    assert dice(mask, body | fingers) > 0.975


@pytest.mark.parametrize("find", [mr_body_mask, ct_body_mask])
@pytest.mark.parametrize(
    "array",
    [np.zeros((20, 40, 40), np.int16), np.full((20, 40, 40), -1000, np.int16), np.full((20, 40, 40), 7.5)],
)
def test_a_constant_volume_has_no_body(find, array):
    with pytest.raises(
        InputError,
        match=rf"(no body found|not an MR|not a CT in HU) .*values {array.min():g} to {array.max():g}.*; check that",
    ):
        find(Volume(array, (3.0, 3.0, 3.0)))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 3.0), (3.0, 3.0, 3.0), (4.0, 4.0, 13.0)])
def test_noise_alone_has_no_body(spacing):
    noise = rician(np.zeros((40, 100, 100)), 20.0)
    with pytest.raises(InputError, match="no body found in the MR"):
        mr_body_mask(Volume(noise, spacing))
    air = np.random.default_rng(0).normal(-1000, 60, (40, 100, 100)).astype(np.int16)
    with pytest.raises(InputError, match="no body found in the CT"):
        ct_body_mask(Volume(air, spacing))


def test_a_couch_alone_is_no_body():
    ct, body, _ = ct_trunk((1.5, 1.5, 3.0), couch_y_mm=76, noise_hu=0)
    with pytest.raises(InputError, match="nothing body-sized above -500 HU"):
        ct_body_mask(ct.with_array(np.where(body, -1000, ct.array)))


def test_the_wrong_modality_is_named():
    image, _ = mr_trunk((3.0, 3.0, 3.0))
    mr = Volume((1000 * rician(image, 0.03)).astype(np.int16), (3.0, 3.0, 3.0))
    ct, _, _ = ct_trunk((3.0, 3.0, 3.0))
    with pytest.raises(InputError, match="look like CT"):
        mr_body_mask(ct)
    for use in (ct_body_mask, remove_couch):
        with pytest.raises(InputError, match="looks like MR"):
            use(mr)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_remove_couch_leaves_the_body_and_air(dtype):
    ct, body, _ = ct_trunk((2.0, 2.0, 4.0))
    ct = ct.with_array(ct.array.astype(dtype))
    before = ct.array.copy()
    clean = remove_couch(ct)
    assert clean.array.dtype == dtype
    np.testing.assert_array_equal(ct.array, before)
    mask = ct_body_mask(ct)
    np.testing.assert_array_equal(clean.array[mask], ct.array[mask])
    reach = sitk.GetArrayFromImage(sitk.BinaryDilate(ct.with_array(mask).to_sitk(), [1, 1, 1])) > 0
    assert set(np.unique(clean.array[~reach])) == {-1000}
    assert reach[~body].mean() < 0.1
    assert dice(ct_body_mask(clean), mask) > 0.998


def test_remove_couch_keeps_the_skin_beside_a_supplied_mask():
    array = np.full((5, 9, 9), -300, np.int16)
    array[0, 0, 0] = -1000
    mask = np.zeros(array.shape, bool)
    mask[2, 4, 4] = True
    clean = remove_couch(Volume(array, (1.0, 1.0, 5.0)), mask).array
    assert np.all(clean[2, 4, 2:7] == -300)
    assert np.all(clean[2, 4, [1, 7]] == -1000)
    assert clean[1, 4, 4] == clean[3, 4, 4] == -300
    assert clean[0, 4, 4] == clean[4, 4, 4] == -1000
    with pytest.raises(InputError, match="mask is empty"):
        remove_couch(Volume(array), np.zeros(array.shape, bool))


def test_read_mask(tmp_path):
    ct, body, _ = ct_trunk((6.0, 6.0, 10.0))
    labels = np.where(body, 3, 0).astype(np.uint8)
    write_volume(ct.with_array(labels), tmp_path / "mask.nii.gz")
    mask = read_mask(tmp_path / "mask.nii.gz", ct)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, body)
    write_volume(ct.with_array(0 * labels), tmp_path / "empty.nii.gz")
    with pytest.raises(InputError, match=r"empty\.nii\.gz: the mask is empty"):
        read_mask(tmp_path / "empty.nii.gz", ct)
    moved = Volume(labels, ct.spacing, (0.0, 0.0, 2.0))
    write_volume(moved, tmp_path / "moved.nii.gz")
    said = r"moved\.nii\.gz: the mask is not on the volume's grid: origin \(.* 2\) mm, expected \(.* 0\) mm; delete"
    with pytest.raises(InputError, match=said):
        read_mask(tmp_path / "moved.nii.gz", ct)


@pytest.fixture(scope="module")
def settings() -> PhantomSettings:
    return PhantomSettings(matrix=128, slices=40, spacing_mm=4.0, slice_mm=31.0)


@pytest.mark.parametrize("domain", ["ct", "test"])
def test_phantom_bodies_are_found_and_the_couch_is_not(settings, domain):
    patient = make_patient(0, 1, domain, settings)
    labels = patient.labels.array
    found = [mr_body_mask(patient.mr)] if patient.mr else []
    found += [ct_body_mask(patient.ct)] if patient.ct else []
    couch = np.isin(labels, COUCH_LABELS)
    for mask in found:
        assert dice(mask, body_mask(labels)) > 0.98
        assert mask[arm_mask(labels)].mean() > 0.95
        assert np.count_nonzero(mask & couch) < 0.01 * max(1, np.count_nonzero(couch))
    assert couch.any() == (domain == "ct")


@pytest.mark.shared
@needs_shared
def test_sts_ct_keeps_the_other_leg_and_drops_the_couch_and_the_blanket():
    ct = read_volume(SHARED / "train/CT/STS_013_CT.nii.gz")
    mask = ct_body_mask(ct)
    other_leg = mask[:, 100:200, :20]
    assert np.median(ct.array[:, 100:200, :20][other_leg]) > -200
    assert np.count_nonzero(other_leg.any(axis=(1, 2))) > 100
    assert not mask[:, 200:, 160:].any()
    assert ct.array[:, 200:, 160:].max() > 0
    assert not mask[:, :15].any()


@pytest.mark.shared
@needs_shared
@pytest.mark.parametrize("name", ["006", "021", "032"])
def test_sts_ct_mask_holds_nearly_all_tissue_in_front_of_the_couch_and_little_else(name):
    ct = read_volume(SHARED / f"train/CT/STS_{name}_CT.nii.gz")
    mask = ct_body_mask(ct)
    assert (ct.array[mask] > -500).mean() > 0.985
    lowest = ct.array.shape[1] // 2
    tissue = ct.array[:, :lowest] > -300
    assert mask[:, :lowest][tissue].mean() > 0.995


@pytest.mark.shared
@needs_shared
def test_sts_mr_keeps_two_parts_and_fills_the_lung_cut_by_the_border():
    arm_and_chest = mr_body_mask(read_volume(SHARED / "train/MR/STS_005_MR_T1.nii.gz"))[7]
    assert arm_and_chest[80, 5] and arm_and_chest[100, 100]
    assert not arm_and_chest[100, 55]
    shoulder = read_volume(SHARED / "train/MR/STS_037_MR_T1.nii.gz")
    mask = mr_body_mask(shoulder)
    assert mask[11, 10:50, 110:140].all()
    assert not mask[:, -5:].any()
    assert mask[shoulder.array == 0].mean() < 0.02


@pytest.mark.shared
@needs_shared
def test_oblique_dicom_series_of_a_thigh():
    mask = mr_body_mask(read_volume(SHARED / "raw_oblique/STS_001_MR_T1"))
    assert 0.55 < mask.mean() < 0.7
    assert mask[5:35, 200:350, 200:350].all()
    assert not mask[:10, -40:, :40].any()
    assert not mask[:, :20, -100:].any()


@pytest.mark.parametrize("offset", [0, 200, 1000])
def test_an_mr_whose_darkest_may_be_air_that_is_not_at_0_is_warned_of(offset, caplog):
    """It cannot be told from one that shows tissue alone."""
    inside = np.hypot(*(np.indices((60, 60)) - 29.5)) * 2.0
    image = np.where(inside < 32, 300, np.where(inside < 40, 900, 0)) + offset
    mr = Volume((image + np.random.default_rng(0).rayleigh(8, (6, 60, 60))).astype(np.float32), (2.0, 2.0, 4.0))
    found = mr_body_mask(mr)
    if offset:
        assert f"its lowest value, {offset + 1}" in caplog.text and "shift it back so that air is at 0" in caplog.text
    else:
        assert dice(found, np.broadcast_to(inside < 40, found.shape)) > 0.95 and not caplog.messages
