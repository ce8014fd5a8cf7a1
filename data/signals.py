"""Signals that ask a command to end."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Self

# Ctrl-C, `kill` and the end of a Slurm job, Slurm's warning before it (`--signal=USR1@120`), a terminal that closes.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))

# Launchers pass on what the terminal has sent already; a person takes longer to ask again.
_SAME_REQUEST_S = 0.2


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """While the block lasts, a signal ends it as an exception: it is said, and nothing half-written stays.

    Ctrl-C raises `KeyboardInterrupt`, as ever; the others exit with 128 + their number. What `nohup` has the process
    ignore stays ignored. Processes of torchrun end as ever, too: one that waits for another would not hear a handler.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        yield
        return
    numbers = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


class Stop:
    """While it is entered, the first signal is kept in `received`, for work to end in order; the next ends at once.

    Ended at once means without waiting for threads, which no exception does. Processes of torchrun are left alone.
    """

    def __init__(self, what_ends: str) -> None:
        """Listen to nothing yet; `what_ends` says what the first signal waits for."""
        self.received = 0
        self._what_ends, self._since = what_ends, 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Begin to listen."""
        # Only the main thread may listen.
        if "TORCHELASTIC_RUN_ID" not in os.environ and threading.current_thread() is threading.main_thread():
            # What `nohup` has the process ignore stays ignored. Not so Ctrl-C, which shells have the background jobs of
            # a script ignore: whoever sends one that signal means it.
            kept = [one for one in SIGNALS if one != signal.SIGINT and signal.getsignal(one) == signal.SIG_IGN]
            self._before = {one: signal.signal(one, self._note) for one in SIGNALS if one not in kept}
        return self

    def __exit__(self, *error: object) -> None:
        """Let signals act as before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self.received:
            self.received, self._since = number, time.monotonic()
            _say(f"{name}: stopping after {self._what_ends}; send it again, or press Ctrl-C, to stop at once")
        elif time.monotonic() - self._since > _SAME_REQUEST_S:
            _say(f"{name}: stopped at once")
            os._exit(exit_code(number))


def _leave(number: int, frame: FrameType | None) -> None:
    _say(f"{signal.Signals(number).name}: stopping")
    sys.exit(exit_code(number))


def _say(text: str) -> None:
    with suppress(OSError):  # not by `print`, which the signal may have come in the middle of
        os.write(2, f"{text}\n".encode())


def exit_code(number: int) -> int:
    """Return the exit code of a process that a signal ended, as shells have it."""
    return 128 + number
