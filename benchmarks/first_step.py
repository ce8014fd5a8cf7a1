"""Runs train.py until its first step is due: `python -m benchmarks.first_step REPORT.json [options of train.py]`."""

import json
import sys
import time
from pathlib import Path

import psutil

import train
from benchmarks.machine import MIB, resident_peak_mib
from data.errors import run_command
from data.volumes.outputs import check_free
from models.cycle_gan_model import CycleGANModel


def main() -> int:
    """Train up to the first step, and write when that was and the memory of all processes then."""
    report = Path(sys.argv[1])
    check_free([report], "REPORT.json", overwrite=None)

    def first_step(model: CycleGANModel, batch: dict) -> None:
        now = time.time()
        workers = psutil.Process().children(recursive=True)
        memory = resident_peak_mib() + sum(worker.memory_full_info().uss for worker in workers) / MIB
        report.write_text(json.dumps({"time": now, "memory_mib": memory}))
        raise SystemExit(0)

    CycleGANModel.step = first_step
    return train.main(sys.argv[2:])


if __name__ == "__main__":
    run_command(main)
