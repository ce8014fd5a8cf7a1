"""Measures of a synthetic CT without a true one.

Pure functions on arrays. What belongs to them and stands elsewhere: the histogram inside bodies and the distance of two
(`data.prepared.training_statistics`), and the metrics of synthetic CT (`evaluation.metrics`), which apply to MR that
was simulated from a CT.
"""

import math
from collections.abc import Iterable

import numpy as np

from data.errors import InputError
from data.masks.body_mask import ct_body_mask
from data.volumes.volume import Volume
from evaluation.metrics import dice


def body_dice(synthetic: Volume, body: np.ndarray) -> float:
    """Return the Dice overlap of a synthetic CT's body with the body that its MR shows.

    Args:
        synthetic: CT in HU.
        body: the MR's body mask, bool (z, y, x) on the same grid.

    Returns:
        0 to 1; 0 where the synthetic CT shows no body.
    """
    try:
        return dice(ct_body_mask(synthetic, synthetic=True), body)
    except InputError:
        return 0.0


def mean_difference(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the mean absolute difference over all values of pairs of arrays, in their units; NaN without any.

    Of an MR slice x and G_B(G_A(x)), both in [-1, 1], it says how far the cycle is from closing.
    """
    total, count = 0.0, 0
    for a, b in pairs:
        if a.shape != b.shape:
            raise ValueError(f"arrays of shapes {a.shape} and {b.shape}")
        total += float(np.abs(a.astype(np.float64) - b).sum())
        count += a.size
    return total / count if count else math.nan
