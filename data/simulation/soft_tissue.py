"""MR signal of what is not bone: fat, muscle, organs, the spinal canal, and what darkens them that CT does not show."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data.simulation.draws import Draws
from data.simulation.filters import blur, line, ramp
from data.simulation.settings import SimulationSettings
from data.values.intensity import AIR_HU
from data.volumes.contrasts import ONLY_CONTRAST

# What fasciae, tendons and chemical shift darken is as wide as this at most: a part of a larger pixel.
_THIN_MM = 2.0


def brightness(draws: Draws, settings: SimulationSettings) -> tuple[Tensor, Tensor]:
    """Return the signals of fat and muscle, each (N, 1, 1, 1)."""
    fat, muscle = draws.uniform(*settings.fat), draws.uniform(*settings.muscle)
    if settings.other_sequences:
        bright = draws.uniform(0.65, 1.0)
        dark = bright * draws.uniform(np.log(0.1), 0).exp_()
        other, fat_is_bright = (draws.uniform(0, 1) < share for share in (settings.other_sequences, 0.5))
        fat = torch.where(other, torch.where(fat_is_bright, bright, dark), fat)
        muscle = torch.where(other, torch.where(fat_is_bright, dark, bright), muscle)
    return fat, muscle


def soft_tissue(
    ct: Tensor,
    canal_mm: Tensor,
    fat: Tensor,
    muscle: Tensor,
    spacing: tuple[float, float],
    draws: Draws,
    settings: SimulationSettings,
) -> list[Tensor]:
    """Return the signal outside bones and, where several contrasts are made, that of fat in it.

    `canal_mm`: how far from the wall of the spinal canal pixels in it lie, (N, S, H, W).
    """
    shape = ct.shape[1:]
    # Lung and the slope to air hold water, not fat, however low their HU.
    lean = line(ct, draws.uniform(-110, -85), draws.uniform(25, 60))
    lean = torch.maximum(lean, line(ct, -200.0, -500.0), out=lean).clamp_(0, 1)
    bright = draws.uniform(0, 1)
    lean = (lean * bright).add_(1 - bright).mul_(lean)
    # Muscles, organs and tumours differ more than their HU do: smoothly, and one from another.
    texture = draws.smooth_field(shape, float(draws.integer(15, 80)), spacing, draws.uniform(0, 0.15))
    edge = 0.15  # of organs, in standard deviations
    places = draws.smooth_field(
        shape, float(draws.integer(25, 70)), spacing, 1 / edge, draws.uniform(-1.6, -0.6) / edge
    )
    texture.addcmul_(places.clamp_(0, 1), draws.uniform(-1.2, 0.7))
    texture.lerp_(_spinal_canal(canal_mm, draws, settings), canal_mm.clamp(0, 1)).mul_(lean).exp_()
    of_fat = [(1 - lean).mul_(fat)] if settings.contrasts != (ONLY_CONTRAST,) else []
    signal = lean.mul_(muscle - fat).add_(fat)
    # Lung by its density, or as much less as its short T2* takes.
    tissue = line(ct, AIR_HU + draws.uniform(0, 70), -130.0)
    mineral = line(ct, draws.uniform(80, 180), draws.uniform(400, 800))
    tissue = torch.minimum(tissue, mineral.neg_().add_(1), out=tissue).clamp_(0, 1)
    return [part.mul_(texture).mul_(tissue) for part in (signal, *of_fat)]


def _spinal_canal(canal_mm: Tensor, draws: Draws, settings: SimulationSettings) -> Tensor:
    """Return the logarithm of how much brighter than muscle fluid and cord are: a CT shows no cord.

    On T1-weighted MR the fluid is dark, as compact bone is. It fills the canal up to a cord whose distance from the
    wall varies; low in the spine there is none.
    """
    brightest = 5.0 if settings.other_sequences else 0.8
    fluid, cord = draws.uniform(np.log(0.08), np.log(brightest)), draws.uniform(np.log(0.7), np.log(1.5))
    inside = (canal_mm - draws.uniform(0.5, 9.0)).div_(draws.uniform(0.5, 2.0)).clamp_(0, 1)
    return fluid + (cord - fluid) * inside


def interfaces(ct: Tensor, pixel_mm: float, draws: Draws) -> Tensor:
    """Return the share of the signal that is lost between fat and muscle: fascia and chemical shift.

    Without it all that is bright with a dark outline would be bone.
    """
    sigma = draws.uniform(0.7, 1.2) / pixel_mm
    fat_share = blur(ramp(ct, 40.0, -100.0), sigma, 1.2 / pixel_mm, 2.5)
    across = F.pad(fat_share, (1, 1, 1, 1), mode="replicate")
    dy = across[:, :, 2:, 1:-1] - across[:, :, :-2, 1:-1]
    dx = across[:, :, 1:-1, 2:] - across[:, :, 1:-1, :-2]
    steepest = 2 / (2.5066 * sigma.clamp(min=0.6))  # of an edge from 0 to 1, over two pixels
    slope = dx.mul_(dx).addcmul_(dy, dy).sqrt_()
    return slope.mul_(1 / steepest).clamp_(max=1).mul_(draws.uniform(0, 0.8) * _thin_share(pixel_mm))


def _thin_share(pixel_mm: float) -> float:
    """Return how much of a pixel a fascia or a line of chemical shift fills at most."""
    return min(1.0, _THIN_MM / pixel_mm)


def dark_details(shape: tuple[int, ...], spacing: tuple[float, float], draws: Draws) -> Tensor:
    """Return the share of the signal that is lost in vessels, fasciae and tendons, which CT does not tell from others.

    Without them all that is dark inside a body would be air or bone.
    """
    lines = draws.smooth_field(shape, float(draws.integer(10, 30)), spacing, 1 / draws.uniform(0.03, 0.15))
    lines.abs_().neg_().add_(1).clamp_(min=0).mul_(draws.uniform(0, 0.8) * _thin_share(spacing[1]))
    lines.mul_(draws.smooth_field(shape, float(draws.integer(20, 60)), spacing).gt_(0))
    rarity, cell = draws.uniform(2, 3.5), max(float(draws.integer(3, 8)), 2 * spacing[1])
    spots = draws.smooth_field(shape, cell, spacing, 4.0, -4 * rarity).clamp_(0, 1).mul_(draws.uniform(0.3, 1))
    return torch.maximum(lines, spots, out=lines)
