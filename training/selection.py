"""Choose a run's best weights by validation, together with the other processes of the run."""

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from models import run_folder
from models.base_model import BaseModel, Validator
from training.distributed import ProcessGroup

log = logging.getLogger(__name__)


class Selection:
    """Validates a model and keeps its best weights; the first process measures, and the others wait for each volume.

    Attributes:
        validates: whether anything validates the run.
        best: the best `score` so far, less is better, and the `epoch` that it is of; 0 before any.
    """

    def __init__(
        self, group: ProcessGroup, folder: Path, model: BaseModel, open_validator: Callable[[], Validator | None]
    ) -> None:
        """Open the validator in the first process.

        Args:
            group: the processes that train the model.
            folder: the run's.
            model: what is validated.
            open_validator: returns what validates it; None if nothing does.

        Raises:
            InputError: `open_validator` refuses; it ends all processes.
        """
        self.group, self.folder, self.model = group, folder, model
        self.best: dict[str, Any] = _no_best()
        self._validator: Validator | None = None  # of the first process alone

        def is_there() -> bool:
            self._validator = open_validator()
            return self._validator is not None

        self.validates = group.share(is_there)

    def validate(
        self, epoch: int, show: Callable[[dict[str, float], list[Any]], None], received: Callable[[], int]
    ) -> bool:
        """Measure the model on validation data, and keep its weights if it is the best so far.

        Args:
            epoch: the last one that was trained in.
            show: is given the values by name, and slices to show.
            received: the number of a signal that asks this process to end, or 0; it takes effect after every volume.

        Returns:
            Whether the validation was brought to its end: not so where a signal came.
        """
        validator = self._validator
        measuring = validator.measure(self.model) if validator else None

        def measure_one() -> float | None:
            assert validator and measuring, "the first process measures"
            if (found := next(measuring)) is None:
                return None
            show(*found)
            score = validator.score(found[0])
            if score < self.best["score"]:
                run_folder.save_weights(self.folder, self.model, "best")
                self.model.keep_best(self.folder, validator, found[0])
            return score

        self.model.finite.settle()
        with closing(measuring) if measuring else nullcontext():
            while (score := self.group.share(measure_one)) is None:
                if any(self.group.greatest(received())):
                    return False
        if score < self.best["score"]:
            self.best = {"score": score, "epoch": epoch}
        return True

    def restore(self, best: Mapping[str, Any]) -> None:
        """Go on from the `best` of an earlier state.

        Raises:
            KeyError: it lacks something.
        """
        self.best = {name: best[name] for name in _no_best()}

    def choose_anew(self, before: str | None, now: str) -> None:
        """Forget the best weights, with a message, if they were chosen by another criterion than `now`."""
        if before == now or not self.best["epoch"]:
            return
        log.info(
            "the best weights are now chosen by %s; those of epoch %d, chosen by %s, stay 'best' until the next "
            "validation", now, self.best["epoch"], before,
        )  # fmt: skip
        self.best = _no_best()


def _no_best() -> dict[str, Any]:
    return {"score": math.inf, "epoch": 0}
