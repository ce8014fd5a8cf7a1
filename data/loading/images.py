"""Gray images on disk: the images of a folder, their size from the header, and their gray values."""

import io
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.commands import prepare_command
from data.errors import InputError
from data.files import check_regular
from data.volumes.volume import WRITABLE_SUFFIXES, volume_suffix

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
# Pillow opens no other, whatever a file is called: some of its readers start other programs (Ghostscript).
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
# Pillow's modes of 8 bits or fewer, beside its 16-bit ones, whose names start with I.
_GRAY_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_GRAY_ALONE = ("1", "L", "P", "I", "I;16", "I;16B")
_WAY_OUT = f"or volumes prepared with {prepare_command()}"
# Tags of TIFF: bits of a pixel, what 0 shows, type of a pixel; of EXIF: how the picture is turned.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT, _ORIENTATION = 258, 262, 339, 274
_WHITE_IS_ZERO, _SIGNED = 0, 2
# Turns of EXIF that swap width and height.
_SWAPPED = (5, 6, 7, 8)
# Images that are looked at for their brightness, and the share of the range below which they are dark.
_LOOKED_AT, _DARK = 16, 1 / 8
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError, Image.DecompressionBombError)


@dataclass(frozen=True)
class GrayImage:
    """Gray values, shape (H, W), 0 is black, and `full_range`, the value that the file's format has for white."""

    pixels: np.ndarray
    full_range: float


def list_images(folder: Path) -> list[Path]:
    """Return the images of a folder and of its sub-folders, links to folders among them, sorted by path.

    Hidden files and folders are skipped; other files are counted in a warning.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    try:
        files = sorted(_files_below(folder, set()))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: no such folder; expected a prepared data set or a folder of trainA/ and trainB/ images"
        ) from error
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read as a folder: {error.strerror}") from error
    images = [path for path in files if is_image_name(path)]
    if not images:
        raise InputError(f"{folder}: no image ({' '.join(IMAGE_SUFFIXES)}) in it or in a folder below it")
    others = Counter(path.suffix.lower() or "none" for path in files if not is_image_name(path))
    if others:
        endings = ", ".join(f"{ending} ({count})" for ending, count in sorted(others.items()))
        log.warning("warning: %s: %d files are skipped; their endings: %s", folder, others.total(), endings)
    return images


def holds_images(folder: Path) -> bool:
    """Tell whether a folder holds images, in sub-folders too, and nothing that they would be mere pictures of.

    That is volumes, and files that are called as DICOM is.
    """
    try:
        files = list(_files_below(folder, set()))
    except OSError:  # whoever reads it says so
        return False
    volumes = any(volume_suffix(path.name) in WRITABLE_SUFFIXES or _may_be_dicom(path) for path in files)
    return not volumes and any(map(is_image_name, files))


def _may_be_dicom(path: Path) -> bool:
    return path.suffix.lower() in ("", ".dcm", ".ima") or path.suffix[1:].isdigit()


def _files_below(folder: Path, above: set[str]) -> Iterator[Path]:
    """Yield all files below `folder`; anything with the name of an image counts as a file, even a folder.

    `above`: the real paths of the folders that this one lies in, to which a link would lead in circles.
    """
    real = os.path.realpath(folder)
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if not path.is_dir() or is_image_name(path):
            yield path
        elif os.path.realpath(path) not in {*above, real}:
            yield from _files_below(path, {*above, real})


def is_image_name(path: Path) -> bool:
    """Tell whether a file name ends like an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def image_shape(path: Path) -> tuple[int, int]:
    """Return rows and columns of an image, from its header.

    Raises:
        InputError: the file is no single gray or colour image that `read_gray` takes.
    """
    with _opened(path) as image:
        columns, rows = image.size
        try:
            turned = image.getexif().get(_ORIENTATION) in _SWAPPED  # of a PNG it may stand behind the pixels
        except _UNREADABLE as error:
            raise InputError(f"{path}: damaged: {error}; save the image again") from error
        return (columns, rows) if turned else (rows, columns)


