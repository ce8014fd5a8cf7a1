"""The display of a running training: the interface that the engine calls, and the displays behind it.

    TrainingLog -> console.Console               lines, loss_log.txt, losses.jsonl
                -> visdom_display.VisdomDisplay  curves and pictures in a browser, if asked for
                -> logger_displays               TensorBoard or Weights & Biases, if asked for
                -> training_page.TrainingPage    web/index.html

The losses come off the accelerator at the print frequency only, images at the display frequency only.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Self

import torch
from torch import Tensor
from tqdm import tqdm

from data.durations import TimeLeft, describe_seconds
from data.values.intensity import IntensityMap
from visualization.console import Console
from visualization.display import Display, Guarded, Picture, RunInfo
from visualization.logger_displays import open_logger
from visualization.loss_titles import explain_losses
from visualization.panels import ValidationSlice, VisualsStyle, training_sheet, validation_sheet
from visualization.records import History, LossRecord, Place, ValidationRecord, read_records, read_validations
from visualization.settings import DisplaySettings
from visualization.training_page import TrainingPage
from visualization.visdom_display import VisdomDisplay

log = logging.getLogger(__name__)

_SILENT_SECONDS = 15.0


class TrainingLog:
    """The record of one run, on every display."""

    def __init__(
        self, run: RunInfo, style: VisualsStyle, displays: Sequence[tuple[str, Display]], start: Place
    ) -> None:
        """Show a run that has come to `start`; records of a later place are dropped.

        Args:
            run: the run.
            style: how its images are shown.
            displays: name and back end of each display.
            start: where the run begins or resumes.
        """
        self.run, self.style = run, style
        self.history = _history_until(run, start)
        self.displays = [Guarded(name, display, self.history) for name, display in displays]
        for display in self.displays:
            display.restore(start)
        self._explained: set[str] = set()  # names of losses
        self._bar = tqdm(disable=True)  # until an epoch begins
        self._left: TimeLeft | None = None  # likewise
        self._is_silent = True  # until losses, or the time that the run will take, were told
        self._restart_clock()

    def start_epoch(self, epoch: int, done: int, seconds: float = 0.0) -> None:
        """Begin the bar of an epoch, `done` of whose steps were taken before; there is none where nobody can see it.

        `seconds`: how long the run has trained.
        """
        run = self.run
        if self._left is None or epoch == run.warm_epochs + 1:
            # While the generators warm up, nobody knows what a step takes after that.
            epochs = run.epochs if epoch > run.warm_epochs or run.epochs == run.warm_epochs else None
            self._left = TimeLeft(
                epochs and epochs * run.steps_per_epoch, self._steps_of_run(epoch, done),
                run.seconds and run.seconds - seconds,
            )  # fmt: skip
        of = f"/{self.run.epochs}" if self.run.epochs else f", {seconds:.0f} of {self.run.seconds} s"
        self._bar = tqdm(
            total=self.run.steps_per_epoch, initial=done, desc=f"epoch {epoch}{of}", unit="it",
            disable=None if self.displays else True, leave=False,
        )  # fmt: skip
        self._restart_clock()

    def step(self, data_seconds: float, losses: Iterable[str] = ()) -> None:
        """Count one step, which waited `data_seconds` for its batch, and say once what each of its `losses` is."""
        new = [name for name in losses if name not in self._explained]
        if new and self.displays and (text := explain_losses(new, self.run.direction)):
            log.info("losses, already multiplied by their weights: %s", text)
        self._explained.update(new)
        self._steps += 1
        if self._is_silent and self._steps == 1:
            self._first_ended = time.perf_counter()
        self._data_seconds += data_seconds
        if self._left:
            self._left.step()
        self._bar.update()
        if self._is_silent and self.displays and time.perf_counter() - self._since > _SILENT_SECONDS:
            self._say_how_long()

    def _say_how_long(self) -> None:
        """Say what a step and the run take, where the first losses are long in coming; after one step it is unknown."""
        if not self._left or self._steps < 2:
            return
        seconds = (time.perf_counter() - self._first_ended) / (self._steps - 1)  # without validation, unlike the rest
        left = self._left.after(self._left.done + self._left.taken)
        run = f"; about {describe_seconds(left)} left" if left else ""
        log.info("%.1f s a step%s; losses follow", seconds, run)
        self._is_silent = False

    def write_losses(self, epoch: int, iteration: int, losses: dict[str, Tensor], lr: float) -> None:
        """Write one record to every display: of `losses`, scalars by name, the means since the record before."""
        if not self.displays:
            return
        values = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()  # one wait for the device
        now, steps = time.perf_counter(), max(self._steps, 1)
        record = LossRecord(
            epoch, iteration, round(time.time(), 3), lr, round((now - self._since) / steps, 4),
            round(self._data_seconds / steps, 4), dict(zip(losses, values, strict=True)),
            self._seconds_left(epoch, iteration),
        )  # fmt: skip
        self._is_silent = False
        redraw = self.history.add(record)
        for display in self.displays:
            display.show_losses(record, redraw)
        shown = {name: f"{value:.3f}" for name, value in record.losses.items() if name == "G"}
        if record.seconds_left:
            shown["run"] = f"{describe_seconds(record.seconds_left)} left"
        self._bar.set_postfix(shown)
        self._restart_clock()

    def write_pictures(
        self, epoch: int, iteration: int, visuals: dict[str, Tensor],
        fixed: Callable[[], dict[str, Tensor]] | None = None,
    ) -> None:  # fmt: skip
        """Show the current images, as `BaseModel.visuals` has them, on every display; `fixed` makes `fixed_visuals`."""

        @cache  # drawn once, and only if a display asks for it
        def picture() -> Picture:
            return Picture(epoch, iteration, training_sheet(visuals, self.style, fixed() if fixed else None))

        for display in self.displays:
            display.show_picture(picture)

    def write_validation(
        self, epoch: int, iteration: int, values: dict[str, float], slices: Sequence[ValidationSlice]
    ) -> None:
        """Write a validation after a step to every display: its values by name, and slices to show, if any."""
        record = ValidationRecord(epoch, iteration, round(time.time(), 3), dict(values))

        @cache  # drawn once, and only if a display asks for it
        def picture() -> Picture:
            return Picture(epoch, iteration, validation_sheet(slices, self.style))

        self.history.add_validation(record)
        for display in self.displays:
            display.show_validation(record, picture if slices else None)
        self._restart_clock()

    def end_epoch(self) -> None:
        """Close the bar."""
        self._bar.close()

    def close(self) -> None:
        """Finish every display."""
        self._bar.close()
        for display in self.displays:
            display.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Finish every display, however the training ended."""
        self.close()

    def _steps_of_run(self, epoch: int, iteration: int) -> int:
        return (epoch - 1) * self.run.steps_per_epoch + iteration

    def _seconds_left(self, epoch: int, iteration: int) -> float | None:
        left = self._left.after(self._steps_of_run(epoch, iteration)) if self._left else None
        return None if left is None else round(left, 1)

    def _restart_clock(self) -> None:
        self._since, self._steps, self._data_seconds = time.perf_counter(), 0, 0.0
        self._first_ended = self._since


