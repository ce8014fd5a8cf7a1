"""Parse option values: numbers and names; devices are in `devices.py`, which imports torch."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

# More than any count or size can be that a computer takes.
LARGEST_INT = 2**31 - 1
NAME_PATTERN = re.compile(r"[^/\\\0]+")


def positive_int(text: str) -> int:
    """Return an integer of 1 or more."""
    return _number(text, int, lambda value: 1 <= value <= LARGEST_INT, f"a whole number of 1 or more, to {LARGEST_INT}")


def nonnegative_int(text: str) -> int:
    """Return an integer of 0 or more."""
    return _number(text, int, lambda value: 0 <= value <= LARGEST_INT, f"a whole number of 0 or more, to {LARGEST_INT}")


def odd_int(text: str) -> int:
    """Return an odd integer of 1 or more."""
    return _number(text, int, lambda value: 1 <= value <= LARGEST_INT and value % 2 == 1, "an odd number of 1 or more")


def bin_count(text: str) -> int:
    """Return a number of bins of a histogram of gray values."""
    return _number(text, int, lambda value: 2 <= value <= 256, "a whole number from 2 to 256")


def port_number(text: str) -> int:
    """Return the number of a TCP port."""
    port = positive_int(text)
    if port > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a port number up to 65535")
    return port


def finite_float(text: str) -> float:
    """Return a finite number."""
    return _number(text, float, lambda value: -float("inf") < value < float("inf"), "a finite number")


def positive_float(text: str) -> float:
    """Return a finite number above 0."""
    return _number(text, float, lambda value: 0 < value < float("inf"), "a number above 0")


def nonnegative_float(text: str) -> float:
    """Return a finite number of 0 or more."""
    return _number(text, float, lambda value: 0 <= value < float("inf"), "a number of 0 or more")


def share(text: str) -> float:
    """Return a number from 0 to below 1."""
    return _number(text, float, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def positive_share(text: str) -> float:
    """Return a number above 0 and below 1."""
    return _number(text, float, lambda value: 0 < value < 1, "a number between 0 and 1")


def _number(text: str, kind: type, fits: Callable[[Any], bool], expected: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
    return value


def run_name(text: str) -> str:
    """Return a name that is one folder, not a path out of the folder of models."""
    if not NAME_PATTERN.fullmatch(text) or text in (".", ".."):
        last = Path(text).name
        meant = f", as in {last}" if NAME_PATTERN.fullmatch(last) and last != ".." else ""
        raise argparse.ArgumentTypeError(f"{text!r}: expected a name without slashes{meant}")
    return text


def epoch_name(text: str) -> str:
    """Return 'latest', 'best' or the number of an epoch, as file names have it."""
    return text if text in ("latest", "best") else str(positive_int(text))


def regular_expression(text: str) -> re.Pattern:
    """Return a regular expression that ignores case."""
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r}: not a regular expression: {error}") from error
