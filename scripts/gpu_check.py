"""Does this GPU compute correctly, and how fast? `python -m scripts.gpu_check --out FOLDER [--seconds N]`

correctness  one training step of the full method, and the synthesis of a small volume, beside float64 on the CPU: in
             every precision, deterministic (repeated bit for bit) and compiled
speed        the step and the synthesis beside plain ones, the share of the matrix peak, where a step waits for the GPU,
             memory, kernels, and the loader's rate

Everything is written to FOLDER/gpu_check.json after each section. A section that fails does not stop the others; one
that did not fit into --seconds is reported as not run. The exit code is 1 where a section failed, else 0.
"""

import argparse
import logging
import math
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.correctness import Check, StepProblem, SynthesisProblem, check_repeats
from benchmarks.data_sets import measure_loader
from benchmarks.machine import hardware
from benchmarks.networks import compare_steps, measure_own_step, measure_synthesis
from benchmarks.settings import BenchmarkSettings
from benchmarks.waits import device_peak_mib, find_waits, profile_step
from data.errors import InputError, run_command
from data.files import read_json, write_json
from data.settings.devices import torch_device
from data.settings.parser import CommandParser
from data.settings.values import positive_int
from data.volumes.outputs import check_free
from models.precision import choose_precision
from training.distributed import ProcessGroup
from training.run import set_up_torch

FILE_NAME = "gpu_check.json"
# With less time left than this no compilation is started.
LEAST_COMPILE_S = 20
COMMON = BenchmarkSettings(steps=5, turns=3, num_threads=(0, 4))
# What is compared with float64 on the CPU: small, so that the reference takes seconds.
SMALL = replace(
    COMMON, size=64, netG="resnet_6blocks", ngf=32, ndf=32, extractor_width=16, batch_size=2,
    method={"pool_size": 4, "init_gain": 0.2},
)  # fmt: skip
# What is timed: the published size.
FULL = replace(COMMON, patients=1, volume_slices=24, workers=(4,))
TINY: dict[str, Any] = {
    "size": 32, "netG": "resnet_6blocks", "ngf": 4, "ndf": 4, "extractor_width": 2, "steps": 1, "turns": 1,
    "slices": 4, "volume_slices": 20, "workers": (1,), "num_threads": (0,),
}  # fmt: skip
LARGER_BATCH = 8
# Figures that are printed; all are in the file.
SHOWN = ("precision", "ratio", "iterations_per_second", "slices_per_second", "peak_gflops", "share_of_peak", "peak_mib",
         "pairs_per_second")  # fmt: skip


class NotRunError(Exception):
    """A section that this machine, or the time left, has no room for."""


class Checks:
    """What the sections measure, on one device; each returns plain values, under `checks` what may fail."""

    def __init__(self, device: torch.device, work: Path, tiny: bool, deadline: float) -> None:
        """Prepare nothing yet; `work` is a scratch folder, `deadline` when all must be done (`time.monotonic`)."""
        self.device, self.work, self.tiny, self.deadline = device, work, tiny, deadline
        chosen: dict[str, Any] = {"device": device, "work": work} | (TINY if tiny else {})
        self.small, self.full = replace(SMALL, **chosen), replace(FULL, **chosen)
        self.larger = replace(self.full, batch_size=LARGER_BATCH)

    @cached_property
    def problem(self) -> StepProblem:
        """The training step that is compared."""
        return StepProblem(self.small)

    @cached_property
    def synthesis_problem(self) -> SynthesisProblem:
        """The volume whose synthesis is compared."""
        return SynthesisProblem(self.small)

    def correct(self, precision: str) -> dict:
        """Compare a step and a synthesis in one precision."""
        try:
            choose_precision(precision, self.device)
        except InputError as error:
            raise NotRunError(str(error)) from error
        checks = self.problem.checks(self.problem.build(self.device, precision))
        return _checked([*checks, self.synthesis_problem.check(self.device, precision)])

    def correct_deterministic(self) -> dict:
        """Compare a step of `--deterministic` in float32, and repeat it in the fastest precision."""
        set_up_torch(self.device, deterministic=True)
        try:
            checks = self.problem.checks(self.problem.build(self.device, "fp32"))
            return _checked([*checks, check_repeats(self.problem, self.device, "auto")])
        finally:
            torch.use_deterministic_algorithms(False)
            set_up_torch(self.device, deterministic=False)

    def correct_compiled(self) -> dict:
        """Compare a compiled step in float32."""
        return _checked(self.problem.checks(self.problem.build(self.device, "fp32", compiled=True)))

    def waits(self) -> dict:
        """Find where steps wait for the GPU."""
        self._need_cuda()
        found: dict[str, list[str]] = {}
        for precision in ("bf16", "fp16"):
            found |= {f"{kind}, {precision}": places for kind, places in find_waits(self.small, precision).items()}
        return {"places": found, "passed": not any(found.values())}

    def memory(self) -> dict:
        """Return the peak memory of training, by slices in a batch."""
        self._need_cuda()
        return {"peak_mib": {str(opt.batch_size): device_peak_mib(opt) for opt in (self.full, self.larger)}}

    def kernels(self) -> dict:
        """Return where a step's time goes, for both sizes of batch."""
        self._need_cuda()
        return {str(opt.batch_size): profile_step(opt) for opt in (self.full, self.larger)}

    def compiled(self) -> dict:
        """Time the compiled step."""
        return measure_own_step(replace(self.larger, compile=True))

    def _need_cuda(self) -> None:
        if self.device.type != "cuda":
            raise NotRunError(f"{self.device}: measured on CUDA only")

    def sections(self) -> dict[str, Callable[[], dict]]:
        """Return the sections, in order."""
        return {
            **{f"correct in {name}": partial(self.correct, name) for name in ("fp32", "tf32", "bf16", "fp16")},
            "correct, deterministic": self.correct_deterministic,
            "training": partial(compare_steps, self.full),
            "training, larger batch": partial(measure_own_step, self.larger),
            "synthesis": partial(measure_synthesis, self.full),
            "waits": self.waits,
            "memory": self.memory,
            **{name: partial(self._in_process, name) for name in self.compiling()},
            "kernels": self.kernels,
            "loader": partial(measure_loader, self.full),
        }

    def compiling(self) -> dict[str, Callable[[], dict]]:
        """Return the sections that run in processes of their own, which can be ended when the time is up."""
        return {"correct, compiled": self.correct_compiled, "training, compiled": self.compiled}

    def _in_process(self, name: str) -> dict:
        """Run a section in a process of its own, until the deadline."""
        left = self.deadline - time.monotonic()
        if left < LEAST_COMPILE_S:
            raise NotRunError(f"{left:.0f} s are left, too few to compile in")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_run_alone, args=(name, self.device, self.work, self.tiny, sender))
        process.start()
        sender.close()
        try:
            if not receiver.poll(left):
                raise NotRunError(f"not done after {left:.0f} s: compiling takes long; raise --seconds")
            error, found = receiver.recv()
        except EOFError as ended:
            raise RuntimeError(f"the section's process ended with exit code {process.exitcode}") from ended
        finally:
            process.kill()
            process.join()
        if error:
            raise RuntimeError(error)
        return found


