"""What the shape extractor learns from: CT slices with their masks, split by patient."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ct_segmentation.augmentation import augment
from data.errors import InputError
from data.loading.slices import PreparedSlices
from data.loading.threads import one_thread
from data.prepared.manifest import Case
from data.values.intensity import IntensityMap

log = logging.getLogger(__name__)


def split_by_patient(cases: Sequence[Case], val_share: float, seed: int) -> tuple[list[Case], list[Case]]:
    """Return the cases to train on and those to validate with; no patient has cases in both.

    Patients are ranked by a hash of `seed` and their names, so that the split depends on nothing else; the first
    `val_share` of them, at least one, validate.

    Raises:
        InputError: fewer than two patients, or one source volume under the names of two patients.
    """
    patients = sorted({case.patient for case in cases}, key=lambda name: _rank(name, seed))
    if len(patients) < 2:
        raise InputError(
            f"{len(patients)} CT patients to train on ({', '.join(patients)}); expected 2 or more: some are kept to "
            "validate with (--patient_regex of python -m scripts.prepare_dataset says what a patient is)"
        )
    count = min(max(round(val_share * len(patients)), 1), len(patients) - 1)
    chosen = set(patients[:count])
    train = [case for case in cases if case.patient not in chosen]
    validation = [case for case in cases if case.patient in chosen]
    known = {case.source_sha256: case for case in train}
    for case in validation:
        if twin := known.get(case.source_sha256):
            raise InputError(
                f"{case.name} and {twin.name} are the same volume under the patients {case.patient} and "
                f"{twin.patient}; prepare the data set with one of them"
            )
    return train, validation


def _rank(patient: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest()


def read_case(root: Path, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return a prepared CT, int16 HU, and its labels, uint8, both (slices, size, size), as memory maps."""
    arrays = []
    for path in (root / case.image_file, root / case.mask_file):
        try:
            arrays.append(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: cannot be read ({error}); prepare the data set again") from error
    if arrays[0].shape != arrays[1].shape:
        raise InputError(f"{case.name}: image {arrays[0].shape} and mask {arrays[1].shape}; prepare the data set again")
    return arrays[0], arrays[1]


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


class SliceDraw(NamedTuple):
    """What one training sample is: its place in the run, and which slice it takes."""

    epoch: int
    position: int
    index: int


class ShapeSlices(Dataset):
    """All slices of prepared CTs, with or without body, augmented: image (1, H, W) in [-1, 1], mask uint8 (1, H, W)."""

    def __init__(self, root: Path, cases: Sequence[Case], ct_map: IntensityMap, seed: int) -> None:
        """Join the cases below `root`."""
        # Slices without body, which image translation leaves out, teach what no body looks like.
        whole = [replace(case, body_slices=(0, case.slices)) for case in cases]
        self.source, self.seed = PreparedSlices(root, whole, [(ct_map,)] * len(whole)), seed

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self.source)

    def __getitem__(self, draw: SliceDraw) -> tuple[Tensor, Tensor]:
        """Return one sample. Its randomness derives from (seed, epoch, position) alone."""
        rng = np.random.default_rng([self.seed, draw.epoch, draw.position])
        item = self.source.read(draw.index, with_mask=True)
        with one_thread():  # as in a loading process, so that no sum depends on whether there are any
            return augment(torch.from_numpy(item.image), torch.from_numpy(item.mask), rng)

    def epoch(self, epoch: int) -> list[SliceDraw]:
        """Return an epoch's order, every slice once, from (seed, epoch) alone."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self))
        return [SliceDraw(epoch, position, int(index)) for position, index in enumerate(order)]
