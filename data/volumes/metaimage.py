"""MetaImage headers (.mha, .mhd), read here because some crash or hang MetaIO's own reader.

The format: https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data.volumes.headers import (
    UNITS_MM,
    TextHeader,
    check_size,
    finite_number,
    finite_numbers,
    read_start,
    whole_numbers,
)
from data.volumes.streams import StoredVolume

# MetaIO's own limit.
_MAX_DIMENSIONS = 10
_MAX_CHANNELS = 1 << 10
_LINE = re.compile(r"[^=\x00-\x1f]{1,255}=[^\x00-\x08\x0a-\x1f]{0,4096}")
# MetaIO's MET_LONG has 4 bytes.
_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_ORIGIN = ("Offset", "Position", "Origin")
_DIRECTION = ("TransformMatrix", "Rotation", "Orientation")
_BYTE_ORDER = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
# ITK's reader ignores these; with other values voxels or geometry would be others.
_EXPECTED = {
    "ElementToIntensityFunctionSlope": 1.0,
    "ElementToIntensityFunctionOffset": 0.0,
}


def read_metaimage(path: Path) -> StoredVolume:
    """Read the header of a MetaImage.

    Raises:
        InputError: it is damaged, says nothing of the spacing, or is of no 3-D scalar volume.
    """
    return _Header(path).volume()


class _Header(TextHeader):
    format = "MetaImage"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        start = read_start(path)
        at = 0
        while "ElementDataFile" not in self.values:
            end = start.find(b"\n", at) + 1 or len(start)
            line = start[at:end].decode("utf-8", "surrogateescape").rstrip("\r\n")
            if at == len(start):
                raise self.damaged("ElementDataFile", None, "the name of the data")
            if line.strip():
                self._add(line)
            at = end
        self.bytes, self.rest = at, start[at:]

    def _add(self, line: str) -> None:
        if not _LINE.fullmatch(line):
            raise self.damaged("line", line, "'key = value'")
        key, _, value = (part.strip() for part in line.partition("="))
        if key in self.values:
            raise self.damaged("key", key, "each key once")
        self.values[key] = value

    def volume(self) -> StoredVolume:
        dimensions = self.whole("NDims", 1, _MAX_DIMENSIONS)
        size = self._sizes(dimensions)
        if self.values.get("ObjectType", "Image") != "Image":
            raise self.damaged("ObjectType", self.values["ObjectType"], "Image")
        check_size(self.path, size, self.whole("ElementNumberOfChannels", 1, _MAX_CHANNELS, 1))
        for key, expected in _EXPECTED.items():
            if key in self.values and finite_number(self.values[key]) != expected:
                raise self.damaged(key, self.values[key], f"{expected:g}: other values are not read")
        if "ElementSpacing" not in self.values and "ElementSize" not in self.values:
            raise self.damaged("ElementSpacing", None, f"{dimensions} numbers of mm; add the line to the header")
        spacing = self._numbers(
            ("ElementSpacing",) if "ElementSpacing" in self.values else ("ElementSize",), dimensions
        )
        identity = np.eye(dimensions)
        # A row of the file is the direction of one index axis, a column of ours.
        rows = np.reshape(self._numbers(_DIRECTION, dimensions**2, identity.ravel()), (dimensions, dimensions))
        origin = self._numbers(_ORIGIN, dimensions, [0.0] * dimensions)
        unit = self.values.get("DistanceUnits", "mm").strip('"')
        factor = UNITS_MM.get("mm" if unit == "?" else unit.lower())
        if factor is None:
            raise self.damaged("DistanceUnits", unit, f"one of {', '.join(filter(None, UNITS_MM))}")
        local = self.values["ElementDataFile"].lower() == "local"
        listed = self.rest.decode("utf-8", "surrogateescape").splitlines()
        files = (self.path,) if local else self.data_files("ElementDataFile", listed)
        header = self.whole("HeaderSize", -1, 1 << 40, 0)
        encoding = self._encoding()
        if header == -1 and encoding != "raw":
            raise self.damaged("HeaderSize", "-1", "0 or more for data that are compressed or text")
        return StoredVolume(
            self.path, files, encoding, self._dtype(), (size[0], size[1], size[2]), _first_three(spacing, factor),
            _first_three(origin, factor), tuple(rows[:3, :3].T.ravel().tolist()),
            self.bytes if local else max(header, 0), None if header == -1 else 0,
        )  # fmt: skip

    def _sizes(self, dimensions: int) -> list[int]:
        text = self.values.get("DimSize")
        sizes = whole_numbers((text or "").split(), 1)
        if sizes is None or len(sizes) != dimensions:
            raise self.damaged("DimSize", text, f"{dimensions} numbers of voxels")
        return sizes

    def _numbers(self, keys: tuple[str, ...], count: int, default: Iterable[float] = ()) -> list[float]:
        """Return the numbers of the one of several keys that mean the same."""
        given = [key for key in keys if key in self.values]
        if len(given) > 1:
            raise self.damaged(given[1], self.values[given[1]], f"either this or {given[0]}")
        if not given:
            return list(default)
        numbers = finite_numbers(self.values[given[0]].split())
        if numbers is None or len(numbers) != count:
            raise self.damaged(given[0], self.values[given[0]], f"{count} finite numbers up to 1e9")
        return numbers

    def _boolean(self, key: str, default: bool) -> bool:
        value = _BOOLEANS.get(self.values.get(key, str(default)).lower())
        if value is None:
            raise self.damaged(key, self.values[key], "True or False")
        return value

    def _encoding(self) -> str:
        if not self._boolean("BinaryData", True):
            return "text"
        return "zlib" if self._boolean("CompressedData", False) else "raw"

    def _dtype(self) -> np.dtype:
        name = self.values.get("ElementType")
        if name not in _TYPES:
            raise self.damaged("ElementType", name, f"one of {' '.join(_TYPES)}")
        orders = {self._boolean(key, False) for key in _BYTE_ORDER if key in self.values}
        if len(orders) == 2:
            raise self.damaged(_BYTE_ORDER[1], self.values[_BYTE_ORDER[1]], f"the same as {_BYTE_ORDER[0]}")
        return np.dtype((">" if True in orders else "<") + _TYPES[name])


def _first_three(values: list[float], factor: float) -> tuple[float, float, float]:
    x, y, z = (value * factor for value in values[:3])
    return x, y, z
