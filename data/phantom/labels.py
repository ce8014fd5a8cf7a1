"""What a phantom's voxels can be, and which of them are body, arm, bone and couch."""

from enum import IntEnum

import numpy as np


class Tissue(IntEnum):
    """Labels of the phantom's voxels.

    BRAIN holds the spinal cord, BLOOD the heart and the great vessels, GAS airways and bowel gas, MARROW the fatty
    marrow of long bones, TRABECULAR the spongy bone elsewhere; FAT inside the body counts as FAT.
    """

    AIR = 0
    FAT = 1
    MUSCLE = 2
    CORTEX = 3
    MARROW = 4
    TRABECULAR = 5
    CARTILAGE = 6
    BRAIN = 7
    CSF = 8
    LUNG = 9
    BLOOD = 10
    LIVER = 11
    SPLEEN = 12
    KIDNEY = 13
    BOWEL = 14
    BLADDER = 15
    GAS = 16
    ARM_FAT = 17
    ARM_MUSCLE = 18
    ARM_CORTEX = 19
    ARM_MARROW = 20
    COUCH_SHELL = 21
    COUCH_FOAM = 22


ARM_LABELS = (Tissue.ARM_FAT, Tissue.ARM_MUSCLE, Tissue.ARM_CORTEX, Tissue.ARM_MARROW)
COUCH_LABELS = (Tissue.COUCH_SHELL, Tissue.COUCH_FOAM)
BONE_LABELS = (Tissue.CORTEX, Tissue.MARROW, Tissue.TRABECULAR, Tissue.ARM_CORTEX, Tissue.ARM_MARROW)
BODY_LABELS = tuple(tissue for tissue in Tissue if tissue is not Tissue.AIR and tissue not in COUCH_LABELS)


def body_mask(labels: np.ndarray) -> np.ndarray:
    """Return where a label array holds the patient, gas inside the body included: no air, no couch."""
    return np.isin(labels, BODY_LABELS)


def arm_mask(labels: np.ndarray) -> np.ndarray:
    """Return where a label array holds the arms, from the shoulder's outer side to the hands, bones included."""
    return np.isin(labels, ARM_LABELS)
