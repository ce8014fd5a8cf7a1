"""Volumes, geometry, intensity, masks and the data sets that training reads.

Every command imports this package first. Without the packages that it needs, it says how to get them.
"""

import importlib.util
import sys
from pathlib import Path
from types import TracebackType


def check_environment() -> None:
    """Exit in words where this Python is too old, or lacks the packages of requirements.txt."""
    here = Path(__file__).resolve().parents[1]
    way = f"source {here / '.venv/bin/activate'}" if (here / ".venv").exists() else f"bash {here / 'scripts/setup.sh'}"
    if sys.version_info < (3, 12):  # noqa: UP036  # whoever has an older one runs this too
        version = ".".join(map(str, sys.version_info[:2]))
        sys.exit(f"error: this is Python {version}; expected 3.12 or newer; run first: {way}")
    if missing := [name for name in ("torch", "numpy", "SimpleITK") if importlib.util.find_spec(name) is None]:
        sys.exit(f"error: {sys.executable} has no {', '.join(missing)}; run first: {way}")


def say_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say what Ctrl-C did, also while packages are still loading, without a traceback; for `sys.excepthook`."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


check_environment()
if sys.excepthook is sys.__excepthook__:
    sys.excepthook = say_interrupted
