"""Slices of a synthetic CT without bone: a limb, trunk or head has some in every slice that shows all of it."""

import numpy as np

from cohort.isolated_bone import joined
from data.errors import listed
from data.volumes.volume import Volume, axial_order, flipped
from evaluation.metrics import BONE_ABOVE_HU

# A slice of so much body has bone of more than this, in cm2. Of 34 true CT of limbs and trunks 28 have at most one
# slice that has not; the others, which show only a part of a limb, have 3 to 29.
LEAST_BODY_CM2, LEAST_BONE_CM2 = 20.0, 0.3
# Fewer slices are no reason to look.
LEAST_SLICES = 3
_LISTED = 5


def slices_without_bone(ct: Volume, body: np.ndarray) -> list[int]:
    """Return the numbers, the lowest is 1, of axial slices with much body and hardly any bone.

    Args:
        ct: in HU.
        body: where the body is, bool (z, y, x).
    """
    order, flips = axial_order(ct.direction)
    hu, inside = (flipped(array.transpose(order), flips) for array in (ct.array, body))
    _, height, width = (ct.spacing[::-1][axis] for axis in order)
    pixel_cm2 = height * width / 100
    return [
        k
        for k, (plane, seen) in enumerate(zip(hu, inside, strict=True), 1)
        if np.count_nonzero(seen) * pixel_cm2 >= LEAST_BODY_CM2
        and np.count_nonzero((plane > BONE_ABOVE_HU) & seen) * pixel_cm2 < LEAST_BONE_CM2
    ]


def describe_missing_bone(slices: list[int], count: int) -> str | None:
    """Return in a line which of `count` slices have no bone; None where they are too few to look at."""
    if len(slices) < LEAST_SLICES:
        return None
    spans = [f"{low}" if low == high else f"{low} to {high}" for low, high in joined([(k, k) for k in slices])]
    return (
        f"no bone in {len(slices)} of {count} axial slices, {listed(spans, _LISTED)}: right only where the field of "
        "view leaves bone out"
    )
