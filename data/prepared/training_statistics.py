"""Describe a training set, to recognise a volume unlike it: HU histograms, MR intensities, spacings, bodies.

Histograms are compared by the first Wasserstein distance (the earth mover's), in HU: how far, on average, voxels of one
would have to be moved along the HU axis to make the other. In one dimension it is the area between the cumulative
distributions (Vallender, Theory Probab Appl 1974).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from data.errors import InputError
from data.prepared.arrays import read_case
from data.prepared.manifest import Case, Manifest
from data.prepared.slice_spacing import through_mm

# Bins of 32 HU over what CT holds; values beyond count in the first and last bin.
HU_EDGES = np.arange(-1024, 3072 + 1, 32)
# A slice counts where the body fills at least this share of it: one with a rim of skin has no histogram to speak of.
MIN_BODY_SHARE = 0.005
# How far a case's slices are from the case is said by the median and by this quantile: some are odd in every patient.
SPREAD_QUANTILES = (0.5, 0.95)
# What lies below it inside a body holds air: lungs, gas. Noise, and fat beside muscle, lie above.
GAS_HU = -300.0
# The smallest and the largest cross-sections of every volume are left out: ends of limbs, masks that went wrong.
SECTION_QUANTILES = (0.05, 0.95)

Range = tuple[float, float]
Counts = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class TrainingStatistics:
    """A training set in figures; ranges are the least and the greatest value over its volumes.

    Attributes:
        hu_histogram: voxels of the training CT in the bins of `HU_EDGES`, inside the bodies.
        hu_slice_limits: distances in HU from `hu_histogram` that half, and 95 %, of every patient's slices keep.
        mr_high: upper one of the `data.values.intensity.MR_PERCENTILES` inside the body, in MR units.
        mr_median: `relative_median` inside the body. Both are None of a set without MR, as for simulated pairs.
        in_plane_mm, through_mm: spacing of MR and CT as acquired, the finer of those in the plane, and of slices; of CT
            too, since an MR that is simulated from one is as sharp as that.
        section_cm2: between which areas 90 % of every training CT's cross-sections lie (`cross_sections`).
        gas_share: how much of the body lies below `GAS_HU` in no more than 5 % of any training CT's slices, 0 to 1.
            These two are None in files of earlier versions.
    """

    hu_histogram: tuple[int, ...]
    hu_slice_limits: Range
    mr_high: Range | None
    mr_median: Range | None
    in_plane_mm: Range
    through_mm: Range
    section_cm2: Range | None = None
    gas_share: float | None = None

    def is_sound(self) -> bool:
        """Tell whether a training set can have these figures, whatever file they were read from."""
        if (self.section_cm2 is None) != (self.gas_share is None) or (self.mr_high is None) != (self.mr_median is None):
            return False
        ranges = [self.hu_slice_limits, self.in_plane_mm, self.through_mm]
        ranges += [one for one in (self.mr_high, self.mr_median, self.section_cm2) if one is not None]
        sizes = [len(values) if isinstance(values, tuple) else 0 for values in (self.hu_histogram, *ranges)]
        if sizes != [len(HU_EDGES) - 1, *(2 for _ in ranges)]:
            return False
        values = [value for group in (self.hu_histogram, *ranges) for value in group]
        values += [] if self.gas_share is None else [self.gas_share]
        numbers = all(type(value) in (int, float) and abs(value) < np.inf for value in values)
        return numbers and min(self.hu_histogram) >= 0

    @classmethod
    def from_dict(cls, data: dict) -> "TrainingStatistics":
        """Return the statistics that `dataclasses.asdict` and JSON made a dict of."""
        values: dict[str, Any]
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
        return cls(**values)


def describe_training_set(root: Path, manifest: Manifest) -> TrainingStatistics | None:
    """Return the statistics of the prepared data set in `root`; None if its manifest does not record what is needed.

    Cross-sections that it does not record are measured in its files.

    Raises:
        InputError: manifest or files are damaged.
    """
    cases = tuple(
        _measured(root, case, manifest.spacing_mm) if _lacks_sections(case) else case for case in manifest.cases
    )
    return training_statistics(replace(manifest, cases=cases))


def _lacks_sections(case: Case) -> bool:
    is_used = (case.split, case.domain) == ("train", "B") and case.hu_histogram is not None
    return is_used and case.section_cm2 is None


def _measured(root: Path, case: Case, pixel_mm: float) -> Case:
    section, gas = section_figures(*read_case(root, case), pixel_mm)
    return replace(case, section_cm2=section, gas_share=gas)


def training_statistics(manifest: Manifest) -> TrainingStatistics | None:
    """Return the statistics of a prepared training set, or None if its manifest does not record what is needed.

    Raises:
        InputError: what it records cannot be.
    """
    try:
        return _statistics(manifest)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise InputError(
            f"manifest.json: damaged, frame or figures of a case ({error!r}); prepare the data set again"
        ) from error


def _statistics(manifest: Manifest) -> TrainingStatistics | None:
    mr, ct = manifest.select("train", "A"), manifest.select("train", "B")
    if any(c.mr_median is None for c in mr) or any(c.hu_histogram is None for c in ct):
        return None
    # A body that lies outside the frame has no voxel in it.
    ct = [case for case in ct if sum(_given(case.hu_histogram))]
    if not ct:
        return None
    pooled = np.sum([_given(case.hu_histogram) for case in ct], axis=0)
    # By the triangle inequality: slice to pooled is at most slice to its case, and its case to pooled.
    limits = [np.add(_given(case.hu_slice_spread), hu_distance(_given(case.hu_histogram), pooled)) for case in ct]
    section_cm2, gas_share = _sections(ct)
    return TrainingStatistics(
        hu_histogram=tuple(pooled.tolist()),
        hu_slice_limits=tuple(np.max(limits, axis=0).tolist()),
        mr_high=_range(_given(case.percentiles)[1] for case in mr) if mr else None,
        mr_median=_range(relative_median(_given(c.mr_median), _given(c.percentiles)) for c in mr) if mr else None,
        in_plane_mm=_range(case.in_plane_mm for case in (*mr, *ct)),
        through_mm=_range(through_mm(case) for case in (*mr, *ct)),
        section_cm2=section_cm2,
        gas_share=gas_share,
    )


def _sections(ct: Sequence[Case]) -> tuple[Range | None, float | None]:
    """Return the cross-sections' areas and gas of all CT; None if one does not record them."""
    areas = [case.section_cm2 for case in ct if case.section_cm2 is not None]
    found = [area for area in areas if area[1] > 0]  # a CT whose slices all show too little body has none
    if len(areas) < len(ct) or not found:
        return None, None
    return (min(low for low, _ in found), max(high for _, high in found)), max(_given(case.gas_share) for case in ct)


