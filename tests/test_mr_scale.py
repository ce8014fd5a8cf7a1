"""MR on one scale: where fat lies, by closed forms; the window in training and in use."""

import json
from dataclasses import replace

import numpy as np
import pytest

from data.errors import InputError
from data.loading.slices import prepared_windows, typical_mr_window
from data.prepared.manifest import read_manifest
from data.values import mr_scale
from data.values.bias_field import log_bias_field, without_field
from data.values.intensity import IntensityMap, mr_window
from data.values.mr_scale import check_starts_at_zero, fat_level
from data.volumes.volume import Volume, write_volume
from models.synthesis import prepare_volume
from options import train_options
from scripts import prepare_dataset
from tests.test_cohort import MR_SETTINGS, TRAINING, converted, patient_mr
from tests.test_preparation import FAT_MR, MUSCLE_MR, cylinder, mr_volume, prepare, raw  # noqa: F401

CT_MAP = IntensityMap.window(-1000, 1400)


def tissues(fat=900.0, muscle=300.0, fat_share=0.3, spread=0.1, voxels=40_000) -> np.ndarray:
    """Return voxels of muscle and fat, each log-normal about its level, shape (N,)."""
    levels = np.repeat([fat, muscle], [round(fat_share * voxels), voxels - round(fat_share * voxels)])
    return levels * np.exp(np.random.default_rng(0).normal(0, spread, voxels))


def level(values: np.ndarray) -> float:
    return fat_level(values, np.ones(values.shape, bool))


@pytest.mark.parametrize("ratio", [1.8, 2.5, 3.0, 4.0, 5.5])
@pytest.mark.parametrize("share", [0.08, 0.3, 0.6, 0.92])
def test_the_upper_of_two_modes_is_fat(ratio, share):
    assert level(tissues(muscle=900 / ratio, fat_share=share)) == pytest.approx(900, rel=0.02)


@pytest.mark.parametrize(("share", "expected"), [(0.12, 749), (0.2, 860)])
@pytest.mark.parametrize("lung", [0.1, 0.3])
def test_muscle_above_lung_is_not_taken_for_fat(share, expected, lung):
    """Fat of 500 to 1100, smeared as in coarse MR, has no mode; lung and muscle are as far apart as muscle and fat."""
    rest = tissues(fat=390.0, muscle=78.0, fat_share=1 - lung)
    smeared = np.random.default_rng(1).uniform(np.log(500), np.log(1100), round(share / (1 - share) * rest.size))
    assert level(np.concatenate([rest, np.exp(smeared)])) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("factor", [0.3, 3.0, 1e-6, 1 / 7, 12345.678])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.5])
def test_the_level_scales_with_the_mr_to_rounding(factor, share):
    values = tissues(fat_share=share)
    assert level(factor * values) == pytest.approx(factor * level(values), rel=1e-9)
    single = values.astype(np.float32)
    assert level(np.float32(factor) * single) == pytest.approx(factor * level(single), rel=1e-5)


