"""NRRD headers (.nrrd, .nhdr), read here because some make ITK's reader write beyond its arrays and crash.

The format: https://teem.sourceforge.net/nrrd/format.html
"""

import re
from pathlib import Path

import numpy as np

from data.volumes.headers import (
    UNITS_MM,
    TextHeader,
    check_size,
    finite_number,
    finite_numbers,
    read_start,
    split_axes,
    unreadable,
    whole_numbers,
)
from data.volumes.streams import StoredVolume

_MAX_DIMENSIONS = 16
_TYPES = {
    "i1": "signed char|int8|int8_t",
    "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t",
    "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "f4": "float",
    "f8": "double",
}
_DTYPES = {name: code for code, names in _TYPES.items() for name in names.split("|")}
_ENCODINGS = {
    "raw": "raw", "txt": "text", "text": "text", "ascii": "text", "gz": "gzip", "gzip": "gzip", "bz2": "bzip2",
    "bzip2": "bzip2",
}  # fmt: skip
# Signs that turn a space's axes into left, posterior, superior. Others say nothing of the patient; theirs are kept.
_SPACES = {
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1), "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
    "scanner-xyz": (1, 1, 1), "3d-right-handed": (1, 1, 1), "3d-left-handed": (1, 1, 1),
}  # fmt: skip
# Fields without a bearing on voxels and geometry, and those that are read, under the one of their names that is kept.
_FIELDS = (
    "type", "dimension", "space", "space dimension", "space units", "sizes", "space origin", "space directions",
    "endian", "encoding", "line skip", "byte skip", "data file", "spacings", "kinds", "units", "axis mins", "content",
    "number", "block size", "sample units", "measurement frame", "min", "max", "old min", "old max", "thicknesses",
    "axis maxs", "centers", "labels",
)  # fmt: skip
_SYNONYMS = {field.replace(" ", ""): field for field in _FIELDS} | {"centerings": "centers"}
_VECTOR = re.compile(r"none|\([^()]*\)", re.IGNORECASE)
_QUOTED = re.compile(r'"([^"]*)"')
# Axes of one of these kinds run through space or time; the others through the values of a voxel.
_DOMAIN_KINDS = ("domain", "space", "time", "none", "???")


def read_nrrd(path: Path) -> StoredVolume:
    """Read an NRRD header, in mm and LPS.

    Raises:
        InputError: it is damaged, says nothing of the spacing, or is of no 3-D scalar volume.
    """
    return _Header(path).volume()


