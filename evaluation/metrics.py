"""Image and segmentation metrics of synthetic CT, as the SynthRAD challenges define them.

Pure functions on arrays of shape (z, y, x): `pred` and `ref` in HU, `mask` boolean (or non-zero) where to
score. All arithmetic is float64. A metric that a case leaves undefined (no bone in a bone metric, no voxel
far enough from the border for SSIM) is NaN, never 0 or 1.

References: Thummerer et al., SynthRAD2023, Med Phys 2023, doi 10.1002/mp.16529, and the SynthRAD2025
evaluation code; SSIM: Wang et al., IEEE TIP 2004, eq. 13; MS-SSIM: Wang et al., Asilomar 2003, eq. 7.
"""

import math

import numpy as np
from scipy.ndimage import uniform_filter
from skimage.metrics import structural_similarity

from data.errors import InputError

HU_RANGE_2023 = (-1024.0, 3000.0)
HU_RANGE_2025 = (-1024.0, 3071.0)
BONE_ABOVE_HU = 250.0
SSIM_WINDOW = 7
MS_SSIM_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# Halved four times, 97 voxels leave 7: one window at the coarsest scale.
MS_SSIM_SIZE = 97


def mae(pred: np.ndarray, ref: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute error in HU over `mask`, unclipped.

    Raises:
        InputError: `mask` is empty, or `pred` or `ref` is not finite in it.
    """
    pred, ref, mask = _checked(pred, ref, mask)
    return float(np.abs(pred[mask] - ref[mask]).mean())


def psnr(pred: np.ndarray, ref: np.ndarray, mask: np.ndarray, hu_range: tuple[float, float] = HU_RANGE_2023) -> float:
    """Peak signal-to-noise ratio in dB over `mask`, both volumes clipped to `hu_range`.

    Infinite where the clipped volumes are equal. The default range is SynthRAD2023's; SynthRAD2025 uses
    `HU_RANGE_2025`.

    Raises:
        InputError: as `mae`.
    """
    pred, ref, mask = _checked(pred, ref, mask)
    squared_error = float(np.mean((np.clip(pred[mask], *hu_range) - np.clip(ref[mask], *hu_range)) ** 2))
    if squared_error == 0:
        return math.inf
    return 10 * math.log10((hu_range[1] - hu_range[0]) ** 2 / squared_error)


def ssim(pred: np.ndarray, ref: np.ndarray, mask: np.ndarray, hu_range: tuple[float, float] = HU_RANGE_2023) -> float:
    """3-D structural similarity (SynthRAD2023): uniform window of 7 voxels, mean of the SSIM map over `mask`.

    Voxels nearer than 3 to the border of the volume do not count, because their window leaves it. NaN where
    that leaves no voxel (also: fewer than 7 slices).

    Raises:
        InputError: as `mae`.
    """
    pred, ref, mask = _checked(pred, ref, mask)
    if min(pred.shape) < SSIM_WINDOW:
        return math.nan
    ssim_map = _ssim_map(_shifted(pred, mask, hu_range), _shifted(ref, mask, hu_range), hu_range)
    return _inner_mean(ssim_map, mask)


def ms_ssim(
    pred: np.ndarray, ref: np.ndarray, mask: np.ndarray, hu_range: tuple[float, float] = HU_RANGE_2025
) -> float:
    """Masked multi-scale structural similarity (SynthRAD2025): the product over 5 scales of masked means.

    Every axis shorter than 97 voxels is first padded with its edge values. With exponent e of a scale on
    luminance, contrast and structure alike, the map is (l c s)^e, which with C3 = C2 / 2 is SSIM^e; negative
    values count as 0. Between scales the volumes are averaged over 2 x 2 x 2 voxels (zeros before the first)
    and every second voxel of volumes and mask is kept. As in `ssim` the outer 3 voxels do not count, at no
    scale: NaN if that leaves no voxel of the mask (at the coarsest scale only the middle of a small volume
    is left).

    Raises:
        InputError: as `mae`.
    """
    pred, ref, mask = _checked(pred, ref, mask)
    missing = [max(MS_SSIM_SIZE - extent, 0) for extent in pred.shape]
    padding = [(m // 2, m - m // 2) for m in missing]
    pred, ref, mask = (
        np.pad(array, padding, mode="edge")
        for array in (_shifted(pred, mask, hu_range), _shifted(ref, mask, hu_range), mask)
    )
    product = 1.0
    for exponent in MS_SSIM_EXPONENTS:
        ssim_map = _ssim_map(pred, ref, hu_range)
        product *= _inner_mean(np.maximum(ssim_map, 0.0) ** exponent, mask)
        pred, ref = (uniform_filter(array, 2, mode="constant")[::2, ::2, ::2] for array in (pred, ref))
        mask = mask[::2, ::2, ::2]
    return product


def dice(a: np.ndarray, b: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Dice overlap 2 |a and b| / (|a| + |b|) of two binary masks, inside `mask` if given.

    NaN if both are empty.
    """
    a, b = np.asarray(a), np.asarray(b)
    inside = np.broadcast_to(True, a.shape) if mask is None else np.asarray(mask)
    if a.shape != b.shape or inside.shape != a.shape:
        raise ValueError(f"shapes differ: {a.shape}, {b.shape}, mask {None if mask is None else inside.shape}")
    size = overlap = 0
    # Plane by plane: of large volumes every further mask takes much memory.
    for one, other, where in zip(*map(np.atleast_2d, (a, b, inside)), strict=True):
        one, other = (one != 0) & (where != 0), (other != 0) & (where != 0)
        size += int(np.count_nonzero(one)) + int(np.count_nonzero(other))
        overlap += int(np.count_nonzero(one & other))
    return 2 * overlap / size if size else math.nan


def dice_bone(pred: np.ndarray, ref: np.ndarray, mask: np.ndarray) -> float:
    """Dice of bone (HU > 250) inside `mask`; NaN if neither volume has bone there.

    Raises:
        InputError: as `mae`.
    """
    pred, ref, mask = _checked(pred, ref, mask)
    return dice(pred > BONE_ABOVE_HU, ref > BONE_ABOVE_HU, mask)


def mae_bone(pred: np.ndarray, ref: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute error in HU over the reference's bone (HU > 250) inside `mask`; NaN if it has none there.

    Raises:
        InputError: as `mae`.
    """
    pred, ref, mask = _checked(pred, ref, mask)
    bone = mask & (ref > BONE_ABOVE_HU)
    return mae(pred, ref, bone) if bone.any() else math.nan


def _checked(pred: np.ndarray, ref: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not pred.shape == ref.shape == mask.shape or pred.ndim != 3:
        raise ValueError(
            f"expected three (z, y, x) arrays of one shape, got {pred.shape}, {ref.shape}, mask {mask.shape}"
        )
    pred, ref, mask = np.asarray(pred, np.float64), np.asarray(ref, np.float64), np.asarray(mask) != 0
    if not mask.any():
        raise InputError("the scoring mask is empty: 0 voxels to score; expected a mask that overlaps the body")
    for name, values in (("prediction", pred[mask]), ("reference", ref[mask])):
        bad = values.size - int(np.count_nonzero(np.isfinite(values)))
        if bad:
            raise InputError(f"{name}: {bad} of {values.size} voxels in the mask are NaN or infinite; expected HU")
    return pred, ref, mask


def _shifted(volume: np.ndarray, mask: np.ndarray, hu_range: tuple[float, float]) -> np.ndarray:
    """Return `volume` clipped, at the lower bound outside `mask`, shifted to [0, width of `hu_range`]."""
    low, high = hu_range
    return np.where(mask, np.clip(volume, low, high), low) - low


def _ssim_map(pred: np.ndarray, ref: np.ndarray, hu_range: tuple[float, float]) -> np.ndarray:
    _, ssim_map = structural_similarity(
        ref, pred, win_size=SSIM_WINDOW, data_range=hu_range[1] - hu_range[0], full=True
    )
    return ssim_map


def _inner_mean(values: np.ndarray, mask: np.ndarray) -> float:
    """Return the mean of `values` over `mask` without the strip where the SSIM window leaves the volume."""
    inner = (slice(SSIM_WINDOW // 2, -(SSIM_WINDOW // 2)),) * 3
    chosen = values[inner][mask[inner]]
    return float(chosen.mean()) if chosen.size else math.nan
