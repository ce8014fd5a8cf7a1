"""The images of one simulated scan: a single one, or those of a Dixon acquisition.

With water W and fat F of a voxel, in phase it gives W + F and in opposed phase W - F, both with complex noise of their
own. Their half sum and half difference are the water and the fat image (Dixon, Radiology 1984). What is kept are
magnitudes. Where water and fat share a voxel, opposed phase is dark.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from data.errors import InputError
from data.simulation.draws import Draws
from data.volumes.contrasts import ONLY_CONTRAST
from data.volumes.dicom_contrasts import DIXON_NAMES

# A single image is one in phase, whatever it is called.
CONTRASTS = (ONLY_CONTRAST, *DIXON_NAMES)
# Signal that is left in the echo of opposed phase: echoes are a millisecond apart, and either may be the later.
_OTHER_ECHO = (0.85, 1.1)
# Muscle in the water image, in shares of its window: no fat outshines it there.
_MUSCLE_IN_WATER = (0.4, 0.95)

Echo = tuple[Tensor, Tensor]


def shown_alike(names: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Tell whether contrasts of these names show the same; a single one with a name of its own is in phase."""

    def shown(one: tuple[str, ...]) -> tuple[str, ...]:
        return ("in_phase",) if len(one) == 1 and one[0] not in DIXON_NAMES else one

    return shown(names) == shown(others)


def parse_contrasts(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of contrasts that are simulated together.

    Raises:
        InputError: one that is not known, or for the second time.
    """
    if (set(names) <= set(DIXON_NAMES) and len(set(names)) == len(names)) or list(names) == [ONLY_CONTRAST]:
        return tuple(names)
    raise InputError(f"expected {ONLY_CONTRAST}, or different ones of {', '.join(DIXON_NAMES)}")


def contrasts_to_simulate(names: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the contrasts to simulate for a model of the contrasts `names`, None if that is impossible.

    A single contrast with a name of its own is taken for a T1-weighted image.
    """
    if set(names) <= set(CONTRASTS):
        return names
    return (ONLY_CONTRAST,) if len(names) == 1 else None


def contrast_images(
    parts: Sequence[Tensor], muscle: Tensor, contrasts: Sequence[str], noise: Tensor, draws: Draws
) -> Tensor:
    """Return the magnitude images of a scan, (N, C S, H, W) in [-1, 1], contrast after contrast.

    Args:
        parts: the whole signal in phase and, for several contrasts, that of fat, (N, S, H, W) each.
        muscle: muscle's signal in phase, (N, 1, 1, 1).
        contrasts: which images, names of `CONTRASTS`.
        noise: standard deviation of the real and of the imaginary part of an echo, (N, 1, 1, 1).
        draws: all that is random.
    """
    in_phase = _echo(parts[0], noise, draws)
    echoes = {ONLY_CONTRAST: in_phase, "in_phase": in_phase}
    scale = dict.fromkeys(CONTRASTS, torch.ones_like(muscle))
    if len(parts) > 1:
        total, fat = parts
        left = draws.uniform(*_OTHER_ECHO)
        echoes["opposed_phase"] = opposed = _echo((total - 2 * fat).mul_(left), noise, draws)
        (r1, i1), (r2, i2) = in_phase, opposed
        echoes |= {"water": ((r1 + r2) / 2, (i1 + i2) / 2), "fat": ((r1 - r2) / 2, (i1 - i2) / 2)}
        scale["water"] = draws.uniform(*_MUSCLE_IN_WATER) / muscle
    images = [_magnitude(*echoes[name]).mul_(scale[name]) for name in contrasts]
    return torch.cat(images, 1).clamp_(max=1).mul_(2).sub_(1)


def _echo(signal: Tensor, noise: Tensor, draws: Draws) -> Echo:
    """Return real and imaginary part of a signal with noise in both."""
    shape = signal.shape[1:]
    return draws.normal(*shape).mul_(noise).add_(signal), draws.normal(*shape).mul_(noise)


def _magnitude(real: Tensor, imaginary: Tensor) -> Tensor:
    return (real * real).addcmul_(imaginary, imaginary).sqrt_()