def _run_alone(name: str, device: torch.device, work: Path, tiny: bool, sender: Connection) -> None:
    set_up_torch(device, deterministic=False)
    try:
        sender.send((None, Checks(device, work, tiny, deadline=0.0).compiling()[name]()))
    except Exception:
        sender.send((traceback.format_exc(), None))


def _checked(checks: Sequence[Check]) -> dict:
    return {"checks": [check.to_dict() for check in checks], "passed": all(check.passed for check in checks)}


def parse_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    """Return the checked options."""
    parser = CommandParser(
        prog="python -m scripts.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help=f"folder for {FILE_NAME}")
    parser.add_argument("--seconds", type=positive_int, default=180, help="approximate duration (default: 180)")
    parser.add_argument("--device", type=torch_device, default="auto", help="as in train.py")
    parser.add_argument("--tiny", action="store_true", help="small networks and images, to try the command")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, print and write; return 1 where a section failed."""
    deadline = time.monotonic() + (opt := parse_arguments(arguments)).seconds
    logging.getLogger().setLevel(logging.WARNING)
    # cuBLAS reads it once, at the first product of the process.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    opt.device = ProcessGroup().device(opt.device)
    set_up_torch(opt.device, deterministic=False)
    file = opt.out / FILE_NAME
    check_free([file], "--out", made=[file] if _is_report(file) else [], overwrite=None)
    opt.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {name: value if isinstance(value, int) else str(value) for name, value in vars(opt).items()},
        "hardware": hardware(opt.device),
        "sections": {},
    }
    if opt.device.type != "cuda":
        sys.stdout.write(f"no CUDA GPU: checking {opt.device}; sections that need CUDA are skipped\n")
    with tempfile.TemporaryDirectory() as work:
        for name, section in Checks(opt.device, Path(work), opt.tiny, deadline).sections().items():
            found = run_section(section, deadline)
            report["sections"][name] = found
            write_json(file, _writable(report))
            sys.stdout.write(describe(name, found) + "\n")
            sys.stdout.flush()
    failed = [name for name, found in report["sections"].items() if found["status"] == "failed"]
    sys.stdout.write(f"failed: {'; '.join(failed) or 'nothing'}\nwritten: {file}\n")
    return 1 if failed else 0


def _is_report(file: Path) -> bool:
    """Tell whether a file is a report of this command."""
    try:
        return {"date", "settings", "hardware", "sections"} <= read_json(file).keys()
    except InputError:
        return False


def run_section(section: Callable[[], dict], deadline: float) -> dict:
    """Return what a section found, its `status` ('done', 'failed' or 'not run') and seconds; it cannot raise."""
    started = time.monotonic()
    try:
        if started >= deadline:
            raise NotRunError("the time is up")
        found = section()
        status = {"status": "done" if found.get("passed", True) else "failed"}
    except NotRunError as error:
        found, status = {}, {"status": "not run", "reason": str(error)}
    except Exception as error:
        found, status = {}, {"status": "failed", "reason": str(error), "traceback": traceback.format_exc()}
    return status | {"seconds": round(time.monotonic() - started, 2)} | {"found": found}


def _writable(value: object) -> Any:
    """Return a report with numbers that JSON has no form for, such as NaN, as text."""
    if isinstance(value, dict):
        return {key: _writable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_writable(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def describe(name: str, section: dict) -> str:
    """Return a section's table."""
    found = section["found"]
    lines = [f"{name}: {section['status']} ({section['seconds']:.1f} s)"]
    if "reason" in section:
        lines.append("    " + section["reason"].strip().splitlines()[-1])
    for check in found.get("checks", []):
        verdict = "right" if check["passed"] else "WRONG"
        lines.append(
            f"    {check['name']:22} {check['error']:>10.3g} of {check['tolerance']:.3g}  {verdict}  ({check['worst']})"
        )
    for place, waits in found.get("places", {}).items():
        lines.append(f"    {place}: {'; '.join(waits) or 'no wait'}")
    lines += [f"    {key}: {found[key]}" for key in SHOWN if key in found]
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
