"""What a volume file's header claims, held against the file before a library believes it."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from data.errors import InputError

# Deflate makes no more than this many bytes of one (zlib, "Maximum Compression Factor").
DEFLATE_EXPANSION = 1032
# JPEG 2000 and JPEG-LS make a blank slice of a few hundred bytes.
JPEG_EXPANSION = 100_000
_HEADER_BYTES = 1 << 16
_META_LINE_BYTES = 1 << 12
# MetaIO keeps what it reads in arrays of this many dimensions, and writes beyond their ends.
_META_DIMENSIONS = 10
# Of an image of n dimensions these have n to the power of so many numbers.
_META_NUMBERS = {
    b"Offset": 1, b"Position": 1, b"Origin": 1, b"CenterOfRotation": 1, b"ElementSpacing": 1, b"ElementSize": 1,
    b"TransformMatrix": 2, b"Rotation": 2, b"Orientation": 2,
}  # fmt: skip
# ITK decomposes a direction of greater numbers without end.
_META_GREATEST = 1e9
_META_LINE = re.compile(rb"[^=\x00-\x1f]{1,255}=[^\x00-\x08\x0a-\x1f]*")
# MetaIO hands the name of the data on to printf.
_META_DATA_NAME = re.compile(rb"[^%]*(%0?\d{0,2}d[^%]*)?")


def check_claim(path: Path, claimed_bytes: int, stored_bytes: int, expansion: int = DEFLATE_EXPANSION) -> None:
    """Refuse a header that claims more voxels than its file can hold, before memory is allocated for them.

    Args:
        path: the file.
        claimed_bytes: of the voxels, as the header says.
        stored_bytes: of the file, or of all files that the volume lies in.
        expansion: bytes that one stored byte can become.
    """
    if claimed_bytes > expansion * stored_bytes:
        raise InputError(
            f"{path}: cannot be read as a volume: its header claims {claimed_bytes} bytes of voxels, of which "
            f"{stored_bytes} stored bytes can hold no more than {expansion * stored_bytes}: damaged or truncated; "
            "export or copy it again"
        )


def check_size(path: Path, size: Sequence[int]) -> None:
    """Refuse a header's size, voxels along (x, y, z, ...), that is no volume's."""
    if any(extent > 1 for extent in size[3:]):
        raise InputError(
            f"{path}: {len(size)}-D image of size {tuple(size)}; expected 3-D: extract one time point or echo first"
        )
    if len(size) < 3 or 1 in size[:3]:
        raise InputError(f"{path}: 2-D image of size {tuple(size)}; expected a volume with several slices")
    if min(size) < 1:
        raise InputError(f"{path}: cannot be read as a volume: size {tuple(size)}; expected voxels: damaged")


def check_nrrd(path: Path, stored_bytes: int) -> None:
    """Refuse an NRRD header with sizes that its file cannot hold; ITK keeps their last 32 bits only."""
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    found = re.search(rb"^sizes:([^\r\n]*)", header, re.MULTILINE)
    sizes = found[1].split() if found else []
    if not sizes or not all(size.isdigit() and len(size) < 20 and int(size) for size in sizes):
        text = found[1].decode("ascii", "backslashreplace")[:80] if found else " missing"
        raise InputError(f"{path}: cannot be read as a volume: NRRD sizes{text}; expected numbers of voxels: damaged")
    check_claim(path, math.prod(map(int, sizes)), stored_bytes)


def check_metaimage(path: Path, stored_bytes: int) -> None:
    """Refuse a MetaImage header that ITK's reader dies of, or never gets done with.

    Args:
        path: the file.
        stored_bytes: of it and its data files.

    Raises:
        InputError: it is damaged, or was made to do harm.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    values: dict[bytes, list[bytes]] = {}
    for line in header.split(b"\n"):
        line = line.rstrip(b"\r")
        if line.strip() and not (len(line) <= _META_LINE_BYTES and _META_LINE.fullmatch(line)):
            raise _damaged(path, "line", [line], "'key = value'")
        key, _, value = (part.strip() for part in line.partition(b"="))
        if key in values:
            raise _damaged(path, "key", [key], "each key once")
        if key:
            values[key] = value.split()
        if key == b"ElementDataFile":
            break
    else:
        raise _damaged(path, "ElementDataFile", [], "the name of the data")
    _check_meta_numbers(path, values, stored_bytes)
    if not _META_DATA_NAME.fullmatch(value):
        raise _damaged(path, "ElementDataFile", [value], "a file name, or one pattern such as %03d in it")


def _check_meta_numbers(path: Path, values: dict[bytes, list[bytes]], stored_bytes: int) -> None:
    found = values.get(b"NDims", [])
    dimensions = int(found[0]) if len(found) == 1 and found[0].isdigit() and len(found[0]) < 4 else 0
    if not 1 <= dimensions <= _META_DIMENSIONS:
        raise _damaged(path, "NDims", found, f"1 to {_META_DIMENSIONS}")
    sizes = values.get(b"DimSize", [])
    if len(sizes) != dimensions or not all(size.isdigit() for size in sizes):
        raise _damaged(path, "DimSize", sizes, f"{dimensions} numbers of voxels")
    for key, power in _META_NUMBERS.items():
        numbers = values.get(key)
        if numbers is not None and (len(numbers) != dimensions**power or not all(map(_is_moderate, numbers))):
            raise _damaged(path, key.decode(), numbers, f"{dimensions**power} numbers up to {_META_GREATEST:g}")
    for key, most in ((b"CompressedDataSize", stored_bytes), (b"ElementNumberOfChannels", 1 << 10)):
        numbers = values.get(key, [b"0"])
        if len(numbers) != 1 or not numbers[0].isdigit() or (key in values and int(numbers[0]) > most):
            raise _damaged(path, key.decode(), numbers, f"a whole number up to {most}")


def _is_moderate(text: bytes) -> bool:
    try:
        return abs(float(text)) <= _META_GREATEST
    except ValueError:
        return False


def _damaged(path: Path, key: str, found: list[bytes], expected: str) -> InputError:
    text = b" ".join(found).decode("ascii", "backslashreplace")[:80] or "missing"
    return InputError(f"{path}: cannot be read as a volume: MetaImage {key} {text!r}; expected {expected}: damaged")
