"""The one invertible map between a volume's grid and the square slices that the networks see.

`SliceFrame.prepare` turns a volume into N slices of `size` x `size` pixels of `spacing_mm`: axes permuted and flipped
to the closest axial (or coronal, or sagittal) orientation, resampled linearly in the plane, cropped or padded about the
centre. `restore` goes back to exactly the volume's own grid. Every step is linear along one axis, so a frame is three
small matrices; where the spacing is already right they only move voxels, and the round trip is exact. Moving by whole
voxels, a frame of even size lies half a voxel beside the centre of an axis with an odd number of them.

Slices lie as a radiologist sees them. Axial: rows run from anterior to posterior, columns from the patient's right to
left, and slice 0 is the most inferior. Coronal: rows run from the head down, columns from right to left, and slice 0 is
the most anterior. Sagittal: rows run from the head down, columns from anterior to posterior, and slice 0 is the
leftmost.

Both ways go plane by plane: `slices_of` makes a slice when it is asked for, and `restoring` takes one after the other,
so that a volume of any size needs memory for a few planes. No voxel depends on which others are computed with it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from data.errors import InputError
from data.volumes.volume import Volume, axial_order, flipped

# Spacings that differ by less than this many pixels over the whole width count as equal: no resampling.
_SAME_SPACING_PX = 1e-2
# For each view: which of the axes to the head (0), the back (1) and the left (2) run through the slices, along their
# columns and along their rows, and which of the three are turned. Each is right-handed.
VIEWS = {
    "axial": ((0, 1, 2), (False, False, False)),
    "coronal": ((1, 0, 2), (False, True, False)),
    "sagittal": ((2, 0, 1), (True, True, False)),
}


def view_order(direction: tuple[float, ...], view: str) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Return which axes of an array (z, y, x) become axes 0, 1 and 2 of a view's slices, and which are flipped."""
    order, flips = axial_order(direction)
    axes, turned = VIEWS[view]
    return tuple(order[axis] for axis in axes), tuple(flips[a] != turn for a, turn in zip(axes, turned, strict=True))


def view_direction(view: str) -> tuple[float, ...]:
    """Return the direction cosines of a volume whose array, (z, y, x), holds a view's slices as they are."""
    axes, turned = VIEWS[view]
    columns = []
    for axis, turn in zip(axes[::-1], turned[::-1], strict=True):  # of the index axes x, y and z
        column = np.zeros(3)
        column[2 - axis] = -1.0 if turn else 1.0  # patient axes L, P, S
        columns.append(column)
    return tuple(np.stack(columns, axis=1).ravel().tolist())


