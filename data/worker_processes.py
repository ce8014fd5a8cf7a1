"""Processes that work for a command, and end with it."""

import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from types import FrameType, TracebackType

from data.signals import exit_code

# How long a process has to take away what it left half-written.
_PATIENCE_S = 10.0


class WorkerProcesses(ProcessPoolExecutor):
    """A pool of spawned processes; where an error or a signal leaves its block, they end at once and say nothing.

    Ctrl-C in a terminal goes to them too: they are deaf to it, and the command that they work for ends them.
    """

    def __init__(self, count: int, begin: Callable[[], None] | None = None) -> None:
        """Use `count` processes, each of which calls `begin` first."""
        super().__init__(count, get_context("spawn"), begin)

    def submit[**P, T](self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a process do `work`."""
        # A process that is spawned here inherits what is blocked, and so is deaf before its first line of Python.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(_do, work, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Wait for the work, or end it where the block ended early."""
        if kind is None:
            return super().__exit__(kind, error, trace)
        processes = list((self._processes or {}).values())  # from Python 3.14 on, `terminate_workers` does this
        self.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + _PATIENCE_S
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
        return None


def _do[**P, T](work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Do `work` in a process of the pool, which SIGTERM ends through the `finally` of whatever is at work."""
    signal.signal(signal.SIGTERM, _leave)
    try:
        return work(*args, **kwargs)
    except SystemExit:
        os._exit(exit_code(signal.SIGTERM))  # or the pool would have the process do what comes next
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(exit_code(number))
