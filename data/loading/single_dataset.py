"""The slices of one volume, in order: what inference runs over."""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset


class Slices(Protocol):
    """Slices of a volume in [-1, 1], float32, in any order: an array, or made on demand."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W), or (N, C, H, W) of several contrasts."""

    def __len__(self) -> int:
        """Return N."""

    def __getitem__(self, index: int, /) -> np.ndarray:
        """Return one slice, (H, W) or (C, H, W)."""


class SingleDataset(Dataset):
    """Slices (N, H, W) in [-1, 1] as slabs (S, H, W): each slice with its neighbours, in the middle of them.

    Slices of several contrasts, (N, C, H, W), become (C S, H, W) in the order of `data.loading.channels`.
    """

    def __init__(self, slices: Slices, slab: int = 1, start: int = 0) -> None:
        """Wrap prepared slices; nothing is copied. `slab`: slices of a slab, odd; `start`: the first one in the middle.

        The ends of the volume repeat their last slice.
        """
        self.slices, self.slab, self.start = slices, slab, start

    def __len__(self) -> int:
        """Return the number of slabs."""
        return len(self.slices) - self.start

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return the slab around slice `start + index`, float32 (C S, H, W)."""
        around = np.arange(self.slab) - self.slab // 2 + self.start + index
        slab = np.stack([self.slices[k] for k in around.clip(0, len(self.slices) - 1).tolist()], axis=-3)
        return torch.from_numpy(slab.reshape(-1, *slab.shape[-2:]))


def _planes(centre: int, output: np.ndarray, slab: int, count: int) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yield the planes of a slab's output, with the slice that each is of and its weight; none beyond the ends."""
    middle = slab // 2
    for k, plane in enumerate(output):
        if 0 <= (index := centre + k - middle) < count:
            yield plane, index, middle + 1 - abs(k - middle)


def completed(centre: int, slab: int, count: int) -> range:
    """Return the slices of which nothing comes any more, once the slab around slice `centre` is there."""
    middle = slab // 2
    return range(max(0, centre - middle), count if centre == count - 1 else max(0, centre - middle + 1))


class SlabMean:
    """The weighted mean of all slabs that hold a slice: most for the one that it is in the middle of.

    The weights fall linearly from the middle: 1 2 3 2 1 for five slices. A single slice comes back as it is. What is
    taken is no longer in memory.
    """

    def __init__(self, count: int, slab: int) -> None:
        """Begin with nothing for `count` slices."""
        self.count, self.slab = count, slab
        self._total: dict[int, np.ndarray] = {}
        self._weight: dict[int, int] = {}

    def add(self, centre: int, output: np.ndarray) -> None:
        """Add the output (S, H, W) of the slab around slice `centre`; what lies beyond the ends is left out."""
        for plane, index, weight in _planes(centre, output, self.slab, self.count):
            if index not in self._total:
                self._total[index] = np.zeros(plane.shape, np.float32)
            self._total[index] += plane if weight == 1 else weight * plane
            self._weight[index] = self._weight.get(index, 0) + weight

    def take(self, index: int) -> np.ndarray:
        """Return the mean of a slice, float32 (H, W), and forget it."""
        total, weight = self._total.pop(index), self._weight.pop(index)
        return total if self.slab == 1 else total / np.float32(weight)


class SlabSpread:
    """How much the outputs for one slice differ: of all slabs that hold it, and of all mirrorings.

    Weights as in `SlabMean`. D. H. D. West's update of a weighted variance (Commun ACM 22 (1979) 532-535), which loses
    no digits.
    """

    def __init__(self, count: int, slab: int, to_physical: Callable[[np.ndarray], np.ndarray]) -> None:
        """Begin with nothing for `count` slices; `to_physical`: from outputs to HU."""
        self.count, self.slab, self.to_physical = count, slab, to_physical
        # For each slice: mean, weighted sum of squares of what lies beside it, weight.
        self._sums: dict[int, tuple[np.ndarray, np.ndarray, np.float32]] = {}

    def add(self, centre: int, output: np.ndarray) -> None:
        """Add one mirroring's output (S, H, W) of the slab around slice `centre`."""
        for plane, index, weight in _planes(centre, self.to_physical(output), self.slab, self.count):
            if index not in self._sums:
                self._sums[index] = (np.zeros_like(plane), np.zeros_like(plane), np.float32(0))
            mean, squares, before = self._sums[index]
            total = before + np.float32(weight)
            away = plane - mean
            mean += weight / total * away
            squares += weight * away * (plane - mean)
            self._sums[index] = (mean, squares, total)

    def take(self, index: int) -> np.ndarray:
        """Return the weighted variance of a slice in HU squared, float32 (H, W), and forget it."""
        _, squares, weight = self._sums.pop(index)
        return squares / weight
