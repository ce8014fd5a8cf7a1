"""Processes that work for a command, and end with it."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from types import FrameType, TracebackType

from data.signals import SIGNALS, exit_code

# How long a process has to take away what it left half-written.
_PATIENCE_S = 10.0


class WorkerProcesses(ProcessPoolExecutor):
    """A pool of spawned processes; where an error or a signal leaves its block, they end at once and say nothing.

    Ctrl-C, a terminal that closes and Slurm's warning go to them too: they are deaf to these, and the command that they
    work for ends them. They end as well where it is killed.
    """

    def __init__(self, count: int, begin: Callable[[], None] | None = None) -> None:
        """Use `count` processes, each of which calls `begin` first."""
        with _inherited_deafness():  # multiprocessing's own process, which tracks resources, may be spawned here
            super().__init__(count, get_context("spawn"), partial(_begin, begin))

    def submit[**P, T](self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a process do `work`."""
        with _inherited_deafness():
            return super().submit(_do, work, *args, **kwargs)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Wait for the work, or end it where the block ended early."""
        if kind is None:
            return super().__exit__(kind, error, trace)
        with _ignored_signals():  # a second Ctrl-C would leave processes behind
            processes = list((self._processes or {}).values())  # from Python 3.14 on, `terminate_workers` does this
            self.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            deadline = time.monotonic() + _PATIENCE_S
            for process in processes:
                process.join(max(0.0, deadline - time.monotonic()))
                process.kill()
        return None


@contextmanager
def _inherited_deafness() -> Iterator[None]:
    """Have processes that are spawned in the block inherit what is blocked, and so be deaf before any Python.

    SIGTERM, by which the command ends them, they hear.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set(SIGNALS) - {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _ignored_signals() -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _begin(begin: Callable[[], None] | None) -> None:
    """Begin a process of the pool, and end it with the command, also where that is killed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if begin:
        begin()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "the command"
    parent.join()
    os._exit(1)


def _do[**P, T](work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Do `work` in a process of the pool, which SIGTERM ends through the `finally` of whatever is at work."""
    signal.signal(signal.SIGTERM, _exit)
    try:
        return work(*args, **kwargs)
    except SystemExit:
        os._exit(exit_code(signal.SIGTERM))  # or the pool would have the process do what comes next
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # the pool sends another one when it finds a process gone: `finally` goes on
    sys.exit(exit_code(number))
