"""Linear attenuation at 511 keV of a CT, for the attenuation correction of PET.

Two lines, which meet a little above water: below, tissue is a mixture of air and water, above, one of water and bone,
whose CT numbers depend on the tube voltage. Source: J. P. J. Carney, D. W. Townsend, V. Rappoport, B. Bendriem, "Method
for transforming CT images for attenuation correction in PET/CT imaging", Med Phys 33 (2006) 976-983, table of a, b and
break point.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from data.volumes.volume import Volume

DEFAULT_KVP = 120
# 1/cm for each step of CT number + 1000, below the break point.
_WATER_SLOPE = 9.6e-5
_SIGMA_OF_FWHM = 1 / (2 * np.sqrt(2 * np.log(2)))


class Line(NamedTuple):
    """Above `break_hu` it is slope * (HU + 1000) + intercept, in 1/cm."""

    slope: float
    intercept: float
    break_hu: float


LINES = {
    80: Line(3.64e-5, 6.26e-2, 50),
    100: Line(4.43e-5, 5.44e-2, 52),
    110: Line(4.92e-5, 4.88e-2, 43),
    120: Line(5.10e-5, 4.71e-2, 47),
    130: Line(5.51e-5, 4.24e-2, 37),
    140: Line(5.64e-5, 4.08e-2, 30),
}


@dataclass(frozen=True)
class MuSettings:
    """How a mu-map is made.

    Attributes:
        kvp: tube voltage of the CT, one of `LINES`; of a synthetic CT that of the CT which its model was trained on.
        pet_fwhm_mm: width of the Gaussian that brings the map to the PET's resolution; None leaves the CT's.
    """

    kvp: int = DEFAULT_KVP
    pet_fwhm_mm: float | None = None


def describe_mu(settings: MuSettings) -> str:
    """Return what the header of a mu-map says of its values, in at most the 79 characters that a NIfTI file has."""
    return f"mu in 1/cm at 511 keV, curve for CT of {settings.kvp} kVp; synthetic, not for clinical use"


def is_mu(description: str) -> bool:
    """Tell whether a header's description is that of a mu-map."""
    return description in {describe_mu(MuSettings(kvp)) for kvp in LINES}


def mu_map(ct: Volume, settings: MuSettings) -> Volume:
    """Return the linear attenuation coefficient at 511 keV in 1/cm, float32 on the CT's grid; 0 below -1000 HU."""
    line = LINES[settings.kvp]
    above_air = np.maximum(ct.array.astype(np.float32) + 1000, 0)
    mu = np.where(ct.array < line.break_hu, _WATER_SLOPE * above_air, line.slope * above_air + line.intercept)
    mu = mu.astype(np.float32, copy=False)
    if settings.pet_fwhm_mm:
        sigma = [settings.pet_fwhm_mm * _SIGMA_OF_FWHM / mm for mm in ct.spacing[::-1]]
        mu = ndimage.gaussian_filter(mu, sigma, mode="nearest")
    return ct.with_array(mu)
