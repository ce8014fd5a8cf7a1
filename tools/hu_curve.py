"""Try curves of HU on results with a true CT: `python -m tools.hu_curve --pred F --ref F`.

A network that learns from the absolute error makes bone too soft where it is not sure of its place. A curve raises
these HU afterwards (`scripts.export_model --hu_curve`). Curves tried keep HU below LOW, turn AT into 250 HU, the
threshold of bone, and raise what is above by SLOPE up to 1000 HU. Results must come from a model without a curve.

Prints the mean over patients of each curve, and of the best one (bone Dice less a hundredth of the MAE) chosen with
every patient left out in turn and scored on that patient. Options as in scripts.evaluate.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

from data.errors import run_command
from data.masks.body_mask import ct_body_mask
from data.settings.parser import CommandParser
from data.values.intensity import CT_WINDOW_HU, IntensityMap
from data.volumes.volume import read_volume
from evaluation.case_folders import CaseVolumes
from evaluation.cases import find_cases, read_reference
from evaluation.metrics import BONE_ABOVE_HU, dice
from evaluation.report import markdown_table, seen_voxels

Curve = tuple[tuple[float, float], ...]
LOW, AT, SLOPE = (100.0, 130.0), (160.0, 180.0, 200.0, 220.0), (1.0, 1.1, 1.2)
_UP_TO_HU = 1000.0
_NAMES = ("pred", "ref", "mr")


def curves() -> list[Curve]:
    """Return the curves that are tried; the first is none."""
    bone = float(BONE_ABOVE_HU)
    tried = [
        ((low, low), (at, bone), (_UP_TO_HU, bone + slope * (_UP_TO_HU - at)))
        for low, at, slope in product(LOW, AT, SLOPE)
    ]
    return [(), *tried]


def figures(pred: np.ndarray, ref: np.ndarray, curve: Curve) -> tuple[float, float, float]:
    """Return MAE in HU, bone Dice and MAE in true bone of HU (N,) sent through a curve."""
    window = IntensityMap.window(*CT_WINDOW_HU)
    hu = window.corrected(curve).to_physical(window.to_network(pred)) if curve else pred
    error, bone = np.abs(hu - ref), ref > BONE_ABOVE_HU
    return float(error.mean()), dice(hu > BONE_ABOVE_HU, bone), float(error[bone].mean())


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="python -m tools.hu_curve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in _NAMES:
        parser.add_argument(f"--{name}", type=Path, required=name != "mr", help="a volume or a folder of cases")
        parser.add_argument(f"--{name}_pattern", metavar="PATTERN", help=f"where a case lies below --{name}")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    opt = parse_arguments(arguments)
    sources = {
        name: CaseVolumes(f"--{name}", path, getattr(opt, f"{name}_pattern"))
        for name in _NAMES
        if (path := getattr(opt, name)) is not None
    }
    scores = []
    for case in find_cases(**sources):
        pred = read_volume(case.pred)
        ref = read_reference(case.ref, pred, False, "result").ct
        seen = ct_body_mask(ref) & (True if case.mr is None else seen_voxels(read_volume(case.mr)))
        values = [volume.array[seen].astype(np.float32) for volume in (pred, ref)]
        scores.append([figures(*values, curve) for curve in curves()])
    found = np.array(scores)  # patients, curves, figures
    merit = found[:, :, 1] - found[:, :, 0] / 100
    lines = [["curve", "MAE [HU]", "bone Dice", "MAE in bone [HU]"]]
    for curve, mean in zip(curves(), np.nanmean(found, 0), strict=True):
        lines.append([" ".join(f"{x:g}:{y:g}" for x, y in curve) or "none", *_cells(mean)])
    if len(found) > 1:
        chosen = [int(np.nanmean(np.delete(merit, k, 0), 0).argmax()) for k in range(len(found))]
        held_out = np.nanmean([found[k, best] for k, best in enumerate(chosen)], 0)
        lines.append(["chosen without the patient", *_cells(held_out)])
    sys.stdout.write(markdown_table(lines) + "\n")


def _cells(mean: np.ndarray) -> list[str]:
    return [f"{mean[0]:.1f}", f"{mean[1]:.3f}", f"{mean[2]:.0f}"]


if __name__ == "__main__":
    run_command(main)
