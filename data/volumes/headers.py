"""Shared by all volume headers: claims are compared with the file before they are believed."""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data.errors import InputError
from data.files import check_regular

# Deflate makes no more than this many bytes of one (zlib, "Maximum Compression Factor").
DEFLATE_EXPANSION = 1032
# JPEG 2000 and JPEG-LS make a blank slice of a few hundred bytes.
JPEG_EXPANSION = 100_000
# No header in text is longer.
HEADER_BYTES = 1 << 16
# Of numbers of mm: greater ones are a mistake, and arithmetic with them overflows.
GREATEST_MM = 1e9
# What headers call units of length; no name is taken for mm.
UNITS_MM = {
    "mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "cm": 10.0, "centimeter": 10.0, "centimeters": 10.0,
    "m": 1000.0, "meter": 1000.0, "meters": 1000.0, "um": 0.001, "": 1.0,
}  # fmt: skip
_MAX_DIGITS = 18
# Slices of one volume that lie in files of their own.
_MAX_FILES = 1 << 16
# File systems take no longer names.
_NAME_CHARACTERS = 255

_MAGIC = {
    b"\x1f\x8b": "a gzip-compressed file",
    b"NRRD000": "an NRRD file",
    b"ObjectType": "a MetaImage",
    b"\x00\x05\x16\x07": "macOS data about another file (AppleDouble), not a volume",
    b"\x1c\x02\x00\x00": "a NIfTI or Analyze file",
    b"\x00\x00\x02\x1c": "a NIfTI or Analyze file",
    b"\x5c\x01\x00\x00": "a NIfTI or Analyze file",
    b"\x00\x00\x01\x5c": "a NIfTI or Analyze file",
    b"\x00\x00\x00\x01\x00\x00": "a FreeSurfer .mgh file",
    b"BZh": "a bzip2-compressed file",
    b"PK\x03\x04": "a zip archive",
    b"\x89PNG": "a PNG image",
    b"II*\x00": "a TIFF image",
    b"MM\x00*": "a TIFF image",
    b"\x89HDF": "an HDF5 file",
}
UNKNOWN = "a file of an unknown format"


def describe_content(start: bytes) -> str:
    """Say what a file is by its first bytes, `UNKNOWN` where they do not tell."""
    if start[128:132] == b"DICM":
        return "a DICOM file"
    if start[:256].lstrip()[:5].lower() in (b"<html", b"<!doc"):
        return "a web page, as after a failed download"
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), UNKNOWN)


def unreadable(path: Path, problem: str) -> InputError:
    """Return the error of a file that is not a volume, or is damaged."""
    return InputError(f"{path}: cannot be read as a volume: {problem}")


def read_start(path: Path) -> bytes:
    """Return the first 64 kB of a file. Raises `InputError` if it is not a file, such as a named pipe."""
    check_regular(path)
    with path.open("rb") as file:
        return file.read(HEADER_BYTES)


def check_claim(path: Path, claimed_bytes: int, stored_bytes: int, expansion: int = DEFLATE_EXPANSION) -> None:
    """Refuse a header that claims more voxels than its file can hold, before memory is allocated for them.

    Args:
        path: the file.
        claimed_bytes: of the voxels, as the header says.
        stored_bytes: of the file, or of all files that the volume lies in.
        expansion: bytes that one stored byte can become.
    """
    if claimed_bytes > expansion * stored_bytes:
        raise unreadable(
            path,
            f"its header claims {claimed_bytes} bytes of voxels, of which {stored_bytes} stored bytes can hold no more "
            f"than {expansion * stored_bytes}: damaged or truncated; export or copy it again",
        )


def check_size(path: Path, size: Sequence[int], components: int = 1) -> None:
    """Refuse a header's size, voxels along (x, y, z, ...), that is no volume's, or several values a voxel."""
    if components > 1:
        raise InputError(f"{path}: {components} values a voxel: extract one channel first")
    if any(extent > 1 for extent in size[3:]):
        raise InputError(
            f"{path}: {len(size)}-D image of size {tuple(size)}; expected 3-D: extract one time point or echo first"
        )
    if len(size) < 3 or 1 in size[:3]:
        raise InputError(f"{path}: 2-D image of size {tuple(size)}; expected a volume with several slices")
    if min(size) < 1:
        raise InputError(f"{path}: cannot be read as a volume: size {tuple(size)}; expected voxels: damaged")


