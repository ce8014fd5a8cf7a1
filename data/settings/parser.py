"""The parser of every command: a mistake on the command line is answered in one line, and the next names the help."""

import argparse
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

from data.commands import python_command
from data.errors import InputError, did_you_mean


class CommandParser(argparse.ArgumentParser):
    """Says what is wrong with a command line, the nearest option where one is unknown, and how to get help."""

    def __init__(self, short_help: bool = False, **description: Any) -> None:
        """Take what argparse takes; options are not abbreviated.

        `short_help`: whether `--help` shows those options alone that `show_first` marked, and `--help_all` all of them.
        `usage`: as in argparse; without it the short help names the options that are required.
        """
        super().__init__(allow_abbrev=False, **description)
        # Words that begin like a negative number are values: argparse itself knows -1 for one, but not -1e3 or -1:2.
        self._negative_number_matcher = re.compile(r"-\.?\d")
        self._short_help = short_help
        self.instead: dict[str, str] = {}  # what to use in place of options that other commands have
        if short_help:
            show_first(self.add_argument("--help_all", action=_HelpAll, nargs=0, help="show all options and exit"))

    def format_help(self) -> str:
        """Return the help, with the first options alone where there are many."""
        return self._first_help() if self._short_help else self.format_all()

    def format_all(self) -> str:
        """Return the help with all options."""
        return super().format_help()

    def _first_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage or self._short_usage(), self._actions, [])
        formatter.add_text(self.description)
        for group in self._action_groups:
            if shown := [action for action in group._group_actions if _is_first(action)]:
                formatter.start_section(group.title)
                formatter.add_text(group.description)
                formatter.add_arguments(shown)
                formatter.end_section()
        left = sum(not _is_first(action) and action.help != argparse.SUPPRESS for action in self._actions)
        return f"{formatter.format_help()}\n{left} more options: {self._start()} --help_all, or docs/options.md\n"

    def _short_usage(self) -> str:
        needed = [f"{action.option_strings[0]} {action.metavar or action.dest.upper()}" for action in self._actions
                  if action.required]  # fmt: skip
        return " ".join(["%(prog)s", *needed, "[options]"])

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Return the options; a line that has others ends the command with exit code 2."""
        words = command_words(args)
        self._check_options(words)  # before argparse, which would miss the option that was meant
        found, left = self.parse_known_args(words, namespace)
        if left:
            # No name of a file is longer.
            glob = "; put a glob in quotes" if len(left[-1]) < 256 and Path(left[-1]).exists() else ""
            more = {1: "", 2: " and 1 more word"}.get(len(left), f" and {len(left) - 1} more words")
            self.error(f"{left[0]}{more}: expected an option before it{glob}")
        return found

    def error(self, message: str, of_all: bool = False) -> NoReturn:
        """End the command with exit code 2, one line, and one that says how to get help; `of_all`: of all options."""
        shown = "--help_all" if of_all and self._short_help else "--help"
        self.exit(2, f"error: {message}\nhelp: {self._start()} {shown}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse what is none of an option's choices, and name the nearest of them."""
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        near = did_you_mean(str(value), choices) or "."
        raise argparse.ArgumentError(action, f"invalid choice: {value!r}{near} Choose from {', '.join(choices)}")

    def _check_options(self, words: Sequence[str]) -> None:
        options = self._option_string_actions
        for word in words:
            if word == "--":
                return
            name = word.partition("=")[0]
            # As above: a number is a value, and so is a word with a space before any =.
            # A dash of another kind comes from a page or a word processor.
            if re.match(r"-\.?[^\d\s.]|[\u2010-\u2015]", word) and " " not in name and name not in options:
                known = f"; {self.instead[name]}." if name in self.instead else _nearest(name, options)
                near = known or ". If it is a value, write --option=VALUE."
                self.error(f"{name}: no such option{near}", of_all=True)

    def _start(self) -> str:
        return python_command(*self.prog.removeprefix("python ").split())


def _nearest(name: str, options: Collection[str]) -> str:
    """Return "; did you mean --OPTION?": for a number of something its whole name, else the most similar one."""
    number = f"--n_{name.lstrip('-')}"
    return f"; did you mean {number}?" if number in options else did_you_mean(name, options)


def command_words(arguments: Sequence[str] | None) -> list[str]:
    """Return the words of a command line: those given, or those that the process was started with."""
    return sys.argv[1:] if arguments is None else list(arguments)


def checked(parser: argparse.ArgumentParser, build, *args):
    """Return `build(*args)`; its `InputError` ends the parsing."""
    try:
        return build(*args)
    except InputError as error:
        raise parser.error(str(error)) from error


def show_first(action: argparse.Action) -> None:
    """Have an option shown by the short help."""
    action.first = True  # type: ignore[attr-defined]


def _is_first(action: argparse.Action) -> bool:
    return getattr(action, "first", False) or action.dest == "help"


class _HelpAll(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> NoReturn:
        assert isinstance(parser, CommandParser)
        print(parser.format_all(), end="")
        parser.exit()
