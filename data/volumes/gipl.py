"""GIPL volumes (.gipl, .gipl.gz): a header of 256 bytes, big-endian, then the voxels.

The layout is that of ITK's `GiplImageIO`.
"""

import struct
from pathlib import Path

import numpy as np
from isal import igzip, isal_zlib

from data.files import check_regular
from data.volumes.headers import check_size, unreadable
from data.volumes.streams import StoredVolume

_HEADER_BYTES = 256
_MAGIC = (0xEFFFE9B0, 0x2AE389B8)
_TYPES = {7: "i1", 8: "u1", 15: "i2", 16: "u2", 31: "u4", 32: "i4", 64: "f4", 65: "f8"}


def read_gipl(path: Path) -> StoredVolume:
    """Read the header of a GIPL volume; the format stores no direction.

    Raises:
        InputError: it is damaged, or of no 3-D scalar volume.
    """
    check_regular(path)
    compressed = path.name.lower().endswith(".gz")
    try:
        with (igzip.open if compressed else open)(path, "rb") as file:
            header = file.read(_HEADER_BYTES)
    except (isal_zlib.error, EOFError, OSError) as error:
        raise unreadable(path, f"{error}: damaged, or not gzip-compressed; copy it again") from error
    if len(header) < _HEADER_BYTES or struct.unpack_from(">I", header, 252)[0] not in _MAGIC:
        raise unreadable(path, "it does not begin with a GIPL header: damaged, or another format")
    *size, kind = struct.unpack_from(">4HH", header)
    if kind not in _TYPES:
        raise unreadable(path, f"GIPL type {kind}; expected one of {', '.join(map(str, _TYPES))}")
    if not all(size[:3]):
        raise unreadable(path, f"GIPL size {size[:3]}; expected numbers of voxels: damaged")
    check_size(path, size if size[3] > 1 else size[:3])
    spacing = struct.unpack_from(">3f", header, 10)
    origin = struct.unpack_from(">3d", header, 204)
    return StoredVolume(
        path, (path,), "gzip" if compressed else "raw", np.dtype(">" + _TYPES[kind]), tuple(size[:3]), spacing, origin,
        tuple(np.eye(3).ravel().tolist()), skipped=_HEADER_BYTES,
    )  # fmt: skip
