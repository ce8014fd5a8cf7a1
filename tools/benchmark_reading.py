"""What the checks on reading cost: `python -m tools.benchmark_reading [--rounds N]`.

Reads a generated volume of 256 x 256 x 200 voxels (int16, `.nii.gz`) with and without verification of its stream, by
turns, and prints the fastest of each.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

from data.errors import run_command
from data.settings.parser import CommandParser
from data.volumes.volume import Volume, read_volume, write_volume


def generated_volume() -> Volume:
    """Return a cylinder with texture and noise in air."""
    z, y, x = np.mgrid[:200, :256, :256].astype(np.float32)
    inside = ((y - 128) / 100) ** 2 + ((x - 128) / 110) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 10, x.shape)
    array = np.where(inside, 300 + 200 * np.sin(x / 9 + z / 5) + noise, 0)
    return Volume(array.astype(np.int16), (1.5, 1.5, 3.0))


def seconds(read: Callable[[Path], Volume], path: Path) -> float:
    """Return the processor time of one reading; the wall's depends on what else runs."""
    started = time.process_time()
    read(path)
    return time.process_time() - started


def read_unverified(path: Path) -> Volume:
    """Read as nibabel does, which stops at the last voxel."""
    with mock.patch("data.volumes.nifti._verified", lambda path, image: image):
        return read_volume(path)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = CommandParser(prog="python -m tools.benchmark_reading", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="readings of each kind (default %(default)s)")
    rounds = parser.parse_args(arguments).rounds
    with tempfile.TemporaryDirectory() as folder:
        path = write_volume(generated_volume(), Path(folder, "mr.nii.gz"))
        both = [(seconds(read_unverified, path), seconds(read_volume, path)) for _ in range(rounds)]
    unverified, verified = map(min, zip(*both, strict=True))
    print(f"not verified {unverified:.3f} s, verified {verified:.3f} s: {100 * (verified / unverified - 1):+.0f} %")


if __name__ == "__main__":
    run_command(main)
