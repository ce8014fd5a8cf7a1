"""The slices of one volume, in order: what inference runs over."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import Dataset


class SingleDataset(Dataset):
    """Slices (N, H, W) in [-1, 1] as slabs (S, H, W): each slice with its neighbours, in the middle of them.

    Slices of several contrasts, (N, C, H, W), become (C S, H, W) in the order of `data.loading.channels`.
    """

    def __init__(self, slices: np.ndarray, slab: int = 1, start: int = 0) -> None:
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
        slab = np.moveaxis(self.slices[around.clip(0, len(self.slices) - 1)], 0, -3)
        return torch.from_numpy(slab.reshape(-1, *slab.shape[-2:]))


def _planes(centre: int, output: np.ndarray, slab: int, count: int) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yield the planes of a slab's output, with the slice that each is of and its weight; none beyond the ends."""
    middle = slab // 2
    for k, plane in enumerate(output):
        if 0 <= (index := centre + k - middle) < count:
            yield plane, index, middle + 1 - abs(k - middle)


class SlabMean:
    """The weighted mean of all slabs that hold a slice: most for the one that it is in the middle of.

    The weights fall linearly from the middle: 1 2 3 2 1 for five slices. A single slice comes back as it is.
    """

    def __init__(self, shape: tuple[int, int, int], slab: int) -> None:
        """Begin with nothing for a volume of `shape` (N, H, W)."""
        self.total, self.weight = np.zeros(shape, np.float32), np.zeros(shape[0], np.float32)
        self.slab = slab

    def add(self, centre: int, output: np.ndarray) -> None:
        """Add the output (S, H, W) of the slab around slice `centre`; what lies beyond the ends is left out."""
        for plane, index, weight in _planes(centre, output, self.slab, len(self.total)):
            self.total[index] += plane if weight == 1 else weight * plane
            self.weight[index] += weight

    def result(self) -> np.ndarray:
        """Return the mean, float32 (N, H, W)."""
        return self.total if self.slab == 1 else self.total / self.weight[:, None, None]


class SlabSpread:
    """How far apart lie the outputs that say what a slice is: of all slabs that hold it, and of all mirrorings.

    Weights as in `SlabMean`. D. H. D. West's update of a weighted variance (Commun ACM 22 (1979) 532-535), which loses
    no digits.
    """

    def __init__(self, shape: tuple[int, int, int], slab: int, to_physical: Callable[[np.ndarray], np.ndarray]) -> None:
        """Begin with nothing for a volume of `shape` (N, H, W); `to_physical`: from outputs to HU."""
        self.mean, self.squares = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.weight = np.zeros(shape[0], np.float32)
        self.slab, self.to_physical = slab, to_physical

    def add(self, centre: int, output: np.ndarray) -> None:
        """Add one mirroring's output (S, H, W) of the slab around slice `centre`."""
        for plane, index, weight in _planes(centre, self.to_physical(output), self.slab, len(self.mean)):
            self.weight[index] += weight
            away = plane - self.mean[index]
            self.mean[index] += weight / self.weight[index] * away
            self.squares[index] += weight * away * (plane - self.mean[index])

    def variance(self) -> np.ndarray:
        """Return the weighted variance in HU squared, float32 (N, H, W)."""
        return self.squares / np.maximum(self.weight, 1)[:, None, None]
