"""Body masks of MR and CT volumes, and CT without the couch.

A body is found on a coarse copy, averaged over blocks of about 3 mm and turned so that its axes run to the head, to
the back and to the left. There its parts are told from noise, markers and couch, and its cavities are filled. The
outline is then drawn at full resolution, slice by slice, within one coarse voxel of the coarse one. Lengths are in mm.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import disk

from data.errors import InputError
from data.masks.couch import BEHIND, couch_side
from data.values.intensity import AIR_HU
from data.values.modality import check_ct, check_mr, in_hu
from data.volumes.volume import Volume, axial_order, describe_difference, read_volume, resampling, same_grid

log = logging.getLogger(__name__)

COARSE_MM = 3.0
# Half air (-1000 HU), half soft tissue (about 0 HU): where skin begins. Lung is below and gets filled in.
CT_BODY_HU = -500.0
# A cavity that is mostly denser than this holds lung, not room air.
CT_LUNG_HU = -950.0
# MR intensities count relative to the median of the bright tissue. A background is darker than this, ...
MR_BACKGROUND = 0.2
# ... and where there is none, all that is brighter than this is tissue.
MR_TISSUE = 0.15
# The darkest of an MR may be air that is not at 0 where nothing lies below this share of what is bright, and so much of
# the volume this near to the darkest.
MR_FLOOR, MR_FLOOR_SHARE, MR_FLOOR_WIDTH = 0.12, 0.05, 0.1
# A hand, the smallest part that may lie apart, is 0.6 % of a body's mass (Winter, Biomechanics and Motor Control of
# Human Movement, table 4.1). Skin markers and tubes beside a limb hold a few mL.
PART_SHARE = 0.005
PART_ML = 10.0
# Every part of a body is somewhere thicker than twice this; couch shells, covers and cables are nowhere.
PART_RADIUS_MM = 9.0
# Shells and covers of couches are thinner than twice this.
COUCH_RADIUS_MM = 4.0
# A cover that touches the back here and there is thinner than twice this.
COVER_RADIUS_MM = 2.0
MR_OPENING_MM = 3.0
# Ears, fingers and folds that the opening cuts off lie in front of what it leaves or within this distance.
THIN_PART_MM = 12.0
# Cavities that meet the outside through less than twice this are filled: airways, dark cortex under the skin.
CLOSING_MM = 5.0
# A hole in an axial slice up to this size is filled wherever it leads: trachea, ear canal.
SMALL_HOLE_MM2 = 400.0
# A cavity that the image's border cuts is filled where the border is less of its outline than of half a disc's. Air
# around a convex body has more border than skin.
CUT_SHARE = 1 / (1 + np.pi / 2)
SMOOTH_MM = 1.0
# `remove_couch` keeps this margin around the body: the skin's partial-volume voxels.
SKIN_MARGIN_MM = 2.0


def mr_body_mask(mr: Volume) -> np.ndarray:
    """Return where an MR shows the body, its cavities included.

    The threshold is Otsu's (IEEE Trans Syst Man Cybern 1979) on the logarithm of the intensity, which sets noise
    apart from all tissues; zeros are outside the field of view and do not count.

    Args:
        mr: magnitude image at any scale, T1-weighted in-phase or alike.

    Returns:
        Booleans, shape (z, y, x).

    Raises:
        InputError: no body is found, or the volume looks like CT.
    """
    check_mr(mr)
    coarse = _Coarse.of(mr)
    seen = coarse.array != 0
    coarse = _smooth(coarse)
    threshold = _mr_threshold(coarse, mr)
    parts = _parts(coarse.array > threshold, coarse.spacing, MR_OPENING_MM, couch=False)
    if parts is None:
        raise _not_found("MR", mr, f"nothing body-sized above the threshold {threshold:.4g}")
    return _refine(mr, coarse, _fill(parts, coarse.spacing, seen), threshold, couch=False)


def mr_mask_doubt(mr: Volume) -> str | None:
    """Return the warning of `mr_body_mask`, why its mask of an MR may be wrong; None where there is none."""
    coarse = _smooth(_Coarse.of(mr))
    return _doubt(mr, coarse, _intensities(coarse, mr)[2])


def ct_body_mask(ct: Volume, synthetic: bool = False) -> np.ndarray:
    """Return where a CT shows the body, lungs and other cavities included, without the couch.

    The body is what exceeds -500 HU and is, somewhere, too thick for a couch; thin parts next to it belong to it
    unless nothing but they lie between it and the couch. The couch is looked for on all four sides: patients lie on
    the back, prone or on a side.

    Args:
        ct: CT in HU.
        synthetic: made by a network; then its values need not be those of a scanner (`check_ct`).

    Returns:
        Booleans, shape (z, y, x).

    Raises:
        InputError: no body is found, or the volume is no CT in HU.
    """
    check_ct(ct, synthetic)
    ct = in_hu(ct)
    coarse = _Coarse.of(ct)
    tissue = coarse.array > CT_BODY_HU
    thick = _thick_parts(tissue, coarse.spacing, COUCH_RADIUS_MM)
    side = BEHIND if thick is None else couch_side(tissue, thick, coarse.spacing)
    if side != BEHIND:
        coarse = _Coarse.of(ct, side)
    parts = _parts(coarse.array > CT_BODY_HU, coarse.spacing, COUCH_RADIUS_MM, couch=True)
    if parts is None:
        raise _not_found("CT", ct, f"nothing body-sized above {CT_BODY_HU:g} HU")
    filled = _fill(parts, coarse.spacing, seen=np.ones_like(parts), lung=coarse.array > CT_LUNG_HU)
    return _refine(ct, coarse, filled, CT_BODY_HU, couch=True)


def remove_couch(ct: Volume, mask: np.ndarray | None = None) -> Volume:
    """Return a CT with -1000 HU everywhere but in the body and a margin of 2 mm (at least one voxel) around it.

    What lies below -1024 HU, a padding, becomes -1024 HU.

    Args:
        ct: CT in HU.
        mask: the body, booleans of shape (z, y, x); None finds it by `ct_body_mask`.

    Raises:
        InputError: no body is found, the mask is empty, or the volume holds neither air nor fat.
    """
    check_ct(ct, synthetic=True)
    ct = in_hu(ct)
    body = ct_body_mask(ct) if mask is None else np.asarray(mask, bool)
    if not body.any():
        raise InputError("couch removal: the body mask is empty; expected the body's voxels")
    near = ct.with_array(body).to_sitk()
    near = sitk.BinaryDilate(near, [max(1, round(SKIN_MARGIN_MM / s)) for s in ct.spacing])
    array = ct.array.copy()
    array[sitk.GetArrayViewFromImage(near) == 0] = AIR_HU
    return ct.with_array(array)


def read_mask(path: str | Path, grid: Volume, volume_path: Path | None = None) -> np.ndarray:
    """Read a mask file: non-zero is body.

    Args:
        path: a volume on the grid of `grid`.
        grid: the volume that the mask belongs to.
        volume_path: its file, for the error.

    Returns:
        Booleans, shape (z, y, x) of `grid`.

    Raises:
        InputError: the file is unreadable, lies on another grid, or is empty.
    """
    mask = read_volume(path)
    if not same_grid(mask, grid):
        raise InputError(
            f"{path}: the mask is not on the volume's grid: {describe_difference(mask, grid)}; delete the mask, and it "
            f"is computed, or resample it: {resampling(path, volume_path or 'VOLUME')}"
        )
    body = mask.array != 0
    if not body.any():
        raise InputError(
            f"{path}: the mask is empty (all {body.size} voxels are 0); expected non-zero = body; or "
            "delete it, and it is computed"
        )
    return body


@dataclass
class _Coarse:
    """Block means of a volume along axes that run to the head, the back and the left, as nearly as its grid allows.

    Of a patient who does not lie on the back, "back" stands for the side on which the couch is, "left" for one beside.

    Attributes:
        array: block means, float32, shape (S, P, L).
        spacing: mm along (S, P, L).
        factors: voxels per block along (S, P, L).
        order: the volume's array axis that becomes S, P, L.
        steps: 1, or -1 for an axis that is turned round.
    """

    array: np.ndarray
    spacing: tuple[float, ...]
    factors: tuple[int, ...]
    order: tuple[int, ...]
    steps: tuple[int, ...]

    @classmethod
    def of(cls, volume: Volume, couch: tuple[int, int] = BEHIND) -> "_Coarse":
        """Average a volume; `couch` is the axis (1: P, 2: L) and the sense in which the couch lies."""
        order, flips = axial_order(volume.direction)
        senses = [-1 if flip else 1 for flip in flips]
        axis, sense = couch
        senses[axis] *= sense
        turned = (0, axis, 3 - axis)
        order, steps = tuple(order[a] for a in turned), tuple(senses[a] for a in turned)
        fine_mm = [volume.spacing[2 - axis] for axis in order]
        factors = tuple(max(1, int(COARSE_MM / s + 0.5)) for s in fine_mm)
        coarse = cls(np.empty(0), tuple(s * f for s, f in zip(fine_mm, factors, strict=True)), factors, order, steps)
        coarse.array = _block_means(coarse.view(volume.array), factors)
        return coarse

    def view(self, array: np.ndarray) -> np.ndarray:
        """Return the fine array, unblocked, with axes S, P, L: a view, writable where `array` is."""
        return array.transpose(self.order)[tuple(slice(None, None, step) for step in self.steps)]


def _block_means(array: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
    """Average blocks of `factors` voxels; the last block along an axis may be smaller."""
    starts = [np.arange(0, n, f) for n, f in zip(array.shape, factors, strict=True)]
    counts = [np.diff([*start, n]) for start, n in zip(starts, array.shape, strict=True)]
    means = np.empty([len(start) for start in starts], np.float32)
    for row, first in enumerate(starts[0]):
        slab = array[first : first + factors[0]].mean(axis=0, dtype=np.float32)
        sums = np.add.reduceat(np.add.reduceat(slab, starts[1], axis=0), starts[2], axis=1)
        means[row] = sums / np.multiply.outer(counts[1], counts[2])
    return means


def _smooth(coarse: _Coarse) -> _Coarse:
    """Return the coarse copy of an MR in which noise is averaged."""
    return replace(coarse, array=ndimage.gaussian_filter(coarse.array, [COARSE_MM / 2 / s for s in coarse.spacing]))


def _mr_threshold(coarse: _Coarse, mr: Volume) -> float:
    """Return the intensity that separates background from tissue."""
    lowest, values, bright = _intensities(coarse, mr)
    if doubt := _doubt(mr, coarse, bright):
        log.warning("warning: %s", doubt)
    logs = np.log(np.maximum(values / bright, 0.1 * MR_BACKGROUND))
    split = threshold_otsu(logs)
    if np.exp(logs[logs <= split].mean()) <= MR_BACKGROUND:
        return lowest + bright * float(np.exp(split))
    smooth = ndimage.gaussian_filter(coarse.array, [2 * COARSE_MM / s for s in coarse.spacing])
    dark, light = np.percentile(smooth[coarse.array > lowest], [5, 95]) - lowest
    if light < 1.5 * dark:
        raise _not_found("MR", mr, f"noise without contrast ({dark:.4g} to {light:.4g} when smoothed)")
    return lowest + bright * MR_TISSUE


def _intensities(coarse: _Coarse, mr: Volume) -> tuple[float, np.ndarray, float]:
    """Return the lowest intensity that counts, those above it less it, and the median of the bright tissue."""
    lowest = min(0.0, float(np.percentile(coarse.array, 1)))  # negative after resampling or standardisation
    values = coarse.array[coarse.array > max(lowest, coarse.array.min())] - lowest
    values = values[:: max(1, values.size // 2_000_000)]
    if values.size == 0 or values.min() == values.max():
        raise _not_found("MR", mr, "the volume is constant")
    values = np.minimum(values, np.percentile(values, 99.5))  # a few spikes would stretch Otsu's histogram
    bright = float(np.median(values[values > threshold_otsu(values)]))
    return lowest, values, bright


def _doubt(mr: Volume, coarse: _Coarse, bright: float) -> str | None:
    """Say that the darkest values of an MR count as tissue but may be air: it was shifted, or shows only tissue."""
    step = max(1, mr.array.size // 2_000_000)
    floor = float(np.percentile(mr.array.ravel()[::step], 0.5))  # noise alone reaches down to 0
    share = np.mean(coarse.array < floor + MR_FLOOR_WIDTH * (bright - floor))
    if floor <= MR_FLOOR * bright or share <= MR_FLOOR_SHARE:
        return None
    return (
        f"MR (values {mr.array.min():g} to {mr.array.max():g}): its lowest value, {floor:.4g}, is taken for tissue; if "
        "that is air of a shifted MR, shift it back so that air is at 0, or supply a body mask"
    )


def _parts(tissue: np.ndarray, spacing: tuple[float, ...], opening_mm: float, couch: bool) -> np.ndarray | None:
    """Return the body-sized parts of a coarse mask with the thin parts beside them; None if there are none.

    Args:
        tissue: booleans (S, P, L).
        spacing: mm along (S, P, L).
        opening_mm: what is thinner than twice this in the axial plane does not hold parts together.
        couch: a couch is expected, so thin things behind the body are not part of it.
    """
    parts = _thick_parts(tissue, spacing, opening_mm)
    if parts is None:
        return None
    columns = parts.any(axis=1, keepdims=True)
    near = _axial(sitk.BinaryDilate, parts, THIN_PART_MM, spacing)
    beside = _in_front(parts) | (near & ~columns if couch else near)
    labels, _ = ndimage.label(parts | (tissue & beside))
    return np.isin(labels, np.unique(labels[parts]))


def _thick_parts(tissue: np.ndarray, spacing: tuple[float, ...], opening_mm: float) -> np.ndarray | None:
    """Return the body-sized parts of a coarse mask without its thin parts; None if there are none."""
    labels, _ = ndimage.label(_axial(sitk.BinaryMorphologicalOpening, tissue, opening_mm, spacing))
    volumes_ml = np.bincount(labels.ravel()) * np.prod(spacing) / 1000
    thick = np.unique(labels[_axial(sitk.BinaryErode, labels > 0, PART_RADIUS_MM, spacing)])
    thick = thick[thick > 0]
    if thick.size == 0:
        return None
    largest = volumes_ml[thick].max()
    kept = thick[volumes_ml[thick] >= min(largest, max(PART_ML, PART_SHARE * largest))]
    return np.isin(labels, kept)


def _fill(body: np.ndarray, spacing: tuple[float, ...], seen: np.ndarray, lung: np.ndarray | None = None) -> np.ndarray:
    """Fill cavities of a coarse mask.

    Filled are enclosed ones, those with narrow ways out, those cut by the border of the field of view, and holes in
    axial slices that are small or mostly lung.

    Args:
        body: booleans (S, P, L).
        spacing: mm along (S, P, L).
        seen: where the field of view is, booleans (S, P, L).
        lung: what is denser than air, booleans (S, P, L); None if that is unknown.
    """
    closed = _ball(sitk.BinaryMorphologicalClosing, body, CLOSING_MM, spacing)
    cavities = _enclosed(closed)
    near_cavities = _ball(sitk.BinaryDilate, cavities, CLOSING_MM + max(spacing), spacing)
    filled = body | cavities | (closed & near_cavities)
    filled |= _cavities(filled, seen, spacing)
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    labels, _ = ndimage.label(~filled, in_plane)
    counts = np.bincount(labels.ravel())
    fill = counts * spacing[1] * spacing[2] <= SMALL_HOLE_MM2
    if lung is not None:
        fill |= np.bincount(labels[lung], minlength=len(counts)) > counts / 2
    for face in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        fill[np.unique(face)] = False
    fill[0] = False
    return filled | fill[labels]


def _cavities(body: np.ndarray, seen: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Return the cavities of a mask (S, P, L), those included that the border of what is seen cuts open."""
    labels, count = ndimage.label(seen & ~body)
    border, skin = np.zeros(count + 1), np.zeros(count + 1)
    for axis, length in ((1, spacing[2]), (2, spacing[1])):
        # With a frame of unseen voxels, every edge of a cavity lies between it and the body or the unseen.
        frame = [(1, 1) if axis == other else (0, 0) for other in range(3)]
        along = np.moveaxis(np.pad(labels, frame), axis, 0)
        solid = np.moveaxis(np.pad(body, frame), axis, 0)
        for here, there in ((slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1))):
            edge = (along[here] > 0) & (along[there] == 0)
            for total, kind in ((skin, edge & solid[there]), (border, edge & ~solid[there])):
                total += length * np.bincount(along[here][kind], minlength=count + 1)
    return (border < CUT_SHARE * (border + skin))[labels]


