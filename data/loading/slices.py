"""Training slices of one domain, ready for the networks: from a prepared data set or from a folder of images."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from data.commands import prepare_command
from data.errors import InputError
from data.loading.images import image_shape, list_images, read_gray, warn_if_dark
from data.prepared.manifest import Case, FurtherContrast, Manifest
from data.values.intensity import IntensityMap, mr_window
from data.values.mr_rules import Rule, rules_in_order


@dataclass(frozen=True)
class Slice:
    """One sample of a domain.

    Attributes:
        image: float32 (C, H, W) in [-1, 1]; the order of channels is that of `data.loading.channels`.
        mask: uint8 (S, H, W), one for each slice, or None.
        origin: where the middle slice came from.
    """

    image: np.ndarray
    mask: np.ndarray | None
    origin: str


class SliceSource(Protocol):
    """The slices of one domain."""

    def __len__(self) -> int:
        """Return the number of slices."""
        ...

    @property
    def mask_labels(self) -> int:
        """The labels that every mask of the domain tells apart: 1 (body) or more."""
        ...

    def read(self, index: int, with_mask: bool) -> Slice:
        """Return slice `index`."""
        ...


class PreparedSlices:
    """The slices of a prepared data set that show body, by case and position, each with its neighbours.

    Args:
        root: the data set's folder.
        cases: prepared volumes of one domain.
        windows: for each case the map of each of its contrasts to [-1, 1].
        slab: slices of a sample, odd, the one that it is called by in the middle; where the body ends the last repeats.
    """

    def __init__(self, root: Path, cases: list[Case], windows: list[tuple[IntensityMap, ...]], slab: int = 1) -> None:
        """Count the slices and check the shapes of the arrays; no voxel is read."""
        self.root, self.cases, self.windows, self.slab = root, cases, windows, slab
        self._layouts: dict[str, _Layout] = {}
        counts = [case.body_slices[1] - case.body_slices[0] for case in cases]
        self._ends = np.cumsum(counts, dtype=np.int64)
        for case in cases:
            for file in case.image_files:
                if not (root / file).exists():
                    raise InputError(
                        f"{root / file}: no such file, but the manifest names it; prepare the data set again"
                    )
            if case.frame:
                self._check_shapes(case)

    def __len__(self) -> int:
        """Return the number of slices."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def mask_labels(self) -> int:
        """The labels that every case's mask tells apart."""
        return min(case.labels for case in self.cases)

    def read(self, index: int, with_mask: bool) -> Slice:
        """Return slice `index`, its mask if `with_mask`."""
        position = int(np.searchsorted(self._ends, index, side="right"))
        case = self.cases[position]
        first = int(self._ends[position - 1]) if position else 0
        begin, end = case.body_slices
        z = begin + index - first
        around = [min(max(z + k - self.slab // 2, begin), end - 1) for k in range(self.slab)]
        maps = zip(case.image_files, self.windows[position], strict=True)
        image = np.stack([window.to_network(self._plane(file, k)) for file, window in maps for k in around])
        mask = np.stack([self._plane(case.mask_file, k) for k in around]) if with_mask else None
        return Slice(image, mask, f"{case.name}:{z}")

    def _check_shapes(self, case: Case) -> None:
        """Refuse arrays that were made for another frame than the case's."""
        expected = (case.slices, case.frame["size"], case.frame["size"])
        for file in (*case.image_files, case.mask_file):
            shape = self._layout(file).shape
            if shape != expected:
                raise InputError(
                    f"{self.root / file}: array of shape {shape}, the manifest says {expected}; prepare the data set "
                    "again"
                )

    def _layout(self, file: str) -> "_Layout":
        if file not in self._layouts:
            self._layouts[file] = _read_layout(self.root / file)
        return self._layouts[file]

    def _plane(self, file: str, z: int) -> np.ndarray:
        """Return slice `z` of an array; no file stays open, nor mapped, however many there are."""
        layout, path = self._layout(file), f"{self.root}/{file}"
        shape = layout.shape[1:]
        pixels = math.prod(shape)
        try:
            plane = np.fromfile(path, layout.dtype, pixels, offset=layout.offset + z * pixels * layout.dtype.itemsize)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error}); prepare the data set again") from error
        if plane.size < pixels:
            raise InputError(f"{path}: ends before slice {z}; prepare the data set again")
        return plane.reshape(shape)


class _Layout(NamedTuple):
    """Where the slices of an array lie in its file: the first at byte `offset`, each after the one before."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int


def _read_layout(path: Path) -> _Layout:
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, fortran_order, dtype = read_header[version](file)
            offset, end = file.tell(), file.seek(0, os.SEEK_END)
    except Exception as error:  # NumPy parses the header as Python source, and can fail in any way
        raise InputError(f"{path}: cannot be read ({error}); prepare the data set again") from error
    if fortran_order or dtype.hasobject or end < offset + math.prod(shape) * dtype.itemsize:
        raise InputError(f"{path}: not a complete array of slices; prepare the data set again")
    return _Layout(shape, dtype, offset)


def prepared_windows(
    cases: list[Case], mr_rule: Rule | Mapping[str, Rule], ct_map: IntensityMap
) -> list[tuple[IntensityMap, ...]]:
    """Return each case's maps to [-1, 1]: of an MR's contrasts by the rules of `--mr_window`, of a CT the `ct_map`."""
    return [mr_windows(case, mr_rule) if case.domain == "A" else (ct_map,) for case in cases]


def mr_windows(case: Case, mr_rule: Rule | Mapping[str, Rule]) -> tuple[IntensityMap, ...]:
    """Return the map of each contrast of an MR to [-1, 1]."""
    contrasts: tuple[Case | FurtherContrast, ...] = (case, *case.further)
    rules = rules_in_order(mr_rule, case.contrasts)
    return tuple(_window(case.name, one, rule) for one, rule in zip(contrasts, rules, strict=True))


def _window(name: str, contrast: Case | FurtherContrast, rule: Rule) -> IntensityMap:
    if rule == "tissue" and contrast.fat_problem:
        raise InputError(f"{name} ({contrast.source}): {contrast.fat_problem}")
    if rule == "tissue" and contrast.fat_level is None:
        raise InputError(
            f"{name}: prepared by a version that did not record where fat lies, which --mr_window tissue needs; "
            f"run {prepare_command()} again with the same options, or use --mr_window "
            "percentile or LO HI"
        )
    try:
        return mr_window(rule, contrast.percentiles, contrast.fat_level)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def typical_mr_window(manifest: Manifest, mr_rule: Rule | Mapping[str, Rule]) -> IntensityMap:
    """Return the units of a synthetic MR: the window between the medians of the ends of the training MR's windows.

    Of several contrasts it is that of the first.
    """
    ends = [mr_windows(case, mr_rule)[0].range for case in manifest.select("train", "A")]
    return IntensityMap.window(*np.median(ends, axis=0).tolist())


class ImageFolderSlices:
    """The images of a plain CycleGAN folder (`trainA`, 8 or 16 bit) and its sub-folders, full range to [-1, 1].

    A mask lies in `maskA` or `maskB` as its image in its folder, under the same name or the published one (`mr_01.png`
    and `mrmask_01.png`); where all images have names of their own, without the sub-folder too. Any non-zero pixel is
    body.
    """

    def __init__(self, folder: Path, mask_folder: Path, with_masks: bool) -> None:
        """List the images; with `with_masks` find the mask of each.

        Headers are read here, so that a file that is no image, or a mask of another size, stops a training before it
        starts. `shapes` are those of all images, (H, W). Images that are nearly black are warned of.
        """
        self.files = list_images(folder)
        self.names = [file.relative_to(folder).as_posix() for file in self.files]
        self.masks = _masks_of(self.names, mask_folder) if with_masks else None
        shapes = {file: image_shape(file) for file in self.files}
        self.shapes = frozenset(shapes.values())
        for file, mask in zip(self.files, self.masks or (), strict=False):
            _check_mask_shape(mask, image_shape(mask), shapes[file])
        warn_if_dark(self.files)

    mask_labels = 1

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def read(self, index: int, with_mask: bool) -> Slice:
        """Return image `index`, its mask if `with_mask`."""
        image, full_range = _read_gray(self.files[index])
        mask = None
        if with_mask:
            assert self.masks is not None, "masks are read where they were asked for"
            mask = (_read_gray(self.masks[index])[0] > 0).astype(np.uint8)
            _check_mask_shape(self.masks[index], mask.shape, image.shape)
            mask = mask[None]
        return Slice(IntensityMap.window(0, full_range).to_network(image)[None], mask, self.names[index])


def _check_mask_shape(mask: Path, shape: tuple[int, ...], image_shape: tuple[int, ...]) -> None:
    if shape != image_shape:
        raise InputError(f"{mask}: mask of shape {shape}, its image has {image_shape}")


def _masks_of(names: list[str], mask_folder: Path) -> list[Path]:
    """Return the mask of each image, given by its path below its own folder."""
    alone = len({Path(name).name for name in names}) == len(names)
    return [_mask_of(Path(name), mask_folder, alone) for name in names]


def _mask_of(image: Path, mask_folder: Path, alone: bool) -> Path:
    """Return the mask of an image; `alone`: whether no other image has its name, in any sub-folder."""
    published = image.with_name(re.sub(r"^(mr|ct)_", r"\1mask_", image.name))
    beside = [image, published, image.with_suffix(".png")]
    expected = dict.fromkeys([*beside, *(Path(name.name) for name in beside if alone)])
    for name in expected:
        if (mask_folder / name).exists():
            return mask_folder / name
    raise InputError(f"{mask_folder}: no mask for {image}; expected {' or '.join(map(str, expected))}")


def _read_gray(path: Path) -> tuple[np.ndarray, float]:
    """Return an image's gray values (H, W) and the greatest that its file format holds."""
    image = read_gray(path)
    return image.pixels, image.full_range
