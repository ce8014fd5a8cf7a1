"""Solid shapes on a warped voxel grid: what the phantom's anatomy is drawn with.

Shapes are signed distances in mm (negative inside), evaluated at *deformed* coordinates: a smooth displacement bends
every shape alike, so that neighbours stay neighbours and nothing has to be resampled.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

Point = tuple[float, float, float]

SIDES = (-1, 1)
"""Right and left: signs of x."""

OUTSIDE_MM = np.float32(1000.0)


def as_point(values: Iterable[float]) -> Point:
    """Return three numbers, of whatever type, as a point."""
    x, y, z = (float(value) for value in values)
    return x, y, z


class SmoothField:
    """A smooth random scalar field of position: products of long cosines, the same on whatever grid it is read.

    Args:
        rng: draws phases and coefficients.
        standard_deviation: of the field, in the field's unit.
        wavelengths_mm: of the cosines along each axis; the shorter come weaker.
    """

    def __init__(self, rng: np.random.Generator, standard_deviation: float, wavelengths_mm: Sequence[float]) -> None:
        """Draw the field."""
        count = len(wavelengths_mm)
        self._frequencies = 2 * np.pi / np.asarray(wavelengths_mm)
        self._phases = rng.uniform(0, 2 * np.pi, (3, count))
        fall_off = np.asarray(wavelengths_mm) / max(wavelengths_mm)
        coefficients = rng.standard_normal((count,) * 3) * np.einsum("a,b,c->abc", *[fall_off] * 3)
        # A cosine of random phase has the mean square 1/2, a product of three 1/8.
        self._coefficients = coefficients * standard_deviation / np.sqrt(np.sum(coefficients**2) / 8)

    def evaluate(self, xs: np.ndarray, ys: np.ndarray, zs: np.ndarray) -> np.ndarray:
        """Return the field on the grid of three coordinate axes (mm), shape (z, y, x), float32."""
        bases = [
            np.cos(np.outer(self._frequencies, axis) + phases[:, None])
            for axis, phases in zip((xs, ys, zs), self._phases, strict=True)
        ]
        planes = np.einsum("abc,by,cz->azy", self._coefficients, bases[1], bases[2]).astype(np.float32)
        field = np.zeros((len(zs), len(ys), len(xs)), np.float32)
        # Term by term, not by a BLAS product, whose rounding may depend on the number of threads.
        for plane, row in zip(planes, bases[0].astype(np.float32), strict=True):
            field += plane[:, :, None] * row
        return field


@dataclass(frozen=True)
class View:
    """A box of the canvas: deformed coordinates in mm, arrays (z, y, x), and where the box lies."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    box: tuple[slice, slice, slice]


class Canvas:
    """A label volume under construction and the deformed coordinate of each of its voxels.

    Args:
        axes: coordinates of the voxel centres along x, y and z in mm, before deformation.
        warp: displacement fields along x, y and z, in mm.
    """

    def __init__(self, axes: Sequence[np.ndarray], warp: Sequence[SmoothField]) -> None:
        """Evaluate the deformed coordinates."""
        self.axes = axes
        shapes = ((1, 1, -1), (1, -1, 1), (-1, 1, 1))
        moves = [field.evaluate(*axes) for field in warp]
        self._reach = [float(np.abs(move).max(initial=0.0)) for move in moves]
        self._coordinates = []
        for axis, move, shape in zip(axes, moves, shapes, strict=True):
            move += axis.astype(np.float32).reshape(shape)
            self._coordinates.append(move)
        self.labels = np.zeros(moves[0].shape, np.uint8)

    def view(self, low: Point, high: Point) -> View:
        """Return the smallest box that holds all voxels whose deformed coordinates lie between `low` and `high`."""
        spans = []
        for axis, reach, lo, hi in zip(self.axes, self._reach, low, high, strict=True):
            first, last = np.searchsorted(axis, (min(lo, hi) - reach, max(lo, hi) + reach))
            spans.append(slice(int(first), int(last)))
        box = (spans[2], spans[1], spans[0])
        x, y, z = (coordinate[box] for coordinate in self._coordinates)
        return View(x, y, z, box)

    def around(self, points: Sequence[Point], margin_mm: float) -> View:
        """Return the box around some points."""
        low, high = np.min(points, axis=0) - margin_mm, np.max(points, axis=0) + margin_mm
        return self.view(tuple(low), tuple(high))

    def everywhere(self) -> View:
        """Return the whole canvas as a view."""
        return self.view((-np.inf,) * 3, (np.inf,) * 3)

    def empty_distance(self) -> np.ndarray:
        """Return a distance array of the canvas's shape that is outside everywhere."""
        return np.full(self.labels.shape, OUTSIDE_MM, np.float32)

    def paint(self, view: View, where: np.ndarray, label: int) -> None:
        """Give the voxels of `view` where `where` holds the label `label`."""
        self.labels[view.box][where] = label


