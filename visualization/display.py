"""The one interface of what shows a running training, and the guard that keeps its failures from the training."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from visualization.records import History, LossRecord, Place, ValidationRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunInfo:
    """What a display tells about a run: its name, folder, options by name, versions by package, and its length.

    That is `epochs`, or by the clock `seconds`; the other is None. The first `warm_epochs` take other steps.
    """

    name: str
    folder: Path
    options: dict[str, object]
    versions: dict[str, str]
    epochs: int | None
    steps_per_epoch: int
    seconds: int | None = None
    warm_epochs: int = 0

    @property
    def direction(self) -> str:
        """'AtoB' where A is MR, as it is for methods that have no other direction."""
        return str(self.options.get("direction", "AtoB"))


@dataclass(frozen=True)
class Picture:
    """The images of one step, or of a validation after it, as one captioned sheet."""

    epoch: int
    iteration: int
    sheet: Image.Image


class Display(Protocol):
    """A back end. Any method may raise; `Guarded` sees to it."""

    def restore(self, history: History, start: Place) -> None:
        """Show a run from its beginning to `start`, or catch up after a failure."""
        ...

    def show_losses(self, record: LossRecord, history: History, redraw: bool) -> None:
        """Show one more record, the last of `history`; `redraw`: earlier points of the history have changed too."""
        ...

    def show_picture(self, picture: Callable[[], Picture]) -> None:
        """Show the images of a step; they are drawn when a display calls for them."""
        ...

    def show_validation(
        self, record: ValidationRecord, history: History, picture: Callable[[], Picture] | None
    ) -> None:
        """Show one more validation, the last of `history`, and its picture, where it has one, drawn when called for."""
        ...

    def close(self) -> None:
        """Finish; nothing is shown afterwards."""
        ...


class Guarded:
    """A display whose failure costs one warning and nothing else; it catches up as soon as it works again.

    Pictures and losses may fail apart: pictures that never work cost one warning, though losses are shown between them.
    """

    def __init__(self, name: str, display: Display, history: History) -> None:
        """Guard `display`, called `name` in warnings, which shows `history`."""
        self.name, self.display, self.history = name, display, history
        self._failing = False
        self._down: set[str] = set()  # what failed when it was last tried

    def restore(self, start: Place) -> None:
        """Show a run from its beginning to `start`."""
        self._try("losses", lambda: self.display.restore(self.history, start))

    def show_losses(self, record: LossRecord, redraw: bool) -> None:
        """Show one more record, which the history has already."""
        if self._failing:
            self.restore(record.position)
        else:
            self._try("losses", lambda: self.display.show_losses(record, self.history, redraw))

    def show_picture(self, picture: Callable[[], Picture]) -> None:
        """Show the images of a step; without waiting for better times where the display fails."""
        if not self._failing:
            self._try("pictures", lambda: self.display.show_picture(picture))

    def show_validation(self, record: ValidationRecord, picture: Callable[[], Picture] | None) -> None:
        """Show one more validation, which the history has already."""
        if self._failing:
            self.restore(record.position)
        else:
            self._try("validation", lambda: self.display.show_validation(record, self.history, picture))

    def close(self) -> None:
        """Finish."""
        self._try("end", self.display.close)

    def _try(self, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever it is, a picture of a training is not worth the training
            if not self._failing and what not in self._down:
                log.warning("warning: %s: %s; training continues without it", self.name, error)
            self._failing = True
            self._down.add(what)
        else:
            self._failing = False
            if what in self._down:
                self._down.remove(what)
                if not self._down:
                    log.info("%s: works again", self.name)
