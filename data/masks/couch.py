"""Find the side of the patient on which the couch is: patients lie on the back, prone or on a side."""

import numpy as np
from scipy import ndimage

# The couch of a patient on the back: along the axis P, in its sense.
BEHIND = (1, 1)
# A couch reaches out beyond the body by more than this, ...
REACH_MM = 12.0
# ... at both ends, or at one where so much of its width is seen: more than fingers and ears, less than half a couch.
PLATE_MM = 40.0


def couch_side(tissue: np.ndarray, body: np.ndarray, spacing: tuple[float, ...]) -> tuple[int, int]:
    """Return the axis (1: P, 2: L) and the sense (1, or -1: to the front, to the right) in which the couch lies.

    A couch is a plate that reaches out beyond the body, on the same side in at least half of the slices. Where there
    is none, it is behind.

    Args:
        tissue: what is not air, booleans (S, P, L).
        body: of it what is too thick for a couch, booleans (S, P, L).
        spacing: mm along (S, P, L).
    """
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = True
    plates, _ = ndimage.label(tissue & ~body, in_plane)
    places = ndimage.find_objects(plates)
    outlines = [next(iter(ndimage.find_objects(part.astype(np.uint8))), None) for part in body]
    # For each side the slices in which a plate reaches out beyond the body at its low end, and at its high end.
    reached: dict[tuple[int, int], tuple[set[int], set[int], set[int]]]
    reached = {side: (set(), set(), set()) for side in (BEHIND, (1, -1), (2, 1), (2, -1))}
    for place in places:
        row, outline = place[0].start, outlines[place[0].start]
        if outline is None:
            continue
        lengths = [(extent.stop - extent.start) * mm for extent, mm in zip(place[1:], spacing[1:], strict=True)]
        along = int(np.argmax(lengths))  # the plate's own axis: 0 for P, 1 for L
        plate, width, mm = place[1 + along], outline[along], spacing[1 + along]
        ends = [(width.start - plate.start) * mm > REACH_MM, (plate.stop - width.stop) * mm > REACH_MM]
        across, depth = place[2 - along], outline[1 - along]
        side = 2 - along, 1 if across.start + across.stop > depth.start + depth.stop else -1
        for rows, reaches in zip(reached[side], (*ends, any(ends) and lengths[along] >= PLATE_MM), strict=True):
            rows.update([row] if reaches else [])
    found = {side: wide | (low & high) for side, (low, high, wide) in reached.items()}
    side = max(found, key=lambda one: len(found[one]))  # the first of equals: behind
    return side if 2 * len(found[side]) >= sum(outline is not None for outline in outlines) else BEHIND
