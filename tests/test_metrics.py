import json
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from scipy.ndimage import uniform_filter
from scipy.signal import fftconvolve
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from data.errors import InputError
from evaluation import metrics

GOLDEN = json.loads((Path(__file__).parent / "golden" / "synthrad_metrics.json").read_text())
VOXEL_METRICS = [
    metrics.mae,
    metrics.psnr,
    metrics.ssim,
    metrics.ms_ssim,
    metrics.dice_bone,
    metrics.mae_bone,
]


@pytest.fixture(scope="module")
def golden_volumes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pred, ref, body) by the formulas in the golden file's 'volumes'."""
    z, y, x = np.meshgrid(*(np.arange(n, dtype=float) for n in (40, 48, 44)), indexing="ij")
    body = ((z - 19.5) / 18) ** 2 + ((y - 23.5) / 21) ** 2 + ((x - 21.5) / 19) ** 2 <= 1
    ref = np.where(body, 40 + 60 * np.sin(0.35 * x) * np.cos(0.27 * y) * np.sin(0.21 * z + 0.5), -1000)
    bone = body & ((y - 30) ** 2 + (x - 21.5) ** 2 <= 25)
    ref[bone] = (900 + 200 * np.sin(0.9 * x + 0.4 * z))[bone]
    pred = np.where(body, 30 + 70 * np.sin(0.35 * x + 0.2) * np.cos(0.27 * y) * np.sin(0.21 * z + 0.4), -980)
    bone = body & ((y - 31) ** 2 + (x - 21.5) ** 2 <= 25)
    pred[bone] = (780 + 150 * np.sin(0.9 * x + 0.4 * z + 0.3))[bone]
    return pred.astype(np.float32), ref.astype(np.float32), body


