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
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.data_sets import measure_loader, measure_preparation, measure_startup
from benchmarks.machine import hardware
from benchmarks.networks import measure_synthesis, measure_training
from benchmarks.settings import BenchmarkSettings
from benchmarks.simulation import measure_simulation
from data.errors import run_command
from data.files import write_json
from data.settings.declaration import HelpFormatter, Nature, add_options, from_namespace, option, plain_values
from data.settings.parser import CommandParser
from data.volumes.outputs import check_free
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


class RawHelpFormatter(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Leaves the lines of the description as they are."""


@dataclass(frozen=True)
class ReportOptions:
    """report."""

    what: Sequence[str] = option(
        tuple(MEASUREMENTS), nature=Nature.FREE, choices=tuple(MEASUREMENTS), nargs="+", help="measurements to make"
    )
    json: Path | None = option(
        None, nature=Nature.FREE, parse=Path, metavar="F", help="write the report to this file too"
    )
    overwrite: bool = option(False, nature=Nature.FREE, help="replace the file of --json")


def parse(arguments: Sequence[str] | None = None) -> tuple[ReportOptions, BenchmarkSettings]:
    """Return the checked options."""
    parser = CommandParser(prog="python -m tools.benchmark", description=__doc__, formatter_class=RawHelpFormatter)
    for group in (ReportOptions, BenchmarkSettings):
        add_options(parser, group)
    options = parser.parse_args(arguments)
    return from_namespace(ReportOptions, options), from_namespace(BenchmarkSettings, options)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write where asked to."""
    report_options, settings = parse(arguments)
    logging.getLogger().setLevel(logging.WARNING)
    if report_options.json:
        check_free([report_options.json], "--json", overwrite=report_options.overwrite)
    torch.set_num_threads(settings.threads)
    settings = replace(settings, device=ProcessGroup().device(settings.device))
    set_up_torch(settings.device, deterministic=False)
    if settings.work:
        report = measure(report_options.what, settings)
    else:
        with tempfile.TemporaryDirectory() as folder:
            report = measure(report_options.what, replace(settings, work=Path(folder)))
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    if report_options.json:
        write_json(report_options.json, report)


def measure(what: Sequence[str], settings: BenchmarkSettings) -> dict:
    """Return the report: settings, hardware, date, and every measurement asked for."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": plain_values(settings),
        "hardware": hardware(settings.device),
    }
    for name, measurement in MEASUREMENTS.items():
        if name in what:
            report[name] = measurement(settings)
    return report


if __name__ == "__main__":
    run_command(main)
