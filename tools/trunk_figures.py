"""Figures of synthetic CT of trunks that need no true CT: is the spinal canal free, and is there bone on the flanks?

    python -m tools.trunk_figures --mr MR1 MR2 --ct CT1 CT2

The canal: in each axial slice, the darkest square of 10 mm of the MR that lies 35 to 75 mm in front of the skin of
the back, at most 20 mm from the middle of the body. Spinal fluid is dark on T1-weighted MR, and so is bone, which
a wrong CT shows there. The table has the median over slices of the median HU in that square; fluid has 0 to 30 HU.

Bone on the flanks: voxels above 250 HU more than 60 mm to the left or right of the middle, in ml. Ribs, hip bones
and arms count, too.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import uniform_filter

from data.errors import InputError, run_command
from data.masks.body_mask import mr_body_mask
from data.settings.parser import CommandParser
from data.values.modality import in_hu
from data.volumes.volume import Volume, in_axial_order, read_volume, resampling, same_grid
from evaluation.metrics import BONE_ABOVE_HU

CANAL_DEPTH_MM, CANAL_BESIDE_MM, SQUARE_MM = (35.0, 75.0), 20.0, 10.0
FLANK_MM = 60.0


def canal_and_flanks(mr: Volume, ct: Volume) -> tuple[float, float]:
    """Return the HU of the canal (NaN where no slice shows enough body) and the ml of bone on the flanks.

    Args:
        mr: T1-weighted MR of a trunk, in phase.
        ct: its synthetic CT in HU, on its grid.
    """
    (signal, hu, body), (_, pixel_y, pixel_x) = in_axial_order(mr, mr.array, ct.array, mr_body_mask(mr))
    square = [max(1, round(SQUARE_MM / pixel)) for pixel in (pixel_y, pixel_x)]
    canals, flanks = [], 0
    columns = np.arange(body.shape[2])
    for plane, ct_plane, inside in zip(signal, hu, body, strict=True):
        if not inside.any():
            continue
        beside = np.abs(columns - np.nonzero(inside)[1].mean()) * pixel_x
        flanks += np.count_nonzero((ct_plane > BONE_ABOVE_HU) & inside & (beside > FLANK_MM))
        near = inside & (beside <= CANAL_BESIDE_MM)
        if not near.any():
            continue
        depth = (np.nonzero(near)[0].max() - np.arange(len(plane))) * pixel_y
        place = near & ((depth >= CANAL_DEPTH_MM[0]) & (depth <= CANAL_DEPTH_MM[1]))[:, None]
        if not place.any():
            continue
        means = np.where(place, uniform_filter(plane.astype(np.float64), square), np.inf)
        y, x = np.unravel_index(means.argmin(), means.shape)
        top, left = max(0, y - square[0] // 2), max(0, x - square[1] // 2)
        canals.append(np.median(ct_plane[top : top + square[0], left : left + square[1]]))
    return float(np.median(canals)) if canals else float("nan"), flanks * float(np.prod(mr.spacing)) / 1000


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each pair."""
    parser = CommandParser(
        prog="python -m tools.trunk_figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mr", type=Path, nargs="+", required=True, help="T1-weighted MR of trunks, in phase")
    parser.add_argument("--ct", type=Path, nargs="+", required=True, help="their synthetic CT, in the same order")
    opt = parser.parse_args(arguments)
    if len(opt.mr) != len(opt.ct):
        raise InputError(f"--mr names {len(opt.mr)} volumes, --ct {len(opt.ct)}; expected as many")
    print("| CT | canal [HU] | bone on the flanks [ml] |\n| --- | ---: | ---: |")
    for mr_path, ct_path in zip(opt.mr, opt.ct, strict=True):
        mr, ct = read_volume(mr_path), in_hu(read_volume(ct_path))
        if not same_grid(mr, ct):
            raise InputError(f"{ct_path}: lies on another grid than {mr_path}; {resampling(ct_path, mr_path)}")
        canal, flanks = canal_and_flanks(mr, ct)
        print(f"| {ct_path} | {canal:.0f} | {flanks:.1f} |")


if __name__ == "__main__":
    run_command(main)
