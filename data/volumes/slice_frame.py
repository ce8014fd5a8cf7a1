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
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

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
        return self._through(self._canonical(volume), fill, lambda axis: axis.forward())

    def prepare_labels(self, labels: Volume) -> np.ndarray:
        """Return a label map's or mask's slices by nearest neighbour, (N, size, size), 0 where it has no voxels."""
        array = self._canonical(labels)
        for dimension, axis in enumerate(self._axes):
            index, inside = axis.nearest()
            shape = [-1 if d == dimension else 1 for d in range(3)]
            array = np.take(array, index, axis=dimension) * inside.reshape(shape).astype(array.dtype)
        return array

    def restore(self, slices: np.ndarray, fill: float) -> Volume:
        """Return slices (N, size, size) on the source's own grid, float32; voxels outside the frame become `fill`."""
        if slices.shape != (self.slices, self.size, self.size):
            expected = (self.slices, self.size, self.size)
            raise ValueError(f"slices of shape {slices.shape} for a frame of {expected}")
        array = self._through(np.asarray(slices), fill, lambda axis: axis.backward())
        array = flipped(array, self._order[1])
        array = np.ascontiguousarray(array.transpose(np.argsort(self._order[0])))
        return Volume(array, self.source_spacing, self.source_origin, self.source_direction)

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

    def _through(self, array: np.ndarray, fill: float, matrix: Callable[["_Axis"], np.ndarray]) -> np.ndarray:
        """Apply one matrix an axis. A row of zeros marks output without input: it becomes `fill`."""
        along_z, along_y, along_x = (matrix(axis) for axis in self._axes)
        # Interpolating the difference from `fill` makes rows of zeros come out as `fill` itself; where nothing is
        # interpolated this must not round, so the voxels are moved by index instead.
        if not self.resamples:
            return _gather(array, (along_z, along_y, along_x), fill)
        planes = np.empty((array.shape[0], along_y.shape[0], along_x.shape[0]), np.float32)
        offset = np.float32(fill)
        for z, plane in enumerate(array):
            planes[z] = along_y @ (plane.astype(np.float32) - offset) @ along_x.T
        if self._axes[0].resamples:
            planes = np.tensordot(along_z, planes, axes=1)
        planes += offset
        return planes


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


def _gather(array: np.ndarray, matrices: tuple[np.ndarray, ...], fill: float) -> np.ndarray:
    """Apply matrices whose rows are unit vectors or zero by moving voxels."""
    out = np.full([len(matrix) for matrix in matrices], fill, np.float32)
    filled = [np.flatnonzero(matrix.any(axis=1)) for matrix in matrices]
    out[np.ix_(*filled)] = array[
        np.ix_(*(matrix[rows].argmax(axis=1) for matrix, rows in zip(matrices, filled, strict=True)))
    ]
    return out
