"""Measure the conversion of one large volume: `python -m tools.benchmark_volume --work DIR [--root CHECKOUT ...]`.

Prints the peak memory and the seconds of `test_adapt.py`, from its start to its end, on a generated whole body: one
that is enlarged to the wanted size, with noise. The network has random weights, which change neither. With several
--root, other versions of this software convert the same volume, one after the other.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.networks import write_random_model
from data.errors import InputError, run_command
from data.phantom.patients import PhantomSettings, make_patient
from data.settings.parser import CommandParser
from data.settings.values import positive_int
from data.volumes.volume import Volume, write_volume
from models.networks import GENERATORS

NAME = "benchmark"
BODY_MM, HEIGHT_MM = 512.0, 1800.0
# The body is drawn this much smaller along each axis, and enlarged.
ENLARGED = 4
NOISE = 20.0
ROOT = Path(__file__).resolve().parents[1]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="python -m tools.benchmark_volume", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add(
        "--work",
        type=lambda text: Path(text).absolute(),
        required=True,
        help="folder for volume, models and results; the volume is kept",
    )
    add("--root", type=Path, nargs="+", default=[ROOT], help="checkouts that convert it (default: this one)")
    add("--matrix", type=positive_int, default=1024, help="rows and columns of the volume (default: 1024)")
    add("--slices", type=positive_int, default=600, help="slices of the volume (default: 600)")
    add(
        "--size", type=positive_int, nargs="+", default=[256, 1024],
        help="rows and columns that the network sees of it (default: 256, resampled, and 1024, as they are)",
    )  # fmt: skip
    add("--netG", choices=GENERATORS, default="resnet_6blocks", help="generator (default: resnet_6blocks)")
    add("--ngf", type=positive_int, default=4, help="feature maps of the generator (default: 4)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    opt = parse_arguments(arguments)
    volume = opt.work / f"mr_{opt.matrix}_{opt.slices}.nii"
    if not volume.exists():
        write_volume(large_mr(opt.matrix, opt.slices), volume)
    runs = []
    for size in opt.size:
        write_random_model(opt.work / "checkpoints" / f"{NAME}_{size}", opt.netG, opt.ngf, size, BODY_MM / size)
        runs += [{"root": str(root), "size": size, **convert(root, volume, opt.work, size)} for root in opt.root]
    hardware = {"cores": os.cpu_count(), "voxels": opt.matrix**2 * opt.slices}
    sys.stdout.write(json.dumps({"hardware": hardware, "runs": runs}, indent=1) + "\n")


def large_mr(matrix: int, slices: int) -> Volume:
    """Return a whole-body MR, int16 (slices, matrix, matrix): each voxel of a smaller one repeated, with noise."""
    rows, planes = (max(least, -(-n // ENLARGED)) for n, least in ((matrix, 16), (slices, 24)))
    small = make_patient(1, 0, "mr", PhantomSettings(rows, planes, BODY_MM / rows, HEIGHT_MM / planes)).mr
    assert small is not None, "this domain has MR"
    rng = np.random.default_rng(0)
    large = np.empty((slices, matrix, matrix), np.int16)
    index = np.arange(matrix) * rows // matrix
    for z, plane in enumerate(large):
        noisy = small.array[z * planes // slices][np.ix_(index, index)] + NOISE * rng.standard_normal(plane.shape, "f4")
        plane[:] = np.abs(noisy)
    return Volume(large, (BODY_MM / matrix, BODY_MM / matrix, HEIGHT_MM / slices))


def convert(root: Path, volume: Path, work: Path, size: int) -> dict[str, float]:
    """Return peak memory (MiB) and seconds of a checkout's `test_adapt.py`."""
    output = work / "results" / root.resolve().name / f"sct_{size}.nii"
    command = [
        sys.executable, "test_adapt.py", "--name", f"{NAME}_{size}", "--checkpoints_dir", work / "checkpoints",
        "--input", volume, "--output", output, "--device", "cpu", "--precision", "fp32", "--overwrite",
    ]  # fmt: skip
    started = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), cwd=root)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise InputError(f"{root}/test_adapt.py: ended with exit code {process.returncode}; what it said stands above")
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {"peak_mib": round(peak), "seconds": round(time.perf_counter() - started, 1)}


if __name__ == "__main__":
    run_command(main)
