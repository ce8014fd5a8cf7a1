"""Where a training step makes the host wait for the GPU, how long its kernels take, and the memory that it needs."""

import gc
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import MIB, timed
from benchmarks.networks import STEPS_TO_PEAK, build_model, random_batch, repeat_steps
from benchmarks.settings import BenchmarkSettings

ROOT = Path(__file__).resolve().parents[1]
WARM_UP_STEPS = 3
# What torch says where the host waits.
_WAITING = "called a synchronizing CUDA operation"
# The settings of the published variants and those of the recommended model, whose steps do different things.
STEPS = {
    "full method": {},
    "simulated pairs": {"lambda_simulated": 1.0, "lcc_window": 7, "ema": 0.999},
}
KERNELS_SHOWN, NAME_LENGTH = 15, 90


@contextmanager
def watched(mode: str) -> Iterator[None]:
    """Let torch 'warn' of, or make an 'error' of, whatever makes the host wait for a GPU."""
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waiting_places(work: Callable[[], object]) -> list[str]:
    """Return the places of the project, 'file:line code', from which `work` waits for a GPU under `watched('warn')`."""
    places = []

    def note(message: Warning | str, *_: object, **__: object) -> None:
        if _WAITING in str(message):
            places.append(_innermost(traceback.extract_stack()[:-1]))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        work()
    return sorted(set(places))


def _innermost(stack: traceback.StackSummary) -> str:
    """Return the last frame of the project's own code."""
    own = [frame for frame in stack if Path(frame.filename).is_relative_to(ROOT) and ".venv" not in frame.filename]
    return f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].lineno} {own[-1].line}" if own else "outside"


def find_waits(opt: BenchmarkSettings, precision: str) -> dict[str, list[str]]:
    """Return for each kind of step the places where it waits for the GPU; an empty list is as it should be."""
    found = {}
    for name, settings in STEPS.items():
        chosen = replace(opt, precision=precision, method=settings)
        model, batch = build_model(chosen), random_batch(chosen)
        batch |= {"simulated_A": batch["A"], "simulated_B": batch["B"]}
        kinds = {name: model.step} | ({f"{name}, warm": model.warm_step} if "lambda_simulated" in settings else {})
        for kind, step in kinds.items():
            repeat_steps(step, batch, WARM_UP_STEPS)
            with watched("warn"):
                found[kind] = waiting_places(lambda step=step, batch=batch: repeat_steps(step, batch, 2))
            if not found[kind]:
                with watched("error"):
                    repeat_steps(step, batch, 2)
        model.finite.settle()
    return found


def profile_step(opt: BenchmarkSettings, steps: int = 3) -> dict:
    """Return how much of a step's time the GPU works, and which kernels and operations take it, in ms a step."""
    model, batch = build_model(opt), random_batch(opt)
    repeat_steps(model.step, batch, WARM_UP_STEPS)
    seconds = timed(lambda: repeat_steps(model.step, batch, steps), opt.device) / steps
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:  # one: evaluating it takes seconds
        timed(lambda: model.step(batch), opt.device)
    rows = [row for row in found.key_averages() if not getattr(row, "is_user_annotation", False)]
    kernels = [(row.key, row.self_device_time_total, row.count) for row in rows if row.device_type == DeviceType.CUDA]
    operations = [(row.key, row.self_device_time_total, row.count) for row in rows if row.device_type == DeviceType.CPU]
    busy = sum(time for _, time, _ in kernels) / 1e3
    return {
        "batch_size": opt.batch_size,
        "ms_a_step": round(1e3 * seconds, 3),
        "kernels_ms_a_step": round(busy, 3),
        "kernels_a_step": sum(count for *_, count in kernels),
        "kernels": _longest(kernels),
        "operations": _longest(operations),
    }


def _longest(rows: list[tuple[str, float, int]]) -> list[dict]:
    longest = sorted(rows, key=lambda row: -row[1])[:KERNELS_SHOWN]
    return [
        {"name": name[:NAME_LENGTH], "ms_a_step": round(time / 1e3, 3), "a_step": count}
        for name, time, count in longest
    ]


def device_peak_mib(opt: BenchmarkSettings) -> int:
    """Return the most memory (MiB) that torch takes on the GPU for the model and its first steps."""
    gc.collect()  # what earlier work left must not be freed, and so hide memory, meanwhile
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(opt.device)
    before = torch.cuda.memory_allocated(opt.device)
    repeat_steps(build_model(opt).step, random_batch(opt), STEPS_TO_PEAK)
    return round((torch.cuda.max_memory_allocated(opt.device) - before) / MIB)