def read_gray(path: Path) -> GrayImage:
    """Return an image's gray values as it shows them; colour is reduced to its luminance.

    Raises:
        InputError: the file is no image, not a single one, damaged, or its values are beyond 16 bits.
    """
    with _opened(path) as image:
        deep, full_range, inverted = image.mode.startswith("I"), 255.0, False
        if deep:
            tags = getattr(image, "tag_v2", {})
            # Pillow inverts what is white at 0 in up to 8 bits only.
            inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
            bits = min(tags.get(_BITS, (16,))[0], 16)
            full_range = float(2**bits - 1)
        try:
            image = ImageOps.exif_transpose(image)
            pixels = np.array(image if deep else image.convert("L"))
        except _UNREADABLE as error:
            raise InputError(f"{path}: damaged: {error}; save the image again") from error
    if deep and (pixels.min() < 0 or pixels.max() > full_range):
        raise InputError(f"{path}: values {pixels.min()} .. {pixels.max()}; expected 0 .. {full_range:g}, {_WAY_OUT}")
    return GrayImage(full_range - pixels if inverted else pixels, full_range)


def warn_if_dark(images: Sequence[Path]) -> None:
    """Warn of images that use less than an eighth of their files' range: networks would see them nearly black.

    So it is with 12-bit values in 16-bit files. Up to 16 of the images are looked at, all along the list.

    Raises:
        InputError: one cannot be read.
    """
    brightest = full_range = 0.0
    for path in images[:: max(1, len(images) // _LOOKED_AT)]:
        image = read_gray(path)
        brightest, full_range = max(brightest, float(image.pixels.max())), max(full_range, image.full_range)
    if not 0 < brightest < full_range * _DARK:
        return
    bits = int(brightest).bit_length()
    factor = 2 ** (int(full_range).bit_length() - bits)
    log.warning(
        "warning: %s: nearly black: the highest value is %g of %g, as if %d-bit values were stored in a larger format; "
        "networks see the whole range of the format: write the images again with their values times %d, or prepare a "
        "data set from the volumes with %s",
        os.path.commonpath([path.parent for path in images]), brightest, full_range, bits, factor,
        prepare_command(),
    )  # fmt: skip


def read_mask_image(path: Path) -> np.ndarray:
    """Return the gray values of a mask, (H, W): what is black in the picture is 0, whatever number stands for it.

    Raises:
        InputError: the file is no gray image, or one with a palette of colours, whose background would be a guess.
    """
    pixels = read_gray(path).pixels
    with _opened(path) as image:
        if image.mode not in _GRAY_ALONE:
            raise InputError(f"{path}: {image.mode} image; expected gray values: save it as a gray image")
        if image.mode == "P" and np.ptp(np.array(image.convert("RGB")), axis=-1).any():
            raise InputError(f"{path}: a palette of colours; expected gray values: save it as a gray image")
    return pixels


def _opened(path: Path) -> Image.Image:
    """Return an open image with its header read and checked."""
    try:
        if not path.exists() or path.is_dir():
            what = "a folder" if path.exists() else "no such file"
            raise InputError(f"{path}: {what}; expected an image ({' '.join(IMAGE_SUFFIXES)})")
        check_regular(path)
        # From memory: Pillow would allocate what a damaged chunk of a file claims to hold.
        image = Image.open(io.BytesIO(path.read_bytes()), formats=_FORMATS)
        frames = getattr(image, "n_frames", 1)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path}: cannot be read as an image: neither {', '.join(_FORMATS[:-1])} nor {_FORMATS[-1]} that is "
            "understood; save the image again as PNG"
        ) from error
    except _UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as an image: {error}") from error
    if frames > 1:
        raise InputError(
            f"{path}: holds {frames} pages; expected one image a file: save each page as a file of its own, {_WAY_OUT}"
        )
    if not image.mode.startswith("I") and image.mode not in _GRAY_MODES:
        raise InputError(f"{path}: pixels of mode {image.mode}; expected 8 or 16 bit gray, {_WAY_OUT}")
    if _SIGNED in getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, ()) and not image.mode.startswith("I"):
        raise InputError(f"{path}: signed 8-bit pixels; expected values from 0, {_WAY_OUT}")
    return image
