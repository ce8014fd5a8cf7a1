"""Read the bytes of stored voxels: exactly as many as expected, from streams with valid checksums, or none.

Readers of images stop where they have the voxels that they want. The checksum of a compressed stream stands behind
those, so a flipped bit would be read as another voxel; and bytes too many, from a header that lies, as nothing at all.
"""

import bz2
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from isal import igzip, isal_zlib

from data.errors import InputError
from data.files import check_regular
from data.volumes.headers import DEFLATE_EXPANSION, check_claim, unreadable

# bzip2 makes a blank volume far smaller than deflate does.
_BZIP2_EXPANSION = 1 << 16
_GZIP_MAGIC = b"\x1f\x8b"
_DAMAGE = (isal_zlib.error, EOFError, OSError, ValueError)


@dataclass(frozen=True)
class StoredVolume:
    """A volume as its header describes it, with the voxels still in their files.

    Attributes:
        path: of the header.
        files: that hold the voxels, in order, each an equal share; the header's own where they follow it.
        encoding: 'raw', 'gzip', 'zlib', 'bzip2' or 'text' (numbers parted by white space).
        dtype: of a stored voxel, with its byte order.
        size: voxels along (x, y, z).
        spacing, origin, direction: as in `data.volumes.volume.Volume`.
        start: bytes of the file before the stream.
        skipped: decoded bytes before the voxels; None: the voxels are the last bytes.
    """

    path: Path
    files: tuple[Path, ...]
    encoding: str
    dtype: np.dtype
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]
    start: int = 0
    skipped: int | None = 0

    def read(self) -> np.ndarray:
        """Return the voxels, shape (z, y, x), in this machine's byte order.

        Raises:
            InputError: a file is missing or damaged, or holds more or fewer voxels than the header says.
        """
        voxels = math.prod(self.size)
        for file in self.files:
            check_data_file(file, self.path)
        expansion = _BZIP2_EXPANSION if self.encoding == "bzip2" else DEFLATE_EXPANSION
        stored_bytes = sum(file.stat().st_size for file in self.files)
        check_claim(self.path, voxels * self.dtype.itemsize, stored_bytes, expansion)
        if voxels % len(self.files):
            raise unreadable(
                self.path, f"{voxels} voxels in {len(self.files)} files; expected as many in each: damaged"
            )
        shares = [self._read_share(file, voxels // len(self.files)) for file in self.files]
        array = shares[0] if len(shares) == 1 else np.concatenate(shares)
        return array.reshape(self.size[::-1])

    def _read_share(self, file: Path, voxels: int) -> np.ndarray:
        """Return the voxels of one file: a new array, of one dimension."""
        data = memoryview(file.read_bytes())[self.start :]
        if self.encoding == "text":
            return _numbers(file, bytes(data), voxels, self.dtype)
        length = voxels * self.dtype.itemsize
        skipped = max(0, len(data) - length) if self.skipped is None else self.skipped
        decoded = decode(file, data, self.encoding, skipped + length)
        return np.frombuffer(decoded, self.dtype, offset=skipped).astype(self.dtype.newbyteorder("="))


def check_data_file(file: Path, header: Path) -> None:
    """Refuse a data file that is missing or not a regular file."""
    if not file.exists():
        raise InputError(f"{header}: cannot be read as a volume: its data file {file} is missing; copy it along")
    if file.is_dir():
        raise InputError(f"{header}: cannot be read as a volume: its data file {file} is a folder; name the file")
    check_regular(file)


def decode(file: Path, data: bytes | memoryview, encoding: str, length: int) -> bytes | memoryview:
    """Return the `length` bytes that a stream holds.

    Args:
        file: where it comes from, for messages.
        data: the stream, to the end of its file.
        encoding: 'raw', 'gzip', 'zlib' (gzip, too, as MetaIO has it) or 'bzip2'.
        length: bytes that are expected.

    Raises:
        InputError: the stream is damaged or cut short, holds more or fewer bytes, or is followed by something else.
    """
    try:
        decoded = data if encoding == "raw" else _DECODERS[encoding](data, length)
    except _DAMAGE as error:
        raise unreadable(file, f"its {encoding} stream is damaged or truncated ({error}); copy it again") from error
    if len(decoded) != length:
        # Of a compressed stream no more is decoded than shows that there is too much.
        held = f"more than {length}" if encoding != "raw" and len(decoded) > length else len(decoded)
        problem = "truncated" if len(decoded) < length else "the header does not belong to these voxels"
        raise unreadable(file, f"{held} bytes of voxels and header; expected {length}: {problem}; copy it again")
    return decoded


def _gunzip(data: bytes | memoryview, length: int) -> bytes:
    """Return up to `length` + 1 bytes of a gzip file, which has one or more members; zeros may follow them."""
    with igzip.IGzipFile(fileobj=io.BytesIO(data)) as stream:
        decoded = stream.read(length)
        return decoded + more if (more := stream.read(1)) else decoded  # the second read comes to the checksum


def _inflate(data: bytes | memoryview, length: int) -> bytes:
    """Return up to `length` + 1 bytes of a zlib stream."""
    if data[:2] == _GZIP_MAGIC:
        return _gunzip(data, length)
    stream = isal_zlib.decompressobj()
    decoded = stream.decompress(data, length + 1)
    if len(decoded) <= length and not stream.eof:
        raise EOFError("it has no end")
    if stream.unused_data:
        raise ValueError(f"{len(stream.unused_data)} bytes after its end")
    return decoded


def _bunzip2(data: bytes | memoryview, length: int) -> bytes:
    """Return up to `length` + 1 bytes of a bzip2 file, which has one or more streams."""
    parts, wanted = [], length + 1
    while len(data) and wanted:
        stream = bz2.BZ2Decompressor()
        parts.append(stream.decompress(data, wanted))
        wanted -= len(parts[-1])
        if wanted and not stream.eof:
            raise EOFError("it has no end")
        data = stream.unused_data if stream.eof else b""
    return b"".join(parts)


_DECODERS = {"gzip": _gunzip, "zlib": _inflate, "bzip2": _bunzip2}


def _numbers(file: Path, text: bytes, count: int, dtype: np.dtype) -> np.ndarray:
    """Return the numbers of a text, all of which `dtype` holds."""
    words = text.split()
    if len(words) != count:
        raise unreadable(file, f"{len(words)} numbers; its header says {count}: damaged or truncated; copy it again")
    try:
        wide = np.array([(float if dtype.kind == "f" else int)(word) for word in words])
        numbers = wide.astype(dtype)
    except (ValueError, OverflowError) as error:
        raise unreadable(file, f"voxels that are not numbers ({error}): damaged; copy it again") from error
    if dtype.kind != "f" and not np.array_equal(numbers, wide):
        raise unreadable(file, f"numbers from {wide.min()} to {wide.max()}, which {dtype.name} cannot hold: damaged")
    return numbers
