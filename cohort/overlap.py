"""Three stages that overlap: while one item is on the device, others are prepared and finished."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any


def run_overlapped[Item, Work, Output, Result](
    items: Iterable[Item],
    prepare: Callable[[Item], Work | Result],
    translate: Callable[[Work], Output | Result],
    finish: Callable[[Work, Output], Result],
    is_result: Callable[[object], bool],
    workers: int = 1,
) -> Iterator[Result]:
    """Yield the outcome of each item as soon as it is known.

    `translate` runs here, for one item at a time; `prepare` and `finish` run in `workers` threads each. No more than
    2 * `workers` + 1 items are in memory, however many there are: `items` is asked for the next one when there is room.

    Args:
        items: what to do.
        prepare, translate, finish: the stages; each of the first two may return a result instead, which ends the item.
        is_result: tells a result from what continues to the next stage.
        workers: items prepared ahead of the device, and items that are finished behind it, at a time.
    """
    items = iter(items)
    ahead: set[Future] = set()
    behind: set[Future] = set()
    with ThreadPoolExecutor(workers, "prepare") as preparing, ThreadPoolExecutor(workers, "finish") as finishing:
        try:
            while True:
                ahead |= {preparing.submit(prepare, item) for item in _take(items, workers - len(ahead))}
                if not ahead:
                    break
                wait(ahead | behind, return_when=FIRST_COMPLETED)
                yield from _completed(behind)
                ready = next((future for future in ahead if future.done()), None)
                if ready is None:
                    continue
                ahead.remove(ready)
                work = ready.result()
                del ready  # it would keep the item in memory
                if is_result(work):
                    yield work
                    continue
                # The next one is prepared meanwhile.
                ahead |= {preparing.submit(prepare, item) for item in _take(items, workers - len(ahead))}
                output: Any = translate(work)  # `is_result` tells which of the two it is
                if is_result(output):
                    yield output
                else:
                    while len(behind) >= workers:
                        wait(behind, return_when=FIRST_COMPLETED)
                        yield from _completed(behind)
                    behind.add(finishing.submit(finish, work, output))
                del work, output
            while behind:
                wait(behind, return_when=FIRST_COMPLETED)
                yield from _completed(behind)
        except BaseException:
            for future in ahead:
                future.cancel()
            raise


def _take[Item](items: Iterator[Item], count: int) -> Iterator[Item]:
    for _ in range(count):
        try:
            yield next(items)
        except StopIteration:
            return


def _completed(futures: set[Future]) -> Iterator:
    """Yield the results of the futures that are done, and take those out."""
    for future in [future for future in futures if future.done()]:
        futures.remove(future)
        yield future.result()