@dataclass(frozen=True)
class SliceFrame:
    """The map of one volume's grid to slices.

    Attributes:
        source_size: voxels of the volume along (x, y, z).
        source_spacing, source_origin, source_direction: its geometry, as in `Volume`.
        size: width and height of a slice in pixels.
        spacing_mm: pixel spacing of a slice.
        slice_mm: spacing between slices, or None to keep the volume's own slices.
        view: a key of `VIEWS`.
    """

    source_size: tuple[int, int, int]
    source_spacing: tuple[float, float, float]
    source_origin: tuple[float, float, float]
    source_direction: tuple[float, ...]
    size: int
    spacing_mm: float
    slice_mm: float | None = None
    view: str = "axial"

    @classmethod
    def of(
        cls, volume: Volume, size: int, spacing_mm: float, slice_mm: float | None = None, view: str = "axial"
    ) -> "SliceFrame":
        """Return the frame of `volume` for slices of `size` pixels of `spacing_mm`."""
        if size < 1 or not spacing_mm > 0 or (slice_mm is not None and not slice_mm > 0):
            raise InputError(
                f"frame of {size} pixels of {spacing_mm} mm, slices of {slice_mm} mm: expected positive numbers"
            )
        return cls(volume.size, volume.spacing, volume.origin, volume.direction, size, spacing_mm, slice_mm, view)

    def to_dict(self) -> dict:
        """Return a JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> "SliceFrame":
        """Return the frame that `to_dict` wrote."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**fields)

    @property
    def slices(self) -> int:
        """Number of slices."""
        return self._axes[0].count

    @property
    def resamples(self) -> bool:
        """Whether any axis is interpolated; if not, voxels inside the frame come back exactly."""
        return any(axis.resamples for axis in self._axes)

    @property
    def in_plane_mm(self) -> float:
        """The finer in-plane spacing of the source, in mm."""
        return min(axis.source_mm for axis in self._axes[1:])

    @property
    def through_mm(self) -> float:
        """The spacing of the source between its slices, in mm."""
        return self._axes[0].source_mm

    def prepare(self, volume: Volume, fill: float) -> np.ndarray:
        """Return the volume's slices, float32 (N, size, size) in the volume's units; `fill` where it has no voxels."""
        slices = np.empty((self.slices, self.size, self.size), np.float32)
        each = self.slices_of(volume, fill)
        for index in range(len(each)):
            slices[index] = each[index]
        return slices

    def slices_of(self, volume: Volume, fill: float) -> "FrameSlices":
        """Return the slices of `prepare`, each made on demand."""
        return FrameSlices(self._canonical(volume), self._plane_map([axis.forward() for axis in self._axes], fill))

    def prepare_labels(self, labels: Volume) -> np.ndarray:
        """Return a label map's or mask's slices by nearest neighbour, (N, size, size), 0 where it has no voxels."""
        each = self.labels_of(labels)
        slices = np.empty((self.slices, self.size, self.size), labels.array.dtype)
        for index in range(len(slices)):
            slices[index] = each[index]
        return slices

    def labels_of(self, labels: Volume) -> "LabelSlices":
        """Return the slices of `prepare_labels`, each made on demand."""
        return LabelSlices(self._canonical(labels), [axis.nearest() for axis in self._axes])

    def restore(self, slices: np.ndarray, fill: float) -> Volume:
        """Return slices (N, size, size) on the source's own grid, float32; voxels outside the frame become `fill`."""
        if slices.shape != (self.slices, self.size, self.size):
            expected = (self.slices, self.size, self.size)
            raise ValueError(f"slices of shape {slices.shape} for a frame of {expected}")
        restored = self.restoring(fill)
        for index, one in enumerate(slices):
            restored.add(index, one)
        return Volume(restored.finished(), self.source_spacing, self.source_origin, self.source_direction)

    def restoring(self, fill: float, dtype: DTypeLike = np.float32) -> "RestoredVolume":
        """Return a volume on the source's own grid that takes its slices one by one; whole numbers are rounded to."""
        array = np.full(self.source_size[::-1], fill, dtype)
        return RestoredVolume(
            array, self._canonical(Volume(array)), self._plane_map([axis.backward() for axis in self._axes], fill)
        )

    def outside(self, mask: np.ndarray) -> int:
        """Return how many voxels of a body mask on the source grid, bool (z, y, x), fall outside the slices."""
        return int(np.count_nonzero(mask)) - int(np.count_nonzero(self.inside(mask)))

    def inside(self, mask: np.ndarray) -> np.ndarray:
        """Return a mask on the source grid, bool (z, y, x), without its voxels that fall outside the slices."""
        inside = np.zeros_like(mask)
        kept = np.ix_(*(axis.covered() for axis in self._axes))
        self._canonical(Volume(inside))[kept] = self._canonical(Volume(mask))[kept]  # a view of `inside`
        return inside

    def slices_with(self, mask: np.ndarray) -> np.ndarray:
        """Return which slices hold a part of a mask on the source grid, however small: bool (N,).

        Only from these do the mask's voxels take their values in `restore`: both ways reach equally far.
        """
        used = self._canonical(Volume(mask)).any(axis=(1, 2))
        return self._axes[0].forward() @ used.astype(np.float32) > 0

    def body_extent_mm(self, mask: np.ndarray) -> float:
        """Return the in-plane width (mm) of the smallest square that holds a body mask on the source grid.

        A frame of an even size at least that wide keeps the whole body. The square is centred as such a frame is, for
        which half a voxel more is counted where an axis has an odd number of voxels and may not be resampled.
        """
        canonical = self._canonical(Volume(mask))
        extents = [0.0]
        for dimension in (1, 2):
            used = np.flatnonzero(canonical.any(axis=tuple(d for d in range(3) if d != dimension)))
            if used.size:
                centre = (canonical.shape[dimension] - 1) / 2
                beside = 0.5 * (canonical.shape[dimension] % 2)
                reach = max(centre + beside - used[0], used[-1] - centre) + 0.5
                extents.append(2 * reach * self._axes[dimension].source_mm)
        return max(extents)

    @cached_property
    def _order(self) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """The volume's array axes that become axes 0, 1, 2 of the slices, and which of them are flipped."""
        return view_order(self.source_direction, self.view)

    @cached_property
    def _axes(self) -> tuple["_Axis", "_Axis", "_Axis"]:
        counts = [self.source_size[2 - axis] for axis in self._order[0]]
        source_mm = [self.source_spacing[2 - axis] for axis in self._order[0]]
        through = _Axis(counts[0], source_mm[0], self.slice_mm or source_mm[0], None)
        rows, columns = (_Axis(counts[d], source_mm[d], self.spacing_mm, self.size) for d in (1, 2))
        return through, rows, columns

    def _canonical(self, volume: Volume) -> np.ndarray:
        if volume.size != self.source_size:
            raise ValueError(f"volume of size {volume.size} in a frame made for {self.source_size}")
        array = volume.array.transpose(self._order[0])
        return flipped(array, self._order[1])

    def _plane_map(self, matrices: list[np.ndarray], fill: float) -> "_PlaneMap":
        along_z, along_y, along_x = matrices
        return _PlaneMap(along_z, along_y, along_x, self.resamples, fill)