def _enclosed(body: np.ndarray) -> np.ndarray:
    """Return the cavities of a mask (S, P, L). The volume's first and last slice cut cavities but do not open them."""
    padded = np.pad(body, ((1, 1), (0, 0), (0, 0)), constant_values=True)
    filled = sitk.GetArrayFromImage(sitk.BinaryFillhole(_image(padded))) > 0
    return filled[1:-1] & ~body


def _refine(volume: Volume, coarse: _Coarse, body: np.ndarray, threshold: float, couch: bool) -> np.ndarray:
    """Draw the outline of a coarse mask at full resolution: where the slices cross `threshold` near it.

    With `couch`, thin things that stick to the back of the body are left out.
    """
    reach = np.ones((3 if coarse.factors[0] > 1 else 1, 3, 3), bool)
    outer = ndimage.binary_dilation(body, reach)
    inner = ndimage.binary_erosion(body, reach, border_value=1)
    mask = np.zeros(volume.array.shape, bool)
    source, target = coarse.view(volume.array), coarse.view(mask)
    fine_mm = [s / f for s, f in zip(coarse.spacing, coarse.factors, strict=True)]
    for index in range(len(source)):
        row = index // coarse.factors[0]
        if not body[row].any():
            continue
        box = ndimage.find_objects(outer[row].astype(np.uint8))[0]
        fine = tuple(slice(b.start * f, b.stop * f) for b, f in zip(box, coarse.factors[1:], strict=True))
        values = ndimage.gaussian_filter(source[index][fine].astype(np.float32), [SMOOTH_MM / s for s in fine_mm[1:]])
        near, sure, filled = (_enlarge(m[row][box], coarse.factors[1:], values.shape) for m in (outer, inner, body))
        drawn = sure | (near & (values > threshold))
        if couch and max(fine_mm[1:]) < 2 * COVER_RADIUS_MM:
            cover = disk(round(COVER_RADIUS_MM / max(fine_mm[1:])))
            opened = ndimage.binary_dilation(ndimage.binary_erosion(drawn, cover, border_value=1), cover)
            drawn &= opened | _in_front(sure[None])[0] | ~sure.any(axis=0)
        holes = ndimage.binary_fill_holes(drawn)
        labels, _ = ndimage.label(drawn | (holes & filled))
        target[index][fine] = np.isin(labels, np.unique(labels[filled & drawn]))
    return mask


