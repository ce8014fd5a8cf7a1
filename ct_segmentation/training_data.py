"""Training data of the shape extractor: CT slices with their masks."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ct_segmentation.augmentation import augment
from data.errors import InputError
from data.files import hash_files
from data.loading.augmentation import resized
from data.loading.batches import EpochSampler
from data.loading.slices import ImageFolderSlices, PreparedSlices, Slice, SliceSource
from data.prepared.arrays import read_case
from data.prepared.manifest import Case
from data.prepared.splits import split_by_patient
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
            "(see --ct_mask of scripts.prepare_dataset)"
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


@dataclass(frozen=True)
class ImageCase:
    """Images of one patient, or of a part of a folder without patients; named like a `Case`.

    `indices` are those of its images in the folder.
    """

    name: str
    patient: str
    source_sha256: str
    indices: tuple[int, ...]
    domain: str = "B"


class ResizedImages:
    """Images of a folder with their masks, each at one size: a `SliceSource`."""

    mask_labels = 1

    def __init__(self, images: ImageFolderSlices, indices: Sequence[int], size: int) -> None:
        """Take the images of some `indices`, at `size` x `size` pixels."""
        self.images, self.indices, self.size = images, indices, (size, size)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.indices)

    def read(self, index: int, with_mask: bool) -> Slice:
        """Return an image, its mask if `with_mask`."""
        item = self.images.read(self.indices[index], with_mask)
        mask = None if item.mask is None else resized(item.mask, self.size, labels=True)
        return Slice(resized(item.image, self.size), mask, item.origin)


def split_images(images: ImageFolderSlices, val_share: float, seed: int) -> tuple[list[ImageCase], list[ImageCase]]:
    """Return the images to train on and those to validate with.

    Patients are the sub-folders. Of a folder without several, the last images by name validate: at most one patient is
    then on both sides.

    Raises:
        InputError: one image alone.
    """
    folders: dict[str, list[int]] = {}
    for index, name in enumerate(images.names):
        folders.setdefault(name.rpartition("/")[0], []).append(index)
    if len(folders) > 1:
        cases = [
            ImageCase(
                name or "images beside them", name, hash_files([images.files[k] for k in indices]), tuple(indices)
            )
            for name, indices in folders.items()
        ]
        return split_by_patient(cases, val_share, seed)
    if len(images) < 2:
        raise InputError(f"{images.files[0].parent}: one image; expected 2 or more: some are needed for validation")
    first = len(images) - min(max(round(val_share * len(images)), 1), len(images) - 1)
    log.warning(
        "warning: %s: no sub-folders separate the patients; the last %d images by name are used for validation, and "
        "may show a patient that is trained on", images.files[0].parent, len(images) - first,
    )  # fmt: skip
    parts = {"first images": range(first), "last images": range(first, len(images))}
    train, validation = (
        ImageCase(name, name, hash_files([images.files[k] for k in part]), tuple(part)) for name, part in parts.items()
    )
    return [train], [validation]


class ShapeSlices(Dataset):
    """All slices of CTs, with or without body, augmented.

    A sample is a dict of `image`, float32 (1, H, W) in [-1, 1], `mask`, uint8 (1, H, W), and `origin_B`, the slice's
    name.
    """

    def __init__(self, source: SliceSource, seed: int) -> None:
        """Augment the slices of `source`."""
        self.source, self.seed = source, seed

    @classmethod
    def prepared(cls, root: Path, cases: Sequence[Case], ct_map: IntensityMap, seed: int) -> Self:
        """Join prepared cases below `root`."""
        # Slices without body, which image translation leaves out, teach what no body looks like.
        whole = [replace(case, body_slices=(0, case.slices)) for case in cases]
        return cls(PreparedSlices(root, whole, [(ct_map,)] * len(whole)), seed)

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
