"""Options declared as fields of frozen dataclasses, a class a subject.

A field says its name, default, choices, help and published aliases, and its nature: what happens where a run resumes
with another value. Where it does nothing without another option, its `needs` say so. From the fields come the parser,
the check on resume and the files that record a run:

    @dataclass(frozen=True)
    class ScheduleSettings:
        '''schedule'''                                   # the title in --help

        n_epochs: int = option(100, nature=Nature.RESULT, parse=nonnegative_int, help="epochs at the full rate")

A class that inherits from several such classes has all their options; `redeclare` says of one in it what is different
there: its default, its help. So what several commands share is declared once.
"""

import argparse
import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, get_type_hints

from data.errors import InputError, did_you_mean
from data.settings.parser import show_first


class Nature(StrEnum):
    """What a changed value means when a run resumes."""

    FREE = "free to change: no result depends on it"
    RESULT = "changes the result: the run resumes, with a warning"
    LENGTH = "makes the run longer or shorter: the run resumes, and says so"
    SWITCH = "changes the result, but whether it is 0 is fixed by the saved state"
    FIXED = "fixed by the saved state: refused"


@dataclasses.dataclass(frozen=True)
class Need:
    """What another option of the same class must be for an option to have an effect.

    Attributes:
        option: the other one's name.
        values: which of its values will do; without any, all but those that mean nothing (None, False, 0, "").
        off: it must mean nothing.
        or_option: a second one that will do in its place.
    """

    option: str
    values: tuple[Any, ...] = ()
    off: bool = False
    or_option: str | None = None

    def unmet(self, settings: Any) -> str | None:
        """Return in words what is wrong with a settings object, after 'does nothing'; None if nothing is."""
        value = getattr(settings, self.option)
        if self.off:
            return f"with --{self.option}" if value else None
        if value in self.values if self.values else value:
            return None
        if self.or_option:
            return None if getattr(settings, self.or_option) else f"without --{self.option} or --{self.or_option}"
        return " ".join(["without", f"--{self.option}", *([", ".join(map(str, self.values))] if self.values else [])])


@dataclasses.dataclass(frozen=True)
class Option:
    """How a field appears on a command line.

    Attributes:
        help: one sentence; the default is added to it.
        nature: see `Nature`; None for options of commands that resume nothing.
        parse: from one word to a value; raises `argparse.ArgumentTypeError`.
        convert: from all words of an option that takes several to a value; raises `InputError`.
        choices: the words that are taken.
        aliases: further names, such as the published ones.
        nargs, metavar, const: as in argparse.
        repeated: whether it is given once for each value of a list.
        first: whether the short help of a command with many options shows it.
        needs: without which it does nothing, so that giving it is an error (`check_needs`).
    """

    help: str
    nature: Nature | None = None
    parse: Callable[[str], Any] | None = None
    convert: Callable[[list[str]], Any] | None = None
    choices: Sequence[Any] | None = None
    aliases: tuple[str, ...] = ()
    nargs: int | str | None = None
    metavar: str | tuple[str, ...] | None = None
    const: Any = None
    repeated: bool = False
    first: bool = False
    needs: Need | None = None


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to each option's help, where there is one to tell and the help does not say it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default, said = action.default, action.help or ""
        if default is None or default is False or default == "" or "(default" in said:
            return action.help
        if type(default) in (tuple, list):
            words = [value if isinstance(value, str) else f"{value:g}" for value in default]
            return f"{said} (default: {' '.join(words)})"
        return super()._get_help_string(action)


def option(default: Any = dataclasses.MISSING, **description: Any) -> Any:
    """Return a dataclass field that is an option; without a default it has to be given. Arguments as in `Option`."""
    return dataclasses.field(default=default, metadata={"option": Option(**description)})


def redeclare(group: type, name: str, default: Any = dataclasses.MISSING, **changes: Any) -> Any:
    """Return the option `name` of another settings class, with another default or other `changes` to its `Option`."""
    field = next(field for field in dataclasses.fields(group) if field.name == name)
    described = dataclasses.replace(field.metadata["option"], **changes)
    return option(field.default if default is dataclasses.MISSING else default, **vars(described))


def options_of(group: type) -> Iterator[tuple[dataclasses.Field, Option]]:
    """Yield the fields of a settings class that are options."""
    for field in dataclasses.fields(group):
        if described := field.metadata.get("option"):
            yield field, described


def natures(group: type) -> dict[str, Nature]:
    """Return the nature of every option of a settings class, by name."""
    return {field.name: described.nature for field, described in options_of(group) if described.nature}


def add_options(parser: argparse.ArgumentParser, group: type, defaults: Mapping[str, Any] | None = None) -> None:
    """Add all options of a settings class to a parser, under the titles of the classes that declare them.

    `defaults`: other defaults than the class's, by name.
    """
    owned = {field.name: _owner(group, field.name) for field, _ in options_of(group)}
    sections: dict[type, Any] = {}
    by_title: dict[str, Any] = {}
    for owner in (base for base in group.__mro__ if base in owned.values()):
        title, _, description = (owner.__doc__ or owner.__name__).strip().rstrip(".").partition(": ")
        if title not in by_title:
            by_title[title] = parser.add_argument_group(title, description or None)
        sections[owner] = by_title[title]
    for field, described in options_of(group):
        default = (defaults or {}).get(field.name, field.default)
        _add_option(sections[owned[field.name]], field, described, default)


def _owner(group: type, name: str) -> type:
    """Return the class that first declared a field, the most general one."""
    return next(base for base in reversed(group.__mro__) if name in inspect.get_annotations(base))


