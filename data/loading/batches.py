"""Batches of an epoch: which samples, by which process, loaded by whom."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import batched, islice
from typing import Any, Protocol

import torch
from torch.utils.data import Sampler

from data.errors import InputError
from data.loading.threads import one_thread


class Batches(Protocol):
    """What an engine trains on.

    Attributes:
        samples: of an epoch; together: those that all processes take in one step; steps: of a whole epoch.
    """

    samples: int
    together: int
    steps: int

    def epoch(self, epoch: int, done: int = 0) -> Iterator[dict[str, Any]]:
        """Yield this process's batches of an epoch (from 1) that remain after `done` samples of all processes."""


class EpochSampler[Draw](Sampler[Draw], ABC):
    """The order of an epoch, which depends on the epoch alone.

    Several processes draw from one order: of each batch that they take together each has its part. The last batch of an
    epoch, where it does not come out even, is filled from the epoch's first samples.
    """

    def __init__(self, samples: int, batch_size: int = 1, rank: int = 0, processes: int = 1) -> None:
        """Draw what process `rank` of `processes` takes of `samples`."""
        self.samples, self.batch_size, self.rank, self.processes = samples, batch_size, rank, processes
        self.epoch, self.start = 1, 0

    @abstractmethod
    def order(self, epoch: int) -> Callable[[int], Draw]:
        """Return what is drawn at a position of an epoch."""

    @property
    def together(self) -> int:
        """The samples that all processes take in one step."""
        return self.batch_size * self.processes

    @property
    def steps(self) -> int:
        """The steps of a whole epoch."""
        return -(-self.samples // self.together)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch (from 1) and the sample to begin at, so that a run can resume in mid-epoch."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Return the samples that this process takes in what is left of this epoch."""
        whole, rest = divmod(self.samples - self.start, self.together)
        return whole * self.batch_size + -(-rest // self.processes)

    def __iter__(self) -> Iterator[Draw]:
        """Yield the draws of this process, from `start` on."""
        draw = self.order(self.epoch)
        for first in range(self.start, self.samples, self.together):
            # As many for each, so that each counts alike in the mean of their gradients.
            count = min(self.batch_size, -(-(self.samples - first) // self.processes))
            for k in range(count):
                yield draw((first + self.rank * count + k) % self.samples)


class LoadedBatches:
    """Batches of a data set's samples, which threads load ahead."""

    def __init__(self, dataset: Any, sampler: EpochSampler, threads: int, pin_memory: bool = False) -> None:
        """Load from `dataset` what `sampler` draws. `threads` and `pin_memory`: see `load_batches`."""
        self.dataset, self.sampler, self.threads, self.pin_memory = dataset, sampler, threads, pin_memory
        self.samples, self.together, self.steps = sampler.samples, sampler.together, sampler.steps

    def epoch(self, epoch: int, done: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the batches of an epoch; see `Batches`."""
        self.sampler.set_epoch(epoch, done)
        return load_batches(self.dataset, self.sampler, self.sampler.batch_size, self.threads, self.pin_memory)


class DrawnBatches:
    """Batches that a model draws by itself on its device: only their number is known here.

    A step counts as one sample, so that a run can resume in mid-epoch with another batch size or number of processes.
    """

    together = 1

    def __init__(self, steps: int) -> None:
        """Make an epoch of so many steps."""
        self.steps = self.samples = steps

    def epoch(self, epoch: int, done: int = 0) -> Iterator[dict[str, Any]]:
        """Yield an empty batch a step; see `Batches`."""
        return iter([{} for _ in range(self.steps - done)])


def load_batches(
    dataset: Any, draws: Iterable[Any], batch_size: int, threads: int, pin_memory: bool = False
) -> Iterator[dict]:
    """Yield the batches of an epoch, in order, as `collate` makes them; `threads` load those to come, 0: none does.

    Threads, not processes: reading and transforming release Python's lock, and three arrays a sample need not go from
    one process to another, which takes longer than reading them.

    Args:
        dataset: samples; draws: which, in which order.
        batch_size: samples of a batch; the last may have fewer.
        threads: how many load; batches waiting are twice as many at most.
        pin_memory: whether tensors lie where a GPU can fetch them while the host continues.

    Raises:
        InputError: a sample's, when its batch is due.
    """

    def load(some: Sequence[Any]) -> dict:
        # Small operations: more threads for each would stand in the way of the training's. And as many whoever loads,
        # so that `threads` changes no sum.
        with one_thread():
            batch = collate([dataset[draw] for draw in some])
        if not pin_memory:
            return batch
        return {key: value.pin_memory() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}

    chunks = batched(draws, batch_size)
    if not threads:
        yield from map(load, chunks)
        return
    pool = ThreadPoolExecutor(threads, "load")
    try:
        waiting = deque(pool.submit(load, chunk) for chunk in islice(chunks, 2 * threads))
        while waiting:
            batch = waiting.popleft().result()
            waiting.extend(pool.submit(load, chunk) for chunk in islice(chunks, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def collate(samples: list[dict]) -> dict:
    """Stack samples to tensors (N, C, H, W) and lists of names.

    Raises:
        InputError: slices of different sizes, which only image folders can hold.
    """
    batch: dict[str, Any] = {}
    for key in samples[0]:
        values = [sample[key] for sample in samples]
        if not isinstance(values[0], torch.Tensor):
            batch[key] = values
            continue
        if len({value.shape for value in values}) > 1:
            names = ", ".join(sample[f"origin_{key[-1]}"] for sample in samples)
            raise InputError(f"slices of different sizes in one batch ({names}); use --preprocess resize_and_crop")
        batch[key] = torch.stack(values)
    return batch