def split_axes(vectors: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return spacing (mm) and direction cosines (9 numbers, row-major) of the steps along x, y and z."""
    steps = np.asarray(vectors, float)
    spacing = np.linalg.norm(steps, axis=1)
    cosines = (steps / np.where(spacing > 0, spacing, 1)[:, None]).T
    return tuple(spacing.tolist()), tuple(cosines.ravel().tolist())


def whole_number(text: str, least: int = 0, most: int = 10**_MAX_DIGITS) -> int | None:
    """Return the whole number in a text, None if it is not one from `least` to `most`."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS):
        return None
    number = int(text)
    return number if least <= number <= most else None


def finite_number(text: str) -> float | None:
    """Return the number in a text, None if it is not one, or not one that a geometry can have."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and abs(number) <= GREATEST_MM else None


def whole_numbers(words: Iterable[str], least: int = 0) -> list[int] | None:
    """Return the whole numbers in words, as `whole_number` does; None if one of them is not one."""
    numbers = [whole_number(word, least) for word in words]
    found = [number for number in numbers if number is not None]
    return found if len(found) == len(numbers) else None


def finite_numbers(words: Iterable[str]) -> list[float] | None:
    """Return the numbers in words, as `finite_number` does; None if one of them is not one."""
    numbers = [finite_number(word) for word in words]
    found = [number for number in numbers if number is not None]
    return found if len(found) == len(numbers) else None


class TextHeader:
    """The values of a header in text, each once, asked for by what they must be."""

    format = ""  # what messages call it

    def __init__(self, path: Path) -> None:
        """Begin without any; who derives from it reads them."""
        self.path = path
        self.values: dict[str, str] = {}

    def damaged(self, key: str, found: str | None, expected: str) -> InputError:
        """Return the error of a value that is not what it must be, or (None) missing."""
        text = "missing" if found is None else ascii(found[:80])
        return unreadable(self.path, f"{self.format} {key} {text}; expected {expected}: damaged, or not {self.format}")

    def whole(self, key: str, least: int, most: int, default: int | None = None) -> int:
        """Return a value that is a whole number from `least` to `most`, `default` if it is missing."""
        number = whole_number(self.values[key], least, most) if key in self.values else default
        if number is None:
            raise self.damaged(key, self.values.get(key), f"{least} to {most}")
        return number

    def data_files(self, key: str, listed: Iterable[str], numbers: int = 3) -> tuple[Path, ...]:
        """Return the files beside the header that a value names: one, those of a list, or those of a pattern.

        Args:
            key: of the value.
            listed: lines behind the header, where the list stands.
            numbers: how many may stand behind a pattern; one behind the step has no bearing on the order of the voxels.
        """
        value = self.values[key]
        names: list[str] | None = [value]
        if value.split()[:1] == ["LIST"]:
            names = [line.strip() for line in listed if line.strip()]
        elif "%" in value:
            pattern, *given = value.split()
            names = _numbered(pattern, given[:3]) if len(given) <= numbers else None
        if not names or any(not name or "\0" in name or len(name) > _NAME_CHARACTERS for name in names):
            raise self.damaged(key, value, "a file name, LIST and names, or a pattern such as mr%03d.raw 1 20 1")
        return tuple(self.path.parent / name for name in names)


def _numbered(pattern: str, numbers: Sequence[str]) -> list[str] | None:
    """Return the names that a printf pattern with a first and last number, and a step, stands for; None if it is none.

    Args:
        pattern: a file name with one `%d`, `%3d` or `%03d` in it.
        numbers: first, last and, where it is not 1, step.
    """
    parts = re.fullmatch(r"([^%]*)%(0?[0-9]{0,2})d([^%]*)", pattern)
    values = whole_numbers(numbers)
    if not parts or values is None or len(values) not in (2, 3):
        return None
    first, last, step = (*values, 1)[:3]
    if step < 1 or not first <= last <= first + step * _MAX_FILES:
        return None
    return [f"{parts[1]}{f'%{parts[2]}d' % number}{parts[3]}" for number in range(first, last + 1, step)]