@pytest.fixture
def noisy() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pred, ref, mask): noise with values beyond the clipping range, a mask that reaches borders."""
    generator = np.random.default_rng(5)
    ref = uniform_filter(generator.normal(0, 6000, (20, 26, 23)), 3)
    pred = ref + generator.normal(0, 300, ref.shape)
    mask = np.ones(ref.shape, bool)
    mask[:, :6] = mask[:, :, -4:] = False
    return pred, ref, mask


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (metrics.mae, GOLDEN["synthrad2023"]["mae"]),
        (metrics.mae, GOLDEN["synthrad2025"]["mae"]),
        (metrics.psnr, GOLDEN["synthrad2023"]["psnr"]),
        (lambda *a: metrics.psnr(*a, hu_range=metrics.HU_RANGE_2025), GOLDEN["synthrad2025"]["psnr"]),
        (metrics.ssim, GOLDEN["synthrad2023"]["ssim"]),
        (metrics.ms_ssim, GOLDEN["synthrad2025"]["ms_ssim"]),
        (metrics.dice_bone, GOLDEN["bone_dice_250"]),
    ],
    ids=["mae_2023", "mae_2025", "psnr_2023", "psnr_2025", "ssim_2023", "ms_ssim_2025", "dice_bone"],
)
def test_challenge_values(golden_volumes, metric, expected):
    assert metric(*golden_volumes) == pytest.approx(expected, rel=1e-6)


def test_challenge_value_of_ms_ssim_over_the_whole_volume(golden_volumes):
    pred, ref, body = golden_volumes
    pred, ref = np.where(body, pred, -1024), np.where(body, ref, -1024)
    whole = metrics.ms_ssim(pred, ref, np.ones_like(body))
    assert whole == pytest.approx(GOLDEN["synthrad2025"]["ms_ssim_whole"], rel=1e-6)


def test_mae_and_mae_bone_in_closed_form():
    ref, pred = np.zeros((8, 8, 8)), np.zeros((8, 8, 8))
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[:2] = 3  # any non-zero value
    pred[0], pred[1], pred[2] = 10, -30, 1e6
    ref[1, 0], ref[3] = 250.5, 2000
    pred[1, 0] = 200.5
    # 64 voxels at 10, 56 at 30, 8 bone voxels at 50
    assert metrics.mae(pred, ref, mask) == pytest.approx((64 * 10 + 56 * 30 + 8 * 50) / 128)
    assert metrics.mae_bone(pred, ref, mask) == pytest.approx(50)


def test_mae_does_not_clip_and_psnr_does():
    ref, pred, mask = np.full((2, 2, 2), 3000), np.full((2, 2, 2), 5000), np.ones((2, 2, 2))
    assert metrics.mae(pred, ref, mask) == 2000
    assert metrics.psnr(pred, ref, mask) == math.inf
    assert metrics.psnr(pred, ref, mask, hu_range=(-1024, 3100)) == pytest.approx(20 * math.log10(41.24))


def test_integers_and_unsigned_bytes_do_not_wrap():
    ref, mask = np.full((2, 2, 2), 200, np.uint8), np.ones((2, 2, 2), bool)
    assert metrics.mae(np.full((2, 2, 2), -32768, np.int16), ref, mask) == 32968


def test_psnr_agrees_with_skimage(noisy):
    pred, ref, mask = noisy
    clipped_pred, clipped_ref = (np.clip(volume, -1024, 3000)[mask] for volume in (pred, ref))
    expected = peak_signal_noise_ratio(clipped_ref, clipped_pred, data_range=4024)
    assert metrics.psnr(pred, ref, mask) == pytest.approx(expected, rel=1e-12)


def test_ssim_of_a_full_mask_is_skimages_mean(noisy):
    pred, ref, _ = noisy
    clipped_pred, clipped_ref = (np.clip(volume, -1024, 3000) + 1024 for volume in (pred, ref))
    expected = structural_similarity(clipped_ref, clipped_pred, data_range=4024)
    assert metrics.ssim(pred, ref, np.ones(ref.shape)) == pytest.approx(expected, rel=1e-12)


def local_similarity(a: np.ndarray, b: np.ndarray, width: float, exponent: float) -> np.ndarray:
    """Luminance, contrast and structure of Wang et al. 2004 written out with scipy."""
    unbiased = 343 / 342
    mean_a, mean_b = uniform_filter(a, 7), uniform_filter(b, 7)
    var_a = np.maximum(unbiased * (uniform_filter(a * a, 7) - mean_a**2), 0)
    var_b = np.maximum(unbiased * (uniform_filter(b * b, 7) - mean_b**2), 0)
    covariance = unbiased * (uniform_filter(a * b, 7) - mean_a * mean_b)
    c1, c2 = (0.01 * width) ** 2, (0.03 * width) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    contrast = (2 * np.sqrt(var_a * var_b) + c2) / (var_a + var_b + c2)
    structure = (covariance + c2 / 2) / (np.sqrt(var_a * var_b) + c2 / 2)
    if exponent == 1:
        return luminance * contrast * structure
    return luminance**exponent * contrast**exponent * np.maximum(structure, 0) ** exponent


def test_masked_ssim_agrees_with_scipy(noisy):
    pred, ref, mask = noisy
    a, b = (np.where(mask, np.clip(volume, -1024, 3000), -1024) + 1024 for volume in (pred, ref))
    inner = np.s_[3:-3, 3:-3, 3:-3]
    expected = local_similarity(a, b, 4024, 1)[inner][mask[inner]].mean()
    assert metrics.ssim(pred, ref, mask) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("shape", [(20, 26, 23), (101, 20, 16)], ids=["all axes padded", "z long enough"])
def test_masked_ms_ssim_agrees_with_scipy(shape):
    generator = np.random.default_rng(6)
    ref = uniform_filter(generator.normal(0, 6000, shape), 3)
    pred = 0.2 * ref + uniform_filter(generator.normal(0, 6000, shape), 3)
    mask = np.ones(shape, bool)
    mask[:, :3] = False
    a, b = (np.where(mask, np.clip(volume, -1024, 3071), -1024) + 1024 for volume in (pred, ref))
    padding = [(max(97 - n, 0) // 2, -(-max(97 - n, 0) // 2)) for n in shape]
    a, b, inside = (np.pad(array, padding, mode="edge") for array in (a, b, mask))
    expected, inner = 1.0, np.s_[3:-3, 3:-3, 3:-3]
    for exponent in (0.0448, 0.2856, 0.3001, 0.2363, 0.1333):
        expected *= local_similarity(a, b, 4095, exponent)[inner][inside[inner]].mean()
        a, b = (fftconvolve(v, np.full((2, 2, 2), 1 / 8), mode="same")[::2, ::2, ::2] for v in (a, b))
        inside = inside[::2, ::2, ::2]
    assert metrics.ms_ssim(pred, ref, mask) == pytest.approx(expected, rel=1e-7)


@given(arrays(bool, (3, 4, 5)), arrays(bool, (3, 4, 5)))
@settings(max_examples=50, deadline=None)
def test_dice_agrees_with_simpleitk(a, b):
    if not (a.any() or b.any()):
        assert math.isnan(metrics.dice(a, b))
        return
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (a, b)))
    assert metrics.dice(a, b) == pytest.approx(overlap.GetDiceCoefficient(), abs=1e-12)
    assert metrics.dice(b, a) == metrics.dice(a, b)


def test_dice_in_closed_form_and_inside_a_mask():
    a, b, mask = np.zeros((4, 4, 4)), np.zeros((4, 4, 4)), np.zeros((4, 4, 4))
    a[:2], b[1:] = 1, 1
    mask[1] = 1
    assert metrics.dice(a, b) == pytest.approx(2 * 16 / (32 + 48))
    assert metrics.dice(a, b, mask) == 1
    assert metrics.dice(a, 0 * b) == 0
    with pytest.raises(ValueError, match="shapes differ"):
        metrics.dice(a, b[:2])


def test_bone_is_above_250_hu():
    ref = np.full((4, 4, 4), 250.0)
    pred, mask = ref.copy(), np.ones(ref.shape, bool)
    ref[0], pred[:2] = 251, 251
    assert metrics.dice_bone(pred, ref, mask) == pytest.approx(2 * 16 / (16 + 32))
    assert metrics.dice_bone(ref, ref, mask) == 1


def test_no_bone_leaves_the_bone_metrics_undefined():
    ref, mask = np.zeros((4, 4, 4)), np.ones((4, 4, 4), bool)
    invented = ref.copy()
    invented[0, 0, 0] = 900
    assert math.isnan(metrics.dice_bone(ref, ref, mask))
    assert math.isnan(metrics.mae_bone(ref, ref, mask))
    assert metrics.dice_bone(invented, ref, mask) == 0
    assert math.isnan(metrics.mae_bone(invented, ref, mask))
    assert metrics.dice_bone(ref, invented, mask) == 0
    assert metrics.mae_bone(ref, invented, mask) == 900


def test_ssim_is_undefined_where_no_window_fits():
    volume = np.zeros((9, 9, 9))
    mask = np.zeros(volume.shape, bool)
    mask[:3] = True
    assert math.isnan(metrics.ssim(volume, volume, mask))
    assert math.isnan(metrics.ms_ssim(volume, volume, mask))
    mask[3] = True
    assert metrics.ssim(volume, volume, mask) == pytest.approx(1)
    assert math.isnan(metrics.ssim(volume[:6], volume[:6], mask[:6]))


def test_equal_volumes_score_best(golden_volumes):
    _, ref, body = golden_volumes
    scores = [metric(ref, ref, body) for metric in VOXEL_METRICS]
    assert scores == pytest.approx([0, math.inf, 1, 1, 1, 0])


@pytest.mark.parametrize("metric", VOXEL_METRICS, ids=lambda metric: metric.__name__)
class TestEveryMetric:
    def test_gets_worse_with_the_distance(self, golden_volumes, metric):
        _, ref, body = golden_volumes
        scores = [metric(np.roll(ref, shift, axis=1), ref, body) for shift in (0, 1, 3)]
        assert scores == sorted(scores, reverse=metric not in (metrics.mae, metrics.mae_bone))
        assert len(set(scores)) == 3

    def test_ignores_what_is_outside_the_mask(self, golden_volumes, metric):
        pred, ref, body = golden_volumes
        outside = np.where(body, pred, 2500)
        outside[0, 0, 0] = np.nan
        assert metric(outside, ref, body) == metric(pred, ref, body)

    def test_refuses_an_empty_mask(self, golden_volumes, metric):
        pred, ref, body = golden_volumes
        with pytest.raises(InputError, match="mask is empty"):
            metric(pred, ref, np.zeros_like(body))

    def test_refuses_other_shapes(self, golden_volumes, metric):
        pred, ref, body = golden_volumes
        with pytest.raises(ValueError, match="one shape"):
            metric(pred, ref[:1], body)

    def test_refuses_nan_inside_the_mask(self, golden_volumes, metric):
        pred, ref, body = golden_volumes
        broken = pred.copy()
        broken[20, 24, 22] = np.nan
        with pytest.raises(InputError, match="prediction: 1 of"):
            metric(broken, ref, body)
        with pytest.raises(InputError, match="reference: 1 of"):
            metric(pred, broken, body)
