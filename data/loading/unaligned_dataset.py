"""MR and CT slices of different patients: the unpaired training set and its order."""

import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.commands import prepare_command
from data.errors import InputError
from data.loading.augmentation import Augmentation
from data.loading.batches import EpochSampler
from data.loading.channels import middle_channel
from data.loading.slices import ImageFolderSlices, PreparedSlices, SliceSource, prepared_windows
from data.loading.whole_slices import centred
from data.prepared.manifest import MANIFEST_NAME, Manifest, read_manifest
from data.prepared.slice_spacing import common_slice_spacing
from data.prepared.trainable import check_has_mr
from data.simulation.contrasts import contrasts_to_simulate
from data.simulation.simulated_mr import SimulatedPairs
from data.values.intensity import IntensityMap
from data.values.mr_rules import Rule
from data.volumes.contrasts import ONLY_CONTRAST
from data.volumes.dicom_contrasts import DIXON_NAMES

log = logging.getLogger(__name__)

# Of images without masks, what is darker than this in [-1, 1] is not body.
_EMPTY = -0.9


class Draw(NamedTuple):
    """What one training sample is: its place in the run, and which slice of A and of B it takes."""

    epoch: int
    position: int
    index_A: int
    index_B: int


class UnalignedDataset(Dataset):
    """Unpaired samples: a slab of A with its body masks and a slab of B, drawn independently; most often of one slice.

    A sample is a dict of `A`, float32 (C S, H, W) in [-1, 1] of C contrasts and S slices, `B`, (S, H, W), `mask_A`,
    uint8 (S, H, W) under the same transform as `A` (if `masks`), and `origin_A` and `origin_B`, the names of the
    slices. With `pairs` there are `simulated_A` and `simulated_B` too, an MR simulated from the CT slab and that slab,
    on one grid. `slab` is S and `slice_mm` what the slices of slabs lie apart; `manifest` is the prepared data set
    without the volumes that do not train.
    """

    def __init__(
        self,
        a: SliceSource,
        b: SliceSource,
        augmentation: Augmentation,
        masks: bool,
        seed: int,
        manifest: Manifest | None = None,
        pairs: SimulatedPairs | None = None,
        slab: int = 1,
        slice_mm: float | None = None,
    ) -> None:
        """Join two domains of slices of `manifest` (None: images); `masks`: whether A's masks are given out."""
        self.a, self.b, self.augmentation, self.masks, self.seed = a, b, augmentation, masks, seed
        self.manifest, self.pairs, self.slab, self.slice_mm = manifest, pairs, slab, slice_mm

    @property
    def spacing_mm(self) -> float | None:
        """Spacing within slices; None for images."""
        return self.manifest.spacing_mm if self.manifest else None

    @property
    def contrasts(self) -> tuple[str, ...]:
        """Names of the MR's contrasts, in the order of channels."""
        return self.manifest.contrasts if self.manifest else (ONLY_CONTRAST,)

    @property
    def view(self) -> str:
        """How the slices lie in the body, of `data.volumes.slice_frame.VIEWS`; images are taken for axial ones."""
        return self.manifest.view if self.manifest else "axial"

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

    def whole(self, source: SliceSource, index: int, multiple: int) -> Tensor:
        """Return slice `index` of one of the domains, `a` or `b`, as it is before random transforms, (C, h, w).

        The body is in the middle; sides are multiples of `multiple`. Of images without masks pixels above -0.9 count
        as body.
        """
        item = source.read(index, with_mask=self.spacing_mm is not None)
        item = self.augmentation.at_load_size(item)
        image = torch.from_numpy(np.ascontiguousarray(item.image))
        body = image[middle_channel(self.slab)] > _EMPTY if item.mask is None else item.mask[self.slab // 2] > 0
        return centred(image, torch.as_tensor(body), multiple, outside=-1.0)


class UnalignedSampler(EpochSampler[Draw]):
    """The order of one epoch: every slice of each domain as often as every other, give or take one.

    The two domains are shuffled independently, from (seed, epoch) alone, or taken in their own order.
    """

    def __init__(
        self,
        dataset: UnalignedDataset,
        seed: int,
        limit: int | None = None,
        batch_size: int = 1,
        rank: int = 0,
        processes: int = 1,
        serial: bool = False,
    ) -> None:
        """Draw from `dataset` what process `rank` of `processes` takes; `limit` caps the samples of an epoch.

        `serial`: whether both domains are taken in their own order, each from its start again where it ends.
        """
        super().__init__(min(len(dataset), limit or len(dataset)), batch_size, rank, processes)
        self.len_a, self.len_b, self.seed = len(dataset.a), len(dataset.b), seed
        self.serial = serial

    def order(self, epoch: int) -> Callable[[int], Draw]:
        """Return what is drawn at a position of an epoch."""
        if self.serial:
            return lambda position: Draw(epoch, position, position % self.len_a, position % self.len_b)
        rng = np.random.default_rng([self.seed, epoch])
        order_a, order_b = (_shuffled(rng, length, self.samples) for length in (self.len_a, self.len_b))
        return lambda position: Draw(epoch, position, int(order_a[position]), int(order_b[position]))


def _shuffled(rng: np.random.Generator, length: int, samples: int) -> np.ndarray:
    """Return `samples` indices below `length`: whole permutations one after another, the last one cut."""
    permutations = [rng.permutation(length).astype(np.int32) for _ in range(-(-samples // length))]
    return np.concatenate(permutations)[:samples]


def open_unaligned(
    dataroot: Path,
    mr_rule: Rule | Mapping[str, Rule],
    ct_map: IntensityMap,
    augmentation: Augmentation,
    masks: bool,
    seed: int,
    simulate_mr: bool = False,
    one_size: bool = False,
    leave_out: Collection[str] = (),
    slab: int = 1,
) -> UnalignedDataset:
    """Open the training slices under `dataroot`: a prepared data set, or a plain folder of trainA/ and trainB/ images.

    `masks`: whether A's masks are given out; a folder of images then needs them in `maskA`. `simulate_mr`: whether
    pairs of simulated MR and CT are. `one_size`: whether the slices of a domain meet in a batch or an image pool.
    `leave_out`: patients of a prepared data set that do not train, such as those that validate. `slab`: slices of a
    sample, odd.

    Raises:
        InputError: nothing usable there, a domain without slices, images of several sizes that would meet, slabs of
            images or of slices that lie differently far apart, or MR to be simulated from images without units or of
            several contrasts.
    """
    if (dataroot / MANIFEST_NAME).exists():
        opened = _open_prepared(dataroot, mr_rule, ct_map, leave_out, slab)
    else:
        opened = _open_images(dataroot, mr_rule, augmentation, masks, one_size, slab)
    for domain, source in (("A (MR)", opened.a), ("B (CT)", opened.b)):
        if not len(source):
            raise InputError(f"{dataroot}: domain {domain} has no slice to train on")
    manifest, slice_mm = opened.manifest, opened.slice_mm
    pairs = _simulated_pairs(dataroot, manifest, ct_map, slice_mm) if simulate_mr else None
    return UnalignedDataset(opened.a, opened.b, augmentation, masks, seed, manifest, pairs, slab, slice_mm)


class _Opened(NamedTuple):
    """The two domains, and of prepared ones the data set and what the slices of slabs lie apart."""

    a: SliceSource
    b: SliceSource
    manifest: Manifest | None = None
    slice_mm: float | None = None


def _open_prepared(
    dataroot: Path, mr_rule: Rule | Mapping[str, Rule], ct_map: IntensityMap, leave_out: Collection[str], slab: int
) -> _Opened:
    """Open the training volumes of a prepared data set; see `open_unaligned`."""
    manifest = read_manifest(dataroot)
    check_has_mr(dataroot, manifest, "--model cycle_gan")
    manifest = manifest.without(leave_out)
    cases = [manifest.select("train", domain) for domain in "AB"]
    a, b = (PreparedSlices(dataroot, group, prepared_windows(group, mr_rule, ct_map), slab) for group in cases)
    together = [case for group in cases for case in group]
    return _Opened(a, b, manifest, common_slice_spacing(dataroot, manifest, together) if slab > 1 else None)


def _open_images(
    dataroot: Path, mr_rule: Rule | Mapping[str, Rule], augmentation: Augmentation, masks: bool, one_size: bool,
    slab: int,
) -> _Opened:  # fmt: skip
    """Open the images of trainA and trainB; see `open_unaligned`."""
    if slab > 1:
        raise InputError(
            f"--slab {slab}: {dataroot} holds images, which have no neighbours; prepare a data set from volumes "
            f"with {prepare_command()}, or train with --slab 1"
        )
    if isinstance(mr_rule, Mapping):
        raise InputError(f"--mr_window: {dataroot} holds images of one contrast without a name; expected LO HI")
    a = ImageFolderSlices(dataroot / "trainA", dataroot / "maskA", with_masks=masks or augmentation.needs_mask)
    b = ImageFolderSlices(dataroot / "trainB", dataroot / "maskB", with_masks=augmentation.needs_mask)
    for folder, images in (("trainA", a), ("trainB", b)):
        if one_size and augmentation.preprocess == "none":
            _check_one_size(dataroot / folder, images)
        if augmentation.preprocess == "resize_and_crop":
            say_resized(dataroot / folder, images, augmentation.load_size)
    return _Opened(a, b)


def _simulated_pairs(
    dataroot: Path, manifest: Manifest | None, ct_map: IntensityMap, slice_mm: float | None
) -> SimulatedPairs:
    """Return what simulates MR from the CT of a data set; see `open_unaligned`."""
    if manifest is None:
        raise InputError(
            f"{dataroot}: MR is simulated from CT in HU with a known pixel size, which images lack; prepare a data set "
            f"from volumes with {prepare_command()}, or train with --warm_start none"
        )
    to_simulate = contrasts_to_simulate(manifest.contrasts)
    if not to_simulate:
        raise InputError(
            f"{dataroot}: the data set has the contrasts {', '.join(manifest.contrasts)}; those that can be simulated "
            f"are {', '.join(DIXON_NAMES)}: train with --warm_start none, or prepare the data set with one of them"
        )
    return SimulatedPairs(ct_map, manifest.spacing_mm, slice_mm, to_simulate)


def say_resized(folder: Path, source: ImageFolderSlices, size: int) -> None:
    """Say so where images are not of the size that they are resized to."""
    if source.shapes != {(size, size)}:
        found = ", ".join(f"{width} x {height}" for height, width in sorted(source.shapes)[:4])
        more = " ..." if len(source.shapes) > 4 else ""
        log.info(
            "%s: images of %s%s pixels are resized to %d x %d; --preprocess none keeps their size",
            folder, found, more, size, size,
        )  # fmt: skip


def _check_one_size(folder: Path, source: ImageFolderSlices) -> None:
    if len(source.shapes) > 1:
        shown = ", ".join(f"{width} x {height}" for height, width in sorted(source.shapes)[:4])
        raise InputError(
            f"{folder}: images of {len(source.shapes)} sizes ({shown}{' ...' * (len(source.shapes) > 4)}); expected "
            "one size, since batches and the image pool mix images: use --preprocess resize_and_crop, "
            "or --batch_size 1 --pool_size 0"
        )
