"""Kill a training at random moments and resume it: `python -m tools.kill_and_resume --work DIR`.

A small training of generated patients runs once undisturbed, and once killed by SIGKILL again and again, while it
starts, trains or saves, and continued each time with another number of loading threads. In the end all weights must
be the same, bit for bit.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from data.errors import InputError, run_command
from data.phantom.patients import PhantomSettings, write_dataset
from data.settings.parser import CommandParser
from data.settings.values import nonnegative_int, positive_int
from models.run_folder import has_state
from scripts import prepare_dataset

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ("G_A", "G_B", "D_A", "D_B")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="python -m tools.kill_and_resume",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for patients and runs; those of an earlier call are removed")
    add("--kills", type=positive_int, default=20, help="number of kills (default: 20)")
    add("--seed", type=nonnegative_int, default=0, help="random seed of the moments (default: 0)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return 1 where weights differ."""
    report = measure(parse_arguments(arguments))
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 0 if report["identical"] else 1


def measure(opt: argparse.Namespace) -> dict:
    """Train undisturbed and killed, and compare."""
    for name in ("patients", "data", "checkpoints"):
        shutil.rmtree(opt.work / name, ignore_errors=True)
    write_dataset(opt.work / "patients", PhantomSettings(32, 16, 16, 80), patients=2, test_patients=0)
    prepare_dataset.main([
        "--mr", str(opt.work / "patients/train/mr/*"), "--ct", str(opt.work / "patients/train/ct/*"),
        "--out", str(opt.work / "data"), "--size", "32", "--workers", "1",
    ])  # fmt: skip
    started = time.monotonic()
    whole = _start(opt.work, "whole")
    if whole.wait():
        raise InputError(f"the undisturbed training failed: see {_log(opt.work, 'whole')}")
    seconds = time.monotonic() - started
    moments, saving = _kill_again_and_again(opt, seconds)
    if _start(opt.work, "killed", 0).wait():
        raise InputError(f"the last resumption failed: see {_log(opt.work, 'killed')}")
    differing, compared = _differing(opt.work / "checkpoints")
    return {
        "kills": len(moments),
        "while saving": saving,
        "seconds after each start": moments,
        "seconds undisturbed": round(seconds, 1),
        "compared": compared,
        "identical": not differing,
        "differing": differing,
    }


def _kill_again_and_again(opt: argparse.Namespace, seconds: float) -> tuple[list[float], int]:
    """Return when each kill came, and how many came while a file was being written."""
    rng = random.Random(opt.seed)
    folder = opt.work / "checkpoints/killed"
    moments, saving = [], 0
    while len(moments) < opt.kills:
        left = set(folder.glob(".writing-*"))  # by an earlier kill
        resumed = has_state(folder)
        process = _start(opt.work, "killed", rng.choice((0, 1, 2)))
        # Every other kill waits for a moment of saving, which a random one would seldom meet.
        wanted = len(moments) % 2
        after = rng.uniform(0, 0.6 * seconds)
        started = time.monotonic()
        while process.poll() is None:
            writing = any(scratch not in left for scratch in folder.glob(".writing-*"))
            if time.monotonic() - started > after and (writing or not wanted):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.0005)
        if process.wait() != -signal.SIGKILL:
            if process.returncode:
                raise InputError(f"a resumption failed: see {_log(opt.work, 'killed')}")
            differing, _ = _differing(opt.work / "checkpoints")
            if differing:
                raise InputError(f"a run that was killed came to its end with other weights: {', '.join(differing)}")
            if not resumed:  # the machine has become faster since
                seconds = min(seconds, time.monotonic() - started)
            shutil.rmtree(folder)  # again from the beginning
            continue
        moments.append(round(time.monotonic() - started, 2))
        saving += writing
    return moments, saving


def _log(work: Path, name: str) -> Path:
    return work / f"{name}.log"


def _start(work: Path, name: str, loading_threads: int = 0) -> subprocess.Popen:
    """Start or continue a training of a minute or less."""
    arguments = [
        "--dataroot", str(work / "data"), "--checkpoints_dir", str(work / "checkpoints"), "--name", name,
        "--netG", "resnet_6blocks", "--ngf", "4", "--ndf", "4", "--lambda_shape", "0", "--lambda_shape_gan", "0",
        "--n_epochs", "6", "--n_epochs_decay", "4", "--save_latest_freq", "3", "--save_epoch_freq", "5",
        "--num_threads", str(loading_threads), "--device", "cpu", "--use_dropout", "--no_html",
    ]  # fmt: skip
    if has_state(work / "checkpoints" / name):
        arguments.append("--continue_train")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # the order of sums is that of threads
    with _log(work, name).open("a") as log:
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _differing(checkpoints: Path) -> tuple[list[str], int]:
    """Return the tensors that differ, and how many files were compared."""
    names = [f"{epoch}_net_{network}.pth" for epoch in ("latest", "10") for network in NETWORKS]
    runs = (checkpoints / "whole", checkpoints / "killed")
    return [key for name in names for key in differing_tensors(*(run / name for run in runs))], len(names)


def differing_tensors(expected: Path, found: Path) -> list[str]:
    """Return the tensors of two files of weights that are not the same, bit for bit."""
    a, b = (torch.load(file, weights_only=True) for file in (expected, found))
    return [
        f"{found.name}: {key}"
        for key in sorted(a.keys() | b.keys())
        if key not in a or key not in b or not torch.equal(a[key], b[key])
    ]


if __name__ == "__main__":
    run_command(main)