def _add_option(section: Any, field: dataclasses.Field, described: Option, default: Any) -> None:
    names = [f"--{field.name}", *described.aliases]
    more: dict[str, Any] = {"dest": field.name, "help": described.help}
    if default is dataclasses.MISSING:
        more["required"] = True
    else:
        more["default"] = default
    if default is not field.default:  # what the help says of the class's own default is not true here
        more["help"] = re.sub(r" \(default: [^)]*\)", "", described.help)
    more |= {"action": "store_true"} if field.type in (bool, "bool") else _values(described)
    action = section.add_argument(*names, **more)
    if described.first:
        show_first(action)


def _values(described: Option) -> dict[str, Any]:
    """Return what argparse must know of an option that takes values."""
    keys = ("choices", "nargs", "metavar", "const")
    more = {key: value for key in keys if (value := getattr(described, key)) is not None}
    if described.repeated:
        more["action"] = "append"
    if described.parse:
        more["type"] = described.parse
    if described.convert:
        more["action"] = _converted(described.convert)
    return more


def _converted(convert: Callable[[list[str]], Any]) -> type[argparse.Action]:
    class Converted(argparse.Action):
        def __call__(self, parser, namespace, values, option_string=None):
            try:
                setattr(namespace, self.dest, convert(list(values)))
            except InputError as error:
                raise argparse.ArgumentError(self, f"{' '.join(values)}: {error}") from error

    return Converted


def from_namespace[T](group: type[T], namespace: argparse.Namespace) -> T:
    """Return a settings class filled with parsed options.

    Raises:
        InputError: values that do not go together, as the class's `__post_init__` says.
    """
    return group(**{field.name: getattr(namespace, field.name) for field, _ in options_of(group)})


def given_options(parser: argparse.ArgumentParser, words: Sequence[str], names: Iterable[str]) -> set[str]:
    """Return which of the options `names` a command line contains, even with their default values."""
    unsaid = object()
    namespace = argparse.Namespace(**dict.fromkeys(names, unsaid))
    return {name for name, value in vars(parser.parse_args(words, namespace)).items() if value is not unsaid}


def check_needs(settings: Any, given: Collection[str], from_file: Collection[str] = ()) -> None:
    """Refuse options that were given but have no effect, according to their `needs`.

    What a file says is left alone where it means nothing, or the command line gives another value to what it needs.

    Raises:
        InputError: it names the option, and the one that it needs or that is in its way.
    """
    for field, described in options_of(type(settings)):
        if not (needs := described.needs):
            continue
        in_file = field.name in from_file and bool(getattr(settings, field.name))
        said = field.name in given or (in_file and not {needs.option, needs.or_option} & set(given))
        if said and (why := needs.unmet(settings)):
            raise InputError(f"--{field.name} does nothing {why}")


def plain_values(settings: Any) -> dict[str, Any]:
    """Return a settings object's options by name, as JSON holds them; what it cannot hold is text."""
    plain = (str, int, float, list, tuple, dict, type(None))
    values = {field.name: getattr(settings, field.name) for field, _ in options_of(type(settings))}
    return {name: value if isinstance(value, plain) else str(value) for name, value in values.items()}


def read_value(field: dataclasses.Field, value: Any) -> Any:
    """Return an option's value from a file's: as `plain_values` writes it, or as on a command line.

    Raises:
        InputError: the option does not take it; the message says what was found and what it takes.
    """
    described: Option = field.metadata["option"]
    if field.type in (bool, "bool"):
        if isinstance(value, bool):
            return value
        raise InputError(f"{field.name}: {value!r}: expected true or false")
    if value == field.default and not isinstance(value, bool):  # which may be one that cannot be said, as "unset"
        return field.default
    if isinstance(value, bool) and described.const is not None:  # as the option alone, and without it
        return described.const if value else field.default
    words = _words(value, described.convert is not None)
    if not words or isinstance(value, bool) or (len(words) > 1 and not described.convert):
        raise InputError(f"{field.name}: {value!r}: expected {'values' if described.convert else 'one value'}")
    try:
        read: Any = described.convert(words) if described.convert else (described.parse or str)(words[0])
    except (InputError, argparse.ArgumentTypeError) as error:
        raise InputError(f"{field.name}: {error}") from error
    if described.choices and read not in described.choices:
        choices = [str(choice) for choice in described.choices]
        near = did_you_mean(str(read), choices)
        raise InputError(f"{field.name}: {read!r}: expected one of {', '.join(choices)}{near}")
    return read


def _words(value: Any, several: bool) -> list[str]:
    """Return the words of a command line for a value from a file; a text is `several` words, or one."""
    if isinstance(value, dict):
        rules = {name: ":".join(map(str, rule)) if isinstance(rule, list) else rule for name, rule in value.items()}
        return [f"{name}={rule}" for name, rule in rules.items()]
    if isinstance(value, list):
        return [str(word) for word in value]
    if value is None or value == "":
        return []
    return str(value).split() if several else [str(value)]


def check_types(settings: Any) -> list[str]:
    """Return which fields hold values of another plain type than they are declared with: for settings from a file."""
    hints = get_type_hints(type(settings))
    return [
        f"{field.name} {value!r}"
        for field in dataclasses.fields(settings)
        if hints[field.name] in (bool, int, float, str)
        and type(value := getattr(settings, field.name)) is not hints[field.name]
        and not (hints[field.name] is float and type(value) is int)
    ]
