"""Correct the smooth shading of an MR's coils: by N4, then by two tissues that have one brightness everywhere.

N4 knows no tissues. Where a limb is mostly fat on one side and mostly muscle on the other, it takes part of a field for
their difference. What it left is found from the two tissues, where the histogram shows both.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
import SimpleITK as sitk
from numpy.polynomial import legendre

from data.errors import InputError
from data.values.mr_scale import LOG_RANGE, UNIT_PERCENTILE, WAY_OUT, two_modes
from data.volumes.volume import Volume

# Fields are found on blocks of about this size: they are smooth over centimetres.
BLOCK_MM = 4.5
N4_ITERATIONS = (50, 50, 50)
# The coarsest mesh of the field: its one cell spans the body, and every further level halves the cells.
N4_MESH = (1, 1, 1)
# How much brighter one tissue must be than the other. Wider than in `mr_scale`, since N4 left a field: with 6 at most,
# the muscle of two of six limbs would not count. Below 2, a field between them could make them one.
BRIGHTER = (2.0, 8.0)
# What N4 left is a polynomial of this order. Its coefficients are held near 0 as by this share of all blocks, each of
# one tissue whose log intensities spread by a tenth.
ORDER = 3
PRIOR = 0.01
PRIOR_SPREAD = 0.1
TISSUE_ITERATIONS = 30
# Smallest and largest standard deviation of a tissue's log intensities, and how far its level may lie from the mode.
SPREAD = (0.05, 0.15)
FROM_MODE = 0.2
# Share of the blocks that hold neither tissue alone, and may have any intensity.
OTHERS = 0.3
# A field of a larger standard deviation is not believed: N4 does not leave so much, and one tissue may have been taken
# for the other.
LARGEST_LEFT = 0.2
# In fewer blocks, noise alone looks like a field. More say nothing new: as many are drawn.
FEWEST_BLOCKS = 1_000
MOST_BLOCKS = 100_000


def without_field(mr: Volume, log_field: np.ndarray) -> Volume:
    """Return an MR, float32, divided by a field that is given by its logarithm (z, y, x)."""
    return mr.with_array((mr.array * np.exp(-log_field)).astype(np.float32))


def log_bias_field(mr: Volume, body: np.ndarray) -> np.ndarray:
    """Return the logarithm of the smooth shading of an MR's coils, float32 (z, y, x): that of all its contrasts.

    N4 (Tustison et al., IEEE Trans Med Imaging 2010) finds the field inside the body on a copy of blocks of about
    4.5 mm. Where the histogram then shows two tissues, as muscle and fat in T1-weighted MR, what N4 left is found from
    them: a polynomial of third order, by expectation-maximisation (Van Leemput et al., IEEE Trans Med Imaging 1999,
    here with a prior on coefficients). At full resolution the field's geometric mean over the body's voxels above 0 is
    1.

    Args:
        mr: the volume.
        body: where the body is, bool, (z, y, x).

    Raises:
        InputError: no voxel in the body is above 0, or the volume is one voxel thick.
    """
    if min(mr.size) < 2:
        raise InputError(
            f"the bias field of {' x '.join(map(str, mr.size))} voxels cannot be corrected: give several slices, or "
            "switch it off (bias_correction in the model's inference.json, --bias_correction in preparation)"
        )
    seen = body & (mr.array > 0)
    if not seen.any():
        raise InputError(f"no voxel of the MR is above 0 inside the body mask; {WAY_OUT}")
    unit = np.percentile(mr.array[seen], UNIT_PERCENTILE)
    image = mr.with_array(np.where(seen, mr.array / unit, 0).astype(np.float32)).to_sitk()
    factors, margins = zip(*map(_blocks, mr.size, mr.spacing), strict=True)
    # Means over a block's voxels of the body, where they are at least half of it.
    shares, sums = (
        sitk.BinShrink(sitk.ConstantPad(one, margins, margins, 0.0), factors)
        for one in (mr.with_array(seen.astype(np.float32)).to_sitk(), image)
    )
    coarse = sums / sitk.Maximum(shares, 0.5)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(1)  # sums of several threads are not the same every time
    n4.SetMaximumNumberOfIterations(N4_ITERATIONS)
    n4.SetNumberOfControlPoints([cells + 3 for cells in N4_MESH])
    n4.Execute(coarse, shares >= 0.5)
    # Of the blocks: that of another grid would be spread from its first voxel to its last, not between their centres.
    found = n4.GetLogBiasFieldAsImage(coarse)
    field = sitk.GetArrayFromImage(
        sitk.Resample(found, image, sitk.Transform(), sitk.sitkLinear, useNearestNeighborExtrapolator=True)
    )
    del image
    blocks = sitk.GetArrayFromImage(coarse) * np.exp(-sitk.GetArrayFromImage(found))
    _add_left_field(field, blocks, sitk.GetArrayFromImage(shares) >= 0.5, factors[::-1], margins[::-1])
    field -= field[seen].mean(dtype=np.float64)
    return field


def _blocks(size: int, mm: float) -> tuple[int, int]:
    """Return how many voxels a block has along an axis of `size` voxels, and by how many the first begins before them.

    The last ends by as many behind them: which end comes first does not matter.
    """
    factor = max(1, min(round(BLOCK_MM / mm), size // 4))
    if size % 2 and not factor % 2:
        factor += 1
    wider = -size % factor
    return factor, (wider + factor * (wider % 2)) // 2


def _add_left_field(
    field: np.ndarray, blocks: np.ndarray, inside: np.ndarray, factors: Sequence[int], margins: Sequence[int]
) -> None:
    """Add to a log field (z, y, x) what it left, as far as two tissues show it.

    Args:
        field: of voxels; changed in place.
        blocks: mean intensities of blocks of voxels, divided by the field.
        inside: which blocks are of the body.
        factors: voxels of a block along z, y, x; margins: by how many voxels the first blocks begin before the field.
    """
    known = np.nonzero(inside & (blocks > np.exp(LOG_RANGE[0])))
    if len(known[0]) < FEWEST_BLOCKS:
        return
    logs = np.log(blocks[known] / np.percentile(blocks[known], UNIT_PERCENTILE))
    if (modes := two_modes(logs, BRIGHTER)) is None:
        return
    # From -1 to 1 over the body. Polynomials of third order would run away beyond it.
    first, last = (np.array([end(places) for places in known]) for end in (np.min, np.max))
    half = np.maximum((last - first) / 2, 0.5)
    middle = (first + last) / 2
    some = np.random.default_rng(0).permutation(len(logs))[:MOST_BLOCKS]
    z, y, x = ((places[some] - m) / h for places, m, h in zip(known, middle, half, strict=True))
    terms = np.array([powers for powers in product(range(ORDER + 1), repeat=3) if 0 < sum(powers) <= ORDER])
    shapes = legendre.legvander3d(z, y, x, [ORDER] * 3).reshape(-1, *[ORDER + 1] * 3)[:, *terms.T]
    fitted = _fit(logs[some], shapes, np.array(modes))
    if np.std(shapes @ fitted) > LARGEST_LEFT:
        return
    coefficients = np.zeros([ORDER + 1] * 3)
    coefficients[*terms.T] = fitted
    z, y, x = (
        np.clip(((np.arange(size) + margin + 0.5) / factor - 0.5 - m) / h, -1, 1)
        for size, factor, margin, m, h in zip(field.shape, factors, margins, middle, half, strict=True)
    )
    for plane, place in zip(field, z, strict=True):
        plane += legendre.leggrid2d(y, x, legendre.legval(place, coefficients))


def _fit(logs: np.ndarray, shapes: np.ndarray, modes: np.ndarray) -> np.ndarray:
    """Return the coefficients of `shapes` (N, terms) that bring log intensities (N,) nearest to two tissues' levels.

    A block is of the one tissue, of the other, or of neither.

    Args:
        modes: where the tissues lie at the start, (2,).
    """
    level, spread, share = modes, np.full(2, SPREAD[1]), np.full(2, (1 - OTHERS) / 2)
    prior = PRIOR * len(logs) / PRIOR_SPREAD**2 * np.eye(shapes.shape[1])
    coefficients = np.zeros(shapes.shape[1])
    for _ in range(TISSUE_ITERATIONS):
        left = logs - shapes @ coefficients
        density = share * np.exp(-0.5 * ((left[:, None] - level) / spread) ** 2) / (spread * np.sqrt(2 * np.pi))
        weight = density / (density.sum(1, keepdims=True) + OTHERS / (LOG_RANGE[1] - LOG_RANGE[0]))
        total = weight.sum(0) + 1e-9
        share = (1 - OTHERS) * total / total.sum()
        level = np.clip((weight * left[:, None]).sum(0) / total, modes - FROM_MODE, modes + FROM_MODE)
        spread = np.clip(np.sqrt((weight * (left[:, None] - level) ** 2).sum(0) / total), *SPREAD)
        precision = weight / spread**2
        aim = (precision * (logs[:, None] - level)).sum(1)
        coefficients = np.linalg.solve(shapes.T @ (shapes * precision.sum(1)[:, None]) + prior, shapes.T @ aim)
    return coefficients
