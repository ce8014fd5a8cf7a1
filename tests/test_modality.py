"""Values tell what is not an MR and what is not a CT in HU; padding is not tissue and shrinks no body."""

import numpy as np
import pytest
from scipy import ndimage

from data.errors import InputError
from data.masks.body_mask import ct_body_mask, mr_body_mask, remove_couch
from data.prepared.slice_writing import ct_slices
from data.values.modality import check_ct, check_mr, in_hu
from data.volumes.slice_frame import SliceFrame
from data.volumes.volume import Volume
from evaluation.cases import read_reference
from evaluation.report import score_case

SHAPE = (12, 90, 80)
Y, X = np.mgrid[: SHAPE[1], : SHAPE[2]]
RADIUS = np.broadcast_to(np.hypot((Y - 45) / 36, (X - 40) / 32), SHAPE)
BODY = RADIUS < 1
OUTSIDE = np.broadcast_to(np.hypot(Y - 45, X - 40) > 39, SHAPE)


def drawn_ct() -> np.ndarray:
    """A limb of muscle under fat, with bone, in air; HU."""
    return np.where(RADIUS < 0.25, 900, np.where(RADIUS < 0.8, 40, np.where(BODY, -100, -1000))).astype(np.int32)


def measured_ct() -> np.ndarray:
    """The same as a scanner would show it: blurred, with noise of 15 HU, air not below -1024 HU."""
    noise = np.random.default_rng(0).normal(0, 15, SHAPE)
    return np.maximum(np.rint(ndimage.gaussian_filter(drawn_ct().astype(float), 0.7) + noise), -1024).astype(np.int32)


def volume(array: np.ndarray) -> Volume:
    return Volume(array, (2.0, 2.0, 3.0))


def padded(array: np.ndarray, value: float) -> np.ndarray:
    return np.where(OUTSIDE, value, array)


def turned(array: np.ndarray, value: float) -> np.ndarray:
    """Return a volume turned by 8 degrees, with `value` where there was nothing."""
    return ndimage.rotate(array, 8, axes=(1, 2), reshape=False, order=0, cval=value)


IN_HU = {
    "as it is": lambda a: a,
    "float": lambda a: a.astype(np.float32) + 0.25,
    "extended scale, metal": lambda a: np.where(RADIUS < 0.05, 20000, a),
    "12 bits, metal clipped": lambda a: np.where(RADIUS < 0.1, 3071, a),
    "padding -1024": lambda a: padded(a, -1024),
    "padding -2000": lambda a: padded(a, -2000),
    "padding -3024": lambda a: padded(a, -3024),
    "padding -32768": lambda a: padded(a, -32768),
    "turned, padding -1000": lambda a: turned(a, -1000),
    "air at -1000 exactly": lambda a: np.maximum(a, -1000),
    "cropped to the body": lambda a: a[:, 25:65, 20:60],
    "cropped to one side": lambda a: a[:, :45],
    "two pieces": lambda a: np.concatenate([a, a], axis=2),
}
NO_HU = {
    "stored values": lambda a: a + 1024,
    "stored values, padding -2000": lambda a: padded(a + 1024, -2000),
    "stored values, padding -1024": lambda a: padded(a + 1024, -1024),
    "stored values, padding 0": lambda a: padded(a + 1024, 0),
    "HU + 1000, padding -3024": lambda a: padded(a + 1000, -3024),
    "window -160 to 240": lambda a: a.clip(-160, 240),
    "window -160 to 240, padding -2000": lambda a: padded(a.clip(-160, 240), -2000),
    "window -500 to 800": lambda a: a.clip(-500, 800),
    "window -800 to 1300": lambda a: a.clip(-800, 1300),
    "scaled to 0 .. 255": lambda a: (a.clip(-1000, 1000) + 1000) / 2000 * 255,
    "scaled to -1 .. 1": lambda a: a.clip(-1000, 1000) / 1000,
    "attenuation": lambda a: 0.0096 * (1 + a / 1000),
    "padding 0": lambda a: padded(a, 0),
    "padding 100": lambda a: padded(a, 100),
    "turned, padding 0": lambda a: turned(a, 0),
    "masked by 0": lambda a: np.where(BODY, a, 0),
    "padding 62512": lambda a: padded(a, 62512),
    "padding 32768": lambda a: padded(a, 32768),
    "without sign": lambda a: a % 65536,
}
# Of a drawn image nobody can tell that it was clipped at its highest value.
MEASURED_ONLY = {"window -1000 to 400": lambda a: a.clip(-1000, 400), "up to 1000": lambda a: (2 * a).clip(-1000, 1000)}


