"""Options of the warm start: a CycleGAN's generators are trained on simulated pairs first."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data.errors import InputError
from data.settings.declaration import Nature, Need, option
from data.settings.values import nonnegative_float, nonnegative_int

WARM_STARTS = ("none", "simulated_mr")
# Defaults of a warm start's options; without one they are 0.
_WHEN_WARM: dict[str, Any] = {"n_epochs_warm": 10, "warm_lr": 1e-3, "lambda_simulated": 10.0}


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """warm start: train the generators on simulated pairs before the adversarial training."""

    warm_start: str = option(
        "none",
        nature=Nature.RESULT,
        choices=WARM_STARTS,
        first=True,
        help="simulated_mr: train first on T1-like MR simulated from the CT slices",
    )
    n_epochs_warm: int | None = option(
        None, nature=Nature.RESULT, parse=nonnegative_int, needs=Need("warm_start", ("simulated_mr",)),
        help=f"epochs on simulated pairs only, before --n_epochs (default: {_WHEN_WARM['n_epochs_warm']})",
    )  # fmt: skip
    warm_lr: float | None = option(
        None, nature=Nature.RESULT, parse=nonnegative_float, needs=Need("warm_start", ("simulated_mr",)),
        help=f"learning rate of the warm start (default: {_WHEN_WARM['warm_lr']:g})",
    )  # fmt: skip
    lambda_simulated: float | None = option(
        None, nature=Nature.RESULT, parse=nonnegative_float,
        help="weight of the L1 loss on simulated pairs during the adversarial training (default: "
        f"{_WHEN_WARM['lambda_simulated']:g} with a warm start, else 0)",
    )  # fmt: skip

    @classmethod
    def outdated(cls, given: Mapping[str, Any], before: Callable[[str], Any]) -> set[str]:
        """Return those that a record fills in by itself, where the command line switches the warm start on or off."""
        if "warm_start" not in given or given["warm_start"] == before("warm_start"):
            return set()
        filled_in = dict.fromkeys(_WHEN_WARM, 0) if given["warm_start"] != "none" else _WHEN_WARM
        return {name for name in _WHEN_WARM.keys() - given.keys() if before(name) == filled_in[name]}

    def __post_init__(self) -> None:
        """Fill in what depends on `warm_start`.

        Raises:
            InputError: the learning rate of a warm start is 0, as only a run without one records it.
        """
        if self.warm_start != "none" and self.warm_lr == 0:
            raise InputError("--warm_lr 0: expected a number above 0")
        for name, value in _WHEN_WARM.items():
            given = getattr(self, name)
            if not given and self.warm_start == "none":
                object.__setattr__(self, name, 0)
            elif given is None:
                object.__setattr__(self, name, value)

    @property
    def warm_epochs(self) -> int:
        """Epochs of the warm start; a file may say how many one would take, and the command line that there is none."""
        return 0 if self.warm_start == "none" else self.n_epochs_warm or 0

    @property
    def rate_when_warm(self) -> float:
        """Learning rate during the epochs of a warm start."""
        return self.warm_lr or 0.0

    @property
    def simulates(self) -> bool:
        """Whether pairs of simulated MR and CT are needed."""
        return self.warm_start != "none" or bool(self.lambda_simulated)
