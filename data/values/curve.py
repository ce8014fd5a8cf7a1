"""`IntensityMap`'s curve as a torch function, through which gradients flow."""

from itertools import pairwise

import torch
from torch import Tensor

Knots = tuple[tuple[float, float], ...]


def curve(values: Tensor, knots: Knots) -> Tensor:
    """Return what `IntensityMap` with these knots makes of values of any shape; clipped beyond the ends."""
    total = torch.full_like(values, knots[0][1])
    for (x1, y1), (x2, y2) in pairwise(knots):
        total = total + (values.clamp(x1, x2) - x1) * ((y2 - y1) / (x2 - x1))
    return total


def inverse(knots: Knots) -> Knots:
    """Return the knots of the map back."""
    return tuple((y, x) for x, y in knots)