class _Header(TextHeader):
    format = "NRRD"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        start = read_start(path)
        if not re.match(rb"NRRD000[1-5]\r?\n", start):
            raise unreadable(path, f"it begins with {ascii(start[:12])[1:]}; expected NRRD0004: damaged, or no NRRD")
        at, line = start.index(b"\n") + 1, ""
        while at < len(start):
            end = start.find(b"\n", at) + 1 or len(start)
            line = start[at:end].decode("utf-8", "surrogateescape").rstrip("\r\n")
            at = end
            if not line or self.values.get("data file", "").split()[:1] == ["LIST"]:
                break
            self._add(line)
        self.bytes, self.list = at, [line, *start[at:].decode("utf-8", "surrogateescape").splitlines()]

    def _add(self, line: str) -> None:
        if line.startswith("#") or re.match(r"[^:]*:=", line):  # a comment; a key of the user's
            return
        name, colon, value = line.partition(": ")
        name, colon, value = (line[:-1], ":", "") if not colon and line.endswith(":") else (name, colon, value)
        field = _SYNONYMS.get(name.lower().replace(" ", ""))
        if not colon or field is None:
            raise unreadable(self.path, f"NRRD line {line[:80]!a}; expected 'field: value' of the format: damaged")
        if field in self.values:
            raise self.damaged(field, value, "each field once")
        self.values[field] = value.strip()

    def volume(self) -> StoredVolume:
        dimensions = self.whole("dimension", 1, _MAX_DIMENSIONS)
        sizes = whole_numbers(self.values.get("sizes", "").split(), 1)
        if sizes is None or len(sizes) != dimensions:
            raise self.damaged("sizes", self.values.get("sizes"), f"{dimensions} numbers of voxels")
        axes = self._spatial_axes(sizes)
        columns, rows, slices = (sizes[axis] for axis in axes)
        spacing, origin, direction = self._geometry(axes, dimensions)
        files = self.data_files("data file", self.list, 4) if "data file" in self.values else (self.path,)
        encoding = self._encoding()
        skipped = self.whole("byte skip", -1, 1 << 40, 0)
        if skipped == -1 and encoding != "raw":
            raise self.damaged("byte skip", "-1", "0 or more, with an encoding other than raw")
        if self.whole("line skip", 0, 1 << 40, 0):
            raise self.damaged("line skip", self.values["line skip"], "0: lines before the data are not read")
        return StoredVolume(
            self.path, files, encoding, self._dtype(encoding), (columns, rows, slices), spacing, origin, direction,
            self.bytes if files == (self.path,) else 0, None if skipped == -1 else skipped,
        )  # fmt: skip

    def _spatial_axes(self, sizes: list[int]) -> list[int]:
        """Return the three axes of a volume; others must have one place."""
        kinds = self.values.get("kinds", "").lower().split() or ["domain"] * len(sizes)
        if len(kinds) != len(sizes):
            raise self.damaged("kinds", self.values["kinds"], f"{len(sizes)} words")
        values = [axis for axis, kind in enumerate(kinds) if kind not in _DOMAIN_KINDS]
        axes = [axis for axis in range(len(sizes)) if axis not in values]
        shape = [sizes[axis] for axis in axes]
        check_size(self.path, shape, int(np.prod([sizes[axis] for axis in values], dtype=float)))
        return axes[:3]

    def _geometry(self, axes: list[int], dimensions: int) -> tuple[tuple, tuple, tuple]:
        """Return spacing, origin and direction."""
        if "space" not in self.values and "space dimension" not in self.values:
            return self._plain_geometry(axes, dimensions)
        space = self.values.get("space", "scanner-xyz").lower().removesuffix("-time")
        if space not in _SPACES:
            raise self.damaged("space", self.values["space"], f"one of {', '.join(_SPACES)}")
        vectors = [self._vector("space directions", text) for text in self._vectors(dimensions)]
        steps = [vectors[axis] for axis in axes]
        origin = self._vector("space origin", self.values.get("space origin", "(0,0,0)"))
        if None in steps or origin is None:
            raise self.damaged("space directions", self.values.get("space directions"), "a vector for each axis")
        signs = np.array(_SPACES[space])
        units = self._units()
        spacing, direction = split_axes(np.array(steps) * signs * units)
        return spacing, tuple((np.array(origin) * signs * units).tolist()), direction

    def _plain_geometry(self, axes: list[int], dimensions: int) -> tuple[tuple, tuple, tuple]:
        """Return the geometry of a header that names no space: its spacings along the axes of the array."""
        words = self.values.get("spacings", "").split()
        steps = finite_numbers(words[axis] for axis in axes) if len(words) == dimensions else None
        if steps is None:
            raise self.damaged("spacings", self.values.get("spacings"), f"{dimensions} finite numbers of mm")
        factors = [self._factor(unit) for unit in _QUOTED.findall(self.values.get("units", ""))] or [1.0] * dimensions
        if len(factors) != dimensions:
            raise self.damaged("units", self.values["units"], f"{dimensions} of them in quotes")
        spacing = tuple(step * factors[axis] for axis, step in zip(axes, steps, strict=True))
        minima = [finite_number(word) for word in self.values.get("axis mins", "").split()] or [0.0] * dimensions
        if len(minima) != dimensions:
            raise self.damaged("axis mins", self.values["axis mins"], f"{dimensions} numbers")
        centers = self.values.get("centers", "").lower().split() or ["cell"] * dimensions
        if len(centers) != dimensions:
            raise self.damaged("centers", self.values["centers"], f"{dimensions} words")
        # The least place of an axis is a border of its first voxel, unless it says that it is the centre.
        inside = [
            0.0 if centers[axis] == "node" or minima[axis] is None else step / 2
            for axis, step in zip(axes, steps, strict=True)
        ]
        has_minima = "axis mins" in self.values
        origin = tuple(
            ((minima[axis] or 0.0) + shift) * factors[axis] if has_minima else 0.0
            for axis, shift in zip(axes, inside, strict=True)
        )
        return spacing, origin, tuple(np.eye(3).ravel().tolist())

    def _vectors(self, dimensions: int) -> list[str]:
        text = self.values.get("space directions")
        found = _VECTOR.findall(text or "")
        if text is None or len(found) != dimensions or _VECTOR.sub("", text).strip():
            raise self.damaged("space directions", text, f"{dimensions} vectors such as (1,0,0)")
        return found

    def _vector(self, field: str, text: str) -> list[float] | None:
        """Return a vector's three numbers (of four in a space with time, the first three); None for `none`."""
        if text.lower() == "none":
            return None
        numbers = finite_numbers(text.strip()[1:-1].split(","))
        if not (text.startswith("(") and text.endswith(")")) or numbers is None or len(numbers) != 3:
            raise self.damaged(field, text, "three finite numbers, as in (1,0,0)")
        return numbers

    def _units(self) -> float:
        """Return the mm of one unit of the space."""
        units = _QUOTED.findall(self.values.get("space units", ""))
        factors = {self._factor(unit) for unit in units} or {1.0}
        if len(factors) > 1:
            raise self.damaged("space units", self.values["space units"], "one unit for all axes")
        return factors.pop()

    def _factor(self, unit: str) -> float:
        if unit.lower() not in UNITS_MM:
            raise self.damaged("units", unit, f"one of {', '.join(filter(None, UNITS_MM))}")
        return UNITS_MM[unit.lower()]

    def _encoding(self) -> str:
        encoding = self.values.get("encoding", "")
        if encoding.lower() not in _ENCODINGS:
            raise self.damaged("encoding", self.values.get("encoding"), f"one of {', '.join(_ENCODINGS)}")
        return _ENCODINGS[encoding.lower()]

    def _dtype(self, encoding: str) -> np.dtype:
        code = _DTYPES.get(" ".join(self.values.get("type", "").lower().split()))
        if code is None:
            raise self.damaged("type", self.values.get("type"), "a number such as short or float")
        order = {"little": "<", "big": ">"}.get(self.values.get("endian", "").lower())
        if order is None and encoding != "text" and not code.endswith("1"):
            raise self.damaged("endian", self.values.get("endian"), "little or big")
        return np.dtype((order or "=") + code)
