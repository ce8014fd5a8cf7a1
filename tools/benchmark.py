"""Measure the training engine: `python -m tools.benchmark [--what train synthesis ...] [--json FILE]`.

train      the model's step against a reference step written plainly (float32, one image and one network at a time)
synthesis  64 slices through a trained generator against one by one in float32
loader     pairs of slices with mask that are loaded in a second
prepare    slices that are prepared in a second
simulation pairs that are simulated from CT in a second
startup    time and memory of train.py up to its first step, on small and large manifests

Ways that are compared take turns in one process, so that other work on the machine touches them alike: look at ratios.
The peak is that of products of large square matrices, measured in the same turns. Weights and images are random; they
change neither time nor memory.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.data_sets import measure_loader, measure_preparation, measure_startup
from benchmarks.machine import hardware
from benchmarks.networks import measure_synthesis, measure_training, upsampling
from benchmarks.simulation import measure_simulation
from data.errors import run_command
from data.outputs import check_free
from data.prepared.manifest import write_json
from data.settings.values import nonnegative_int, positive_int, torch_device
from models.networks import GENERATORS
from models.precision import PRECISIONS
from training.distributed import ProcessGroup
from training.run import set_up_torch

MEASUREMENTS = {
    "train": measure_training,
    "synthesis": measure_synthesis,
    "prepare": measure_preparation,
    "loader": measure_loader,
    "simulation": measure_simulation,
    "startup": measure_startup,
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked options."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--what", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), help="default: all")
    add("--json", type=Path, metavar="F", help="write the report to this file too")
    add("--overwrite", action="store_true", help="replace the file of --json")
    add("--work", type=Path, help="folder for generated data, kept there (default: a temporary one)")
    add("--turns", type=positive_int, default=5, help="of every way (default: 5)")
    add("--size", type=positive_int, default=256, help="rows and columns of a slice (default: 256)")
    add("--device", type=torch_device, default="auto", help="as in train.py")
    add("--precision", choices=PRECISIONS, default="auto", help="of ours (default: auto)")
    add("--threads", type=positive_int, default=torch.get_num_threads(), help="of torch on a CPU (default: its own)")
    networks = parser.add_argument_group("train, synthesis, startup")
    add = networks.add_argument
    add("--netG", choices=GENERATORS, default="resnet_9blocks", help="generator (default: resnet_9blocks)")
    add("--ngf", type=positive_int, default=64, help="its features (default: 64)")
    add("--ndf", type=positive_int, default=64, help="features of the discriminators (default: 64)")
    add("--extractor_width", type=positive_int, default=64, help="features of the shape extractor (default: 64)")
    add("--batch_size", type=positive_int, default=1, help="train, loader: slices of each domain (default: 1)")
    add("--steps", type=positive_int, help="train: in one turn (default: 1 on a CPU, else 10)")
    add("--compile", action="store_true", help="train: compile our networks")
    add("--slices", type=positive_int, default=64, help="synthesis: in one turn (default: 64)")
    data = parser.add_argument_group("prepare, loader, startup")
    add = data.add_argument
    add("--patients", type=positive_int, default=4, help="generated, of each domain (default: 4)")
    add("--volume_slices", type=positive_int, default=100, help="of a generated volume (default: 100)")
    add("--workers", type=positive_int, nargs="+", default=[1, 2], help="prepare: processes (default: 1 2)")
    add("--num_threads", type=nonnegative_int, nargs="+", default=[0, 1, 2], help="loader: as in train.py (0 1 2)")
    add("--volumes", type=positive_int, nargs="+", default=[20, 2000], help="startup: in a manifest (default: 20 2000)")
    add("--case_slices", type=positive_int, default=500, help="startup: of one of them (default: 500)")
    simulation = parser.add_argument_group("simulation")
    add = simulation.add_argument
    add("--simulation_size", type=positive_int, default=128, help="rows and columns of a slice (default: 128)")
    add("--simulation_batch", type=positive_int, default=16, help="pairs of a batch (default: 16)")
    opt = parser.parse_args(arguments)
    opt.steps = opt.steps or (1 if opt.device.type == "cpu" else 10)
    opt.upsample = upsampling(opt.netG)
    return opt


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write where asked to."""
    opt = parse_arguments(arguments)
    logging.getLogger().setLevel(logging.WARNING)
    if opt.json:
        check_free([opt.json], "--json", overwrite=opt.overwrite)
    torch.set_num_threads(opt.threads)
    opt.device = ProcessGroup().device(opt.device)
    set_up_torch(opt.device, deterministic=False)
    if opt.work:
        report = measure(opt)
    else:
        with tempfile.TemporaryDirectory() as folder:
            opt.work = Path(folder)
            report = measure(opt)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    if opt.json:
        write_json(opt.json, report)


def measure(opt: argparse.Namespace) -> dict:
    """Return the report: settings, hardware, date, and every measurement asked for."""
    opt.work.mkdir(parents=True, exist_ok=True)
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {key: value if isinstance(value, int | list) else str(value) for key, value in vars(opt).items()},
        "hardware": hardware(opt.device),
    }
    for name, measurement in MEASUREMENTS.items():
        if name in opt.what:
            report[name] = measurement(opt)
    return report


if __name__ == "__main__":
    run_command(main)
