"""Tell whether an MR looks like the T1-weighted, in-phase images that a model expects: fat bright, no dark lines.

Two figures, each for what makes a wrong CT without looking wrong in its histogram:

- the share of the borders between fat and lean tissue that are darker than both sides. Fat and water cancel there in
  opposed phase. At most .017 in T1 MR of 26 limbs and 2 abdomens, .041 and .043 in opposed phase of the same abdomens.
- how bright the tissue just below the skin is, which is mostly fat, relative to what lies deep. At least .98 in the
  same T1 MR. It is below .75 where fat is dark and not thin, as in water images and with fat suppression.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from cohort.findings import Findings
from data.values.intensity import TISSUE_REACH
from data.volumes.volume import Volume
from models.synthesis import VolumePlan

# Shares of fat's intensity and of each other that make two voxels the sides of a border between fat and lean tissue.
_FAT_FROM, _LEAN_FROM, _LEAN_TO = 0.6, 0.15, 0.65
# A border is dark below this share of its darker side.
_DARK = 0.75
MAX_DARK_BORDERS = 0.027
# Lines are as wide as voxels of whole-body Dixon images: finer ones are averaged to about that. So many planes do.
_PIXEL_MM, _MOST_PLANES = 1.7, 150
# With fewer borders nothing is said.
LEAST_BORDERS = 1000
# Fat below the skin lies here, in mm from the body's outline; deep tissue beyond the last.
_SKIN_MM, _FAT_MM, _DEEP_MM = 3.0, 9.0, 20.0
MIN_BELOW_SKIN = 0.75
# Pixels of each that a slice must have.
_LEAST_PIXELS = 50
T1_IN_PHASE = "the model expects T1-weighted MR in phase, with fat bright; for other contrasts its CT is wrong"


def check_contrast(findings: Findings, plan: VolumePlan, below_skins: np.ndarray) -> None:
    """Check whether an MR whose scale its fat sets is T1-weighted and in phase, by its header and by its values."""
    other = None if plan.source.dicom is None else plan.source.dicom.other_contrast
    if other:
        findings.warnings.append(f"its DICOM header says that it is {other}: {T1_IN_PHASE}")
    dark, borders = dark_borders(plan.source, plan.source_map.range[1] / TISSUE_REACH)
    if borders >= LEAST_BORDERS:
        share = findings.figures["dark_border_share"] = dark / borders
        if share > MAX_DARK_BORDERS:
            findings.warnings.append(
                f"{100 * share:.0f} % of the borders between fat and muscle are dark lines, as in opposed-phase "
                f"images (in phase 1.7 % at most): {T1_IN_PHASE}"
            )
    found = below_skins[np.isfinite(below_skins)]
    if found.size:
        bright = findings.figures["below_skin"] = float(np.median(found))
        if bright < MIN_BELOW_SKIN:
            findings.warnings.append(
                f"the tissue below the skin, mostly fat, is {bright:.2f} times as bright as deep tissue, as in "
                f"water images or with fat suppression (T1-weighted: 0.98 or more): {T1_IN_PHASE}"
            )


def dark_borders(mr: Volume, fat: float) -> tuple[int, int]:
    """Return how many borders between fat and lean tissue are dark, and how many there are.

    A border is a pixel with fat on one side and lean tissue on the other, along either of the two finest axes, in
    pixels of 1.3 to 2.6 mm where voxels are smaller. Of large volumes some planes are looked at.

    Args:
        mr: intensities, 0 without signal.
        fat: the intensity of fat, in the same units.
    """
    coarse = 2 - int(np.argmax(mr.spacing))  # spacing is (x, y, z), the array (z, y, x)
    dark = every = 0
    sides = [s for axis, s in enumerate(mr.spacing[::-1]) if axis != coarse]
    pools = [max(1, round(_PIXEL_MM / side)) for side in sides]
    planes = np.moveaxis(mr.array, coarse, 0)
    for plane in planes[:: -(-len(planes) // _MOST_PLANES)]:
        pooled = _means(plane, pools)
        for rows in (pooled, pooled.T):
            smooth = ndimage.uniform_filter1d(rows, 3, axis=0)  # along the border: less noise
            one, middle, other = (smooth[:, k : rows.shape[1] - 2 + k] for k in range(3))
            low, high = np.minimum(one, other), np.maximum(one, other)
            border = (high > _FAT_FROM * fat) & (low > _LEAN_FROM * fat) & (low < _LEAN_TO * high)
            every += int(np.count_nonzero(border))
            dark += int(np.count_nonzero(border & (middle < _DARK * low)))
    return dark, every


def _means(plane: np.ndarray, pools: Sequence[int]) -> np.ndarray:
    """Return the means of blocks of a plane, float32; what fills no block is left out."""
    rows, columns = pools
    height, width = (n // pool for n, pool in zip(plane.shape, pools, strict=True))
    blocks = plane[: height * rows, : width * columns].reshape(height, rows, width, columns)
    return blocks.mean((1, 3), dtype=np.float32)


def below_skin(mr: np.ndarray, body: np.ndarray, seen: np.ndarray, pixel_mm: float) -> float:
    """Return how bright a slice is 3 to 9 mm below the body's outline, relative to what lies deeper than 20 mm.

    Medians. NaN where there is too little of either, no signal deep inside, or no outline.

    Args:
        mr: intensities, (H, W).
        body: where the body is, bool, (H, W).
        seen: where the field of view is, bool, (H, W): its edge is no outline.
        pixel_mm: size of a pixel.
    """
    outside = seen & ~body
    if not outside.any():
        return float("nan")
    depth = ndimage.distance_transform_edt(~outside, sampling=pixel_mm)
    depth[~body] = 0
    shallow, deep = mr[(depth > _SKIN_MM) & (depth < _FAT_MM)], mr[depth > _DEEP_MM]
    if min(shallow.size, deep.size) < _LEAST_PIXELS or (median := np.median(deep)) <= 0:
        return float("nan")
    return float(np.median(shallow) / median)
