"""Records of a run: one JSON object a line in `losses.jsonl`, and a history of them for curves.

Most lines are losses; a validation has a line of its own, at the place of the step that it followed.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

# Where a run is: the epoch, its steps done, and a 1 once the validation after these is done. Places sort in the run's
# order.
Place = tuple[int, ...]

RECORDS_NAME = "losses.jsonl"
MAX_POINTS = 2000
"""Points that a history keeps; curves of more are drawn no finer on any screen."""


@dataclass(frozen=True)
class LossRecord:
    """Means over the steps since the record before, or the epoch's beginning; the last of them is step `iteration`.

    They are `losses` by name, `seconds_per_step`, and `seconds_of_data` of these that were spent waiting. `lr` is that
    of the last step. `seconds_left`: an estimate of the time to the end of the run; None if there is none yet.
    """

    epoch: int
    iteration: int
    time: float
    lr: float
    seconds_per_step: float
    seconds_of_data: float
    losses: dict[str, float]
    seconds_left: float | None = None

    @property
    def position(self) -> Place:
        """The epoch and its steps done."""
        return self.epoch, self.iteration

    def to_json(self) -> str:
        """Return one line of `losses.jsonl`."""
        return json.dumps(vars(self))


@dataclass(frozen=True)
class ValidationRecord:
    """What a validation after a step found: `validation`, values by name."""

    epoch: int
    iteration: int
    time: float
    validation: dict[str, float]

    @property
    def position(self) -> Place:
        """The epoch, its steps done, and the validation after them."""
        return self.epoch, self.iteration, 1

    def to_json(self) -> str:
        """Return one line of `losses.jsonl`."""
        return json.dumps(vars(self))


def parse_validation(line: str) -> ValidationRecord | None:
    """Return the validation of a line; None for one that is no such record, or was cut short."""
    try:
        record = ValidationRecord(**json.loads(line))
    except (ValueError, TypeError):
        return None
    if not all(type(count) is int for count in record.position) or not isinstance(record.validation, dict):
        return None
    return record if all(type(value) in (int, float) for value in (record.time, *record.validation.values())) else None


def parse_record(line: str) -> LossRecord | None:
    """Return the record of a line; None for one that a crash or a full disk cut short, or that is no such record."""
    try:
        record = LossRecord(**json.loads(line))
    except (ValueError, TypeError):
        return None
    measured = (record.time, record.lr, record.seconds_per_step, record.seconds_of_data, record.seconds_left or 0)
    if not all(type(count) is int for count in record.position) or not isinstance(record.losses, dict):
        return None
    return record if all(type(value) in (int, float) for value in (*measured, *record.losses.values())) else None


def read_records(folder: Path) -> list[LossRecord]:
    """Return a run's losses in the order of the file; an empty list if it has none yet."""
    return [record for record in map(parse_record, _lines(folder)) if record]


def read_validations(folder: Path) -> list[ValidationRecord]:
    """Return a run's validations in the order of the file; an empty list if it has none yet."""
    return [record for record in map(parse_validation, _lines(folder)) if record]


def _lines(folder: Path) -> list[str]:
    path = folder / RECORDS_NAME
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def drop_records_after(folder: Path, position: Place) -> None:
    """Cut `losses.jsonl` back to a position: what comes after it is done, and recorded, again."""

    def place(line: str) -> Place | None:
        record = parse_record(line) or parse_validation(line)
        return record.position if record else None

    drop_lines_after(folder / RECORDS_NAME, position, place)


def drop_lines_after(path: Path, position: Place, place: Callable[[str], Place | None]) -> None:
    """Cut a file, if there is one, before its first line that lies after a position.

    Lines that lie nowhere are somebody's notes and stay; a last line without its end was torn and goes.

    Args:
        path: the file, one line a record.
        position: of the last record to keep.
        place: returns the position of a line; None if it has none.
    """
    if not path.exists():
        return
    with path.open("rb+") as file:  # in place: it takes no room on a full disk, and nothing that is kept can be lost
        size = 0
        for line in file:
            found = place(line.decode(errors="replace"))
            if not line.endswith(b"\n") or (found is not None and found > position):
                break
            size += len(line)
        file.truncate(size)


@dataclass(frozen=True)
class Point:
    """The mean of `count` successive records, at the place of the last of them; x in epochs."""

    x: float
    lr: float
    seconds_per_step: float
    losses: dict[str, float]
    count: int


class ValidationPoint(NamedTuple):
    """The values of one validation; x in epochs."""

    x: float
    values: dict[str, float]


@dataclass
class History:
    """The curves of a run, fine at the end and coarser before: neighbours are averaged whenever there are too many.

    Memory and the cost of drawing are bounded, however long a run is. Of validations there is one an epoch at most, and
    all are kept.
    """

    steps_per_epoch: int
    points: list[Point] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of all losses, in the order in which they came up
    max_points: int = MAX_POINTS
    validations: list[ValidationPoint] = field(default_factory=list)

    def add_validation(self, record: ValidationRecord) -> None:
        """Add a validation."""
        self.validations.append(ValidationPoint(self._x(record), dict(record.validation)))

    def _x(self, record: LossRecord | ValidationRecord) -> float:
        return record.epoch - 1 + record.iteration / self.steps_per_epoch

    def add(self, record: LossRecord) -> bool:
        """Add a record; return whether curves must be drawn anew: earlier points or the names of losses changed."""
        self.points.append(Point(self._x(record), record.lr, record.seconds_per_step, dict(record.losses), 1))
        new = [name for name in record.losses if name not in self.names]
        self.names += new
        if len(self.points) <= self.max_points:
            return bool(new)
        points = self.points
        pairs = [_mean(points[k], points[k + 1]) for k in range(0, len(points) - 1, 2)]
        self.points = pairs + points[len(pairs) * 2 :]
        return True


def _mean(a: Point, b: Point) -> Point:
    def mean(x: float, y: float) -> float:
        return (x * a.count + y * b.count) / (a.count + b.count)

    losses = {}
    for name in a.losses | b.losses:  # of a loss that only one of them has, that one's
        values = [point.losses[name] for point in (a, b) if name in point.losses]
        losses[name] = mean(values[0], values[-1])
    return Point(b.x, b.lr, mean(a.seconds_per_step, b.seconds_per_step), losses, a.count + b.count)