@pytest.mark.parametrize("make", [drawn_ct, measured_ct])
@pytest.mark.parametrize("kind", IN_HU)
def test_a_ct_in_hu_is_accepted(kind, make):
    if make is drawn_ct and kind == "cropped to the body":
        pytest.skip("a border of one value looks like a padding")
    check_ct(volume(IN_HU[kind](make())))


@pytest.mark.parametrize("make", [drawn_ct, measured_ct])
@pytest.mark.parametrize("kind", [*NO_HU, *MEASURED_ONLY])
def test_a_ct_that_is_not_in_hu_is_refused_as_training_data_and_as_reference(kind, make):
    if make is drawn_ct and kind in MEASURED_ONLY:
        pytest.skip("cannot be told")
    ct = volume((NO_HU | MEASURED_ONLY)[kind](make()))
    for use in (check_ct, ct_body_mask, lambda v: score_case(volume(make()), v, mask=volume(BODY.astype(np.uint8)))):
        with pytest.raises(InputError, match=r"not a CT in HU \(values .* to .*\): .*; (expected|check)"):
            use(ct)


def test_a_synthetic_ct_may_fill_its_window_to_both_ends():
    check_ct(volume(measured_ct().clip(-200, 300)), synthetic=True)
    with pytest.raises(InputError, match="no air or fat"):
        check_ct(volume(measured_ct() + 1024), synthetic=True)


@pytest.mark.parametrize("make", [drawn_ct, measured_ct])
@pytest.mark.parametrize("padding", [-1024, -2000, -3024, -32768])
def test_padding_shrinks_no_body_and_is_in_no_slice(padding, make):
    """Where the field of view cuts the body, a padding far below air would draw the mask's edge and the slices down."""
    cut = np.broadcast_to(np.hypot(Y - 45, X - 40) > 28, SHAPE)
    first, other = (volume(np.where(cut, value, make())) for value in (-1000, padding))
    masks = [ct_body_mask(ct) for ct in (first, other)]
    assert np.count_nonzero(masks[0] != masks[1]) <= 0.002 * np.count_nonzero(masks[0])
    assert np.count_nonzero(masks[1] & cut) < 0.02 * np.count_nonzero(masks[1])
    slices = [
        ct_slices(ct, mask, SliceFrame.of(ct, 64, 2.7)).astype(int)
        for ct, mask in zip((first, other), masks, strict=True)
    ]
    assert np.abs(slices[0] - slices[1]).max() <= 24
    assert remove_couch(other).array.min() >= -1024
    assert score_case(first, other)["mae"] == pytest.approx(score_case(first, first)["mae"], abs=1)


def test_a_reference_comes_with_its_padding_raised(tmp_path):
    from data.volumes.volume import write_volume

    ct = volume(padded(measured_ct(), -3024).astype(np.int16))
    read = read_reference(write_volume(ct, tmp_path / "ct.nii.gz"), ct).ct
    np.testing.assert_array_equal(read.array, np.maximum(ct.array, -1024))
    assert in_hu(read) is read


def mr() -> np.ndarray:
    image = np.where(RADIUS < 0.25, 40.0, np.where(RADIUS < 0.8, 300.0, np.where(BODY, 900.0, 0.0)))
    rng = np.random.default_rng(1)
    return np.hypot(image + rng.normal(0, 12, SHAPE), rng.normal(0, 12, SHAPE)).astype(np.float32)


def with_voxels(array: np.ndarray, count: int, value: float) -> np.ndarray:
    array = array.copy()
    array.ravel()[np.random.default_rng(2).choice(array.size, count, replace=False)] = value
    return array


def splined(scale: float) -> np.ndarray:
    """Return an MR resampled by cubic splines, which undershoot beside its bright edge."""
    return ndimage.zoom(np.round(scale * np.where(BODY, mr(), 0)), (1, 1.1, 1.1), order=3)


MRS = {
    "as it is": mr,
    "one voxel at -501": lambda: with_voxels(mr(), 1, -501),
    "a few at -2000": lambda: with_voxels(mr(), 40, -2000),
    "splines": lambda: splined(10),
    "splines, 16 bits": lambda: splined(36),
    "standardised": lambda: (mr() - 300) / 250,
    "standardised, in thousandths": lambda: 4 * (mr() - 130),
    "8 bit": lambda: (mr() / 4).clip(0, 255).astype(np.uint8),
    "drawn, three values": lambda: np.where(BODY, np.where(RADIUS < 0.5, 300, 900), 0),
    "8 bit, masked by 0": lambda: np.where(BODY, (mr() / 4).clip(1, 255), 0).astype(np.uint8),
    "8 bit, every voxel twice": lambda: (mr() / 4).clip(0, 255).astype(np.uint8).repeat(2, axis=2),
    "smooth, 12 bits": lambda: ndimage.gaussian_filter(mr(), 3).astype(np.int16),
    "scaled to 0 .. 1": lambda: mr() / 1000,
    "water, muscle near 1000": lambda: np.where(
        BODY, 1000 * (1 + 0.08 * np.random.default_rng(0).normal(size=SHAPE)), 0
    ).round(),
}


