"""Training slices of one domain, ready for the networks: from a prepared data set or from a folder of images."""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from data.errors import InputError
from data.intensity import IntensityMap, mr_window
from data.manifest import Case, Manifest

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
# Pillow's modes of 8 bits or fewer, beside its 16-bit ones, whose names start with I.
_GRAY_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_FULL_RANGE_16 = 65535.0
_WAY_OUT = "or volumes prepared by python -m scripts.prepare_dataset"
# Volumes held open at once; each is a memory map, so this bounds file handles rather than memory.
_OPEN_VOLUMES = 256


@dataclass(frozen=True)
class Slice:
    """One slice: `image` float32 (H, W) in [-1, 1], `mask` uint8 (H, W) or None, and where it came from."""

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
    """The slices of a prepared data set that show body, by case and position.

    Args:
        root: the data set's folder.
        cases: prepared volumes of one domain.
        windows: for each case its map to [-1, 1].
    """

    def __init__(self, root: Path, cases: list[Case], windows: list[IntensityMap]) -> None:
        """Count the slices and check the shapes of the arrays; no voxel is read."""
        self.root, self.cases, self.windows = root, cases, windows
        counts = [case.body_slices[1] - case.body_slices[0] for case in cases]
        self._ends = np.cumsum(counts, dtype=np.int64)
        for case in cases:
            if not (root / case.image_file).exists():
                raise InputError(
                    f"{root / case.image_file}: no such file, but the manifest names it; prepare the data set again"
                )
            if case.frame:
                _check_shapes(root, case)

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
        z = case.body_slices[0] + index - first
        image = self.windows[position].to_network(_open_array(self.root / case.image_file)[z])
        mask = np.array(_open_array(self.root / case.mask_file)[z]) if with_mask else None
        return Slice(image, mask, f"{case.name}:{z}")


def prepared_windows(cases: list[Case], mr_rule: str | tuple[float, float], ct_map: IntensityMap) -> list[IntensityMap]:
    """Return each case's map to [-1, 1]: an MR's by the rule of `--mr_window`, a CT's the one `ct_map`."""
    return [mr_window(mr_rule, case.percentiles) if case.domain == "A" else ct_map for case in cases]


def typical_mr_window(manifest: Manifest, mr_rule: str | tuple[float, float]) -> IntensityMap:
    """Return the units of a synthetic MR: the fixed window, or that between the medians of the MR's percentiles."""
    percentiles = np.array([case.percentiles for case in manifest.select("train", "A")])
    low, high = np.median(percentiles, axis=0).tolist()
    return mr_window(mr_rule, (low, high))


def _check_shapes(root: Path, case: Case) -> None:
    """Refuse arrays that were made for another frame than the case's."""
    expected = (case.slices, case.frame["size"], case.frame["size"])
    for path in (root / case.image_file, root / case.mask_file):
        shape = _map_array(path).shape
        if shape != expected:
            raise InputError(
                f"{path}: array of shape {shape}, the manifest says {expected}; prepare the data set again"
            )


@lru_cache(maxsize=_OPEN_VOLUMES)
def _open_array(path: Path) -> np.ndarray:
    return _map_array(path)


def _map_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({error}); prepare the data set again") from error


class ImageFolderSlices:
    """The images of a plain CycleGAN folder (`trainA/*.png`, 8 or 16 bit), full range to [-1, 1].

    A mask is the file of the same name under `maskA` or `maskB`, or the one whose published name matches
    (`mr_01.png` and `mrmask_01.png`); any non-zero pixel is body.
    """

    def __init__(self, folder: Path, mask_folder: Path, with_masks: bool) -> None:
        """List the images; with `with_masks` find the mask of each."""
        self.files = _list_images(folder)
        self.masks = [_mask_of(file, mask_folder) for file in self.files] if with_masks else None

    mask_labels = 1

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def read(self, index: int, with_mask: bool) -> Slice:
        """Return image `index`, its mask if `with_mask`."""
        image, full_range = _read_gray(self.files[index])
        mask = None
        if with_mask:
            mask = (_read_gray(self.masks[index])[0] > 0).astype(np.uint8)
            if mask.shape != image.shape:
                raise InputError(f"{self.masks[index]}: mask of shape {mask.shape}, its image has {image.shape}")
        return Slice(IntensityMap.window(0, full_range).to_network(image), mask, self.files[index].name)


def _list_images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; expected a prepared data set or a folder of trainA/ and trainB/ images"
        )
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InputError(f"{folder}: no image ({' '.join(IMAGE_SUFFIXES)}) in it")
    return files


def _mask_of(file: Path, mask_folder: Path) -> Path:
    published = re.sub(r"^(mr|ct)_", r"\1mask_", file.name)
    for name in (file.name, published):
        if (mask_folder / name).exists():
            return mask_folder / name
    raise InputError(f"{mask_folder}: no mask for {file.name}; expected {file.name} or {published}")


def _read_gray(path: Path) -> tuple[np.ndarray, float]:
    """Return an image's gray values (H, W) and the greatest that its file format holds."""
    try:
        with Image.open(path) as image:
            # Pillow opens 16-bit gray as one of several modes; colour is reduced to its luminance.
            mode, deep = image.mode, image.mode.startswith("I")
            pixels = np.array(image if deep or mode not in _GRAY_MODES else image.convert("L"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read as an image: {error}") from error
    if not deep and mode not in _GRAY_MODES:
        raise InputError(f"{path}: pixels of mode {mode}; expected 8 or 16 bit gray, {_WAY_OUT}")
    if deep and (pixels.min() < 0 or pixels.max() > _FULL_RANGE_16):
        found = f"{pixels.min()} .. {pixels.max()}"
        raise InputError(f"{path}: values {found}; expected 0 .. {_FULL_RANGE_16:g}, {_WAY_OUT}")
    return pixels, _FULL_RANGE_16 if deep else 255.0
