"""Slices of a synthetic CT without bone: a limb, trunk or head has some in every slice that shows all of it."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from cohort.isolated_bone import span_words
from data.errors import listed
from data.volumes.volume import Volume, in_axial_order
from evaluation.metrics import BONE_ABOVE_HU

# A slice of so much body has bone of more than this, in cm2. Of 34 true CT of limbs and trunks 28 have at most one
# slice that has not; the others, which show only a part of a limb, have 3 to 29.
LEAST_BODY_CM2, LEAST_BONE_CM2 = 20.0, 0.3
# Fewer slices are no reason to look. Of 26 true CT of limbs one has so many between others with bone.
LEAST_SLICES = 3
_LISTED = 5


class MissingBone(NamedTuple):
    """Axial slices with much body and hardly any bone: their numbers, the lowest is 1, and of how many.

    `gaps`: first and last of those runs of `LEAST_SLICES` and more that have slices with bone above and below.
    """

    slices: list[int]
    of: int
    gaps: list[tuple[int, int]]

    def describe(self) -> str | None:
        """Return in a line which slices beside the gaps have no bone; None where they are too few to look at."""
        rest = [k for k in self.slices if not any(low <= k <= high for low, high in self.gaps)]
        if len(rest) < LEAST_SLICES:
            return None
        where = listed(span_words((k, k) for k in rest), _LISTED)
        return (
            f"no bone in {len(rest)} of {self.of} axial slices ({where}): check them; this is correct only if "
            "the bone lies outside the field of view"
        )

    def describe_gaps(self) -> str | None:
        """Return in a line where bone is interrupted; None where it is not."""
        if not self.gaps:
            return None
        where = listed(span_words(self.gaps), _LISTED)
        return (
            f"no bone in axial slices {where} of {self.of}, although slices above and below have some: either "
            "bone was missed here, or the bone above or below is false"
        )


def missing_bone(ct: Volume, body: np.ndarray) -> MissingBone:
    """Return which axial slices of a CT have no bone.

    Args:
        ct: in HU.
        body: where the body is, bool (z, y, x).
    """
    (hu, inside), (_, height, width) = in_axial_order(ct, ct.array, body)
    pixel_cm2 = height * width / 100
    with_bone, without = [], []
    for k, (plane, seen) in enumerate(zip(hu, inside, strict=True), 1):
        if np.count_nonzero((plane > BONE_ABOVE_HU) & seen) * pixel_cm2 >= LEAST_BONE_CM2:
            with_bone.append(k)
        elif np.count_nonzero(seen) * pixel_cm2 >= LEAST_BODY_CM2:
            without.append(k)
    runs = [(low + 1, high - 1) for low, high in pairwise(with_bone)]
    gaps = [(low, high) for low, high in runs if sum(low <= k <= high for k in without) >= LEAST_SLICES]
    return MissingBone(without, len(hu), gaps)
