"""The slices of one volume, in order: what inference runs over."""

import numpy as np
import torch
from torch.utils.data import Dataset


class SingleDataset(Dataset):
    """Slices (N, H, W) in [-1, 1] as tensors (1, H, W)."""

    def __init__(self, slices: np.ndarray) -> None:
        """Wrap prepared slices; nothing is copied."""
        self.slices = slices

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self.slices)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return slice `index`, float32 (1, H, W)."""
        return torch.from_numpy(self.slices[index])[None]
