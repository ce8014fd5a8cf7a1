"""Generate whole-body patients: `python -m scripts.make_phantom --out DIR`.

Writes DIR/train/mr/ID_mr.nii.gz and DIR/train/ct/ID_ct.nii.gz (different patients; MR with the arms down, CT with the
arms up and a couch), DIR/test/ID/{mr,ct,labels}.nii.gz (one anatomy), DIR/truth/ID_labels.nii.gz and DIR/phantom.json.
--dixon makes four MR of each patient: ID_in_phase.nii.gz, ID_opposed_phase, ID_water and ID_fat.
The same seed gives the same voxels. Existing patients are kept.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from data.commands import prepare_command
from data.errors import run_command
from data.phantom.mr_images import DIXON_NAMES
from data.phantom.patients import PhantomSettings, write_dataset
from data.settings.parser import CommandParser

log = logging.getLogger(__name__)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    grid = PhantomSettings()
    parser = CommandParser(
        prog="python -m scripts.make_phantom",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--patients", type=int, default=8, help="training patients in each domain (default: 8)")
    parser.add_argument("--test_patients", type=int, default=2, help="test patients, with MR and true CT (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of all patients (default: 0)")
    parser.add_argument("--matrix", type=int, default=grid.matrix, help=f"rows and columns (default: {grid.matrix})")
    parser.add_argument("--slices", type=int, default=grid.slices, help=f"axial slices (default: {grid.slices})")
    parser.add_argument(
        "--spacing_mm",
        type=float,
        default=grid.spacing_mm,
        help=f"pixel size of MR and test volumes; training CT: 500/512 of it (default: {grid.spacing_mm})",
    )
    parser.add_argument(
        "--slice_mm",
        type=float,
        default=grid.slice_mm,
        help=f"distance between slices in mm (default: {grid.slice_mm})",
    )
    parser.add_argument(
        "--dixon",
        action="store_true",
        help="MR of four contrasts: in_phase (the MR without this option), opposed_phase, water, fat",
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="processes; the result does not depend on them (default: 1)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the data set.

    Raises:
        InputError: a number is out of range, or the folder holds something else.
    """
    options = parse_arguments(arguments)
    settings = PhantomSettings(options.matrix, options.slices, options.spacing_mm, options.slice_mm)
    counts = (options.patients, options.test_patients)
    write_dataset(options.out, settings, options.seed, *counts, options.workers, options.dixon)
    mr = [f"{contrast}={options.out}/train/mr/*_{contrast}.nii.gz" for contrast in DIXON_NAMES] if options.dixon else []
    words = [word for glob in mr or [f"{options.out}/train/mr/*"] for word in ("--mr", glob)]
    words += ["--ct", f"{options.out}/train/ct/*", "--out", "datasets/NAME"]
    log.info("next: %s", prepare_command(*words))


if __name__ == "__main__":
    run_command(main)