def hu_histogram(hu: np.ndarray) -> np.ndarray:
    """Count HU values of any shape in the bins of `HU_EDGES`."""
    width = HU_EDGES[1] - HU_EDGES[0]
    bins = (np.asarray(hu, np.float32).clip(HU_EDGES[0], HU_EDGES[-1] - 1) - HU_EDGES[0]) // width
    return np.bincount(bins.astype(np.intp).ravel(), minlength=len(HU_EDGES) - 1)


def hu_distance(counts: Counts, reference: Counts, window: Range | None = None) -> float:
    """Return the Wasserstein distance (HU) of two histograms in the bins of `HU_EDGES`; NaN if one is empty.

    With a `window` (HU) both are clipped to it first, in whole bins: a model cannot leave its window.
    """
    difference = np.abs(_cumulative(counts) - _cumulative(reference))
    if window:
        # Clipping makes both distributions 0 below the window and 1 from its upper end on.
        difference[(HU_EDGES[1:] <= window[0]) | (HU_EDGES[1:] >= window[1])] = 0
    return float(difference.sum() * (HU_EDGES[1] - HU_EDGES[0]))


def slice_distances(
    slices: np.ndarray, masks: np.ndarray, reference: Counts, window: Range | None = None
) -> np.ndarray:
    """Return the `hu_distance` of every slice that shows enough body (`MIN_BODY_SHARE`) from a reference histogram.

    Args:
        slices: HU, (N, H, W).
        masks: where the body is, (N, H, W).
        reference: counts in the bins of `HU_EDGES`.
        window: as in `hu_distance`.
    """
    used = _slices_with_body(masks)
    return np.array([hu_distance(hu_histogram(slices[k][masks[k] > 0]), reference, window) for k in used])


def _slices_with_body(masks: np.ndarray) -> list[int]:
    return [k for k, mask in enumerate(masks) if np.count_nonzero(mask) >= MIN_BODY_SHARE * mask.size]


def slice_spread(slices: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, Range]:
    """Return a CT's histogram inside the body, and the `SPREAD_QUANTILES` of its slices' distances (HU) from it."""
    counts = hu_histogram(slices[masks > 0])
    distances = slice_distances(slices, masks, counts)
    low, high = np.quantile(distances, SPREAD_QUANTILES).tolist() if distances.size else (0.0, 0.0)
    return counts, (low, high)


def cross_sections(masks: np.ndarray, dark: np.ndarray, pixel_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the body's area in cm2, and the share of it that is dark, of every slice that shows enough body.

    The area is that of the largest part in one piece: an arm beside the trunk does not count, nor does a second leg.
    The share leaves out the outermost pixel, which is half air.

    Args:
        masks: where the body is, (N, H, W).
        dark: bool (N, H, W).
        pixel_mm: width of a pixel.
    """
    areas, shares = [], []
    for k in _slices_with_body(masks):
        body = masks[k] > 0
        parts: np.ndarray = ndimage.label(body)[0]
        areas.append(np.bincount(parts[body]).max() * pixel_mm**2 / 100)
        inner = ndimage.binary_erosion(body)
        shares.append(dark[k][inner].mean() if inner.any() else 0.0)
    return np.array(areas), np.array(shares)


def section_figures(slices: np.ndarray, masks: np.ndarray, pixel_mm: float) -> tuple[Range, float]:
    """Return what `Case` records of a CT's cross-sections: `SECTION_QUANTILES` of areas, the upper one of gas.

    Args:
        slices: HU, (N, H, W).
        masks, pixel_mm: as in `cross_sections`.
    """
    areas, gas = cross_sections(masks, slices < GAS_HU, pixel_mm)
    if not areas.size:
        return (0.0, 0.0), 0.0
    low, high = np.quantile(areas, SECTION_QUANTILES).tolist()
    return (low, high), float(np.quantile(gas, SECTION_QUANTILES[1]))


def relative_median(median: float, percentiles: Range) -> float:
    """Return where an MR's median lies between its percentiles, 0 to 1: it tells sequences apart, not scalings."""
    low, high = percentiles
    return (median - low) / (high - low) if high > low else 0.0


def _given[Figure](figure: Figure | None) -> Figure:
    """Return a figure that the case of a sound manifest has."""
    if figure is None:
        raise TypeError("a figure is missing")
    return figure


def _cumulative(counts: Counts) -> np.ndarray:
    values = np.asarray(counts, float)
    total = values.sum()
    return np.cumsum(values) / total if total else np.full(len(values), np.nan)


def _range(values) -> Range:
    values = [float(value) for value in values]
    return min(values), max(values)
