"""Show volumes as radiologists do: in patient order, in three planes, with letters at the edges.

An array in patient order runs to the head (S), to the back (P) and to the patient's left (L) along its axes 0, 1 and 2.
Planes follow the radiological convention: the patient's right is at the picture's left, seen from the feet; the head is
up; sagittal planes face to the left. An oblique volume is shown in its own planes, nearest to those of the patient.
"""

from dataclasses import dataclass

import numpy as np

from data.volumes.volume import Volume, axial_order, flipped


@dataclass(frozen=True)
class Plane:
    """One of the three planes of an array in patient order.

    Attributes:
        name: e.g. 'axial'.
        axis: the array axis that it is perpendicular to; the other two are its rows and columns, in this order.
        upside_down: whether rows run against their axis (from head to feet).
        letters: patient directions at the picture's left, right, top and bottom.
    """

    name: str
    axis: int
    upside_down: bool
    letters: tuple[str, str, str, str]

    @property
    def rows_and_columns(self) -> tuple[int, int]:
        """The array axes that run along the picture's rows (downwards, but for `upside_down`) and columns."""
        rows, columns = (axis for axis in range(3) if axis != self.axis)
        return rows, columns

    def cut(self, array: np.ndarray, index: int) -> np.ndarray:
        """Return slice `index` of an array in patient order as a picture, rows downwards and columns rightwards."""
        picture = np.take(array, index, self.axis)
        return picture[::-1] if self.upside_down else picture


PLANES = (
    Plane("axial", 0, False, ("R", "L", "A", "P")),
    Plane("coronal", 1, True, ("R", "L", "H", "F")),
    Plane("sagittal", 2, True, ("A", "P", "H", "F")),
)


@dataclass(frozen=True)
class PatientOrder:
    """How a volume's grid lies in the patient.

    Attributes:
        order, flips: as `axial_order` returns them.
        spacing_mm: voxel spacing along S, P and L.
        affine: 3 x 4 matrix from indices (s, p, l) and 1 to patient coordinates (LPS, mm).
        oblique_deg: the largest angle between an axis of the grid and the patient axis next to it.
    """

    order: tuple[int, ...]
    flips: tuple[bool, ...]
    spacing_mm: tuple[float, ...]
    affine: np.ndarray
    oblique_deg: float

    def array(self, array: np.ndarray) -> np.ndarray:
        """Return a view of an array (z, y, x) of this grid in patient order."""
        return flipped(array.transpose(self.order), self.flips)


def patient_order(grid: Volume) -> PatientOrder:
    """Return how a volume lies in the patient."""
    order, flips = axial_order(grid.direction)
    directions = np.reshape(grid.direction, (3, 3))
    affine = np.empty((3, 4))
    affine[:, 3] = grid.origin
    spacing, angles = [], []
    for d, (axis, flip) in enumerate(zip(order, flips, strict=True)):
        index_axis = 2 - axis  # x, y, z
        step = directions[:, index_axis] * grid.spacing[index_axis]
        if flip:
            affine[:, 3] += step * (grid.array.shape[axis] - 1)
            step = -step
        affine[:, d] = step
        spacing.append(grid.spacing[index_axis])
        angles.append(np.degrees(np.arccos(np.clip(step[2 - d] / grid.spacing[index_axis], -1, 1))))
    return PatientOrder(order, flips, tuple(spacing), affine, float(max(angles)))
