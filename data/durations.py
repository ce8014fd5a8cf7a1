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

    The first step counts for nothing: it also compiles, starts workers and fills caches.

    Attributes:
        steps: of the whole run; None if the clock ends it, or if later steps will take another time.
        done: steps that were done when it began, and the first one after that.
        taken: steps after these.
        seconds: until the clock ends it, when it began; None if a number of steps does.
    """

    steps: int | None
    done: int
    seconds: float | None = None
    _since: float = field(default_factory=lambda: time.monotonic())
    taken: int = 0
    _first_ended: float | None = None

    def step(self) -> None:
        """Take note of a step that is done."""
        if self._first_ended is None:
            self._first_ended = time.monotonic()
            self.done += 1
        else:
            self.taken += 1

    def pace(self, done: int) -> float | None:
        """Return the seconds a step, when `done` steps of the run are done; None while there is no pace yet."""
        if self._first_ended is None or done <= self.done:
            return None
        return (time.monotonic() - self._first_ended) / (done - self.done)

    def after(self, done: int) -> float | None:
        """Return the seconds that are left after `done` steps of the run; None while there is no pace yet."""
        if self.seconds is not None:
            return max(0.0, self.seconds - (time.monotonic() - self._since))
        pace = self.pace(done)
        return None if self.steps is None or pace is None else pace * max(0, self.steps - done)
