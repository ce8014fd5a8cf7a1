"""Slices of a synthetic CT without bone: a limb, trunk or head has some in every slice that shows all of it."""

from typing import NamedTuple

import numpy as np

from cohort.isolated_bone import span_words
from data.errors import listed
from data.volumes.volume import Volume, axial_order, flipped
from evaluation.metrics import BONE_ABOVE_HU

# A slice of so much body has bone of more than this, in cm2. Of 34 true CT of limbs and trunks 28 have at most one
# slice that has not; the others, which show only a part of a limb, have 3 to 29.
LEAST_BODY_CM2, LEAST_BONE_CM2 = 20.0, 0.3
# Fewer slices are no reason to look.
LEAST_SLICES = 3
_LISTED = 5


class MissingBone(NamedTuple):
    """Axial slices with much body and hardly any bone: their numbers, the lowest is 1, and of how many."""

    slices: list[int]
    of: int

    def describe(self) -> str | None:
        """Return in a line which slices have no bone; None where they are too few to look at."""
        if len(self.slices) < LEAST_SLICES:
            return None
        where = listed(span_words((k, k) for k in self.slices), _LISTED)
        return (
            f"no bone in {len(self.slices)} of {self.of} axial slices, {where}: right only where the field of view "
            "leaves bone out"
        )


def missing_bone(ct: Volume, body: np.ndarray) -> MissingBone:
    """Return which axial slices of a CT have no bone.

    Args:
        ct: in HU.
        body: where the body is, bool (z, y, x).
    """
    order, flips = axial_order(ct.direction)
    hu, inside = (flipped(array.transpose(order), flips) for array in (ct.array, body))
    _, height, width = (ct.spacing[::-1][axis] for axis in order)
    pixel_cm2 = height * width / 100
    slices = [
        k
        for k, (plane, seen) in enumerate(zip(hu, inside, strict=True), 1)
        if np.count_nonzero(seen) * pixel_cm2 >= LEAST_BODY_CM2
        and np.count_nonzero((plane > BONE_ABOVE_HU) & seen) * pixel_cm2 < LEAST_BONE_CM2
    ]
    return MissingBone(slices, len(hu))
