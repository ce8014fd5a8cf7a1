"""How far a long work is: a bar in a terminal, lines in a log file."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from data.durations import describe_seconds

log = logging.getLogger(__name__)

# Between two lines of a log file.
_EVERY_S = 10.0


def shown_progress[T](items: Iterable[T], total: int, title: str, unit: str, leave: bool = True) -> Iterator[T]:
    """Yield items as they come, and show how many there are and have come.

    In a terminal that is a bar. In a log file a line says at once what begins, and further ones, at most one every ten
    seconds, how far it is and about how long it will take yet.

    Args:
        items: what is done.
        total: how many they are; of none nothing is said.
        title: what is done with them, e.g. "finding bodies".
        unit: what one of them is called.
        leave: whether the bar stays when all is done.
    """
    if not total:
        yield from items
    elif sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=title, unit=unit, leave=leave)
    else:
        yield from _in_lines(items, total, title, unit)


def _in_lines[T](items: Iterable[T], total: int, title: str, unit: str) -> Iterator[T]:
    units = unit if total == 1 else f"{unit}s"
    log.info("%s: %d %s", title, total, units)
    said = first = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item  # the work may be the caller's
        now = time.monotonic()
        if done == 1:
            first = now  # it also started workers and filled caches, and tells nothing of the others
        if done < total and now - said >= _EVERY_S:
            left = (now - first) / (done - 1) * (total - done) if done > 1 else 0
            text = f", about {describe_seconds(left)} left" if left else ""
            log.info("%s: %d of %d %s%s", title, done, total, units, text)
            said = now
