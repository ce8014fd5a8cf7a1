"""Signals that ask a command to end."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# Ctrl-C, `kill` and the end of a Slurm job, Slurm's warning before it (`--signal=USR1@120`), a terminal that closes.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


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


def _leave(number: int, frame: FrameType | None) -> None:
    with suppress(OSError):  # not by `print`, which the signal may have come in the middle of
        os.write(2, f"{signal.Signals(number).name}: stopping\n".encode())
    sys.exit(exit_code(number))


def exit_code(number: int) -> int:
    """Return the exit code of a process that a signal ended, as shells have it."""
    return 128 + number
