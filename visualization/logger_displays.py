"""TensorBoard and Weights & Biases as displays of a training, if installed.

Both take values by the number of the step in the whole run, from 1.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

from data.errors import InputError
from visualization.display import Display, Picture, RunInfo
from visualization.loss_titles import VALIDATION_TITLES, loss_titles
from visualization.records import History, LossRecord, Place, ValidationRecord

LOGGERS = ("none", "tensorboard", "wandb")
WANDB_PROJECT = "mr-to-ct"


def check_installed(logger: str) -> None:
    """Refuse a logger whose package is not installed.

    Raises:
        InputError: it says how to install it.
    """
    if logger != "none" and find_spec(logger) is None:
        raise InputError(f"--logger {logger}: not installed; run first: pip install {logger}")


def open_logger(logger: str, run: RunInfo) -> Display:
    """Return the display of a logger, 'tensorboard' or 'wandb'."""
    return {"tensorboard": TensorBoard, "wandb": Wandb}[logger](run)


class StepLogger(ABC):
    """What the loggers share: which step a record is of, and what was not sent yet after a failure."""

    def __init__(self, run: RunInfo) -> None:
        """Write nothing yet."""
        self.run = run
        self._sent: int | None = None  # steps of the run that the logger has; None before the first `restore`
        self._validations_sent = 0

    def restore(self, history: History, start: Place) -> None:
        """Open the logger at `start`, or send what a failure kept back; a new one gets the whole history."""
        if self._sent is None:
            begun = self._step(*start[:2])
            self._sent = begun if self._open(begun) else 0
            self._validations_sent = self._sent
        for point in history.points:
            if (step := round(point.x * self.run.steps_per_epoch)) > self._sent:
                self._losses(point.losses, point.lr, step)
        for validation in history.validations:
            step = round(validation.x * self.run.steps_per_epoch)
            if step > self._validations_sent:
                self._validation(validation.values, step)

    def show_losses(self, record: LossRecord, history: History, redraw: bool) -> None:
        """Send one record."""
        self._losses(record.losses, record.lr, self._step(record.epoch, record.iteration))

    def show_picture(self, picture: Callable[[], Picture]) -> None:
        """Send a picture."""
        self._picture("Pictures/training", picture())

    def show_validation(
        self, record: ValidationRecord, history: History, picture: Callable[[], Picture] | None
    ) -> None:
        """Send the values of a validation, and its picture."""
        self._validation(record.validation, self._step(record.epoch, record.iteration))
        if picture:
            self._picture("Pictures/validation", picture())

    def _losses(self, losses: dict[str, float], lr: float, step: int) -> None:
        tags = [title.together("/") for title in loss_titles(list(losses), self.run.direction)]
        self._scalars(dict(zip(tags, losses.values(), strict=True)) | {"Learning rate": lr}, step)
        self._sent = step

    def _validation(self, values: dict[str, float], step: int) -> None:
        self._scalars(
            {f"Validation/{VALIDATION_TITLES.get(name, name)}": value for name, value in values.items()}, step
        )
        self._validations_sent = step

    def _picture(self, tag: str, picture: Picture) -> None:
        self._image(tag, picture.sheet, self._step(picture.epoch, picture.iteration))

    def _step(self, epoch: int, iteration: int) -> int:
        return (epoch - 1) * self.run.steps_per_epoch + iteration

    @abstractmethod
    def close(self) -> None:
        """Finish what is being written."""

    @abstractmethod
    def _open(self, step: int) -> bool:
        """Open the logger for what comes after a step; return whether it has what came before."""

    @abstractmethod
    def _scalars(self, values: dict[str, float], step: int) -> None: ...

    @abstractmethod
    def _image(self, tag: str, sheet: Image.Image, step: int) -> None: ...


class TensorBoard(StepLogger):
    """Event files in the run's folder, `tensorboard`: `tensorboard --logdir checkpoints`."""

    _writer: Any = None

    def _open(self, step: int) -> bool:
        from torch.utils.tensorboard import SummaryWriter  # here: importing it takes seconds

        folder = self.run.folder / "tensorboard"
        known = folder.exists()
        # A run that resumes takes the steps after its state again: TensorBoard drops what it has of them.
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if known else None)
        if not known:
            rows = "\n".join(f"| {name} | {value} |" for name, value in self.run.options.items())
            self._writer.add_text("options", f"| option | value |\n| --- | --- |\n{rows}", 0)
        return known

    def _scalars(self, values: dict[str, float], step: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def _image(self, tag: str, sheet: Image.Image, step: int) -> None:
        pixels = np.asarray(sheet)
        self._writer.add_image(tag, pixels, step, dataformats="HW" if pixels.ndim == 2 else "HWC")
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


class Wandb(StepLogger):
    """A run of Weights & Biases, which resumes with the run; `WANDB_MODE=offline` keeps it on this machine."""

    _logged: Any = None

    def _open(self, step: int) -> bool:
        import wandb

        identity = self.run.folder / "wandb_id.txt"
        known = identity.exists()
        if not known:
            identity.write_text(os.urandom(8).hex())
        self._wandb = wandb
        self._logged = wandb.init(
            project=os.environ.get("WANDB_PROJECT", WANDB_PROJECT), name=self.run.name, dir=str(self.run.folder),
            id=identity.read_text().strip(), resume="allow", config=self.run.options,
        )  # fmt: skip
        # Its own count of steps cannot go back to the state that a run resumes from.
        self._logged.define_metric("step")
        self._logged.define_metric("*", step_metric="step")
        return known

    def _scalars(self, values: dict[str, float], step: int) -> None:
        self._logged.log({**values, "step": step})

    def _image(self, tag: str, sheet: Image.Image, step: int) -> None:
        self._logged.log({tag: self._wandb.Image(sheet), "step": step})

    def close(self) -> None:
        """End the run."""
        if self._logged is not None:
            self._logged.finish()
