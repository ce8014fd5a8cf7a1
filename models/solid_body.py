"""Replace air inside bodies that hold none, such as limbs, by tissue, a few planes at a time."""

import math

import numpy as np
from scipy import ndimage

# Fat is above it, air below. The first voxels above it lie on the slope from air to tissue, often darker than fat.
SOLID_HU = -200
FILL_SMOOTH_MM = 2.0
# A Gaussian ends after so many standard deviations.
GAUSSIAN_REACH = 4.0
# Air is filled in so many voxels at a time, with what lies around them: whole planes. No voxel depends on it.
FILL_VOXELS, FILL_PLANES = 16_000_000, 8


def fill_air(
    hu: np.ndarray, body: np.ndarray, spacing: tuple[float, float, float], smooth_mm: float = FILL_SMOOTH_MM
) -> np.ndarray:
    """Make what is below -200 HU inside a body mask tissue: that of the body's nearest other voxel.

    The filled voxels are smoothed, since the nearest values alone would leave a saw-toothed skin; no other changes.

    Args:
        hu: CT in HU, int16 (z, y, x); it is changed, and returned.
        body: its mask, bool (z, y, x). All below -200 HU: the CT stays as it is.
        spacing: of the voxels along (x, y, z), in mm.
        smooth_mm: standard deviation of the Gaussian; 0 leaves the nearest values.
    """
    air = body & (hu < SOLID_HU)
    if not air.any() or air.sum() == body.sum():
        return hu
    box = ndimage.find_objects(body.view(np.uint8))[0]  # all that is asked for and all that answers lies in it
    part, body, air = hu[box], body[box], air[box]
    sigma = [smooth_mm / mm for mm in spacing[::-1]]
    reach = int(GAUSSIAN_REACH * sigma[0] + 0.5)  # planes that a plane is smoothed with, as ndimage counts them
    planes = max(1, FILL_VOXELS // part[0].size)
    for start in range(0, len(part), planes):
        core = slice(start, min(start + planes, len(part)))
        if not air[core].any():
            continue
        near = slice(max(0, core.start - reach), min(core.stop + reach, len(part)))
        filled = _nearest_tissue(part, body, air, near, spacing[::-1])
        inner = slice(core.start - near.start, core.stop - near.start)
        holes = air[core]
        if smooth_mm:
            inside = body[near].astype(np.float32)
            mean, share = (
                ndimage.gaussian_filter(values, sigma, truncate=GAUSSIAN_REACH)[inner][holes]
                for values in (filled * inside, inside)
            )
            part[core][holes] = np.rint(mean / share)
        else:
            part[core][holes] = filled[inner][holes]
    return hu


def _nearest_tissue(
    hu: np.ndarray, body: np.ndarray, air: np.ndarray, planes: slice, sampling: tuple[float, ...]
) -> np.ndarray:
    """Return some planes of a CT with the body's nearest tissue for the air in it; `air` has what was air at first.

    Looked for is in these planes and a few around them, more where the nearest might lie beyond.
    """
    around = FILL_PLANES
    while True:
        first = max(0, planes.start - around)
        window = slice(first, min(planes.stop + around, len(hu)))
        inner = slice(planes.start - first, planes.stop - first)
        holes, tissue = np.nonzero(air[planes]), body[window] & ~air[window]
        if tissue.any():
            nearest = ndimage.distance_transform_edt(
                ~tissue, sampling=sampling, return_distances=False, return_indices=True
            )
            found = [indices[inner][holes] for indices in nearest]
            here = (holes[0] + inner.start, *holes[1:])
            apart = ((a - b) * mm for a, b, mm in zip(found, here, sampling, strict=True))
            farthest = math.sqrt(max(sum(mm * mm for mm in apart), default=0.0))
            if farthest <= around * sampling[0] or window == slice(0, len(hu)):
                filled = hu[planes].copy()
                filled[holes] = hu[window][tuple(found)]
                return filled
        around *= 2
