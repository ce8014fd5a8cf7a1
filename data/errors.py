"""The one error that a user's mistake raises, and how a command reports it."""

import logging
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Bad input from outside: says what, where, what was found, what was expected and the way out."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and exit: 0 or its return value; 2 and one line for an `InputError` or `OSError`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        code = main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or 0)
