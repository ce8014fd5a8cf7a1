"""Translate command lines of the published code and of pytorch-CycleGAN-and-pix2pix.

`data.settings.published_options` has a rule for each published option. An option that is not needed is dropped. One
with an equivalent is replaced. One line of the log lists both. A removed option is an error that names its replacement.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from data.errors import InputError

log = logging.getLogger(__name__)


class Command(StrEnum):
    """A command that takes published options, by its name."""

    TRAIN = "train.py"
    ADAPT = "test_adapt.py"
    PIPELINE = "test_pipeline.py"


class Recorded(NamedTuple):
    """What a command line claims of a model in use: a setting, its value, and what to do if the record differs."""

    setting: str
    value: str
    otherwise: str = "leave it out"


@dataclass
class Line:
    """A command line, taken apart.

    Attributes:
        command: whose it is.
        method: what `--model` says, or the command itself.
        options: name, values and original words of each option, in order.
        recorded: what the line says of a model that is used, by option, to be held against its record.
    """

    command: Command
    method: str
    options: list[tuple[str, list[str], list[str]]] = field(default_factory=list)
    recorded: dict[str, Recorded] = field(default_factory=dict)

    @classmethod
    def of(cls, words: Sequence[str], command: Command, method: str | None) -> "Line":
        """Take a command line apart; words before the first option are an option without a name."""
        line = cls(command, "", [("", [], [])])
        for word in words:
            if (word.startswith("--") and len(word) > 2) or word == "-h":
                name, equals, value = word.partition("=")
                line.options.append((name, [value] if equals else [], [word]))
            else:
                line.options[-1][1].append(word)
                line.options[-1][2].append(word)
        line.method = method or line.value("--model") or "cycle_gan"
        return line

    def values(self, *names: str) -> list[str]:
        """Return what the last of the options `names` was given."""
        return next((values for name, values, _ in reversed(self.options) if name in names), [])

    def value(self, *names: str) -> str | None:
        """Return the first value of the last of the options `names`; None if there is none."""
        return next(iter(self.values(*names)), None)

    def given(self, *names: str) -> bool:
        """Tell whether one of the options was given."""
        return any(name in names for name, _, _ in self.options)

    def one_of(self, name: str, other: str) -> None:
        """Refuse an option given together with the one that it is replaced by.

        Raises:
            InputError: both were given.
        """
        if self.given(other):
            raise InputError(f"{name} and {other}: expected one of them; both mean the same here")


# From the line, the option's name and its value ("" for a flag) to words in its place; None leaves it to the parser.
Act = Callable[[Line, str, str], list[str] | None]


class Rule(NamedTuple):
    """What a published option does here: in words for the documentation, and as a function."""

    says: str
    act: Act | None = None


@dataclass(frozen=True)
class Published:
    """One published option.

    Attributes:
        name: with its dashes.
        default: that of the published code; None for a flag, which is off there.
        train: what it does in trainings; None if it is none of theirs.
        use: what it does where a model is used; likewise.
    """

    name: str
    default: str | None = None
    train: Rule | None = None
    use: Rule | None = None


class Translated(NamedTuple):
    """A command line for this project's parsers, and what it claims of a model in use (see `Line`)."""

    words: list[str]
    recorded: Mapping[str, Recorded]


def translate(
    words: Sequence[str], table: Mapping[str, Published], command: Command, method: str | None = None
) -> Translated:
    """Return a command line in today's options, and log in one line which published ones were replaced or dropped.

    Args:
        words: the command line.
        table: the published options by name.
        command: whose line it is.
        method: the training method, where the command has only one.

    Raises:
        InputError: a removed option or value; the message names its replacement.
    """
    line = Line.of(words, command, method)
    unneeded, become, more, replaced = [], [], [], set()
    for name in dict.fromkeys(name for name, _, _ in line.options):
        row = table.get(name)
        rule = row and (row.train if command == Command.TRAIN else row.use)
        if not row or not rule or not rule.act:
            continue
        value = _value(line, row)
        new = rule.act(line, name, value)
        if new is None:
            continue
        replaced.add(name)
        more += new
        said = f"{name} {value}".strip()
        if new:
            become.append(f"{said} is {' '.join(new)}")
        else:
            unneeded.append(said)
    if replaced:
        _say(become, unneeded)
    kept = [word for name, _, original in line.options if name not in replaced for word in original]
    return Translated(kept + more, line.recorded)


def _value(line: Line, row: Published) -> str:
    values = line.values(row.name)
    expected = 0 if row.default is None else 1
    if len(values) != expected:
        raise InputError(
            f"{row.name}: expected {'one value' if expected else 'no value'}, found {' '.join(values) or 'none'}"
        )
    return values[0] if values else ""


def _say(become: list[str], unneeded: list[str]) -> None:
    if os.environ.get("RANK", "0") != "0":  # of the processes of torchrun the first one says it
        return
    said = [*become, *([f"not needed here: {', '.join(unneeded)}"] if unneeded else [])]
    log.info("published options: %s (docs/published.md)", "; ".join(said))
