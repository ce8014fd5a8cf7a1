"""The slices of one volume, in order: what inference runs over."""

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
        middle = self.slab // 2
        for k, plane in enumerate(output):
            index, weight = centre + k - middle, middle + 1 - abs(k - middle)
            if 0 <= index < len(self.total):
                self.total[index] += plane if weight == 1 else weight * plane
                self.weight[index] += weight

    def result(self) -> np.ndarray:
        """Return the mean, float32 (N, H, W)."""
        return self.total if self.slab == 1 else self.total / self.weight[:, None, None]
