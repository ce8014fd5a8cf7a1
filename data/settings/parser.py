"""The parser of every command: a mistake on the command line is answered in one line."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from data.errors import did_you_mean


class CommandParser(argparse.ArgumentParser):
    """Says what is wrong with a command line, the nearest option where one is unknown, and how to get help."""

    def __init__(self, **description: Any) -> None:
        """Take what argparse takes; options are not abbreviated."""
        super().__init__(allow_abbrev=False, **description)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Return the options; a line that has others ends the command with exit code 2."""
        words = sys.argv[1:] if args is None else list(args)
        self._check_options(words)  # before argparse, which would miss the option that was meant
        found, left = self.parse_known_args(words, namespace)
        if left:
            # No name of a file is longer.
            glob = "; put a glob in quotes" if len(left[-1]) < 256 and Path(left[-1]).exists() else ""
            more = {1: "", 2: " and 1 more word"}.get(len(left), f" and {len(left) - 1} more words")
            self.error(f"{left[0].strip()}{more}: expected an option before it{glob}. {self._help()}")
        return found

    def error(self, message: str) -> NoReturn:
        """End the command with exit code 2 and one line."""
        self.exit(2, f"error: {message}\n")

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
            # As argparse has it: a number is a value, and so is a word with a space before any =.
            # A dash of another kind comes from a page or a word processor.
            if re.match(r"-\.?[^\d\s.]|[\u2010-\u2015]", word) and " " not in name and name not in options:
                near = did_you_mean(name, options) or ". If it is a value, write --option=VALUE."
                self.error(f"{name}: no such option{near} {self._help()}")

    def _help(self) -> str:
        start = "" if self.prog.startswith("python ") else "python "
        return f"All options: {start}{self.prog} --help"
