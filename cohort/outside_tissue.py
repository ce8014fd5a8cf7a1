"""Tissue of a synthetic CT in the air around the body: false, or a part of the body that was not found in the MR."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from cohort.isolated_bone import span_words
from data.errors import listed
from data.values.intensity import AIR_HU
from data.volumes.volume import Volume, in_axial_order

# Nearer to the body is skin and what a network blurs: 7 ml of a whole generated body, 0.1 ml of a limb.
FAR_MM, TISSUE_HU = 10.0, -300
# Of the synthetic CT of 17 MR 15 have less. The others, two limbs, have 36 ml, all of it air in the true CT, and 78 ml
# where the MR shows noise: 0.5 and 1.5 % of the body.
LEAST_ML, LEAST_SHARE = 10.0, 0.002
_LISTED = 5


class OutsideTissue(NamedTuple):
    """Tissue more than `FAR_MM` outside the body: how much, as a share of the body too, and in which axial slices.

    `slices`: their numbers, the lowest is 1.
    """

    ml: float
    share: float
    slices: list[int]

    def describe(self) -> str | None:
        """Return in a line where it is; None where it is too little to matter."""
        if self.ml < LEAST_ML or self.share < LEAST_SHARE:
            return None
        where = listed(span_words((k, k) for k in self.slices), _LISTED)
        return (
            f"{self.ml:.0f} ml of tissue more than {FAR_MM:g} mm outside the body that was found in the MR (axial "
            f"slices {where}): false tissue in the air, or a part of the body that was not found; if it is false, "
            "convert again with --air_outside, which sets it to air"
        )


def outside_tissue(ct: Volume, body: np.ndarray) -> OutsideTissue:
    """Return how much tissue (above -300 HU) of a CT lies in the air around a body.

    That is more than `FAR_MM` from it, within an axial slice, and of slices nearer than that.

    Args:
        ct: in HU.
        body: where the body is, bool (z, y, x).
    """
    counts = [int(np.count_nonzero(tissue)) for _, tissue in _far_tissue(ct, body)]
    voxel_ml = float(np.prod(ct.spacing) / 1000)
    slices = [k for k, count in enumerate(counts, 1) if count * voxel_ml >= LEAST_ML / len(counts)]
    voxels = sum(counts)
    return OutsideTissue(voxels * voxel_ml, voxels / max(1, int(np.count_nonzero(body))), slices)


def clear_outside(ct: Volume, body: np.ndarray, deviation: Volume | None = None) -> float:
    """Set to air, -1000 HU, what `outside_tissue` counts in a CT, which is changed; return how many ml that were.

    `deviation`: that of the CT; of what becomes air it becomes 0.
    """
    voxels = 0
    spread = None if deviation is None else in_axial_order(ct, deviation.array)[0][0]
    for k, (plane, tissue) in enumerate(_far_tissue(ct, body)):
        plane[tissue] = AIR_HU
        if spread is not None:
            spread[k][tissue] = 0
        voxels += int(np.count_nonzero(tissue))
    return float(voxels * np.prod(ct.spacing) / 1000)


def _far_tissue(ct: Volume, body: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the axial slices of a CT, and where each has tissue far from the body in it and in slices near it."""
    (hu, inside), (depth, *in_plane) = in_axial_order(ct, ct.array, body)
    reach = int(FAR_MM / depth)
    for k, plane in enumerate(hu):
        near = inside[max(0, k - reach) : k + reach + 1].any(axis=0)
        tissue = (plane > TISSUE_HU) & ~near
        if tissue.any() and near.any():
            tissue &= ndimage.distance_transform_edt(~near, sampling=in_plane) > FAR_MM
        yield plane, tissue