def _in_front(parts: np.ndarray) -> np.ndarray:
    """Return where a part (S, P, L) lies at the same place or behind."""
    return np.logical_or.accumulate(parts[:, ::-1], axis=1)[:, ::-1]


def _enlarge(mask: np.ndarray, factors: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    for axis, factor in enumerate(factors):
        mask = np.repeat(mask, factor, axis=axis)
    return mask[: shape[0], : shape[1]]


def _axial(operation: Callable, mask: np.ndarray, radius_mm: float, spacing: tuple[float, ...]) -> np.ndarray:
    """Apply a SimpleITK morphology with a disc (at least one voxel) in the axial plane to a mask (S, P, L)."""
    radius = [max(1, round(radius_mm / s)) for s in (spacing[2], spacing[1])]
    return sitk.GetArrayFromImage(operation(_image(mask), [*radius, 0])) > 0


def _ball(operation: Callable, mask: np.ndarray, radius_mm: float, spacing: tuple[float, ...]) -> np.ndarray:
    """Apply a SimpleITK morphology with a ball to a mask (S, P, L)."""
    return sitk.GetArrayFromImage(operation(_image(mask), [round(radius_mm / s) for s in spacing[::-1]])) > 0


def _image(mask: np.ndarray) -> sitk.Image:
    return sitk.GetImageFromArray(mask.astype(np.uint8))


def _not_found(modality: str, volume: Volume, why: str) -> InputError:
    low, high = volume.array.min(), volume.array.max()
    return InputError(
        f"no body found in the {modality} (values {low:g} to {high:g}): {why}; check that the volume is {modality}, or "
        "supply a body mask"
    )
