"""Criteria by which a validation chooses the best weights."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from data.errors import InputError


@dataclass(frozen=True)
class Criterion:
    """How a validation's values become one score.

    Attributes:
        value: the name of the value that it goes by.
        cost: takes that value to a score of which less is better.
        needs: what a validation must have to give the value.
    """

    value: str
    cost: Callable[[float], float]
    needs: str


def _itself(value: float) -> float:
    return value


CRITERIA: dict[str, Criterion] = {
    "mae": Criterion("mae", _itself, "a validation patient with MR and true CT on one grid"),
    "simulated_mae": Criterion(
        "simulated_mae", _itself, "validation CT, and contrasts that can be simulated: a single one, or Dixon contrasts"
    ),
    "histogram": Criterion("histogram", _itself, "validation MR, and training CT with known histograms"),
    "cycle": Criterion("cycle", _itself, "validation MR, and a method with a generator from CT back to MR"),
    "body_dice": Criterion("body_dice", lambda dice: 1 - dice, "validation MR"),
}


DEFAULT_CRITERION = "simulated_mae"


def check_criterion(criterion: str, values: Collection[str]) -> Criterion:
    """Return a criterion of `CRITERIA`, after a check that a validation gives what it goes by.

    Args:
        criterion: its name.
        values: names of what the validation gives.

    Raises:
        InputError: there is no such criterion, or its value is not given.
    """
    if criterion not in CRITERIA:
        raise InputError(f"--val_criterion {criterion!r}: expected one of {', '.join(CRITERIA)}")
    chosen = CRITERIA[criterion]
    if chosen.value not in values:
        possible = [name for name, other in CRITERIA.items() if other.value in values]
        raise InputError(
            f"--val_criterion {criterion}: needs {chosen.needs}; choose another criterion: "
            f"{', '.join(possible) or 'none is possible here'}"
        )
    return chosen


def score(values: Mapping[str, float], criterion: str) -> float:
    """Return the score of a validation's values by a criterion of `CRITERIA`: smaller is better, infinite means none.

    Raises:
        InputError: there is no such criterion, or the validation does not give what it goes by.
    """
    chosen = check_criterion(criterion, values)
    cost = chosen.cost(values[chosen.value])
    return math.inf if math.isnan(cost) else cost
