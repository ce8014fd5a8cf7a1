"""MR and CT slices of different patients: the unpaired training set, its order and its batches."""

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import batched, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from data.errors import InputError
from data.loading.augmentation import Augmentation
from data.loading.slices import ImageFolderSlices, PreparedSlices, SliceSource, prepared_windows
from data.loading.threads import one_thread
from data.prepared.manifest import MANIFEST_NAME, read_manifest
from data.simulation.simulated_mr import SimulatedPairs
from data.values.intensity import IntensityMap


class Draw(NamedTuple):
    """What one training sample is: its place in the run, and which slice of A and of B it takes."""

    epoch: int
    position: int
    index_A: int
    index_B: int


class UnalignedDataset(Dataset):
    """Unpaired samples: a slice of A with its body mask and a slice of B, drawn independently.

    A sample is a dict of `A` and `B`, float32 (1, H, W) in [-1, 1], `mask_A`, uint8 (1, H, W) under the very same
    transform as `A` (if `masks`), and `origin_A` and `origin_B`, the names of the slices. With `pairs` there are
    `simulated_A` and `simulated_B` too, an MR simulated from the CT slice and that slice, on one grid.
    """

    def __init__(
        self,
        a: SliceSource,
        b: SliceSource,
        augmentation: Augmentation,
        masks: bool,
        seed: int,
        spacing_mm: float | None = None,
        pairs: SimulatedPairs | None = None,
    ) -> None:
        """Join two domains of slices of `spacing_mm` (None: unknown); `masks`: whether A's masks are given out."""
        self.a, self.b, self.augmentation, self.masks, self.seed = a, b, augmentation, masks, seed
        self.spacing_mm, self.pairs = spacing_mm, pairs

    def __len__(self) -> int:
        """Return the samples of an epoch: those of the larger domain."""
        return max(len(self.a), len(self.b))

    def __getitem__(self, draw: Draw) -> dict:
        """Return one sample; its randomness derives from (seed, epoch, position) alone.

        Raises:
            InputError: a slice cannot be read, or is too small for the crop.
        """
        rng = np.random.default_rng([self.seed, draw.epoch, draw.position])
        slice_a = self.a.read(draw.index_A, with_mask=self.masks or self.augmentation.needs_mask)
        slice_b = self.b.read(draw.index_B, with_mask=self.augmentation.needs_mask)
        image_a, mask_a = self.augmentation(slice_a, rng)
        image_b, _ = self.augmentation(slice_b, rng)
        sample = {"A": image_a, "B": image_b, "origin_A": slice_a.origin, "origin_B": slice_b.origin}
        if self.masks:
            sample["mask_A"] = mask_a
        if self.pairs:
            sample["simulated_A"], sample["simulated_B"] = self.pairs(image_b, rng)
        return sample


