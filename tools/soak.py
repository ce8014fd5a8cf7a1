"""Hours of training under faults, beside the same training undisturbed: `python -m tools.soak --work DIR`.

The full method trains on generated patients, with dropout, pictures, pages and a visdom server. Every minute or so a
fault strikes one of the two runs: SIGKILL, SIGTERM, a pause, a disk that is full until the training gives up, a visdom
server that dies or comes back. What has ended is continued, with another number of loading threads. In the end the
weights of all epochs that both runs have reached must be the same, bit for bit; how their memory went is reported.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil

from ct_segmentation import train as train_extractor
from data.errors import InputError, run_command
from data.phantom.patients import PhantomSettings, write_dataset
from data.settings.parser import CommandParser
from data.settings.values import nonnegative_int, positive_float, positive_int
from models.run_folder import has_state
from scripts import prepare_dataset
from tools.kill_and_resume import ROOT, differing_tensors

NETWORKS = ("G_A", "G_B", "D_A", "D_B", "D_S")
FAULTS = {"killed": 4, "terminated": 2, "paused": 2, "visdom dies or comes back": 3, "disk full": 1}  # how often
MIB = 1 << 20
GREATEST_GROWTH_MIB_H = 20.0
_DISK_MIB = 512
_PAUSE_SECONDS = 10
_PATIENCE_SECONDS = 600  # until a training ends that was asked to
_SETTLED_SECONDS = 120  # of a process, before its memory counts
_SAMPLE_SECONDS = 5


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="python -m tools.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for patients and runs; those of an earlier call are removed")
    add("--minutes", type=positive_float, default=120.0, help="duration in minutes (default: 120)")
    add("--every", type=positive_float, default=60.0, help="mean seconds between two faults (default: 60)")
    add("--seed", type=nonnegative_int, default=0, help="random seed of the faults (default: 0)")
    add("--display_port", type=positive_int, default=8197, help="port of the visdom server (default: 8197)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print a report; return 1 where weights differ or the undisturbed run's memory grew."""
    report = soak(parse_arguments(arguments))
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    grown = report["undisturbed"].get("growth [MiB/h]", 0.0) > GREATEST_GROWTH_MIB_H
    return 0 if report["identical"] and not grown else 1


def soak(opt: argparse.Namespace) -> dict:
    """Train with and without faults for as long as asked, and compare.

    Raises:
        InputError: a training ended otherwise than it should have.
    """
    prepare(opt.work)
    rng = random.Random(opt.seed)
    counts: Counter[str] = Counter()
    with small_disk(opt.work / "disk") as disk, contextlib.ExitStack() as ending:
        quiet = ending.enter_context(Training(opt.work, opt.work / "quiet"))
        visdom = ending.enter_context(Visdom(opt.display_port, opt.work))
        showing = ["--display_id", "1", "--display_port", str(opt.display_port)]
        disturbed = ending.enter_context(Training(opt.work, opt.work / "disk", showing))
        faults = [fault for fault in FAULTS if disk or fault != "disk full"]
        trainings = (quiet, disturbed)
        for training in trainings:
            training.start(0)
        started = time.monotonic()
        while time.monotonic() - started < 60 * opt.minutes:
            watch(trainings, rng.uniform(0, 2 * opt.every))
            (fault,) = rng.choices(faults, [FAULTS[name] for name in faults])
            if fault == "visdom dies or comes back":
                visdom.toggle()
            elif fault == "paused":
                disturbed.pause()
            else:
                if fault == "disk full":
                    disturbed.end_on_full_disk()
                elif fault == "killed":
                    disturbed.end(signal.SIGKILL)
                else:
                    disturbed.end(signal.SIGTERM)
                disturbed.start(rng.choice((0, 1, 2)))
            counts[fault] += 1
        hours = (time.monotonic() - started) / 3600
        for training in trainings:
            training.end(signal.SIGTERM)
        epochs, differing = compare(quiet.folder, disturbed.folder)
    return {
        "hours": round(hours, 2),
        "faults": {name: counts[name] for name in FAULTS},
        "epochs compared": epochs,
        "identical": bool(epochs) and not differing,
        "differing": differing,
        "undisturbed": memory_over_time(quiet.samples),
        "disturbed": memory_over_time(disturbed.samples),
    }


