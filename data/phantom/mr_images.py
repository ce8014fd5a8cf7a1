"""MR of a phantom's tissues: T1-weighted in phase, and the four Dixon contrasts.

With water W and fat F of a voxel, in phase it gives W + F and in opposed phase W - F, both with complex noise of
their own. Their half sum and half difference are the water and the fat image (Dixon, Radiology 1984), whose noise is
lower by the square root of 2. What is stored are magnitudes. Where water and fat share a voxel, opposed phase is dark:
along every border between fat and muscle, by partial volume.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

from data.phantom.labels import Tissue
from data.phantom.shapes import SmoothField
from data.volumes.dicom_contrasts import DIXON_NAMES

# Tissue: (T1-weighted in-phase signal relative to subcutaneous fat, standard deviation between patients).
MR_SIGNAL: dict[Tissue, tuple[float, float]] = {
    Tissue.AIR: (0.0, 0),
    Tissue.FAT: (1.0, 0),
    Tissue.MUSCLE: (0.36, 0.02),
    Tissue.CORTEX: (0.05, 0.01),
    Tissue.MARROW: (0.9, 0.03),
    Tissue.TRABECULAR: (0.6, 0.05),
    Tissue.CARTILAGE: (0.3, 0.03),
    Tissue.BRAIN: (0.45, 0.02),
    Tissue.CSF: (0.15, 0.02),
    Tissue.LUNG: (0.06, 0.01),
    Tissue.BLOOD: (0.3, 0.04),
    Tissue.LIVER: (0.5, 0.04),
    Tissue.SPLEEN: (0.31, 0.02),
    Tissue.KIDNEY: (0.39, 0.03),
    Tissue.BOWEL: (0.33, 0.04),
    Tissue.BLADDER: (0.17, 0.02),
    Tissue.GAS: (0.0, 0),
    Tissue.COUCH_SHELL: (0.0, 0),
    Tissue.COUCH_FOAM: (0.0, 0),
}
# Share of that signal that is fat's; none in the others.
FAT_SHARE: dict[Tissue, float] = {
    Tissue.FAT: 0.95,
    Tissue.MUSCLE: 0.03,
    Tissue.CORTEX: 0.2,
    Tissue.MARROW: 0.9,
    Tissue.TRABECULAR: 0.5,
    Tissue.LIVER: 0.05,
    Tissue.BOWEL: 0.05,
}
MR_TEXTURE = 0.04
"""Standard deviation of the MR signal inside a tissue relative to the tissue's mean."""

SAME_AS = {
    Tissue.ARM_FAT: Tissue.FAT,
    Tissue.ARM_MUSCLE: Tissue.MUSCLE,
    Tissue.ARM_CORTEX: Tissue.CORTEX,
    Tissue.ARM_MARROW: Tissue.MARROW,
}


def mr_images(
    fine_labels: np.ndarray, parts: int, axes: tuple[np.ndarray, ...], rng: np.random.Generator, dixon: bool = False
) -> dict[str, np.ndarray]:
    """Return the contrast `in_phase`, with `dixon` all of `DIXON_NAMES`, int16 >= 0, on one scale.

    Tissue signals, bias field, Rician noise, a scanner's scale. Rician noise is that of the magnitude of a complex
    signal with equal Gaussian noise in both channels (Gudbjartsson and Patz, Magn Reson Med 1995).

    Args:
        fine_labels: `Tissue` of `parts` x `parts` pieces of every voxel.
        parts: pieces of a pixel's side.
        axes: voxel centres along x, y and z, mm.
        rng: draws everything; the in-phase image is the same with `dixon` and without.
    """
    signal, fat_share = np.zeros(len(Tissue), np.float32), np.zeros(len(Tissue), np.float32)
    for tissue, (mean, between) in MR_SIGNAL.items():
        signal[tissue] = max(0.0, mean + rng.normal(0, 1) * between)
        fat_share[tissue] = FAT_SHARE.get(tissue, 0.0)
    for tissue, model in SAME_AS.items():
        signal[tissue], fat_share[tissue] = signal[model], fat_share[model]
    total = partial_volume(signal[fine_labels], parts)
    texture = 1 + MR_TEXTURE * grain(total.shape, rng)
    shading = np.exp(SmoothField(rng, 0.12, (1400.0, 700.0, 450.0)).evaluate(*axes))
    noise = rng.uniform(0.015, 0.03)
    total *= texture
    total *= shading
    in_phase = _echo(total, noise, rng)
    scale = np.exp(rng.uniform(np.log(200), np.log(1500)))
    if not dixon:
        return {"in_phase": _stored(in_phase, scale)}
    fat = partial_volume((signal * fat_share)[fine_labels], parts) * texture * shading
    opposed = _echo(total - 2 * fat, noise, rng)
    (r1, i1), (r2, i2) = in_phase, opposed
    echoes = (in_phase, opposed, ((r1 + r2) / 2, (i1 + i2) / 2), ((r1 - r2) / 2, (i1 - i2) / 2))
    return {name: _stored(echo, scale) for name, echo in zip(DIXON_NAMES, echoes, strict=True)}


def _echo(signal: np.ndarray, noise: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return real and imaginary part of a signal with noise in both."""
    real = signal + noise * rng.standard_normal(signal.shape, np.float32)
    return real, noise * rng.standard_normal(signal.shape, np.float32)


def _stored(echo: tuple[np.ndarray, np.ndarray], scale: float) -> np.ndarray:
    return np.clip(np.rint(scale * np.hypot(*echo)), 0, np.iinfo(np.int16).max).astype(np.int16)


def grain(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return noise with a grain of about two voxels and a standard deviation of 1."""
    noise = gaussian_filter(rng.standard_normal(shape, np.float32), 0.8, mode="wrap")
    return noise / noise.std()


def partial_volume(fine: np.ndarray, parts: int) -> np.ndarray:
    """Average `parts` x `parts` pixels of each slice to one and blur by 0.4 of the result's pixels."""
    z, y, x = fine.shape
    image = fine.reshape(z, y // parts, parts, x // parts, parts).mean(axis=(2, 4))
    return gaussian_filter(image, (0, 0.4, 0.4), mode="nearest")