class UnalignedSampler(Sampler[Draw]):
    """The order of one epoch: every slice of each domain as often as every other, give or take one.

    The two domains are shuffled independently, from (seed, epoch) alone. Several processes draw from one order: of each
    batch that they take together each has its part. The last batch of an epoch, where it does not come out even, is
    filled from the epoch's first samples.
    """

    def __init__(
        self,
        dataset: UnalignedDataset,
        seed: int,
        limit: int | None = None,
        batch_size: int = 1,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        """Draw from `dataset` what process `rank` of `processes` takes; `limit` caps the samples of an epoch."""
        self.len_a, self.len_b = len(dataset.a), len(dataset.b)
        self.samples = min(len(dataset), limit or len(dataset))
        self.batch_size, self.rank, self.processes = batch_size, rank, processes
        self.seed, self.epoch, self.start = seed, 1, 0

    @property
    def together(self) -> int:
        """The samples that all processes take in one step."""
        return self.batch_size * self.processes

    @property
    def steps(self) -> int:
        """The steps of a whole epoch."""
        return -(-self.samples // self.together)

    @property
    def steps_left(self) -> int:
        """The steps of this epoch from its start on."""
        return -(-(self.samples - self.start) // self.together)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch (from 1) and the sample to begin at, so that a run can go on in mid-epoch."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Return the samples that this process takes in what is left of this epoch."""
        whole, rest = divmod(self.samples - self.start, self.together)
        return whole * self.batch_size + -(-rest // self.processes)

    def __iter__(self) -> Iterator[Draw]:
        """Yield the draws of this process, from `start` on."""
        rng = np.random.default_rng([self.seed, self.epoch])
        order_a, order_b = (_shuffled(rng, length, self.samples) for length in (self.len_a, self.len_b))
        for first in range(self.start, self.samples, self.together):
            # As many for each, so that each counts alike in the mean of their gradients.
            count = min(self.batch_size, -(-(self.samples - first) // self.processes))
            for k in range(count):
                position = (first + self.rank * count + k) % self.samples
                yield Draw(self.epoch, position, int(order_a[position]), int(order_b[position]))


def _shuffled(rng: np.random.Generator, length: int, samples: int) -> np.ndarray:
    """Return `samples` indices below `length`: whole permutations one after another, the last one cut."""
    permutations = [rng.permutation(length).astype(np.int32) for _ in range(-(-samples // length))]
    return np.concatenate(permutations)[:samples]


def open_unaligned(
    dataroot: Path,
    mr_rule: str | tuple[float, float],
    ct_map: IntensityMap,
    augmentation: Augmentation,
    masks: bool,
    seed: int,
    simulate_mr: bool = False,
    one_size: bool = False,
    leave_out: Collection[str] = (),
) -> UnalignedDataset:
    """Open the training slices under `dataroot`: a prepared data set, or a plain folder of trainA/ and trainB/ images.

    `masks`: whether A's masks are given out; a folder of images then needs them in `maskA`. `simulate_mr`: whether
    pairs of simulated MR and CT are. `one_size`: whether the slices of a domain meet in a batch or an image pool.
    `leave_out`: patients of a prepared data set that do not train, such as those that validate.

    Raises:
        InputError: nothing usable there, a domain without slices, images of several sizes that would meet, or MR to be
            simulated from images without units.
    """
    if (dataroot / MANIFEST_NAME).exists():
        manifest = read_manifest(dataroot).without(leave_out)
        spacing_mm = manifest.spacing_mm
        cases = [manifest.select("train", domain) for domain in "AB"]
        a, b = (PreparedSlices(dataroot, group, prepared_windows(group, mr_rule, ct_map)) for group in cases)
    else:
        spacing_mm = None
        a = ImageFolderSlices(dataroot / "trainA", dataroot / "maskA", with_masks=masks or augmentation.needs_mask)
        b = ImageFolderSlices(dataroot / "trainB", dataroot / "maskB", with_masks=augmentation.needs_mask)
        if one_size and augmentation.preprocess == "none":
            for folder, source in (("trainA", a), ("trainB", b)):
                _check_one_size(dataroot / folder, source)
    for domain, source in (("A (MR)", a), ("B (CT)", b)):
        if not len(source):
            raise InputError(f"{dataroot}: domain {domain} has no slice to train on")
    if simulate_mr and spacing_mm is None:
        raise InputError(
            f"{dataroot}: MR is simulated from CT in HU with a known pixel size, which images lack; prepare a data set "
            "from volumes by python -m scripts.prepare_dataset, or train with --warm_start none"
        )
    pairs = SimulatedPairs(ct_map, spacing_mm) if simulate_mr else None
    return UnalignedDataset(a, b, augmentation, masks, seed, spacing_mm, pairs)


def _check_one_size(folder: Path, source: ImageFolderSlices) -> None:
    if len(source.shapes) > 1:
        shown = ", ".join(f"{width} x {height}" for height, width in sorted(source.shapes)[:4])
        raise InputError(
            f"{folder}: images of {len(source.shapes)} sizes ({shown}{' ...' * (len(source.shapes) > 4)}); expected "
            "one size, since batches and the pool of generated images hold several: use --preprocess resize_and_crop, "
            "or --batch_size 1 --pool_size 0"
        )


def load_batches(
    dataset: UnalignedDataset, draws: Iterable[Draw], batch_size: int, threads: int, pin_memory: bool = False
) -> Iterator[dict]:
    """Yield the batches of an epoch, in order, as `collate` makes them; `threads` load those to come, 0: none does.

    Threads, not processes: reading and transforming release Python's lock, and three arrays a sample need not go from
    one process to another, which takes longer than reading them.

    Args:
        dataset: samples; draws: which, in which order.
        batch_size: samples of a batch; the last may have fewer.
        threads: how many load; batches waiting are twice as many at most.
        pin_memory: whether tensors lie where a GPU can fetch them while the host goes on.

    Raises:
        InputError: a sample's, when its batch is due.
    """

    def load(some: tuple[Draw, ...]) -> dict:
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
    """Stack samples to tensors (N, 1, H, W) and lists of names.

    Raises:
        InputError: slices of different sizes, which only image folders can hold.
    """
    batch = {}
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
