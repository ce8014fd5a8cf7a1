"""The error for a user's mistake, how a command reports it, and how running out of memory is recognised."""

import difflib
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterable, Sequence

from data.signals import ended_by_signals

log = logging.getLogger(__name__)

# What torch and the libraries below it say, in lower case, when it is no MemoryError that they raise.
_OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "status_alloc_failed",
    "bad_alloc",
    "can't allocate memory",
    "cannot allocate memory",
)


class InputError(ValueError):
    """Bad input: the message says what, where, what was found, what was expected and the way out."""


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return "; did you mean NAME?" with the name most like a word; "" where none is. Case and dashes do not count.

    A name that begins with the word comes first. One that the word extends (`mine` by `mine_small`) is another's.
    """
    bare = {name.lower().lstrip("-"): name for name in names}
    meant = word.lower().lstrip("-")
    longer = sorted((name for name in bare if len(meant) > 2 and name.startswith(meant)), key=len)
    others = [name for name in bare if not meant.startswith(f"{name}_")]
    near = longer or difflib.get_close_matches(meant, others, n=1)
    return f"; did you mean {bare[near[0]]}?" if near else ""


def listed(names: Sequence[str], most: int) -> str:
    """Return the first `most` of some names in a line, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def counted(count: int, noun: str) -> str:
    """Return so many of something: `1 case`, `2 cases`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def one_by_one[T](cases: Collection[T], act: Callable[[T], None]) -> int:
    """Act on each case; one that fails is logged and costs no other. Return the exit code: 1 where some failed, else 0.

    Raises:
        InputError: of a case that is the only one.
    """
    failed = 0
    for case in cases:
        try:
            act(case)
        except InputError as error:
            if len(cases) == 1:
                raise
            log.error("failed: %s", error)
            failed += 1
    if failed:
        log.error("%d of %d cases done, %d failed", len(cases) - failed, len(cases), failed)
    return 1 if failed else 0


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and exit with 0 or its return value.

    An `InputError`, an `OSError` or running out of memory is reported in one line; the exit code is 2. A signal that
    ends the command is named in one line, and the exit code is 128 + its number.
    """
    _open_closed_streams()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with ended_by_signals():
            code = main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        said = str(error).strip().splitlines() or ["no memory is left"]
        print(f"error: out of memory: {said[0]}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or 0)


def _open_closed_streams() -> None:
    """Discard output whose stream is closed (`2>&-`).

    Otherwise the next file that is opened gets the number of the closed stream, and what libraries say goes into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # It gets the lowest number that is free, which is this one; processes that are started have it too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error means that a device, or the computer, is out of memory."""
    return isinstance(error, MemoryError) or any(phrase in str(error).lower() for phrase in _OUT_OF_MEMORY)
