"""Copy volumes with rounded values, for a machine that training data must be sent to: files of half the size.

    python -m tools.shrink_volumes --input 'CT/*' --step 4 --air -900 --out small/CT

Most of a compressed CT is noise, half of it that of air. For MR, 1/127 of the signal of fat is a fine step. Grids stay
as they are. Files that --out holds already are kept.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.errors import InputError, run_command
from data.prepared.sources import find_volumes
from data.settings.parser import CommandParser
from data.settings.values import positive_int
from data.values.intensity import AIR_HU
from data.volumes.volume import read_volume, volume_stem, write_volume

_FEWEST_STEPS = 64


def rounded(array: np.ndarray, step: int, air: float | None = None) -> np.ndarray:
    """Return int16 values: the multiples of `step` next to those of `array`; with `air` (HU), -1000 HU below that.

    Raises:
        InputError: the values span fewer than 64 steps, or do not fit into int16.
    """
    low, high = float(array.min()), float(array.max())
    if high - low < _FEWEST_STEPS * step:
        raise InputError(
            f"values from {low:g} to {high:g} are too few steps of {step}: expected {_FEWEST_STEPS} or more"
        )
    limits = np.iinfo(np.int16)
    if low < limits.min + step or high > limits.max - step:
        raise InputError(f"values from {low:g} to {high:g} do not fit into 16 bits")
    whole = np.rint(array / step) * step
    if air is not None:
        whole[array < air] = AIR_HU
    return whole.astype(np.int16)


def main(arguments: Sequence[str] | None = None) -> None:
    """Copy all volumes."""
    parser = CommandParser(
        prog="python -m tools.shrink_volumes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--input", required=True, metavar="GLOB", help="volumes, or folders of DICOM series")
    parser.add_argument("--step", type=positive_int, default=4, help="round to multiples of this (default: 4)")
    parser.add_argument("--air", type=float, metavar="HU", help="of CT: what is below this becomes -1000 HU")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for the copies, NAME.nii.gz")
    opt = parser.parse_args(arguments)
    copies: dict[Path, Path] = {}
    for path in find_volumes(opt.input):
        copy = opt.out / f"{volume_stem(path)}.nii.gz"
        if copy in copies:
            raise InputError(f"--input: {copies[copy]} and {path} are both called {copy.name}; copy them one by one")
        copies[copy] = path
    for copy, path in copies.items():
        if not copy.exists():
            volume = read_volume(path)
            try:
                array = rounded(volume.array, opt.step, opt.air)
            except InputError as error:
                raise InputError(f"{path}: {error}") from None
            write_volume(volume.with_array(array), copy)
    size = sum(copy.stat().st_size for copy in copies)
    sys.stdout.write(f"{len(copies)} volumes in {opt.out}, {size / 2**20:.1f} MiB\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