class FrameSlices:
    """The slices of a volume, each made on demand. In order, no plane is resampled twice."""

    def __init__(self, planes: np.ndarray, plane_map: "_PlaneMap") -> None:
        """Take the volume's planes along the frame's first axis, and the map from them to slices."""
        self._source, self._map = planes, plane_map
        self._planes: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """Return the number of slices."""
        return self._map.count

    def __getitem__(self, index: int) -> np.ndarray:
        """Return one slice, float32 (size, size)."""
        known = self._planes
        self._planes = {
            k: known[k] if k in known else self._map.in_plane(self._source[k]) for k in self._map.needed(index)
        }
        return self._map.combined(index, self._planes)


class LabelSlices:
    """The slices of a label map by nearest neighbour, each made on demand."""

    def __init__(self, planes: np.ndarray, nearest: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Take planes along the frame's first axis; for each axis the nearest voxels, and which lie in the volume."""
        self._planes, self._nearest = planes, nearest

    def __getitem__(self, index: int) -> np.ndarray:
        """Return one slice (size, size), 0 where it has no voxels."""
        (z, in_z), (y, in_y), (x, in_x) = self._nearest
        inside = in_z[index] & in_y[:, None] & in_x[None, :]
        return np.where(inside, self._planes[z[index]][np.ix_(y, x)], self._planes.dtype.type(0))


class RestoredVolume:
    """A volume on its own grid, `array` (z, y, x), that becomes whole as its slices are added, in their order."""

    def __init__(self, array: np.ndarray, planes: np.ndarray, plane_map: "_PlaneMap") -> None:
        """Take an array that is filled already, a view of its planes along the frame's first axis, and their map."""
        self.array = array
        self._target, self._map = planes, plane_map
        self._planes: dict[int, np.ndarray] = {}
        self._written = 0

    def add(self, index: int, one: np.ndarray) -> None:
        """Add slice `index`, float32 (size, size); those before it that were not added are of nothing but the fill."""
        self._planes[index] = self._map.in_plane(one)
        self._write(index + 1)

    def finished(self) -> np.ndarray:
        """Return `array`; slices that were not added are of nothing but the fill."""
        self._write(None)
        return self.array

    def _write(self, added: int | None) -> None:
        """Write the planes that need no slice from number `added` on; None: all that are left."""
        while self._written < len(self._target):
            if added is not None and self._map.last_needed(self._written) >= added:
                break
            plane = self._map.combined(self._written, self._planes)
            self._target[self._written] = plane if self.array.dtype.kind == "f" else np.rint(plane, out=plane)
            self._written += 1
        first = self._map.first_needed_from(self._written)
        self._planes = {k: plane for k, plane in self._planes.items() if k >= first}


class _PlaneMap:
    """Planes to planes by three matrices: each plane by itself, then weighted sums of neighbouring ones."""

    def __init__(
        self, along_z: np.ndarray, along_y: np.ndarray, along_x: np.ndarray, resamples: bool, fill: float
    ) -> None:
        """Take the matrices; a row of zeros marks output without input, which becomes `fill`."""
        self.count, self.fill, self.resamples = len(along_z), np.float32(fill), resamples
        self._along_z, self._in_plane = along_z, (along_y, along_x)
        self._needed = [np.flatnonzero(row).tolist() for row in along_z]
        firsts = [row[0] if row else along_z.shape[1] for row in self._needed]
        self._first_from = [*np.minimum.accumulate(firsts[::-1])[::-1].tolist(), along_z.shape[1]]
        self._filled = [np.flatnonzero(matrix.any(axis=1)) for matrix in self._in_plane]

    def needed(self, index: int) -> list[int]:
        """Return which planes of the input make plane `index` of the output, in order."""
        return self._needed[index]

    def last_needed(self, index: int) -> int:
        """Return the last of the planes that make plane `index`, -1 where none does."""
        return max(self._needed[index], default=-1)

    def first_needed_from(self, index: int) -> int:
        """Return the first of the planes that make plane `index` or one after it."""
        return self._first_from[index]

    def combined(self, index: int, planes: Mapping[int, np.ndarray]) -> np.ndarray:
        """Return plane `index` of the output, float32, of `in_plane` of the input's by number; others are `fill`."""
        total = None
        for k in self._needed[index]:
            if k in planes:
                term = planes[k] * self._along_z[index, k]
                total = term if total is None else np.add(total, term, out=total)
        if total is None:
            return np.full([len(matrix) for matrix in self._in_plane], self.fill)
        return np.add(total, self.fill, out=total) if self.resamples else total

    def in_plane(self, plane: np.ndarray) -> np.ndarray:
        """Return a plane of the input, float32, moved or resampled in itself."""
        along_y, along_x = self._in_plane
        # Interpolating the difference from `fill` makes rows of zeros come out as `fill` itself; where nothing is
        # interpolated this must not round, so the voxels are moved by index instead.
        if self.resamples:
            return along_y @ (plane.astype(np.float32) - self.fill) @ along_x.T
        out = np.full((len(along_y), len(along_x)), self.fill)
        rows, columns = self._filled
        out[np.ix_(rows, columns)] = plane[np.ix_(along_y[rows].argmax(axis=1), along_x[columns].argmax(axis=1))]
        return out


@dataclass(frozen=True)
class _Axis:
    """One axis of the map: `source_count` voxels of `source_mm` to `size` pixels of `target_mm`."""

    source_count: int
    source_mm: float
    target_mm: float
    size: int | None

    @property
    def resamples(self) -> bool:
        return abs(self.source_count * (self.source_mm / self.target_mm - 1)) > _SAME_SPACING_PX

    @property
    def _step(self) -> float:
        """Source voxels a target pixel."""
        return self.target_mm / self.source_mm if self.resamples else 1.0

    @property
    def _full_count(self) -> int:
        """Pixels that cover every voxel centre, before cropping: one at least."""
        return max(1, int(np.ceil(self.source_count / self._step - 1e-6)))

    @property
    def count(self) -> int:
        """Pixels after cropping or padding."""
        return self._full_count if self.size is None else self.size

    def _target_positions(self) -> np.ndarray:
        """Source index (fractional) of every pixel of the slice."""
        if not self.resamples:
            return np.arange(self.count) - float((self.count - self.source_count) // 2)
        return (np.arange(self.count) - (self.count - 1) / 2) * self._step + (self.source_count - 1) / 2

    def _source_positions(self) -> np.ndarray:
        """Slice pixel (fractional) of every voxel of the source."""
        first = self._target_positions()[0]
        return (np.arange(self.source_count) - first) / self._step

    def covered(self) -> np.ndarray:
        """Indices of source voxels whose centre lies inside the slice."""
        return np.flatnonzero(_inside(self._source_positions(), self.count))

    def nearest(self) -> tuple[np.ndarray, np.ndarray]:
        """Return for every pixel its nearest voxel, and whether there is one."""
        positions = self._target_positions()
        # floor(x + 0.5) rather than rint: rounding halves to even would repeat one voxel and skip the next.
        index = np.floor(positions + 0.5).astype(int).clip(0, self.source_count - 1)
        return index, _inside(positions, self.source_count, self._beyond)

    def forward(self) -> np.ndarray:
        return _linear_matrix(self._target_positions(), self.source_count, self._step, self._beyond)

    def backward(self) -> np.ndarray:
        return _linear_matrix(self._source_positions(), self.count, 1 / self._step)

    @property
    def _beyond(self) -> float:
        """How far (voxels) beyond the outer voxels' centres pixels are filled: each voxel then lies in a filled one."""
        return max(self._step, 1.0) / 2


def _inside(positions: np.ndarray, count: int, beyond: float = 0.5) -> np.ndarray:
    return (positions > -beyond - 1e-6) & (positions < count - 1 + beyond + 1e-6)


def _linear_matrix(positions: np.ndarray, count: int, step: float, beyond: float = 0.5) -> np.ndarray:
    """Return the matrix, float32 (len(positions), count), that interpolates `count` samples linearly at `positions`.

    For `step` > 1 (coarser output) the triangle is widened to the step, which keeps noise and edges from aliasing.
    Positions up to `beyond` samples past an end take the end's value; farther out the row is zero.
    """
    width = max(step, 1.0)
    distance = np.abs(positions.clip(0, count - 1)[:, None] - np.arange(count)[None, :])
    weights = np.maximum(0.0, 1.0 - distance / width)
    weights /= weights.sum(axis=1, keepdims=True)
    weights[~_inside(positions, count, beyond)] = 0.0
    return weights.astype(np.float32)
