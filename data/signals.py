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


class FirstSignal:
    """While it is entered, the first of `SIGNALS` is kept in `received`, for work to end in order."""

    def __init__(self) -> None:
        """Listen to nothing yet."""
        self.received = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Begin to listen."""
        # What `nohup` has the process ignore stays ignored. Not so Ctrl-C, which shells have the background jobs of a
        # script ignore: whoever sends one that signal means it.
        kept = [one for one in SIGNALS if one != signal.SIGINT and signal.getsignal(one) == signal.SIG_IGN]
        self._before = {one: signal.signal(one, self._note) for one in SIGNALS if one not in kept}
        return self

    def __exit__(self, *error: object) -> None:
        """Let signals act as before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._since = number, time.monotonic()
            self.on_first(number)
        else:
            self.on_further(number, time.monotonic() - self._since)

    def on_first(self, number: int) -> None:
        """Say what the first signal does."""
        raise NotImplementedError

    def on_further(self, number: int, seconds: float) -> None:
        """Act on another signal, so long after the first."""
        raise NotImplementedError


class Stop(FirstSignal):
    """The first signal lets work end in order; the next ends the process at once.

    Ended at once means without waiting for threads, which no exception does. A process of torchrun that waits for
    another one hears nothing meanwhile, and torchrun ends it 30 seconds after it passed a signal on.
    """

    def __init__(self, what_ends: str) -> None:
        """Listen to nothing yet; `what_ends` says what the first signal waits for."""
        super().__init__()
        self._what_ends = what_ends

    def __enter__(self) -> Self:
        """Begin to listen, which only the main thread may."""
        if threading.current_thread() is not threading.main_thread():
            return self
        return super().__enter__()

    def on_first(self, number: int) -> None:
        """Say what is waited for."""
        again = "press Ctrl-C again" if number == signal.SIGINT else "send it again, or press Ctrl-C,"
        _say(f"{signal_name(number)}: stopping after {self._what_ends}; {again} to stop at once")

    def on_further(self, number: int, seconds: float) -> None:
        """End at once."""
        if seconds > _SAME_REQUEST_S:
            _say(f"{signal_name(number)}: stopped at once")
            os._exit(exit_code(number))


def _leave(number: int, frame: FrameType | None) -> None:
    _say(f"{signal_name(number)}: stopping")
    sys.exit(exit_code(number))


def signal_name(number: int) -> str:
    """Return what messages call a signal."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _say(text: str) -> None:
    with suppress(OSError):  # not by `print`, which the signal may have come in the middle of
        os.write(2, f"{text}\n".encode())


def exit_code(number: int) -> int:
    """Return the exit code of a process that a signal ended, as shells have it."""
    return 128 + number
