"""Measure batch conversion: `python -m tools.benchmark_pipeline --work DIR [--memory 3 20]`.

Times a cohort of generated whole-body patients against the published way written plainly: slices to PNG files, one by
one through the network in float32, PNG files back to a volume. Both take turns with the same cohort, so that other
work on the machine touches both alike: look at the ratio, and at the share of the time that the device is busy. With
`--memory` the peak memory of test_pipeline.py is measured instead, for cohorts of those sizes.

The network is of the published architecture with random weights: they change neither time nor memory.
"""

import argparse
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from PIL import Image
from torch import nn

import test_pipeline
from benchmarks.networks import write_random_model
from benchmarks.settings import upsampling
from data.errors import InputError, run_command
from data.phantom.patients import PhantomSettings, patient_files, patient_id, write_dataset
from data.settings.devices import torch_device
from data.settings.parser import CommandParser
from data.settings.values import positive_int
from models.networks import GENERATORS, Architecture, build_generator
from models.run_folder import weights_path

NAME = "benchmark"
BODY_MM = 512.0
HEIGHT_MM = 1800.0


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="python -m tools.benchmark_pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for patients, model and results; patients are kept")
    add("--patients", type=positive_int, default=6, help="patients in the cohort (default: 6)")
    add("--matrix", type=positive_int, default=256, help="rows and columns (default: 256)")
    add("--slices", type=positive_int, default=200, help="slices of a patient (default: 200)")
    add("--netG", choices=GENERATORS, default="resnet_9blocks", help="generator (default: resnet_9blocks)")
    add("--ngf", type=positive_int, default=64, help="feature maps of the generator (default: 64)")
    add("--repeats", type=positive_int, default=1, help="turns of both ways (default: 1)")
    add("--device", type=torch_device, default="auto", help="as in test_pipeline.py")
    add("--precision", default="auto", help="as in test_pipeline.py")
    add("--memory", type=positive_int, nargs="+", metavar="N", help="measure peak memory, for cohorts of N patients")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    opt = parse_arguments(arguments)
    logging.getLogger().setLevel(logging.WARNING)
    grid = PhantomSettings(opt.matrix, opt.slices, BODY_MM / opt.matrix, HEIGHT_MM / opt.slices)
    patients = opt.work / f"patients_{opt.matrix}_{opt.slices}_{opt.patients}"
    write_dataset(patients, grid, patients=0, test_patients=opt.patients)
    volumes = [patient_files(patients, "test", patient_id("test", k))["mr"] for k in range(opt.patients)]
    write_random_model(opt.work / "checkpoints" / NAME, opt.netG, opt.ngf, opt.matrix, grid.spacing_mm)
    report = measure_memory(opt, volumes) if opt.memory else measure_time(opt, volumes)
    settings = {key: str(value) for key, value in vars(opt).items()}
    hardware = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    sys.stdout.write(json.dumps({"settings": settings, "hardware": hardware, **report}, indent=1) + "\n")


def measure_time(opt: argparse.Namespace, volumes: list[Path]) -> dict:
    """Return seconds of both ways, their ratio, and the device's share of ours."""
    net = build_generator(Architecture(opt.netG, ngf=opt.ngf, upsample=upsampling(opt.netG)))
    net.load_state_dict(torch.load(weights_path(opt.work / "checkpoints" / NAME, "latest", "G_A"), weights_only=True))
    net.to(opt.device).eval()
    seconds = {"published": [], "ours": []}
    busy = []
    for _ in range(opt.repeats):
        scratch = opt.work / "published"
        started = time.perf_counter()
        for k, volume in enumerate(volumes):
            published_way(volume, net, opt.device, scratch / str(k), size=opt.matrix)
        seconds["published"].append(time.perf_counter() - started)
        shutil.rmtree(scratch)
        started = time.perf_counter()
        code = test_pipeline.main(pipeline_arguments(opt, volumes[0].parents[1], "results"))
        seconds["ours"].append(time.perf_counter() - started)
        if code:
            raise InputError(f"{opt.work}/results: a patient failed; see summary.csv there")
        summary = json.loads((opt.work / "results" / NAME / "summary.json").read_text())
        busy.append(summary["last_run"]["device_busy_share"])
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    rounded = {f"seconds_{way}": [round(value, 2) for value in values] for way, values in seconds.items()}
    return {**rounded, "ratio": round(statistics.median(ratios), 3), "device_busy_share": round(min(busy), 4)}


def pipeline_arguments(opt: argparse.Namespace, patients: Path, results: str) -> list[str]:
    """Return the command line of test_pipeline.py, with nothing done yet."""
    shutil.rmtree(opt.work / results, ignore_errors=True)
    return [
        "--name", NAME, "--checkpoints_dir", str(opt.work / "checkpoints"), "--input_dir", str(patients),
        "--pattern", "*/mr.nii.gz", "--results_dir", str(opt.work / results), "--device", str(opt.device),
        "--precision", opt.precision,
    ]  # fmt: skip


@torch.no_grad()
def published_way(volume: Path, net: nn.Module, device: torch.device, scratch: Path, size: int) -> None:
    """Convert one MR as the published scripts did: every slice to a PNG file, each through the network by itself."""
    scratch.mkdir(parents=True)
    image = sitk.ReadImage(str(volume))
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    for z, plane in enumerate(array):
        gray = (plane - plane.min()) / max(plane.max() - plane.min(), 1) * 255
        Image.fromarray(gray.astype(np.uint8)).save(scratch / f"mr_{z:04d}.png")
    for z in range(len(array)):
        with Image.open(scratch / f"mr_{z:04d}.png") as png:
            resized = png.convert("L").resize((size, size), Image.Resampling.BICUBIC)
        batch = torch.from_numpy(np.asarray(resized, np.float32) / 127.5 - 1)[None, None].to(device)
        fake = (net(batch)[0, 0].cpu().numpy() + 1) * 127.5
        Image.fromarray(fake.round().astype(np.uint8)).save(scratch / f"ct_{z:04d}.png")
    planes = []
    for z in range(len(array)):
        with Image.open(scratch / f"ct_{z:04d}.png") as png:
            resized = png.resize(array.shape[:0:-1], Image.Resampling.BICUBIC)
        planes.append(np.asarray(resized, np.float32) / 127.5 - 1)
    result = sitk.GetImageFromArray(np.stack(planes))
    result.CopyInformation(image)
    sitk.WriteImage(result, str(scratch / "ct.nii.gz"))


def measure_memory(opt: argparse.Namespace, volumes: list[Path]) -> dict:
    """Return the peak memory (MiB) of test_pipeline.py for cohorts of several sizes, and the greatest by the least."""
    peaks = {}
    for count in opt.memory:
        cohort = opt.work / f"cohort_{count}"
        shutil.rmtree(cohort, ignore_errors=True)
        for k in range(count):
            case = cohort / f"case{k:04d}"
            case.mkdir(parents=True)
            (case / "mr.nii.gz").symlink_to(volumes[k % len(volumes)].resolve())
        arguments = pipeline_arguments(opt, cohort, f"results_{count}")
        root = Path(__file__).resolve().parents[1]
        process = subprocess.Popen([sys.executable, str(root / "test_pipeline.py"), *arguments], cwd=Path.cwd())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise InputError(f"{opt.work}/results_{count}: a patient failed; see summary.csv there")
        peaks[count] = round(usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))
    return {"peak_mib": peaks, "ratio": round(max(peaks.values()) / min(peaks.values()), 4)}


if __name__ == "__main__":
    run_command(main)