def _history_until(run: RunInfo, start: Place) -> History:
    """Return the history of a run up to `start`; an empty one, with a warning, where its records cannot be read."""
    history = History(run.steps_per_epoch)
    try:
        for record in read_records(run.folder):
            if record.position <= start:
                history.add(record)
        for validation in read_validations(run.folder):
            if validation.position <= start:
                history.add_validation(validation)
    except Exception as error:  # as in `Guarded`: curves are not worth the training
        log.warning("warning: earlier losses cannot be read: %s; curves begin at epoch %d", error, start[0])
        return History(run.steps_per_epoch)
    return history


def open_training_log(
    run: RunInfo, display: DisplaySettings, ct_map: IntensityMap, direction: str, start: Place,
    shown: bool = True, slab: int = 1, contrast: str | None = None,
) -> TrainingLog:  # fmt: skip
    """Return the log of a run on the displays that its settings ask for.

    Args:
        run: the run.
        display: its displays.
        ct_map: HU to the networks' [-1, 1]; direction: 'AtoB' where A is MR.
        start: where the run begins or resumes.
        shown: whether anything is shown: of several processes that train together one does.
        slab: slices of an image; contrast: what the first of several is called.
    """
    style = VisualsStyle(ct_map, display.display_window, direction, display.display_ncols, slab, contrast)
    if not shown:
        return TrainingLog(run, style, [], start)
    displays: list[tuple[str, Display]] = [("log files", Console(run.folder))]
    if display.display_id > 0:
        visdom = VisdomDisplay(
            run, display.display_server, display.display_port, display.display_env or run.name, display.display_id,
            display.display_start,
        )  # fmt: skip
        displays.append(("visdom", visdom))
    if display.logger != "none":
        displays.append((display.logger, open_logger(display.logger, run)))
    if not display.no_html:
        displays.append(("web page", TrainingPage(run)))
    return TrainingLog(run, style, displays, start)
