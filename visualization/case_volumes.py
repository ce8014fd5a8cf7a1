"""The volumes of a results page: cut to what there is to see, in patient order, packed for a browser."""

import base64
import math
from dataclasses import dataclass

import numpy as np
from isal import igzip

from data.volumes.volume import Volume
from visualization.planes import PatientOrder, patient_order
from visualization.windows import mr_display_range, uncertainty_reach

HU_STEP = 2
"""CT is stored in steps of this many HU: half as large as single ones, and no eye sees it in any window."""
UNCERTAINTY_STEP = 0.5
"""That of an uncertainty, in HU."""
MR_STEPS = 1000
"""Steps of MR from black to white."""
MAX_VOXELS = 12_000_000
"""Larger volumes are averaged over neighbours until they have no more."""
_MARGIN = 4
_SEEN_ABOVE_HU = -500.0
_SEEN_ABOVE_SHARE = 0.15  # of white, in MR: above its noise
_GZIP_EFFORT = 3  # of ISA-L's: a seventh of zlib's time for files 5 % larger


@dataclass(frozen=True)
class ShownVolume:
    """One volume of a page.

    Attributes:
        id, title: what it is called in the page's files, and on it.
        kind: 'MR', 'CT' or 'uncertainty'.
        scale: stored number times this is the value.
        low, high: what is black and white, or the ends of the colours; a CT's window is chosen on the page.
    """

    id: str
    title: str
    kind: str
    volume: Volume
    scale: float
    low: float
    high: float

    @classmethod
    def of(cls, identity: str, title: str, kind: str, volume: Volume) -> "ShownVolume":
        """Return how a volume is stored and shown."""
        if kind == "CT":
            return cls(identity, title, kind, volume, HU_STEP, 0.0, 0.0)
        if kind == "uncertainty":
            return cls(identity, title, kind, volume, UNCERTAINTY_STEP, 0.0, uncertainty_reach(volume.array))
        low, high = mr_display_range(volume.array)
        return cls(identity, title, kind, volume, max(abs(low), abs(high)) / MR_STEPS, low, high)

    @property
    def seen_above(self) -> float:
        """There is something to see where values are higher; an uncertainty lies where a CT does."""
        if self.kind == "uncertainty":
            return math.inf
        return _SEEN_ABOVE_HU if self.kind == "CT" else self.low + _SEEN_ABOVE_SHARE * (self.high - self.low)


@dataclass(frozen=True)
class Region:
    """The part of a grid that is shown, in patient order: from `start` to `stop`, every `factor` voxels averaged."""

    lie: PatientOrder
    start: tuple[int, ...]
    stop: tuple[int, ...]
    factor: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along S, P and L."""
        return tuple((b - a) // f for a, b, f in zip(self.start, self.stop, self.factor, strict=True))

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Their spacing along S, P and L."""
        return tuple(mm * f for mm, f in zip(self.lie.spacing_mm, self.factor, strict=True))

    @property
    def affine(self) -> np.ndarray:
        """3 x 4 matrix from indices (s, p, l) and 1 to patient coordinates (LPS, mm)."""
        matrix = self.lie.affine.copy()
        first = np.array(self.start) + (np.array(self.factor) - 1) / 2
        matrix[:, 3] += matrix[:, :3] @ first
        matrix[:, :3] *= self.factor
        return matrix

    def cut(self, array: np.ndarray) -> np.ndarray:
        """Return the region of an array (z, y, x) of the grid, in patient order."""
        slices = tuple(slice(a, a + n * f) for a, n, f in zip(self.start, self.shape, self.factor, strict=True))
        part = self.lie.array(array)[slices]
        if self.factor == (1, 1, 1):
            return part
        across, down, along = self.shape
        _, *factors = self.factor
        blocks = (self.factor[0], down, factors[0], along, factors[1])
        averaged = np.empty(self.shape, np.float32)  # row by row: of a large volume there may be no room for a copy
        for k, rows in enumerate(np.split(part, across)):
            averaged[k] = rows.reshape(blocks).mean(axis=(0, 2, 4), dtype=np.float32)
        return averaged


def region_to_show(volumes: list[ShownVolume], max_voxels: int = MAX_VOXELS) -> Region:
    """Return the smallest box with all that any volume shows, and a margin; its finest axes averaged if it is large."""
    lie = patient_order(volumes[0].volume)
    extents = lie.array(volumes[0].volume.array).shape
    seen = [np.zeros(extent, bool) for extent in extents]
    for shown in volumes:
        for k, plane in enumerate(lie.array(shown.volume.array)):
            above = plane > shown.seen_above
            seen[0][k] |= above.any()
            seen[1] |= above.any(axis=1)
            seen[2] |= above.any(axis=0)
    start, stop = [], []
    for along_axis, extent in zip(seen, extents, strict=True):
        used = np.flatnonzero(along_axis)
        start.append(max(0, int(used[0]) - _MARGIN) if used.size else 0)
        stop.append(min(extent, int(used[-1]) + 1 + _MARGIN) if used.size else extent)
    factor = [1, 1, 1]
    while np.prod([(b - a) // f for a, b, f in zip(start, stop, factor, strict=True)]) > max_voxels:
        spacing = [mm * f for mm, f in zip(lie.spacing_mm, factor, strict=True)]
        factor[int(np.argmin(spacing))] += 1
    return Region(lie, tuple(start), tuple(stop), tuple(factor))


def pack(shown: ShownVolume, region: Region) -> str:
    """Return a volume's region as 16-bit steps of `shown.scale`, low bytes before high ones, in gzip and base64."""
    steps = np.rint(region.cut(shown.volume.array) / shown.scale).clip(-32768, 32767).astype("<i2")
    planes = np.ascontiguousarray(steps).view(np.uint8).reshape(-1, 2).T
    return base64.b64encode(igzip.compress(planes.tobytes(), _GZIP_EFFORT, mtime=0)).decode()
