"""Bring MR of any scanner to one scale: the level of fat in a volume.

MR has no units. In T1-weighted MR of a body, fat is the brightest of the common tissues and muscle the next, so the
intensity of fat says how bright everything else is. It is read off the volume itself.
"""

import numpy as np
import scipy
from scipy import ndimage

from data.errors import InputError

# Log intensity is binned relative to this percentile, which a few odd voxels do not move, so that no bin depends on
# the scanner's scaling. The lower end leaves out noise and cortical bone, the upper one holds fat where it is rare.
UNIT_PERCENTILE = 95
LOG_RANGE = (np.log(0.08), np.log(6.5))
BIN_WIDTH = 0.02
# About the spread of one tissue's log intensities at a signal to noise ratio of 15.
SMOOTH_WIDTH = 0.07
# Density per unit of log intensity by which a mode stands above the valley beside it.
PROMINENCE = 0.05
# In T1-weighted images fat is brighter than muscle by a factor in this range, whatever echo and repetition times.
FAT_TO_MUSCLE = (1.5, 6.0)
# Share of the voxels that a tissue's mode holds within this distance: rarer ones may be vessels or a lesion.
MODE_SHARE = 0.05
MODE_REACH = 0.27
# Fat lies no lower than this relative to the unit, muscle no higher: fat of limbs with fields of 40 % at 0.53 or more,
# muscle of the trunk at 0.49. Lung, or cortical bone, and muscle look like muscle and fat where fat is rare.
LEAST_FAT = 0.5
# Where fat lies relative to the unit where no two modes are found: the limbs' median where they are.
ONE_MODE_LEVEL = 0.95
# What is measured starts at 0. Noise is all that air shows; it leaves few voxels of a body below 0 (some images are no
# magnitudes), and the lower quartile of the air between these shares of the level of fat. Bone and vessels are darker
# than half of it.
NEGATIVE_SHARE = 0.05
AIR_TO_FAT = (-0.05, 0.2)
DARKEST_TO_FAT = 0.5
# Less of an image than this is no air to go by.
AIR_SHARE = 0.03
WAY_OUT = (
    "for --mr_window tissue and --bias_correction give the image as the scanner wrote it, or use --mr_window "
    "percentile without --bias_correction"
)


def fat_level(mr: np.ndarray, body: np.ndarray) -> float:
    """Return the intensity of fat in a T1-weighted MR, in its own units.

    It is the upper of two modes of the smoothed histogram of log intensity, fat's and muscle's. Where no such pair is
    found, or its upper mode is too dark for fat (`LEAST_FAT`), it is 0.95 of the 95th percentile. In a body with less
    than some 10 % of fat it may be the level of muscle. Voxels of 0 or less, outside the field of view, do not
    count. The level of `k * mr` is `k` times that of `mr`, to rounding.

    Args:
        mr: intensities at any scale.
        body: where the body is, bool, of the same shape.

    Raises:
        InputError: no voxel in the body is above 0.
    """
    values = mr[body].astype(np.float64)
    values = values[values > 0]
    if not values.size:
        raise InputError(f"no voxel of the MR is above 0 inside the body mask; {WAY_OUT}")
    unit = float(np.percentile(values, UNIT_PERCENTILE))
    modes = two_modes(np.log(values / unit))
    found = ONE_MODE_LEVEL if modes is None else float(np.exp(modes[1]))
    return unit * (found if found >= LEAST_FAT else ONE_MODE_LEVEL)


def check_starts_at_zero(mr: np.ndarray, body: np.ndarray, way_out: str = WAY_OUT) -> None:
    """Refuse an MR that was shifted or standardised: the level of fat would say nothing of its other tissues.

    Args:
        mr: intensities as they were given, not corrected for their bias field.
        body: where the body is, bool, of the same shape.
        way_out: what to do, for the message.

    Raises:
        InputError: says what shows it, and the way out.
    """
    values, outside = mr[body], mr[~body]
    fat = fat_level(mr, body)
    negative = np.mean(values < 0)
    darkest = np.percentile(values, 1) / fat
    # A body that fills the image has no air around it; of the whole image then hardly anything lies below its bone.
    around = outside.size > AIR_SHARE * mr.size
    air = (np.percentile(outside, 25) if around else np.percentile(mr, 1)) / fat
    if negative > NEGATIVE_SHARE:
        why = f"{100 * negative:.2g} % of the body's voxels lie below 0"
    elif not AIR_TO_FAT[0] <= air <= AIR_TO_FAT[1]:
        where = "around the body" if around else "where it is darkest"
        why = f"{where} it lies at {air * fat:.4g}, where fat lies at {fat:.4g}"
    elif darkest > DARKEST_TO_FAT:
        why = f"hardly anything in the body is darker than {darkest * fat:.4g}, where fat lies at {fat:.4g}"
    else:
        return
    raise InputError(f"the MR does not start at 0 ({why}): it was shifted or standardised; {way_out}")


def two_modes(logs: np.ndarray, fat_to_muscle: tuple[float, float] = FAT_TO_MUSCLE) -> tuple[float, float] | None:
    """Return where muscle and fat lie among log intensities (N,); None if there is no such pair.

    Args:
        logs: relative to the 95th percentile of the intensities.
        fat_to_muscle: range of the factor between them.

    Returns:
        The most frequent mode as far below the other as muscle is below fat, and the brightest mode that has one.
    """
    density = _density(logs)
    share = np.convolve(density, np.ones(2 * round(MODE_REACH / BIN_WIDTH) + 1), mode="same") * BIN_WIDTH
    # scipy loads a part by its name at first use: this one takes a second, and most commands need none of it.
    peaks, _ = scipy.signal.find_peaks(density, prominence=PROMINENCE)
    peaks = peaks[share[peaks] >= MODE_SHARE]
    places = LOG_RANGE[0] + BIN_WIDTH * np.array([_vertex(density, peak) for peak in peaks])
    nearest, farthest = np.log(fat_to_muscle)
    for place in places[::-1]:
        below = (places <= place - nearest) & (places >= place - farthest)
        if below.any():
            return float(places[below][density[peaks[below]].argmax()]), float(place)
    return None


def _density(logs: np.ndarray) -> np.ndarray:
    """Return the smoothed density of log intensities at `LOG_RANGE[0]`, one bin width further, and so on.

    Each voxel counts for the two places that it lies between, in proportion: rounding moves no count from bin to bin.
    """
    places = int((LOG_RANGE[1] - LOG_RANGE[0]) / BIN_WIDTH) + 1
    position = (logs - LOG_RANGE[0]) / BIN_WIDTH
    position = position[(position >= 0) & (position < places - 1)]
    below = position.astype(np.intp)
    above = position - below
    counts = np.bincount(below, 1 - above, places) + np.bincount(below + 1, above, places)
    counts = ndimage.gaussian_filter1d(counts, SMOOTH_WIDTH / BIN_WIDTH, mode="constant")
    return counts / (max(1, len(position)) * BIN_WIDTH)


def _vertex(density: np.ndarray, peak: int) -> float:
    """Return where between the bins the parabola through a peak and its neighbours is highest."""
    before, top, after = density[peak - 1 : peak + 2]
    return peak + (before - after) / (2 * (before - 2 * top + after))
