"""Signals that ask a training to end: it saves its state first."""

import logging
import signal
import time
from types import FrameType
from typing import Self

from data.signals import SIGNALS

log = logging.getLogger(__name__)

# A launcher passes on what the terminal has sent already; a person takes longer to ask again.
_SAME_REQUEST_S = 1.0


class Interruption:
    """While it is entered, the first of `SIGNALS` is kept in `received`; a second Ctrl-C raises `KeyboardInterrupt`."""

    def __init__(self) -> None:
        """Listen to nothing yet."""
        self.received = 0
        self._since = 0.0

    def __enter__(self) -> Self:
        """Begin to listen."""
        # What `nohup` has the process ignore stays ignored. Not so Ctrl-C, which shells have the background jobs of a
        # script ignore: whoever sends one that signal means it.
        kept = [number for number in SIGNALS if number != signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS if number not in kept}
        return self

    def __exit__(self, *error: object) -> None:
        """Let signals act as before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._since = number, time.monotonic()
            name = signal.Signals(number).name
            again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
            log.info("%s: saving the state after this step, then stopping%s", name, again)
        elif number == signal.SIGINT and time.monotonic() - self._since > _SAME_REQUEST_S:
            raise KeyboardInterrupt
