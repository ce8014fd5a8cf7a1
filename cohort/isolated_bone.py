"""Small pieces of bone that lie apart from other bone: spots that a network made up, broken bone, or calcifications."""

from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy import ndimage, sparse

from data.errors import listed
from data.volumes.volume import Volume, in_axial_order
from evaluation.metrics import BONE_ABOVE_HU

# Pieces of these volumes count: smaller ones nobody sees, larger ones are bones of their own, as of the wrist.
SMALLEST_ML, LARGEST_ML = 0.05, 5.0
# In true CT they are at most this share of all bone (docs/batch_conversion.md). Twice that is unusual, where the volume
# is large enough to tell.
TRUE_SHARE, LEAST_ML = 0.05, 0.5
MAX_SHARE = 2 * TRUE_SHARE
_LISTED = 5


class IsolatedBone(NamedTuple):
    """Pieces of bone that lie apart: their number and volume, that of all bone, and the axial slices that they are in.

    `slices`: first and last of each piece, counted from the feet, the lowest is 1.
    """

    pieces: int
    ml: float
    bone_ml: float
    slices: tuple[tuple[int, int], ...]

    @property
    def share(self) -> float:
        """Their share of all bone, 0 where there is none."""
        return self.ml / self.bone_ml if self.bone_ml else 0.0

    def describe(self) -> str:
        """Return in a line how much it is, and where."""
        pieces = "1 piece" if self.pieces == 1 else f"{self.pieces} pieces"
        spans = span_words(self.slices)
        where = f"axial slice{'s' if len(spans) > 1 or ' ' in spans[0] else ''} {listed(spans, _LISTED)}"
        return f"isolated bone: {pieces}, {self.ml:.1f} ml, {100 * self.share:.1f} % of the bone, in {where}"


def isolated_bone(ct: Volume, body: np.ndarray) -> IsolatedBone:
    """Return the small pieces of bone in a CT that touch, with corners too, no other bone and no side of the volume.

    It goes slice by slice, because whole-body volumes have hundreds of millions of voxels.

    Args:
        ct: in HU.
        body: where to look, bool (z, y, x).
    """
    (hu, inside), _ = in_axial_order(ct, ct.array, body)
    sizes, at_side, layer = [0], [True], [-1]
    links: list[tuple[int, int]] = []
    before = np.zeros(hu.shape[1:], int)
    for k, (plane, seen) in enumerate(zip(hu, inside, strict=True)):
        found, count = ndimage.label((plane > BONE_ABOVE_HU) & seen, np.ones((3, 3)))
        areas = found + np.where(found, len(sizes) - 1, 0)
        sizes += np.bincount(found.ravel(), minlength=count + 1)[1:].tolist()
        layer += [k] * count
        sides = set(np.unique(np.concatenate([found[0], found[-1], found[:, 0], found[:, -1]])).tolist())
        at_side += [k in (0, len(hu) - 1) or area in sides for area in range(1, count + 1)]
        links += _touching(before, areas)
        before = areas
    return _pieces(np.array(sizes), np.array(at_side), np.array(layer), links, float(np.prod(ct.spacing)) / 1e3)


def _touching(below: np.ndarray, above: np.ndarray) -> Iterable[tuple[int, int]]:
    """Return which areas of two neighbouring slices, numbered from 1, touch each other."""
    if not (below.any() and above.any()):
        return []
    wide, (rows, columns), pairs = np.pad(below, 1), below.shape, set()
    for y, x in product(range(3), range(3)):
        moved = wide[y : y + rows, x : x + columns]
        both = (moved > 0) & (above > 0)
        pairs |= set(zip(moved[both].tolist(), above[both].tolist(), strict=True))
    return pairs


def _pieces(
    sizes: np.ndarray, at_side: np.ndarray, layer: np.ndarray, links: list[tuple[int, int]], voxel_ml: float
) -> IsolatedBone:
    """Join the areas of slices to pieces and return the small ones; the first of each array stands for no area."""
    ends = np.array(links, int).reshape(-1, 2).T
    graph = sparse.coo_array((np.ones(len(links)), (ends[0], ends[1])), shape=(len(sizes), len(sizes)))
    _, piece = sparse.csgraph.connected_components(graph, directed=False)
    ml = np.bincount(piece, sizes) * voxel_ml
    small = (ml >= SMALLEST_ML) & (ml < LARGEST_ML) & (np.bincount(piece, at_side) == 0)
    spans = [
        (int(at.min()) + 1, int(at.max()) + 1) for one in np.flatnonzero(small) if (at := layer[piece == one]).size
    ]
    return IsolatedBone(int(small.sum()), float(ml[small].sum()), float(ml.sum()), tuple(sorted(spans)))


def span_words(spans: Iterable[tuple[int, int]]) -> list[str]:
    """Return spans, in order, in words: those that overlap or follow each other are one."""
    return [f"{low}" if low == high else f"{low} to {high}" for low, high in _joined(spans)]


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans in order, those joined that overlap or follow each other."""
    joined: list[tuple[int, int]] = []
    for low, high in spans:
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return joined