def prepare(work: Path) -> None:
    """Make patients, data set and shape extractor, in place of what a soak left that was killed."""
    if os.path.ismount(work / "disk"):
        subprocess.run(["umount", "-l", str(work / "disk")], check=True)
    for name in ("patients", "data", "extractor", "quiet", "disk"):
        shutil.rmtree(work / name, ignore_errors=True)
    write_dataset(work / "patients", PhantomSettings(48, 32, 24, 60), patients=3, test_patients=0)
    prepare_dataset.main([
        "--mr", str(work / "patients/train/mr/*"), "--ct", str(work / "patients/train/ct/*"), "--out",
        str(work / "data"), "--size", "48", "--workers", "1",
    ])  # fmt: skip
    train_extractor.main([
        "--dataroot", str(work / "data"), "--out", str(work / "extractor"), "--width", "4", "--epochs", "1", "--device",
        "cpu", "--num_threads", "0",
    ])  # fmt: skip


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small file system in memory, which takes root; tell whether it is there."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MIB}m", "tmpfs", str(folder)]
    able = os.geteuid() == 0 and shutil.which("mount")
    mounted = bool(able) and subprocess.run(command, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


class Training:
    """A run of `train.py` in a folder of its own, started again and again, and its memory."""

    def __init__(self, work: Path, checkpoints: Path, options: Sequence[str] = ()) -> None:
        """Train on the data set in `work` into `checkpoints`, with further options."""
        self.work, self.checkpoints, self.options = work, checkpoints, options
        self.folder = checkpoints / "run"
        self.log = work / f"{checkpoints.name}.log"
        self.samples: list[tuple[float, float]] = []  # seconds since the process's start, MiB
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> "Training":
        """Return itself; at the end of the block its process is killed, if it is still there."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the process."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def start(self, loading_threads: int) -> None:
        """Begin or continue."""
        arguments = [
            "--dataroot", str(self.work / "data"), "--checkpoints_dir", str(self.checkpoints), "--name", "run",
            "--shape_extractor", str(self.work / "extractor"), "--netG", "resnet_6blocks", "--ngf", "4", "--ndf", "4",
            "--n_epochs", "100000", "--n_epochs_decay", "0", "--save_latest_freq", "20", "--save_epoch_freq", "5",
            "--print_freq", "10", "--display_freq", "50", "--num_threads", str(loading_threads), "--device", "cpu",
            "--use_dropout", *self.options,
        ]  # fmt: skip
        if has_state(self.folder):
            arguments.append("--continue_train")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}  # the order of sums is that of threads
        with self.log.open("a") as log:
            command = [sys.executable, str(ROOT / "train.py"), *arguments]
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        self._started = time.monotonic()

    def watch(self) -> None:
        """Note the memory, and that it still trains."""
        if self.process.poll() is not None:
            raise InputError(f"a training ended by itself with {self.process.returncode}: see {self.log}")
        mib = psutil.Process(self.process.pid).memory_info().rss / MIB
        self.samples.append((time.monotonic() - self._started, mib))

    def pause(self) -> None:
        """Stop for some seconds, as a machine asleep does."""
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(_PAUSE_SECONDS)
        self.process.send_signal(signal.SIGCONT)

    def end(self, number: int) -> None:
        """Send a signal and wait."""
        self.process.send_signal(number)
        code = self._wait()
        if code not in (-number, 128 + number):  # the first: it had not set its handlers yet
            raise InputError(f"signal {number} ended a training with {code}: see {self.log}")

    def end_on_full_disk(self) -> None:
        """Fill the disk until the training gives up with an error; then make room."""
        filler = self.checkpoints / "filler"
        with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while stream.write(bytes(MIB // 16)):
                pass
        code = self._wait()
        filler.unlink()
        if code != 2:
            raise InputError(f"a full disk ended a training with {code}, expected 2: see {self.log}")

    def _wait(self) -> int:
        try:
            return self.process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            raise InputError(f"a training did not end within {_PATIENCE_SECONDS} s: see {self.log}") from None


class Visdom:
    """A visdom server that comes and goes."""

    def __init__(self, port: int, work: Path) -> None:
        """Serve on `port`, and keep windows and log in `work`."""
        self.command = [sys.executable, "-m", "visualization.visdom_server", str(port), str(work.resolve() / "visdom")]
        self.log = work / "visdom.log"
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> "Visdom":
        """Return itself, without a server yet."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the process."""
        if self.process:
            self.toggle()

    def toggle(self) -> None:
        """Kill it where it runs; start it where it does not."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process = None
        else:
            with self.log.open("a") as log:
                self.process = subprocess.Popen(self.command, cwd=ROOT, stdin=subprocess.PIPE, stdout=log, stderr=log)


def watch(trainings: Sequence[Training], seconds: float) -> None:
    """Let them train, and note their memory."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(_SAMPLE_SECONDS)
        for training in trainings:
            training.watch()


def compare(quiet: Path, disturbed: Path) -> tuple[list[int], list[str]]:
    """Return the epochs whose weights both runs hold, and the tensors that differ."""
    epochs = sorted(
        int(file.name.split("_")[0]) for file in quiet.glob("[0-9]*_net_G_A.pth") if (disturbed / file.name).exists()
    )
    names = [f"{epoch}_net_{network}.pth" for epoch in epochs for network in NETWORKS]
    return epochs, [key for name in names for key in differing_tensors(quiet / name, disturbed / name)]


def memory_over_time(samples: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return the settled processes' memory in MiB, and its growth with the time since their start."""
    settled = np.array([sample for sample in samples if sample[0] > _SETTLED_SECONDS])
    if len(settled) < 2:
        return {"samples": len(settled)}
    seconds, mib = settled.T
    return {
        "samples": len(settled),
        "longest process [min]": round(seconds.max() / 60, 1),
        "median [MiB]": round(float(np.median(mib))),
        "least [MiB]": round(float(mib.min())),
        "most [MiB]": round(float(mib.max())),
        "growth [MiB/h]": round(3600 * float(np.polyfit(seconds, mib, 1)[0]), 1),
    }


if __name__ == "__main__":
    run_command(main)
