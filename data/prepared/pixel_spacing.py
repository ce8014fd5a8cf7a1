"""The pixel spacing of a data set: the finest at which its slices hold every body."""

import math
from collections.abc import Sequence

from data.prepared.manifest import Case

# Relative excess of a product of spacings that is rounding, not a body too wide.
_ROUNDING = 1e-9


def choose_spacing(cases: Sequence[Case], size: int) -> float:
    """Return the finest pixel spacing (mm) with which every body fits `size` pixels, but none finer than acquired.

    Volumes that all share one in-plane spacing keep it where their bodies fit: nothing is resampled then.
    """
    extent_mm = max(case.extent_mm for case in cases)
    acquired = min(case.in_plane_mm for case in cases)
    return acquired if extent_mm <= size * acquired * (1 + _ROUNDING) else _holding_mm(extent_mm, size)


def _holding_mm(extent_mm: float, size: int) -> float:
    """Return the finest spacing in steps of 0.01 mm with which `size` pixels hold a body."""
    return math.ceil(extent_mm / size * 100 * (1 - _ROUNDING)) / 100


def lost_body_message(case: Case, size: int, spacing_mm: float) -> str:
    """Report how much of a case's body lies outside the frame and which frame would hold it."""
    return (
        f"{case.name}: {case.lost_voxels} body voxels lie outside the frame of {size} x {spacing_mm:g} mm; to keep "
        f"them prepare again with --overwrite and --spacing_mm {_holding_mm(case.extent_mm, size):g} or "
        f"--size {4 * math.ceil(case.extent_mm / spacing_mm / 4 * (1 - _ROUNDING))}"
    )
