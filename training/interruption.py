"""Signals that ask a training to end: it saves its state first."""

import logging
import signal

from data.signals import FirstSignal, signal_name

log = logging.getLogger(__name__)

# A launcher passes on what the terminal has sent already; a person takes longer to ask again.
_SAME_REQUEST_S = 1.0


class Interruption(FirstSignal):
    """The first signal lets a training save its state; a second Ctrl-C raises `KeyboardInterrupt`."""

    def on_first(self, number: int) -> None:
        """Say that the state is saved first."""
        name = signal_name(number)
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        log.info("%s: saving the state after this step, then stopping%s", name, again)

    def on_further(self, number: int, seconds: float) -> None:
        """Stop at once."""
        if number == signal.SIGINT and seconds > _SAME_REQUEST_S:
            raise KeyboardInterrupt
