"""Trivial predictors of CT from MR: what a trained model has to beat.

Neither is fitted to paired data. All values are HU; volumes come back as int16 on the MR's grid.
"""

import numpy as np
from scipy.ndimage import distance_transform_edt

from data.errors import InputError
from data.values.intensity import AIR_HU
from data.values.mr_scale import check_starts_at_zero
from data.volumes.volume import Volume

FAT_HU = -100
MUSCLE_HU = 45
BONE_HU = 700
CONSTANT_HU = 40

# On T1 fat is the brightest tissue: where it makes up a few per cent of the body or more, this percentile
# lies in it.
FAT_PERCENTILE = 95
# Muscle has about 0.3 of fat's signal and cortical bone next to none: each threshold lies half-way between
# two tissues.
BONE_BELOW = 0.15
FAT_ABOVE = 0.6
# Skin and half-filled voxels at the outline are as dark as bone: more than half of all dark voxels in a limb.
SKIN_MM = 3.0


def constant_predictor(mr: Volume, body: np.ndarray) -> Volume:
    """Predict 40 HU in the body and air outside.

    Args:
        mr: the MR, for its grid.
        body: boolean body mask of the MR, shape (z, y, x).
    """
    return mr.with_array(np.where(body, CONSTANT_HU, AIR_HU).astype(np.int16))


def threshold_predictor(mr: Volume, body: np.ndarray) -> Volume:
    """Predict fat where a T1 MR is bright, bone where it is dark, muscle between, and air outside the body.

    The thresholds are 0.6 and 0.15 of the 95th percentile of the MR in the body. What is dark within 3 mm of the
    outline is skin, and predicted as muscle.

    Args:
        mr: T1-weighted MR, any scale, 0 for no signal.
        body: boolean body mask of the MR, shape (z, y, x).

    Raises:
        InputError: the body is empty, or the MR has no signal in it or does not start at 0.
    """
    if not body.any():
        raise InputError("the body mask of the MR is empty; expected a mask that covers the patient")
    fat_level = float(np.percentile(mr.array[body], FAT_PERCENTILE))
    if fat_level <= 0:
        raise InputError(
            f"the MR's {FAT_PERCENTILE}th percentile inside the body is {fat_level:g}; expected magnitudes above 0"
        )
    check_starts_at_zero(mr.array, body, "expected intensities from 0, as the scanner stored them")
    depth_mm = distance_transform_edt(body, sampling=mr.spacing[::-1])
    bone = (mr.array < BONE_BELOW * fat_level) & (depth_mm > SKIN_MM)
    tissues = [~body, bone, mr.array > FAT_ABOVE * fat_level]
    hu = np.select(tissues, [AIR_HU, BONE_HU, FAT_HU], default=MUSCLE_HU)
    return mr.with_array(hu.astype(np.int16))


PREDICTORS = {"constant": constant_predictor, "threshold": threshold_predictor}
