"""Distance between the slices of a data set: slabs of neighbouring slices need a single spacing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.errors import InputError
from data.prepared.manifest import Case, Manifest
from data.volumes.slice_frame import view_order

# By how much spacings may differ and still count as one.
TOLERANCE = 0.1


def through_mm(case: Case) -> float:
    """Return the spacing between the slices of a case's volume as it was acquired."""
    order, _ = view_order(case.frame["source_direction"], case.view)
    return case.frame["source_spacing"][2 - order[0]]


def common_slice_spacing(
    dataroot: Path, manifest: Manifest, cases: Sequence[Case], what_needs: str = "slabs need"
) -> float:
    """Return the one spacing between slices that prepared cases share within 10 %: their median.

    `what_needs`: the words before "one spacing" in the error.

    Raises:
        InputError: they do not.
    """
    spacings = {(case.domain, case.name): manifest.slice_mm or through_mm(case) for case in cases}
    low, high = (extreme(spacings, key=lambda case: spacings[case]) for extreme in (min, max))
    if spacings[high] > (1 + TOLERANCE) * spacings[low]:
        raise InputError(
            f"{dataroot}: slices of {low[1]} lie {spacings[low]:g} mm apart, those of {high[1]} {spacings[high]:g} mm; "
            f"{what_needs} one spacing: prepare the data set with --slice_mm"
        )
    return float(np.median(list(spacings.values())))
