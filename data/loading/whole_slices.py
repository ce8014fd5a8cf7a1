"""Whole slices to look at: the body in the middle, on a rectangle that a network takes."""

import math

from torch import Tensor
from torch.nn import functional as F

# Pixels around the body.
_MARGIN = 8


def centred(images: Tensor, body: Tensor, multiple: int, outside: float) -> Tensor:
    """Return images (..., H, W) on a rectangle about the body's box, large enough for the body and a margin.

    Args:
        images: the slices.
        body: their body, bool (H, W); where there is none, all of the slice is shown.
        multiple: of which the rectangle's sides are multiples.
        outside: the value beyond the slices.
    """
    padding: list[int] = []
    for axis in (1, 0):  # columns first, as F.pad takes them
        used, extent = body.any(1 - axis).nonzero()[:, 0], body.shape[axis]
        first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, extent)
        side = math.ceil((last - first + 2 * _MARGIN) / multiple) * multiple
        start = (first + last - side) // 2
        padding += [-start, start + side - extent]
    return F.pad(images, padding, value=outside)
