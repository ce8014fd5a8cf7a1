"""Take out the smooth shading of an MR's coils: N4, and then what leaves muscle and fat alike everywhere.

N4 knows no tissues. Where a body holds mostly fat on one side and mostly muscle on the other, it takes part of a field
for their difference. Two tissues are known in T1-weighted MR, so what N4 left is found from them.
"""

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
# Muscle and fat that are told apart: fat is brighter by a factor in this range.
FAT_TO_MUSCLE = (2.0, 8.0)
# What N4 left is a polynomial of this order. Its coefficients are held near 0 as by this share of all blocks, each of
# one tissue whose log intensities spread by a tenth.
ORDER = 3
PRIOR = 0.01
PRIOR_SPREAD = 0.1
TISSUE_ITERATIONS = 30
# Limits of a tissue's spread, and of the distance of its level from the histogram's mode. Blocks of both tissues are
# neither: this share of all blocks at the start.
SPREAD = (0.05, 0.15)
FROM_MODE = 0.2
OTHERS = 0.3
# A larger standard deviation is no field that N4 left: the one tissue was taken for the other.
LARGEST_LEFT = 0.2
MOST_BLOCKS = 100_000


def correct_bias(mr: Volume, body: np.ndarray) -> Volume:
    """Return an MR without the smooth shading of its coils, float32, on the same scale and grid.

    Arguments and errors are those of `log_bias_field`, which is divided out.
    """
    return without_field(mr, log_bias_field(mr, body))


def without_field(mr: Volume, log_field: np.ndarray) -> Volume:
    """Return an MR, float32, divided by a field that is given by its logarithm (z, y, x)."""
    return mr.with_array((mr.array * np.exp(-log_field)).astype(np.float32))


def log_bias_field(mr: Volume, body: np.ndarray) -> np.ndarray:
    """Return the logarithm of the smooth shading of an MR's coils, float32 (z, y, x): that of all its contrasts.

    N4 (Tustison et al., IEEE Trans Med Imaging 2010) finds the field inside the body on a copy of blocks of about
    4.5 mm. Where muscle and fat can be told apart, what it left is found from these two: a polynomial of third order,
    by expectation-maximisation (Van Leemput et al., IEEE Trans Med Imaging 1999, here with a prior on coefficients). At
    full resolution the field's geometric mean over the body's voxels above 0 is 1.

    Args:
        mr: the volume.
        body: where the body is, bool, (z, y, x).

    Raises:
        InputError: no voxel in the body is above 0.
    """
    seen = body & (mr.array > 0)
    if not seen.any():
        raise InputError(f"no voxel of the MR is above 0 inside the body mask; {WAY_OUT}")
    unit = np.percentile(mr.array[seen], UNIT_PERCENTILE)
    image = mr.with_array(np.where(seen, mr.array / unit, 0).astype(np.float32)).to_sitk()
    factors = [max(1, min(round(BLOCK_MM / s), n // 4)) for s, n in zip(mr.spacing, mr.size, strict=True)]
    # Means over a block's voxels of the body, where they are at least half of it.
    shares = sitk.BinShrink(mr.with_array(seen.astype(np.float32)).to_sitk(), factors)
    coarse = sitk.BinShrink(image, factors) / sitk.Maximum(shares, 0.5)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(1)  # sums of several threads are not the same every time
    n4.SetMaximumNumberOfIterations(N4_ITERATIONS)
    n4.SetNumberOfControlPoints([cells + 3 for cells in N4_MESH])
    n4.Execute(coarse, shares >= 0.5)
    field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image))
    blocks = sitk.GetArrayFromImage(coarse) * np.exp(-sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(coarse)))
    field += _left_field(blocks, sitk.GetArrayFromImage(shares) >= 0.5, factors[::-1], field.shape)
    field -= field[seen].mean(dtype=np.float64)
    return field


def _left_field(
    blocks: np.ndarray, inside: np.ndarray, factors: list[int], shape: tuple[int, ...]
) -> np.ndarray | float:
    """Return the log field (z, y, x) that N4 left in blocks of voxels; 0 where muscle and fat cannot be told apart.

    Args:
        blocks: corrected mean intensities, relative to about fat's.
        inside: which blocks are of the body.
        factors: voxels of a block along each axis.
        shape: of the field.
    """
    known = np.nonzero(inside & (blocks > np.exp(LOG_RANGE[0])))
    logs = np.log(blocks[known] / np.percentile(blocks[known], UNIT_PERCENTILE))
    if (modes := two_modes(logs, FAT_TO_MUSCLE)) is None:
        return 0.0
    # From -1 to 1 over the body. Polynomials of third order would run away beyond it.
    first, last = (np.array([end(places) for places in known]) for end in (np.min, np.max))
    half = np.maximum((last - first) / 2, 0.5)
    middle = (first + last) / 2
    some = np.s_[:: -(-len(logs) // MOST_BLOCKS)]
    z, y, x = ((places[some] - m) / h for places, m, h in zip(known, middle, half, strict=True))
    terms = np.array([powers for powers in product(range(ORDER + 1), repeat=3) if 0 < sum(powers) <= ORDER])
    shapes = legendre.legvander3d(z, y, x, [ORDER] * 3).reshape(-1, *[ORDER + 1] * 3)[:, *terms.T]
    fitted = _fit(logs[some], shapes, np.array(modes))
    if np.std(shapes @ fitted) > LARGEST_LEFT:
        return 0.0
    coefficients = np.zeros([ORDER + 1] * 3)
    coefficients[*terms.T] = fitted
    z, y, x = (
        np.clip(((np.arange(size) + 0.5) / factor - 0.5 - m) / h, -1, 1)
        for size, factor, m, h in zip(shape, factors, middle, half, strict=True)
    )
    return legendre.leggrid3d(z, y, x, coefficients).astype(np.float32)


def _fit(logs: np.ndarray, shapes: np.ndarray, modes: np.ndarray) -> np.ndarray:
    """Return the coefficients of `shapes` (N, terms) that bring log intensities (N,) nearest to the levels of tissues.

    Blocks belong to muscle, to fat, or to neither, whatever their intensity.
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
