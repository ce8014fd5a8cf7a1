"""Find the spinal canal in CT: what lies in it is enclosed by bone, and yet no marrow."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage

from data.masks.body_mask import CT_BODY_HU

# A slice of the canal: soft tissue of this area within a bone.
_AREA_MM2 = (60.0, 700.0)
_HU = (-60.0, 95.0)
# The vertebra about it: bone within this, whose middle lies in front of the canal's, on average by this much, and not
# more to a side than this. About marrow it lies in no direction.
_VERTEBRA_MM = 30.0
_IN_FRONT_MM, _ASIDE_MM = 2.5, 8.0
# So far from the middle of the body at most.
_FROM_MIDDLE_MM = 40.0
# From one vertebra to the next the arch may be open. So far apart are slices that show the canal at most, and so far
# its middle moves, for each mm between them.
_GAP_MM = 30.0
_SLOPE = 0.7
_STEP_MM = 4.0
# Shorter ones are marrow and holes in the base of the skull.
_SHORTEST_MM = 45.0


@dataclass(frozen=True)
class _Hole:
    """A hole in a bone: its slice, its middle (x, y) in mm, its pixels, how far the bone lies in front of it in mm."""

    slice: int
    middle: np.ndarray
    pixels: np.ndarray
    in_front: float


def spinal_canal(
    ct: np.ndarray, bone: np.ndarray, enclosed: np.ndarray, pixel_mm: float, slice_mm: float
) -> np.ndarray:
    """Return the spinal canal of a volume, bool (N, H, W); empty where there is none.

    Holes of neighbouring slices that lie in line are one canal. Slices in which the arch of the vertebra is open are
    filled from those above and below.

    Args:
        ct: (N, H, W) in HU, axial slices, the patient's back at the bottom.
        bone: compact bone, bool (N, H, W).
        enclosed: what it encloses in its slice, bool (N, H, W).
        pixel_mm, slice_mm: spacing in the plane and between slices.
    """
    canal = np.zeros(ct.shape, bool)
    chain = _longest_chain(_holes(ct, bone, enclosed, pixel_mm), slice_mm)
    if not chain or (chain[-1].slice - chain[0].slice) * slice_mm < _SHORTEST_MM:
        return canal
    if np.mean([hole.in_front for hole in chain]) < _IN_FRONT_MM:
        return canal
    for hole in chain:
        canal[hole.slice] = hole.pixels
    for above, below in pairwise(chain):
        between = range(above.slice + 1, below.slice)
        if between:
            first, second = _signed_distance(above.pixels), _signed_distance(below.pixels)
        for k in between:
            share = (k - above.slice) / (below.slice - above.slice)
            canal[k] = ((1 - share) * first + share * second > 0) & (ct[k] < _HU[1])
    return canal


def _holes(ct: np.ndarray, bone: np.ndarray, enclosed: np.ndarray, pixel_mm: float) -> list[_Hole]:
    """Return all holes of soft tissue behind the body of a vertebra, slice by slice."""
    holes = []
    for k, plane in enumerate(enclosed):
        parts, _ = ndimage.label(plane)
        for number, place in enumerate(ndimage.find_objects(parts), start=1):
            part = parts[place] == number
            if not _AREA_MM2[0] <= part.sum() * pixel_mm**2 <= _AREA_MM2[1]:
                continue
            if not _HU[0] <= ct[k][place][part].mean() <= _HU[1]:
                continue
            y, x = (float(at.mean()) for at in np.nonzero(part))
            x, y = x + place[1].start, y + place[0].start
            in_front, aside = _vertebra(x, y, bone[k], pixel_mm)
            from_middle = abs(x - np.flatnonzero((ct[k] > CT_BODY_HU).any(0))[[0, -1]].mean()) * pixel_mm
            if in_front >= 0 and abs(aside) <= _ASIDE_MM and from_middle <= _FROM_MIDDLE_MM:
                pixels = np.zeros(plane.shape, bool)
                pixels[place] = part
                holes.append(_Hole(k, np.array([x, y]) * pixel_mm, pixels, in_front))
    return holes


def _vertebra(x: float, y: float, bone: np.ndarray, pixel_mm: float) -> tuple[float, float]:
    """Return how far the middle of the bone near the pixel (x, y) lies in front of it, and to a side, in mm."""
    reach = round(_VERTEBRA_MM / pixel_mm)
    top, left = max(0, round(y) - reach), max(0, round(x) - reach)
    rows, columns = np.nonzero(bone[top : round(y) + reach + 1, left : round(x) + reach + 1])
    return (y - top - rows.mean()) * pixel_mm, (columns.mean() + left - x) * pixel_mm


def _longest_chain(holes: list[_Hole], slice_mm: float) -> list[_Hole]:
    """Return the holes in line that reach through most slices, one a slice, first slice first."""
    if not holes:
        return []
    # A chain is worth what it reaches through, less where it jumps: of two holes in a slice, the better one counts.
    worth, before = np.zeros(len(holes)), np.full(len(holes), -1)
    for i, hole in enumerate(holes):
        for j in range(i - 1, -1, -1):
            gap_mm = (hole.slice - holes[j].slice) * slice_mm
            if gap_mm > _GAP_MM:
                break
            moved = float(np.linalg.norm(hole.middle - holes[j].middle))
            allowed = _STEP_MM + _SLOPE * gap_mm
            if gap_mm and moved <= allowed:
                gain = worth[j] + gap_mm * (1 - 0.5 * moved / allowed)
                if gain > worth[i]:
                    worth[i], before[i] = gain, j
    chain, at = [], int(worth.argmax())
    while at >= 0:
        chain.append(holes[at])
        at = int(before[at])
    return chain[::-1]


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Return how many pixels deep in a mask a pixel lies, below zero outside it."""
    return ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
