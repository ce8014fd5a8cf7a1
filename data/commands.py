"""Commands as messages show them: they can be copied into the shell that started this one."""

import os
import shlex
import sys
from pathlib import Path

_OWN = Path(__file__).resolve().parents[1] / ".venv"


def program(name: str) -> str:
    """Return how a shell in the checkout starts a program, such as python, of the environment that runs this process.

    That is by its name, but for the checkout's own environment where it is not active: `.venv/bin/python`.
    """
    runs = Path(sys.prefix).resolve() == _OWN.resolve()
    active = Path(os.environ.get("VIRTUAL_ENV", "")).resolve() == _OWN.resolve()
    return f"{_OWN.name}/bin/{name}" if runs and not active else name


def python_command(*words: object) -> str:
    """Return the command that starts Python with some words, quoted for a shell."""
    return shlex.join([program("python"), *map(str, words)])


def prepare_command(*options: object) -> str:
    """Return the command that prepares a data set."""
    return python_command("-m", "scripts.prepare_dataset", *options)
