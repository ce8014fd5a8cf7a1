"""Timing that other work on the machine cannot tilt, the machine's own peak, and peak memory."""

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from models.precision import DTYPES, choose_precision

MIB = 2**20
# Sides of the square matrices whose product is the peak; the best counts.
PEAK_SIDES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
# Without hardware for a precision a product takes longer than this, and the next larger one minutes.
_SLOW_SECONDS = 1.0
Seconds = dict[str, list[float]]


def hardware(device: torch.device) -> dict[str, str | int]:
    """Return what ran the benchmark."""
    described = {
        "cpu": _cpu_model(), "cores": os.cpu_count() or 1, "threads": torch.get_num_threads(),
        "system": platform.platform(), "torch": torch.__version__, "device": str(device),
    }  # fmt: skip
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that `work` takes, to the end of what it starts on the device."""
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    """Wait for all work on the device."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def take_turns(
    ways: dict[str, Callable[[], object]], turns: int, device: torch.device, warm_up: bool = True
) -> Seconds:
    """Return the seconds of every way in every turn: a b c a b c ..., after one untimed round with `warm_up`.

    Other work on the machine then touches all ways alike.
    """
    if warm_up:
        for work in ways.values():
            work()
    seconds: Seconds = {name: [] for name in ways}
    for _ in range(turns):
        for name, work in ways.items():
            seconds[name].append(timed(work, device))
    return seconds


def speed_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Return how many times faster the second way is: the median over turns of the ratio of their seconds."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def share_of_peak(flop: float, seconds: float, peak_flops: float) -> float:
    """Return the share, 0 to 1, of a peak (FLOP/s) that work of `flop` operations done in `seconds` reaches."""
    return flop / seconds / peak_flops


class MatrixProducts:
    """Products of large square matrices in one precision: what the machine can do at best."""

    def __init__(self, precision: str, device: torch.device, sides: Sequence[int] | None = None) -> None:
        """Make the matrices; `precision` of `models.precision.DTYPES`."""
        self.precision, self.device = precision, device
        self.peak_flops = 0.0
        sides = sides or PEAK_SIDES.get(device.type, PEAK_SIDES["cuda"])
        self._pairs = [torch.rand(2, side, side, device=device).to(DTYPES[precision]).unbind() for side in sides]

    def measure(self, repeats: int = 3) -> None:
        """Multiply, and keep the best rate so far in `peak_flops` (FLOP/s)."""
        choose_precision(self.precision, self.device)
        for a, b in self._pairs:
            for _ in range(repeats):
                seconds = timed(lambda a=a, b=b: a @ b, self.device)
                self.peak_flops = max(self.peak_flops, 2 * len(a) ** 3 / seconds)
                if seconds > _SLOW_SECONDS:
                    return


def peak_memory_mib(work: Callable[..., object], device: torch.device, *arguments: object) -> float:
    """Return the peak memory (MiB) of a new process that does `work(*arguments)`: its own, or on CUDA the GPU's.

    Both must be picklable. A CPU's figure holds the interpreter and its libraries too.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_of, work, device, arguments).result()


def _peak_of(work: Callable[..., object], device: torch.device, arguments: tuple) -> float:
    work(*arguments)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    return resident_peak_mib()


def resident_peak_mib() -> float:
    """Return the greatest resident memory (MiB) that this process ever had."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would begin with the parent's
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)
