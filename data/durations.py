"""Durations in words, and how much longer a run will take."""

import time
from dataclasses import dataclass, field


def describe_seconds(seconds: float) -> str:
    """Return a duration as people say it: '40 s', '12 min', '2 h 10 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@dataclass
class TimeLeft:
    """An estimate of the time to the end of a run, from the pace since it began or resumed.

    Attributes:
        steps: of the whole run; None if the clock ends it.
        done: steps that were done when it began.
        seconds: until the clock ends it, when it began; None if a number of steps does.
    """

    steps: int | None
    done: int
    seconds: float | None = None
    _since: float = field(default_factory=lambda: time.monotonic())

    def after(self, done: int) -> float | None:
        """Return the seconds that are left after `done` steps of the run; None while there is no pace yet."""
        spent = time.monotonic() - self._since
        if self.seconds is not None:
            return max(0.0, self.seconds - spent)
        if self.steps is None or done <= self.done:
            return None
        return spent / (done - self.done) * max(0, self.steps - done)