def test_whole_numbers_of_a_low_scale_are_as_good():
    assert level(np.rint(tissues() / 30)) * 30 == pytest.approx(900, rel=0.03)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_zeros_noise_and_bright_spots_do_not_move_the_level(share):
    """Half of a generous mask is background, zero or noise; one voxel in 500 is a vessel."""
    values = tissues(fat_share=share)
    rng = np.random.default_rng(1)
    empty, noise = np.zeros(values.size), rng.rayleigh(12, values.size)
    spots = np.full(values.size // 500, 20_000.0)
    for background in (empty, noise):
        assert level(np.concatenate([values, background, spots])) == pytest.approx(900, rel=0.03)


def test_a_crop_has_the_level_of_the_whole():
    """The crop holds a quarter of the limb and less fat."""
    limb = mr_volume()
    body = cylinder(40.0) < 1
    crop = np.s_[1:4, 25:, 18:45]
    whole = fat_level(limb.array, body)
    assert whole == pytest.approx(FAT_MR, rel=0.02)
    assert fat_level(limb.array[crop], body[crop]) == pytest.approx(whole, rel=0.01)


def test_one_mode_takes_the_upper_percentile():
    """Muscle alone, or with fat too rare to tell from vessels, or fat alone, or two tissues too near to be a pair."""
    for values in (tissues(fat_share=0), tissues(fat_share=0.01), tissues(fat_share=1), tissues(muscle=700)):
        assert level(values) == pytest.approx(0.95 * np.percentile(values, 95), rel=1e-12)


def test_no_voxel_above_zero_is_an_error():
    empty = np.zeros((4, 4, 4), np.float32)
    with pytest.raises(InputError, match="no voxel of the MR is above 0"):
        level(empty)
    with pytest.raises(InputError, match="no voxel of the MR is above 0"):
        log_bias_field(Volume(empty), np.ones(empty.shape, bool))


def limb(amplitude: float) -> tuple[Volume, np.ndarray, np.ndarray]:
    """Return a limb of 140 mm under a smooth field of 1 +- `amplitude`, its body, and the field."""
    shape = (12, 56, 56)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.hypot(x, y * 1.1)
    body = radius < 0.9
    bone = np.hypot(x - 0.1, y) < 0.15
    clean = np.where(body, np.where(radius > 0.7, 950.0, np.where(bone, 850.0, 320.0)), 0.0)
    field = 1 + amplitude * np.sin(np.pi / 2 * (0.7 * x + 0.4 * y - 0.3 * z))
    noise = np.random.default_rng(0).normal(0, 15, (2, *shape))
    array = np.hypot(clean * field + noise[0], noise[1]).astype(np.float32)
    return Volume(array, (2.5, 2.5, 5.0), (3.0, -9.0, 40.0)), body, field


def test_the_tissue_window_reaches_1200_where_fat_lies_at_950():
    assert mr_window("tissue", (3.0, 7.0), 950.0).range == pytest.approx((0, 1200))


def same_truth(_) -> np.ndarray:
    mr = patient_mr().array
    return np.where(mr > 600, -100, np.where(mr > 150, 50, -1000)).astype(np.float32)


def test_a_scaled_mr_goes_through_the_network_as_it_is():
    """The slices do not depend on the scanner's scale, and no check cries out about it."""
    settings = replace(MR_SETTINGS, mr_window="tissue")
    slices, plan = prepare_volume(patient_mr(), settings)
    assert plan.source_map.range == pytest.approx((0, 1200 / 950 * FAT_MR), rel=0.02)
    for scale in (0.3, 3.0):
        mr = patient_mr().with_array(np.float32(scale) * patient_mr().array)
        np.testing.assert_allclose(prepare_volume(mr, settings)[0], slices, atol=1e-5)
        same = converted(same_truth, mr=mr, settings=settings, training=TRAINING)
        assert "scaling" not in "; ".join(same.warnings)


def test_a_model_with_bias_correction_sees_the_corrected_mr():
    mr, body, _ = limb(0.4)
    settings = replace(MR_SETTINGS, size=96, mr_window=(0.0, 1200.0), bias_correction=True)
    slices, _ = prepare_volume(mr, settings, body)
    corrected = without_field(mr, log_bias_field(mr, body))
    expected, _ = prepare_volume(corrected, replace(settings, bias_correction=False), body)
    np.testing.assert_array_equal(slices, expected)
    plain, _ = prepare_volume(mr, replace(settings, bias_correction=False), body)
    assert np.abs(np.asarray(slices) - np.asarray(plain)).max() > 0.1


def test_preparation_records_fat_and_its_windows_follow(raw):  # noqa: F811
    _, manifest = prepare(raw)
    cases = manifest.select("train", "A")
    for k, case in enumerate(cases):
        assert case.fat_level == pytest.approx(FAT_MR * (1 + k), rel=0.02)
        assert prepared_windows([case], "tissue", CT_MAP)[0][0].range == (0, 1200 / 950 * case.fat_level)
    typical = np.mean([case.fat_level for case in cases])
    assert typical_mr_window(manifest, "tissue").range == pytest.approx((0, 1200 / 950 * typical))
    assert not manifest.bias_corrected
    assert all(case.fat_level is None for case in manifest.select("train", "B"))


def test_a_data_set_prepared_without_the_level_says_the_way_out(raw):  # noqa: F811
    _, manifest = prepare(raw)
    for path in [raw / "set/manifest.json", *(raw / "set/trainA").glob("*.json")]:
        data = json.loads(path.read_text())
        for case in data.get("cases", [data]):
            del case["fat_level"]
            del case["bias_corrected"]
        path.write_text(json.dumps(data))
    old = read_manifest(raw / "set")
    assert prepared_windows(old.select("train", "A"), "percentile", CT_MAP)
    with pytest.raises(InputError, match=r"p0: prepared by a version .* run python -m scripts.prepare_dataset again"):
        prepared_windows(old.select("train", "A"), "tissue", CT_MAP)
    with pytest.raises(InputError, match="did not record where fat lies"):
        typical_mr_window(old, "tissue")
    assert prepare(raw)[1] == manifest  # the way out


def test_bias_correction_is_recorded_and_a_changed_mind_is_done_again(raw):  # noqa: F811
    def mr_slices():
        return [np.load(file) for file in sorted((raw / "set/trainA").glob("*.npy"))]

    prepare(raw)
    plain, ct = mr_slices(), (raw / "set/trainB/q0.npy").stat().st_mtime_ns
    _, manifest = prepare(raw, "--bias_correction")
    assert manifest.bias_corrected and all(case.bias_corrected for case in manifest.select("train", "A"))
    body = cylinder(40.0) < 1
    for before, after in zip(plain, mr_slices(), strict=True):
        assert not np.array_equal(before, after)
        inside = np.s_[:, 2:62, 2:62]
        np.testing.assert_allclose(np.median(after[inside][body]), np.median(before[inside][body]), rtol=0.1)
    assert (raw / "set/trainB/q0.npy").stat().st_mtime_ns == ct  # CT has no bias field
    assert not prepare(raw)[1].bias_corrected
    for before, after in zip(plain, mr_slices(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_option():
    words = ["--dataroot", "d", "--name", "n", "--mr_window"]
    assert train_options.parse([*words, "tissue"]).data.mr_window == "tissue"
    assert not prepare_dataset.parse("--mr a --ct b --out c".split()).bias_correction


def test_the_pair_of_modes_is_as_far_apart_as_fat_and_muscle():
    assert mr_scale.FAT_TO_MUSCLE[0] < FAT_MR / MUSCLE_MR < mr_scale.FAT_TO_MUSCLE[1]


# What others make of an MR: intensities that do not start at 0.
SHIFTED = {
    "standardised": (lambda mr: (mr - 320) / 250, r"% of the body's voxels lie below 0"),
    "standardised in the body": (lambda mr: (mr - 500) / 300, r"% of the body's voxels lie below 0"),
    "-1 to 1": (lambda mr: mr / 600 - 1, r"% of the body's voxels lie below 0"),
    "1000 more": (lambda mr: mr + 1000, r"around the body it lies at 10\d\d, where fat lies at 19\d\d"),
    "300 more": (lambda mr: mr + 300, r"around the body it lies at 3\d\d.*, where fat lies at 12\d\d"),
    "150 less": (lambda mr: mr - 150, r"around the body it lies at -1\d\d.*, where fat lies at 7\d\d.*"),
    "1000 more, padded by 0": (
        lambda mr: np.where(mr > 150, mr + 1000, 0), r"in the body is darker than 12\d\d, where fat lies at 19\d\d",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SHIFTED)
def test_an_mr_that_does_not_start_at_0_is_refused_where_its_fat_would_set_the_scale(kind):
    shift, words = SHIFTED[kind]
    mr, body, _ = limb(0.1)
    body &= mr.array > 150  # the rim is noise
    shifted = mr.with_array(shift(mr.array).astype(np.float32))
    with pytest.raises(InputError, match=rf"does not start at 0 \(.*{words}\).*use --mr_window percentile"):
        check_starts_at_zero(shifted.array, body)
    settings = replace(MR_SETTINGS, size=96)
    for other in (replace(settings, mr_window="tissue"), replace(settings, bias_correction=True)):
        with pytest.raises(InputError, match="does not start at 0"):
            prepare_volume(shifted, other, body)
    prepare_volume(shifted, replace(settings, mr_window="percentile"), body)


def test_a_body_that_fills_the_image_tells_by_its_darkest_voxels():
    mr, body, _ = limb(0.1)
    inside = np.s_[:, 14:42, 14:42]
    crop, whole = mr.array[inside], np.ones(body[inside].shape, bool)
    crop = np.where(crop < 700, crop, 60)  # bone that is dark, as cortex is
    check_starts_at_zero(crop, whole)
    with pytest.raises(InputError, match=r"\(where it is darkest it lies at \d+.*, where fat lies at"):
        check_starts_at_zero(crop + 300, whole)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 40.0])
def test_an_mr_as_scanners_write_it_starts_at_0(scale):
    mr, body, _ = limb(0.4)
    rng = np.random.default_rng(3)
    noisy = np.hypot(mr.array + rng.normal(0, 80, mr.array.shape), rng.normal(0, 80, mr.array.shape))
    real = np.where(body, mr.array, 0) + rng.normal(0, 60, mr.array.shape)  # no magnitudes
    masked = np.where(body, mr.array, 0)
    generous = np.ones(body.shape, bool)
    for array, mask in ((mr.array, body), (noisy, body), (real, body), (masked, body), (masked, generous)):
        check_starts_at_zero(scale * array, mask)


def test_preparation_resumes_without_the_level_of_fat_and_says_so(raw, caplog):  # noqa: F811
    mr = mr_volume()
    write_volume(mr.with_array(mr.array + 1000), raw / "mr/p0.nii.gz")
    for k in range(2):
        write_volume(mr.with_array((cylinder(40.0) < 1).astype(np.uint8)), raw / f"mask/p{k}.nii.gz")
    masks = ("--mr_mask", f"{raw}/mask/*")
    _, manifest = prepare(raw, *masks)
    shifted, sound = manifest.select("train", "A")
    assert (shifted.fat_level, sound.fat_problem) == (None, None)
    assert sound.fat_level == pytest.approx(2 * FAT_MR, rel=0.02)
    assert f"{raw}/mr/p0.nii.gz: prepared, but not for --mr_window tissue: the MR does not start at 0" in caplog.text
    assert prepared_windows([shifted], "percentile", CT_MAP)[0][0].range == shifted.percentiles
    for use in (lambda: prepared_windows([shifted], "tissue", CT_MAP), lambda: typical_mr_window(manifest, "tissue")):
        with pytest.raises(InputError, match=r"^p0 \(.*mr/p0.nii.gz\): the MR does not start at 0 .* percentile"):
            use()
    time = (raw / "set/trainA/p0.npy").stat().st_mtime_ns
    assert prepare(raw, *masks)[1] == manifest  # nothing is done again
    assert (raw / "set/trainA/p0.npy").stat().st_mtime_ns == time


def test_an_mr_below_0_throughout_is_prepared_for_percentiles(raw):  # noqa: F811
    mr = mr_volume()
    for k in range(2):
        write_volume(mr.with_array((cylinder(40.0) < 1).astype(np.uint8)), raw / f"mask/p{k}.nii.gz")
    write_volume(mr.with_array(mr.array / 10 - 200), raw / "mr/p0.nii.gz")
    code, manifest = prepare(raw, "--mr_mask", f"{raw}/mask/*")
    case = manifest.select("train", "A")[0]
    assert (code, case.fat_level) == (0, None) and case.percentiles[1] == pytest.approx(-110, abs=5)
    assert case.fat_problem.startswith("no voxel of the MR is above 0 inside the body mask; for --mr_window tissue")


def test_bias_correction_fails_on_such_an_mr_alone_and_names_it(raw, caplog):  # noqa: F811
    mr = mr_volume()
    write_volume(mr.with_array((mr.array - 500) / 300), raw / "mr/p0.nii.gz")
    code, manifest = prepare(raw, "--bias_correction")
    assert code == 1
    assert [case.name for case in manifest.select("train", "A")] == ["p1"]
    assert f"{raw}/mr/p0.nii.gz: the MR does not start at 0" in caplog.text
