"""Simulate the MR of a CT, as training on simulated pairs does: `python -m scripts.simulate_mr --ct F --out DIR`.

Writes DIR/CASE/mr.nii.gz, a T1-like MR, and DIR/CASE/ct.nii.gz, the CT without its couch, on the CT's grid.
Compare the MR with yours, or score a model on CT that it was not trained on, where no true pairs are at hand. Such
scores are better than those on real MR. --ct is one volume or a folder of cases, as in scripts.evaluate.
"""

import argparse
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.errors import InputError, one_by_one, run_command
from data.masks.body_mask import remove_couch
from data.prepared.case_names import case_name
from data.prepared.case_volumes import find_body
from data.prepared.sources import Source
from data.settings.parser import CommandParser
from data.settings.values import nonnegative_float, positive_float, share
from data.simulation.contrasts import CONTRASTS, parse_contrasts
from data.simulation.settings import SimulationSettings
from data.simulation.simulated_mr import simulate_volume
from data.simulation.simulation_volume import simulation_volume
from data.values.intensity import AIR_HU
from data.volumes.contrasts import ONLY_CONTRAST
from data.volumes.outputs import check_free
from data.volumes.slice_frame import SliceFrame
from data.volumes.volume import Volume, read_volume, write_volume
from evaluation.case_folders import CaseVolumes
from evaluation.cases import case_volumes

log = logging.getLogger(__name__)

# The brightest tissue of a simulated MR. Scanners have units of their own, so another number would do.
_WINDOW_END = 1000.0


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="python -m scripts.simulate_mr", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = SimulationSettings()
    parser.add_argument("--ct", type=Path, required=True, help="CT in HU; a volume or a folder of cases")
    parser.add_argument("--ct_pattern", metavar="PATTERN", help="where a case lies below --ct, e.g. '{case}/ct.nii.gz'")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to, one folder a case")
    parser.add_argument("--mask", type=Path, help="body mask of a single CT, non-zero inside (default: computed)")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="random numbers: contrast, bias field, noise; all CT of a folder get the same (default: 0)",
    )
    parser.add_argument(
        "--contrasts", nargs="+", default=[ONLY_CONTRAST], metavar="NAME",
        help=f"images of the scan: {ONLY_CONTRAST}, or some of {', '.join(CONTRASTS[1:])} (default: {ONLY_CONTRAST})",
    )  # fmt: skip
    parser.add_argument(
        "--skin_mm", type=nonnegative_float, default=default.skin_mm, metavar="MM",
        help=f"largest mean thickness of dark skin, as in train.py (default: {default.skin_mm:g})",
    )  # fmt: skip
    parser.add_argument(
        "--bias", type=nonnegative_float, default=default.bias[1], metavar="B",
        help=f"strength of the bias field at most, as in train.py (default: {default.bias[1]:g})",
    )  # fmt: skip
    parser.add_argument(
        "--mr_slice_mm", type=nonnegative_float, default=default.mr_slice_mm, metavar="MM",
        help="largest slice thickness that the MR was acquired with, before interpolation to the slices of the "
        f"CT (in train.py, limited to three slices of the data set); 0: off (default: {default.mr_slice_mm:g})",
    )  # fmt: skip
    parser.add_argument(
        "--other_sequences", type=share, default=default.other_sequences, metavar="P",
        help="probability that the sequence is not T1-weighted: fat and muscle of any brightness, as in train.py "
        f"(default: {default.other_sequences:g})",
    )  # fmt: skip
    parser.add_argument(
        "--spacing_mm", type=positive_float, metavar="MM",
        help="pixels to simulate with; coarse ones need less memory (default: those of the CT)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace existing volumes")
    options = parser.parse_args(arguments)
    try:
        options.contrasts = parse_contrasts(options.contrasts)
    except InputError as error:
        parser.error(f"--contrasts {' '.join(options.contrasts)}: {error}")
    if not 0 <= options.seed < 2**62:
        parser.error(f"--seed {options.seed}: expected 0 to 2^62 - 1")
    return options


def simulated_scan(
    ct: Volume, body: np.ndarray, seed: int, settings: SimulationSettings, spacing_mm: float | None = None
) -> tuple[Volume, dict[str, Volume]]:
    """Return a CT without its couch, and the MR simulated from it, on the CT's grid.

    The MR does not show contrast agent and couch. Its values lie between 0 and 1000, the end of its window.

    Args:
        ct: CT in HU.
        body: its body mask, booleans, shape (z, y, x).
        seed: the same gives the same MR.
        settings: of the simulation.
        spacing_mm: pixels that it works with; None: those of the CT.

    Returns:
        The CT, and int16 volumes by contrast.
    """
    ct = remove_couch(ct, body)
    frame = SliceFrame.of(ct, size=1, spacing_mm=1.0)
    pixel_mm = spacing_mm or frame.in_plane_mm
    whole_mm = frame.body_extent_mm(np.ones(ct.array.shape, bool))
    frame = SliceFrame.of(ct, 2 * math.ceil(whole_mm / pixel_mm / 2), pixel_mm)
    slices, inside = frame.prepare(ct, AIR_HU), frame.prepare_labels(ct.with_array(body.astype(np.uint8))) > 0
    maps = simulation_volume(slices, inside, pixel_mm, frame.through_mm)
    images = simulate_volume(maps.hu, maps.depth, (frame.through_mm, pixel_mm), seed, settings)
    scan = {}
    for name, image in zip(settings.contrasts, images, strict=True):
        restored = frame.restore((image + 1) * (_WINDOW_END / 2), fill=0.0)
        scan[name] = restored.with_array(np.rint(restored.array).astype(np.int16))
    return ct, scan


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate the MR of every case; return 1 where some failed, else 0.

    Raises:
        InputError: bad input.
    """
    options = parse_arguments(arguments)
    cases = case_volumes(CaseVolumes("--ct", options.ct, options.ct_pattern, "ct"))
    if cases is not None and options.mask:
        raise InputError(f"--mask {options.mask}: one mask, but --ct {options.ct} is a folder of {len(cases)} cases")
    cases = cases or {case_name(options.ct): options.ct}
    names = (*options.contrasts, "ct")
    files = {case: {name: options.out / case / f"{name}.nii.gz" for name in names} for case in cases}
    targets = [path for of_case in files.values() for path in of_case.values()]
    inputs = [*cases.values(), *([options.mask] if options.mask else [])]
    check_free(targets, "--out", inputs, overwrite=options.overwrite)
    settings = SimulationSettings(
        contrasts=options.contrasts, skin_mm=options.skin_mm, bias=(0.0, options.bias),
        other_sequences=options.other_sequences, mr_slice_mm=options.mr_slice_mm,
    )  # fmt: skip

    def simulate(case: str) -> None:
        log.info("simulating the MR of %s", cases[case])
        ct = read_volume(cases[case])
        body = find_body(Source(case, case, cases[case]), "B", [ct], options.mask)
        clean, scan = simulated_scan(ct, body, options.seed, settings, options.spacing_mm)
        for name, volume in (scan | {"ct": clean}).items():
            write_volume(volume, files[case][name])
        log.info("wrote %s", ", ".join(str(path) for path in files[case].values()))

    return one_by_one(cases, simulate)


if __name__ == "__main__":
    run_command(main)
