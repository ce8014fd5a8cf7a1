"""Pairs of prepared MR and CT of the same patients on one grid, for training on them and for scoring."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.errors import InputError
from data.loading.slices import prepared_windows
from data.prepared.manifest import Case, Manifest, read_array, read_manifest
from data.prepared.training_statistics import slice_spacing
from data.values.intensity import IntensityMap


@dataclass(frozen=True)
class PairedSet:
    """MR and CT of the same patients.

    Attributes:
        volumes: by patient the maps `mr` (float16 in [-1, 1]), `hu` (int16) and `seen` (uint8, 1 where a voxel counts:
            inside the MR's body mask, or air in the CT), (n, H, W). An MR's field of view may end within the body.
        slice_mm, pixel_mm: their spacing; size: pixels of a slice's side.
    """

    volumes: dict[str, dict[str, np.ndarray]]
    slice_mm: float
    pixel_mm: float
    size: int
