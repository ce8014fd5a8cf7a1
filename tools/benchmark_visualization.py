"""Measure what visualisation costs a training: `python -m tools.benchmark_visualization [--visdom]`.

Prints the share of the training time that it takes at the default frequencies, in epochs of --steps_per_epoch steps
(the last of which always has a record and a picture), with the published networks on slices of --size pixels on the
CPU, and what an update of the page costs at epoch 200 relative to epoch 5. Both are ratios within one run, which other
work on the machine hardly changes.
"""

import argparse
import contextlib
import io
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import requests
import torch

from data.errors import InputError, run_command
from data.settings.parser import CommandParser
from data.settings.values import positive_int
from data.values.intensity import CT_WINDOW_HU, IntensityMap
from models.cycle_gan_model import CycleGANModel, CycleGANSettings
from options import train_options
from visualization.console import Console
from visualization.display import Display, RunInfo
from visualization.panels import VisualsStyle
from visualization.training_log import TrainingLog
from visualization.training_page import TrainingPage
from visualization.visdom_display import VisdomDisplay
from visualization.visdom_server import is_listening

EPOCHS, RECORDS_AN_EPOCH, PICTURES_AN_EPOCH = 200, 10, 3
_ENVIRONMENT = "benchmark"
_START_SECONDS, _CATCH_UP_SECONDS = 120, 30


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="python -m tools.benchmark_visualization",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", type=positive_int, default=128, help="pixels of a slice (default: 128)")
    parser.add_argument("--steps", type=positive_int, default=6, help="training steps to time (default: 6)")
    parser.add_argument("--steps_per_epoch", type=positive_int, default=1000, help="of the training (default: 1000)")
    parser.add_argument("--visdom", action="store_true", help="with a visdom server of its own")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print.

    Raises:
        InputError: --visdom is given and its server does not start, or has no plots at the end.
    """
    options = parse_arguments(arguments)
    step_s, losses, visuals = time_steps(options.size, options.steps)
    with contextlib.redirect_stdout(io.StringIO()):  # the lines of losses
        updates = time_updates(losses, visuals, options.steps_per_epoch, options.visdom)
    frequencies = train_options.parse(["--dataroot", "-", "--name", "-"])
    losses_s, pictures_s = (statistics.median(times) for times in zip(*updates.values(), strict=True))
    # As train.py has it: at every multiple of the frequency, and at an epoch's last step.
    records, pictures = (
        -(-options.steps_per_epoch // freq) for freq in (frequencies.print_freq, frequencies.display_freq)
    )
    share = (records * losses_s + pictures * pictures_s) / (options.steps_per_epoch * step_s)
    early, late = (
        statistics.median(sum(updates[epoch]) for epoch in epochs)
        for epochs in (range(3, 8), range(EPOCHS - 4, EPOCHS + 1))
    )
    sys.stdout.write(
        f"training step at {options.size} x {options.size}: {1e3 * step_s:.0f} ms (median of {options.steps})\n"
        f"a record of losses: {1e3 * losses_s:.2f} ms, {records} in an epoch of {options.steps_per_epoch} steps\n"
        f"a picture: {1e3 * pictures_s:.1f} ms, {pictures} in an epoch\n"
        f"share of the training time: {100 * share:.4f} %\n"
        f"record and picture at epoch {EPOCHS} relative to epoch 5 (medians of five): {late / early:.2f}\n"
    )


def time_steps(size: int, steps: int) -> tuple[float, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the median seconds of a step of the published model without shape constraint, its losses and images."""
    model = CycleGANModel(CycleGANSettings(), torch.device("cpu"))
    noise = torch.Generator().manual_seed(0)
    batch = {domain: torch.rand((1, 1, size, size), generator=noise) * 2 - 1 for domain in "AB"}
    losses = model.step(batch)  # the first one also sets things up
    seconds = [_seconds(lambda: model.step(batch)) for _ in range(steps)]
    return statistics.median(seconds), losses, model.visuals


def time_updates(
    losses: dict[str, torch.Tensor], visuals: dict[str, torch.Tensor], steps_per_epoch: int, with_visdom: bool
) -> dict[int, tuple[float, float]]:
    """Return by epoch the median seconds of a record and of a picture, in a run of `EPOCHS` epochs.

    Raises:
        InputError: the visdom server does not start, or has no plots at the end.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = RunInfo("benchmark", Path(folder), {}, {}, EPOCHS, steps_per_epoch)
        displays: list[tuple[str, Display]] = [("log files", Console(Path(folder))), ("web page", TrainingPage(run))]
        if with_visdom:
            port = free_port()
            displays.append(("visdom", VisdomDisplay(run, "http://localhost", port, _ENVIRONMENT, 1, True)))
        updates = {}
        with TrainingLog(run, VisualsStyle(IntensityMap.window(*CT_WINDOW_HU)), displays, (1, 0)) as training_log:
            if with_visdom and not _comes_true(lambda: is_listening(port), _START_SECONDS):
                raise InputError(f"--visdom: the server at port {port} did not start; a dead display is not measured")
            for epoch in range(1, EPOCHS + 1):
                training_log.start_epoch(epoch, 0)
                updates[epoch] = (
                    _median_seconds(
                        lambda k, e=epoch: training_log.write_losses(e, k, losses, 2e-4),
                        RECORDS_AN_EPOCH,
                        steps_per_epoch,
                    ),
                    _median_seconds(
                        lambda k, e=epoch: training_log.write_pictures(e, k, visuals),
                        PICTURES_AN_EPOCH,
                        steps_per_epoch,
                    ),
                )
                training_log.end_epoch()
            if with_visdom and not _comes_true(lambda: has_plots(port), _CATCH_UP_SECONDS):
                raise InputError(
                    f"--visdom: the server at port {port} has no plots; the display that was measured is dead"
                )
    return updates


def free_port() -> int:
    """Return a port of this machine that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def has_plots(port: int) -> bool:
    """Return whether the visdom server has the windows of the benchmark's curves and picture."""
    with requests.Session() as session:
        session.trust_env = False  # no proxy for this machine's own
        answers = [
            session.post(
                f"http://127.0.0.1:{port}/win_exists", json={"eid": _ENVIRONMENT, "win": f"{kind}-1"}, timeout=10
            )
            for kind in ("losses", "images")
        ]
    return all(answer.ok and answer.text == "true" for answer in answers)


def _comes_true(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _median_seconds(action: Callable[[int], None], times: int, steps: int) -> float:
    """Return the median seconds of `action`, called at so many evenly spaced ones of an epoch's `steps`."""
    return statistics.median(_seconds(lambda k=k: action(steps * (k + 1) // times)) for k in range(times))


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


if __name__ == "__main__":
    run_command(main)