def labels(values: list[float], dtype: type = np.int16) -> np.ndarray:
    """Return rings of these labels about each other, the first outside."""
    return np.asarray(values, dtype)[np.where(BODY, 1 + (RADIUS * (len(values) - 1)).astype(int), 0)]


def organs(count: int) -> np.ndarray:
    """Return a body of 16 x 16 columns that are organs, each with a label up to `count`; 0 outside."""
    return np.where(BODY, 1 + (Y // 6 * 16 + X // 6 + np.arange(SHAPE[0])[:, None, None] // 6) % count, 0)


NO_MRS = {
    "CT": (measured_ct, "look like CT in HU"),
    "CT, drawn": (drawn_ct, "look like CT in HU"),
    "CT, padding -3024": (lambda: padded(measured_ct(), -3024), "look like CT in HU"),
    "CT with metal": (lambda: np.where(RADIUS < 0.05, 30000, measured_ct()), "look like CT in HU"),
    "CT plus 1000": (lambda: measured_ct() + 1000, "lies between 840 and 1180: this looks like CT plus 1000 or 1024"),
    "CT plus 1024": (lambda: (measured_ct() + 1024).astype(np.int16), "this looks like CT plus 1000 or 1024"),
    "padding -32768": (lambda: padded(mr(), -32768), "below -1124, far below intensities: padding"),
    "padding -9999": (lambda: padded(mr(), -9999), "padding"),
    "padding -2000": (lambda: padded(mr(), -2000), "padding"),
    "mask": (lambda: BODY.astype(np.uint8), "only 2 different values: this looks like a mask or a label map"),
    "mask of 0 and 255": (lambda: 255 * BODY.astype(np.uint8), "only 2 different values"),
    "mask, float, of one voxel": (lambda: with_voxels(np.zeros(SHAPE), 1, 1), "only 2 different values"),
    "labels 0 to 3": (lambda: BODY * 1 + (RADIUS < 0.8) + (RADIUS < 0.25), "only 4 different values"),
    "labels with gaps": (lambda: labels([0, 5, 20, 90]), "only 4 different values"),
    "labels of 0, 1, 255": (lambda: labels([0, 1, 255], np.uint8), "only 3 different values"),
    "labels without 0": (lambda: labels([1, 2, 3]), "only 3 different values"),
    "labels with -1": (lambda: labels([-1, 0, 1, 4]), "only 4 different values"),
    "labels, float": (lambda: labels([0, 7, 11, 40], np.float32), "only 4 different values"),
    "labels of FreeSurfer": (lambda: np.where(BODY, 1000 + organs(70), 0), "this looks like a label map"),
    "32 labels": (lambda: labels([*range(0, 64, 2)]), "only 32 different values"),
    "104 organs": (lambda: organs(104), "8. % of the neighbours have one value: this looks like a label map"),
    "mask, resampled": (
        lambda: ndimage.zoom(BODY.astype(np.float32), (1, 1.3, 1.3), order=1),
        "mask that was resampled",
    ),
    "labels, resampled": (lambda: ndimage.zoom(labels([0, 1, 2, 3], np.float32), (1, 1.4, 1.4), order=1), "resampled"),
    "104 organs, float": (lambda: organs(104).astype(np.float64), "this looks like a label map"),
}


@pytest.mark.parametrize("kind", MRS)
def test_an_mr_is_accepted(kind):
    check_mr(volume(MRS[kind]()))


def test_splines_do_undershoot_far_below_what_one_voxel_was_refused_for():
    assert [np.count_nonzero(splined(scale) <= -500) > 100 for scale in (10, 36)] == [True, True]
    body = mr_body_mask(volume(splined(10)))
    true = ndimage.zoom(BODY.astype(np.uint8), (1, 1.1, 1.1), order=0) > 0
    assert np.count_nonzero(body != true) < 0.05 * true.sum()


@pytest.mark.parametrize("kind", NO_MRS)
def test_what_is_no_mr_is_refused_and_called_what_it_is(kind):
    make, words = NO_MRS[kind]
    with pytest.raises(InputError, match=f"not an MR .*{words}"):
        check_mr(volume(make()))