def capsule(view: View, start: Point, end: Point, radius: float, end_radius: float | None = None) -> np.ndarray:
    """Return the signed distance to a rod with round ends whose radius runs from `radius` to `end_radius`."""
    a = np.asarray(start, np.float32)
    along = np.asarray(end, np.float32) - a
    x, y, z = view.x - a[0], view.y - a[1], view.z - a[2]
    length2 = max(float(along @ along), 1e-6)
    t = np.clip((x * along[0] + y * along[1] + z * along[2]) / np.float32(length2), 0, 1)
    distance = np.sqrt((x - t * along[0]) ** 2 + (y - t * along[1]) ** 2 + (z - t * along[2]) ** 2)
    return distance - np.float32(radius) - t * np.float32((radius if end_radius is None else end_radius) - radius)


def ellipsoid(view: View, centre: Point, radii: Point) -> np.ndarray:
    """Return the distance to an ellipsoid along the ray from its centre (exact on its surface)."""
    x, y, z = view.x - np.float32(centre[0]), view.y - np.float32(centre[1]), view.z - np.float32(centre[2])
    scaled = np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2, dtype=np.float32)
    return _along_ray(np.sqrt(x**2 + y**2 + z**2), scaled, np.float32(min(radii)))


class Tube:
    """A solid of elliptic sections along z, interpolated smoothly between the rows of a table.

    Args:
        rows: (z, centre x, centre y, half-width, half-depth) in mm, z falling.
        exponent: 2 for ellipses, more for boxier sections.
    """

    def __init__(self, rows: Sequence[tuple[float, float, float, float, float]], exponent: float = 2.0) -> None:
        """Tabulate the sections every millimetre: looking them up is far cheaper than interpolating at each voxel."""
        table = np.asarray(rows[::-1], float)
        self.low, self.high = float(table[0, 0]), float(table[-1, 0])
        heights = np.arange(np.ceil(self.high - self.low) + 1) + self.low
        self._sections = PchipInterpolator(table[:, 0], table[:, 1:])(np.minimum(heights, self.high)).astype(np.float32)
        self._exponent = exponent

    def section(self, z: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return (centre x, centre y, half-width, half-depth) at heights `z`; the end sections beyond the ends."""
        index = np.clip(np.rint(z - np.float32(self.low)), 0, len(self._sections) - 1).astype(np.int32)
        return tuple(column[index] for column in self._sections.T)

    def distance(self, view: View, side: int = 1) -> np.ndarray:
        """Return the signed distance in the section's plane, along the ray from its centre; -1 mirrors x."""
        centre_x, centre_y, half_width, half_depth = self.section(view.z)
        x, y = np.float32(side) * view.x - centre_x, view.y - centre_y
        if self._exponent == 2.0:
            scaled = np.sqrt((x / half_width) ** 2 + (y / half_depth) ** 2)
        else:
            power = np.float32(self._exponent)
            scaled = ((np.abs(x) / half_width) ** power + (np.abs(y) / half_depth) ** power) ** (1 / power)
        radial = _along_ray(np.sqrt(x**2 + y**2), scaled, np.minimum(half_width, half_depth))
        return np.maximum(radial, np.maximum(view.z - np.float32(self.high), np.float32(self.low) - view.z))


def smooth_union(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """Return the distance to two solids together, the crease between them filled over about `blend_mm`.

    The quadratic polynomial smooth minimum (I. Quilez, "Smooth minimum", iquilezles.org/articles/smin).
    """
    overlap = np.maximum(np.float32(blend_mm) - np.abs(a - b), 0)
    return np.minimum(a, b) - overlap**2 / np.float32(4 * blend_mm)


def _along_ray(radius: np.ndarray, scaled: np.ndarray, inner: np.ndarray | np.float32) -> np.ndarray:
    """Distance from the surface, which a ray from the centre crosses where `scaled` is 1; `-inner` at the centre."""
    tiny = np.float32(1e-3)
    return radius - (radius + tiny) / (scaled + tiny / inner)
