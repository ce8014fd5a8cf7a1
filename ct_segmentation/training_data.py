"""What the shape extractor learns from: CT slices with their masks."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ct_segmentation.augmentation import augment
from data.errors import InputError
from data.loading.batches import EpochSampler
from data.loading.slices import PreparedSlices, read_case
from data.prepared.manifest import Case
from data.values.intensity import IntensityMap

log = logging.getLogger(__name__)


def count_classes(root: Path, cases: Sequence[Case]) -> int:
    """Return the number of labels of the masks: 1 where they have one non-zero value, whichever it is.

    Raises:
        InputError: masks without any label, or several labels that are not 1, 2, ...
    """
    found = {case.name: set(np.unique(read_case(root, case)[1]).tolist()) - {0} for case in cases}
    labels = set().union(*found.values())
    if len(labels) == 1:
        return 1
    if not labels or labels != set(range(1, len(labels) + 1)):
        raise InputError(
            f"{root}: the CT masks have the labels {sorted(labels)}; expected one, or 1 for body, 2 for bone, ... "
            "(see --ct_mask of python -m scripts.prepare_dataset)"
        )
    partial = sorted(name for name, values in found.items() if values != labels)
    if partial:
        log.warning("warning: of the labels %s, some are not in %s", sorted(labels), ", ".join(partial))
    return len(labels)


@dataclass(frozen=True)
class SliceDraw:
    """What one training sample is: its place in the run, and which slice it takes."""

    epoch: int
    position: int
    index: int


class ShapeSlices(Dataset):
    """All slices of prepared CTs, with or without body, augmented.

    A sample is a dict of `image`, float32 (1, H, W) in [-1, 1], `mask`, uint8 (1, H, W), and `origin_B`, the slice's
    name.
    """

    def __init__(self, root: Path, cases: Sequence[Case], ct_map: IntensityMap, seed: int) -> None:
        """Join the cases below `root`."""
        # Slices without body, which image translation leaves out, teach what no body looks like.
        whole = [replace(case, body_slices=(0, case.slices)) for case in cases]
        self.source, self.seed = PreparedSlices(root, whole, [(ct_map,)] * len(whole)), seed

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self.source)

    def __getitem__(self, draw: SliceDraw) -> dict[str, Tensor | str]:
        """Return one sample. Its randomness derives from (seed, epoch, position) alone."""
        rng = np.random.default_rng([self.seed, draw.epoch, draw.position])
        item = self.source.read(draw.index, with_mask=True)
        image, mask = augment(torch.from_numpy(item.image), torch.from_numpy(item.mask), rng)
        return {"image": image, "mask": mask, "origin_B": item.origin}


class ShapeSampler(EpochSampler[SliceDraw]):
    """The order of an epoch: every slice once, from (seed, epoch) alone."""

    def __init__(self, samples: int, seed: int, batch_size: int = 1, rank: int = 0, processes: int = 1) -> None:
        """Draw what process `rank` of `processes` takes of `samples` slices."""
        super().__init__(samples, batch_size, rank, processes)
        self.seed = seed

    def order(self, epoch: int) -> Callable[[int], SliceDraw]:
        """Return what is drawn at a position of an epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.samples)
        return lambda position: SliceDraw(epoch, position, int(order[position]))
