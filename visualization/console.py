"""One line a record on the console and in the run's `loss_log.txt`, and the record itself in `losses.jsonl`."""

import logging
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from data.durations import describe_seconds
from visualization.display import Picture
from visualization.records import (
    RECORDS_NAME,
    History,
    LossRecord,
    Place,
    ValidationRecord,
    drop_lines_after,
    drop_records_after,
)

log = logging.getLogger(__name__)

LOG_NAME = "loss_log.txt"
_LINE_START = re.compile(r"epoch (\d+)  iteration (\d+)  (validation  )?")


class Console:
    """The back end of consoles and files.

    It raises nothing: records that a full disk refuses are kept until it takes them, and lines that nobody can read
    any more are left out.
    """

    def __init__(self, folder: Path) -> None:
        """Write into `folder`."""
        self.folder = folder
        self._written: Place = (0, 0)
        self._cut_due = False  # the files may hold something after `_written`
        self._waiting: list[LossRecord | ValidationRecord] = []
        self._failing = False
        self._mute = False

    def restore(self, history: History, start: Place) -> None:
        """Cut both files back to `start`: what comes after it is done, and written, again.

        Where that fails it is done before the next record is written, at the earliest `start` that was asked for.
        """
        self._written = min(self._written, start) if self._cut_due else start
        self._cut_due = True
        self._write()

    def show_losses(self, record: LossRecord, history: History, redraw: bool) -> None:
        """Write one record to both files and to the console."""
        self._show(record)

    def show_validation(
        self, record: ValidationRecord, history: History, picture: Callable[[], Picture] | None
    ) -> None:
        """Write the values of a validation to both files and to the console."""
        self._show(record)

    def _show(self, record: LossRecord | ValidationRecord) -> None:
        self._waiting.append(record)
        self._write()
        try:
            tqdm.write(format_record(record))
            sys.stdout.flush()  # a log that output is sent to should not be hours behind
        except (OSError, ValueError) as error:  # a pipe that nobody reads, or closed
            if not self._mute:
                log.warning(
                    "warning: losses cannot be printed: %s; they are still written to %s",
                    error,
                    self.folder / LOG_NAME,
                )
            self._mute = True
        else:
            self._mute = False

    def show_picture(self, picture: Callable[[], Picture]) -> None:
        """Show nothing: a console has no pictures."""

    def close(self) -> None:
        """Write what still waits, if the disk takes it by now."""
        if self._waiting:
            self._write()

    def _write(self) -> None:
        """Make up for what is due, and write what waits."""
        try:
            if self._cut_due:
                drop_records_after(self.folder, self._written)
                drop_lines_after(self.folder / LOG_NAME, self._written, _place)
                self._cut_due = False
            if self._waiting:
                self._append(LOG_NAME, map(format_record, self._waiting))
                self._append(RECORDS_NAME, (record.to_json() for record in self._waiting))
                self._written, self._waiting = self._waiting[-1].position, []
        except Exception as error:  # whatever it is: a record that is handed back would be lost
            if not self._failing:
                log.warning(
                    "warning: losses cannot be written: %s; training continues, and they are kept in memory", error
                )
            self._failing = self._cut_due = True  # half a line may have been written
        else:
            if self._failing:
                log.info("losses are written again, with those kept in memory: %s", self.folder)
            self._failing = False

    def _append(self, name: str, lines: Iterable[str]) -> None:
        with (self.folder / name).open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))


def format_record(record: LossRecord | ValidationRecord) -> str:
    """Return the line of a record: place, seconds a step and of data, learning rate, and every loss; or a validation's.

    That has its place and every value.
    """
    if isinstance(record, ValidationRecord):
        values = "  ".join(f"{name} {value:.4g}" for name, value in record.validation.items())
        return f"epoch {record.epoch}  iteration {record.iteration}  validation  {values}"
    losses = "  ".join(f"{name} {value:.4f}" for name, value in record.losses.items())
    left = f"about {describe_seconds(record.seconds_left)} left  " if record.seconds_left else ""
    return (
        f"epoch {record.epoch}  iteration {record.iteration}  {record.seconds_per_step:.3f} s/it  "
        f"data {record.seconds_of_data:.3f} s  lr {record.lr:.2e}  {left}{losses}"
    )


def _place(line: str) -> Place | None:
    start = _LINE_START.match(line)
    return (int(start[1]), int(start[2]), *([1] if start[3] else [])) if start else None
