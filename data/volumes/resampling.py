"""Resample a volume to another volume's grid."""

import numpy as np
import SimpleITK as sitk

from data.errors import InputError
from data.volumes.volume import Volume, describe_extent, same_grid

# Cubic: B-splines of order 3, which go through the voxels.
INTERPOLATIONS = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor, "cubic": sitk.sitkBSpline}


def resample(volume: Volume, like: Volume, interpolation: str, outside: float) -> tuple[Volume, np.ndarray]:
    """Return a volume on the grid of another, and which of its voxels the first covers, bool (z, y, x).

    Args:
        volume: what is resampled; a grid that is the same already gives the same voxels.
        like: whose grid and NIfTI transforms the result has.
        interpolation: one of `INTERPOLATIONS`; between whole numbers it is rounded, and kept in their type's range.
        outside: value where `volume` has none.

    Raises:
        InputError: the volumes do not overlap, or the type of the voxels cannot hold `outside`.
    """
    array, kind = volume.array, volume.array.dtype
    if kind.kind != "f" and not (outside % 1 == 0 and np.iinfo(kind).min <= outside <= np.iinfo(kind).max):
        limits = np.iinfo(kind)
        raise InputError(
            f"--outside {outside:g}: the voxels are whole numbers from {limits.min} to {limits.max}; give one of these"
        )
    inside = _interpolated(volume.with_array(np.ones(array.shape, np.uint8)), like, sitk.sitkNearestNeighbor, 0) > 0
    if not inside.any():
        raise InputError(
            f"the volumes do not overlap: one lies at {describe_extent(volume)}, the other at {describe_extent(like)}: "
            "are they of one patient in one position? Register them first"
        )
    if not same_grid(volume, like, tolerance=1e-6):
        real = np.float32 if kind == np.float32 else np.float64
        array = _interpolated(volume.with_array(array.astype(real)), like, INTERPOLATIONS[interpolation], outside)
        if kind.kind != "f":
            limits = np.iinfo(kind)
            array = np.clip(np.rint(array), limits.min, limits.max)
        array[~inside] = outside
        array = array.astype(kind)
    return Volume(array, like.spacing, like.origin, like.direction, like.nifti), inside


def _interpolated(volume: Volume, like: Volume, interpolator: int, outside: float) -> np.ndarray:
    filter_ = sitk.ResampleImageFilter()
    filter_.SetSize(like.size)
    filter_.SetOutputSpacing(like.spacing)
    filter_.SetOutputOrigin(like.origin)
    filter_.SetOutputDirection(like.direction)
    filter_.SetInterpolator(interpolator)
    filter_.SetDefaultPixelValue(float(outside))
    return sitk.GetArrayFromImage(filter_.Execute(volume.to_sitk()))
