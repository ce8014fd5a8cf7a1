"""T1-like MR simulated from CT on the training device: pairs whose CT is known, from patients without any MR.

What belongs to a CT volume (its noise removed, depth in bone) is computed once
(`data/simulation/simulation_volume.py`). What is drawn anew for every pair is here: a few dozen
pointwise operations and blurs on whole batches, in torch.

A voxel's signal is the sum of what its tissues give, by volume (v, m: shares of fat and of mineral, from HU):

    outside bone    s = (1 - m) (w fat + (1 - w) muscle)     w = v (1 + c (1 - v)), c >= 0
    inside bone     s = (1 - m) marrow + m cortex            marrow: from red (like muscle) to fatty (like fat)

Thin fat between muscles is brighter in MR than its share of a CT voxel says, by c. How much of a signal is fat's gives
the images of a Dixon acquisition (`data/simulation/contrasts.py`).

Every number is drawn anew for every pair (domain randomisation: Tobin et al., IROS 2017; Billot et al., SynthSeg,
Medical Image Analysis 2023), so that what is learnt is structure, not one scanner's values. What belongs to the scan
(contrast, bias field, blur, texture) is one for all slices of a slab; noise is drawn for every slice (Rician, as in
magnitude images: Gudbjartsson and Patz, Magn Reson Med 1995).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data.simulation.contrasts import contrast_images
from data.simulation.draws import Draws
from data.simulation.simulation_volume import bone_depth, denoised
from data.values.intensity import AIR_HU, IntensityMap
from data.volumes.contrasts import ONLY_CONTRAST

# What fasciae, tendons and chemical shift darken is as wide as this at most: a part of a larger pixel.
_THIN_MM = 2.0
# Depth below the skin is told down to 2.3 times this.
_SKIN_SIGMA_MM = 3.0


@dataclass(frozen=True)
class SimulationSettings:
    """Ranges that the simulation draws from: (low, high) of a uniform distribution, signals in shares of the window.

    Attributes:
        fat, muscle: their signals. marrow: in shares of fat's signal.
        bone_from_hu, bone_to_hu: a voxel of a bone holds no mineral below the one, nothing else above the other.
        field_of_view: twice the probability that a side of the field of view is cut.
        bias: standard deviation of the logarithm of the bias field at its nodes.
        skin_mm: largest mean thickness of skin that loses its signal; 0: it is as bright as its HU say.
        noise: of each channel, in shares of the window.
        contrasts: which MR images are made, names of `data.simulation.contrasts.CONTRASTS`.
        other_sequences: probability that a slab is of no T1-weighted sequence: fat and muscle of any brightness.
    """

    fat: tuple[float, float] = (0.65, 1.0)
    muscle: tuple[float, float] = (0.2, 0.45)
    marrow: tuple[float, float] = (0.35, 1.1)
    bone_from_hu: tuple[float, float] = (60.0, 260.0)
    bone_to_hu: tuple[float, float] = (600.0, 1100.0)
    field_of_view: float = 0.8
    bias: tuple[float, float] = (0.0, 0.15)
    skin_mm: float = 3.0
    noise: tuple[float, float] = (0.002, 0.025)
    contrasts: tuple[str, ...] = (ONLY_CONTRAST,)
    other_sequences: float = 0.0


@dataclass(frozen=True)
class SimulatedPairs:
    """Makes training pairs from CT slabs as the networks see them: through `ct_map`, pixels of `spacing_mm`.

    `slice_mm`: what the slices of a slab lie apart; None for single slices. `contrasts`: of the MR, names of
    `data.simulation.contrasts.CONTRASTS`.
    """

    ct_map: IntensityMap
    spacing_mm: float
    slice_mm: float | None = None
    contrasts: tuple[str, ...] = (ONLY_CONTRAST,)

    def __call__(self, ct: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return simulated MR (C S, H, W) and CT (S, H, W), cut to one field of view, of a CT slab (S, H, W).

        All are float32 in [-1, 1].
        """
        planes = [denoised(plane) for plane in self.ct_map.to_physical(ct.numpy())]
        clean, depth = np.stack(planes), np.stack([bone_depth(plane, self.spacing_mm) for plane in planes])
        hu, depth_mm = (torch.from_numpy(array)[None].float() for array in (clean, depth))
        draws = Draws(1, *(torch.Generator().manual_seed(int(seed)) for seed in rng.integers(2**62, size=2)))
        settings = SimulationSettings(contrasts=self.contrasts)
        mr = simulate_mr(hu, depth_mm, (self.slice_mm or self.spacing_mm, self.spacing_mm), draws, settings)[0]
        seen = field_of_view(ct.shape[1:], settings.field_of_view, draws)[0]
        air = float(self.ct_map.to_network(np.array(AIR_HU)))
        return torch.where(seen, mr, -1.0), torch.where(seen, ct, air)


def simulate_mr(
    ct: Tensor,
    depth_mm: Tensor,
    spacing: tuple[float, float],
    draws: Draws,
    settings: SimulationSettings,
    margin: int = 0,
) -> Tensor:
    """Return MR of slabs of axial CT slices, T1-like but for `other_sequences`.

    Args:
        ct: (N, S, H, W) in HU, without noise, couch and contrast agent.
        depth_mm: (N, S, H, W), how deep below its bone's surface a pixel's centre lies; 0 outside bones.
        spacing: mm between slices and between pixels.
        draws: all that is random.
        settings: what it is drawn from.
        margin: slices at each end that only mix into their neighbours, and are not returned.

    Returns:
        (N, C (S - 2 margin), H, W) of C contrasts, as `data.loading.channels` orders them, in [-1, 1]: -1 is no signal,
        1 the upper end of the contrast's window.
    """
    shape, pixel_mm = ct.shape[1:], spacing[1]
    kept_shape = (shape[0] - 2 * margin, *shape[1:])
    ct = blur(ct, draws.uniform(0, 1.0) / pixel_mm, 1.0 / pixel_mm)
    # Below its cortex a bone shows the CT's noise, which would tell the network where bone is.
    smooth = blur(ct, torch.full_like(ct[:, :1, :1, :1], 1.5 / pixel_mm), 1.5 / pixel_mm)
    ct = ct.lerp_(smooth, (depth_mm > 3.0).to(ct.dtype))
    fat, muscle = _brightness(draws, settings)
    several = settings.contrasts != (ONLY_CONTRAST,)
    # The whole signal and, where several contrasts are made of it, that of fat.
    parts = _soft_tissue(ct, fat, muscle, spacing, draws, several)
    for lost in (_interfaces(ct, pixel_mm, draws), _dark_details(shape, spacing, draws)):
        parts = [_less(part, lost) for part in parts]
    inside = (depth_mm - draws.uniform(0.2, 1.2)).clamp_(0, 1)
    bone = _bone(ct, fat, muscle, spacing, draws, settings, several)
    parts = [part.lerp_(of_bone, inside) for part, of_bone in zip(parts, bone, strict=True)]
    if settings.skin_mm:
        lost = _skin(ct, settings.skin_mm, spacing, draws)
        parts = [_less(part, lost) for part in parts]
    thickness, width = draws.uniform(0, 0.9), draws.uniform(0, 0.9) / pixel_mm
    parts = [blur(blur_through(part, thickness, margin), width, 0.9 / pixel_mm) for part in parts]
    shading = draws.smooth_field(kept_shape, 120.0, spacing, draws.uniform(*settings.bias)).exp_()
    parts = [part.mul_(shading) for part in parts]
    return contrast_images(parts, muscle, settings.contrasts, draws.uniform(*settings.noise), draws)


def simulate_volume(
    hu: np.ndarray,
    depth: np.ndarray,
    spacing: tuple[float, float],
    seed: int,
    settings: SimulationSettings,
) -> np.ndarray:
    """Return the MR of a whole CT, float32 (C, N, H, W) in [-1, 1]; the same seed gives the same MR.

    All slices are of one scan, with one contrast and one bias field; the field of view is not cut.

    Args:
        hu, depth: the CT's maps (`data.simulation.simulation_volume.SimulationVolume`), (N, H, W).
        spacing: mm between slices and between pixels.
        seed: of all that is random.
        settings: what it is drawn from, and of which C contrasts.
    """
    draws = Draws(1, *(torch.Generator().manual_seed(seed + k) for k in range(2)))
    ct, quarters = (torch.from_numpy(array)[None].float() for array in (hu, depth))
    with torch.no_grad():
        mr = simulate_mr(ct, quarters / 4, spacing, draws, settings)[0]
    return mr.unflatten(0, (len(settings.contrasts), len(hu))).numpy()


def field_of_view(shape: tuple[int, ...], share: float, draws: Draws) -> Tensor:
    """Return rectangles in a `shape` (H, W), bool (N, 1, H, W), True inside: MR often ends within the body.

    Each side is cut with probability `share` / 2, by up to 45 %.
    """
    cuts = []
    for _ in range(4):
        amount = draws.uniform(0, 0.45)
        cuts.append(amount * (draws.uniform(0, 1) < 0.5) * (draws.uniform(0, 1) < share))
    top, bottom, left, right = cuts
    y = torch.linspace(0, 1, shape[0], device=draws.device)[None, None, :, None]
    x = torch.linspace(0, 1, shape[1], device=draws.device)[None, None, None, :]
    return (y >= top) & (y <= 1 - bottom) & (x >= left) & (x <= 1 - right)


def blur(image: Tensor, sigma: Tensor, largest: float, reach: float = 3.0) -> Tensor:
    """Return (N, S, H, W) with every slice blurred by a Gaussian of `sigma` (N, 1, 1, 1) pixels of its slab.

    The kernel ends after `reach` times the `largest` sigma there may be; the picture is continued beyond its edges.
    """
    radius = max(1, round(reach * largest))
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    weights = torch.softmax(-0.5 * (offsets.view(-1, 1, 1, 1, 1) / sigma.clamp(min=0.05)) ** 2, 0)[radius:]
    image = F.pad(image, (radius, radius, radius, radius), mode="replicate")
    for axis in (2, 3):
        length = image.shape[axis] - 2 * radius
        blurred = image.narrow(axis, radius, length) * weights[0]
        for k in range(1, radius + 1):
            both = image.narrow(axis, radius - k, length) + image.narrow(axis, radius + k, length)
            blurred.addcmul_(both, weights[k])
        image = blurred
    return image


def blur_through(image: Tensor, sigma: Tensor, margin: int = 0) -> Tensor:
    """Return (N, S, H, W) blurred across its slices by a Gaussian of `sigma` (N, 1, 1, 1) slices: thick slices.

    `margin`: slices at each end that are not returned.
    """
    slices = image.shape[1]
    distance = torch.arange(slices, device=image.device, dtype=image.dtype)
    distance = distance[margin : slices - margin, None] - distance[None, :]
    weights = torch.exp(-0.5 * (distance[None] / sigma.view(-1, 1, 1).clamp(min=0.05)) ** 2)
    return torch.einsum("nst,nthw->nshw", weights / weights.sum(2, keepdim=True), image)


def _less(signal: Tensor, lost: Tensor) -> Tensor:
    """Return `signal`, changed in place, less the share that is lost."""
    return signal.addcmul_(signal, lost, value=-1)


def _ramp(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Return 0 below `low`, 1 above `high`, linear between."""
    return _line(x, low, high).clamp_(0, 1)


def _line(x: Tensor, zero: Tensor | float, one: Tensor | float) -> Tensor:
    """Return the straight line that is 0 at `zero` and 1 at `one`."""
    slope = 1 / (one - zero)
    return (x * slope).sub_(zero * slope)


def _brightness(draws: Draws, settings: SimulationSettings) -> tuple[Tensor, Tensor]:
    """Return the signals of fat and muscle, each (N, 1, 1, 1)."""
    fat, muscle = draws.uniform(*settings.fat), draws.uniform(*settings.muscle)
    if settings.other_sequences:
        bright = draws.uniform(0.65, 1.0)
        dark = bright * draws.uniform(np.log(0.1), 0).exp_()
        other, fat_is_bright = (draws.uniform(0, 1) < share for share in (settings.other_sequences, 0.5))
        fat = torch.where(other, torch.where(fat_is_bright, bright, dark), fat)
        muscle = torch.where(other, torch.where(fat_is_bright, dark, bright), muscle)
    return fat, muscle


def _soft_tissue(
    ct: Tensor, fat: Tensor, muscle: Tensor, spacing: tuple[float, float], draws: Draws, with_fat: bool
) -> list[Tensor]:
    """Return the signal outside bones, and with `with_fat` that of fat in it."""
    shape = ct.shape[1:]
    # Lung and the slope to air hold water, not fat, however low their HU.
    lean = _line(ct, draws.uniform(-110, -85), draws.uniform(25, 60))
    lean = torch.maximum(lean, _line(ct, -200.0, -500.0), out=lean).clamp_(0, 1)
    bright = draws.uniform(0, 1)
    lean = (lean * bright).add_(1 - bright).mul_(lean)
    # Muscles, organs and tumours differ more than their HU do: smoothly, and one from another.
    texture = draws.smooth_field(shape, float(draws.integer(15, 80)), spacing, draws.uniform(0, 0.15))
    edge = 0.15  # of organs, in standard deviations
    places = draws.smooth_field(
        shape, float(draws.integer(25, 70)), spacing, 1 / edge, draws.uniform(-1.6, -0.6) / edge
    )
    texture.addcmul_(places.clamp_(0, 1), draws.uniform(-1.2, 0.7)).mul_(lean).exp_()
    of_fat = [(1 - lean).mul_(fat)] if with_fat else []
    signal = lean.mul_(muscle - fat).add_(fat)
    # Lung by its density, or as much less as its short T2* takes.
    tissue = _line(ct, AIR_HU + draws.uniform(0, 70), -130.0)
    mineral = _line(ct, draws.uniform(80, 180), draws.uniform(400, 800))
    tissue = torch.minimum(tissue, mineral.neg_().add_(1), out=tissue).clamp_(0, 1)
    return [part.mul_(texture).mul_(tissue) for part in (signal, *of_fat)]


def _bone(
    ct: Tensor,
    fat: Tensor,
    muscle: Tensor,
    spacing: tuple[float, float],
    draws: Draws,
    settings: SimulationSettings,
    with_fat: bool,
) -> list[Tensor]:
    """Return the signal inside bones, and with `with_fat` that of fat in it."""
    # Red and fatty marrow lie beside each other: one level for the scan, and a smooth change within it.
    level, spread = (draws.uniform(*settings.marrow) * fat).log(), draws.uniform(0, 0.3)
    marrow = draws.smooth_field(ct.shape[1:], float(draws.integer(30, 120)), spacing, spread, level).exp_()
    # Red marrow holds some 40 % of fat, fatty marrow 90 %; what is mineral of a voxel holds neither.
    fat_share = (marrow / fat).mul_(0.7).add_(0.2).clamp_(max=0.95) if with_fat else None
    marrow = torch.maximum(marrow, 0.8 * torch.minimum(muscle, fat), out=marrow)
    mineral = _ramp(ct, draws.uniform(*settings.bone_from_hu), draws.uniform(*settings.bone_to_hu))
    signal = marrow.lerp_(draws.uniform(0.0, 0.1) * fat, mineral)
    return [signal] if fat_share is None else [signal, fat_share.mul_(signal)]


def _interfaces(ct: Tensor, pixel_mm: float, draws: Draws) -> Tensor:
    """Return the share of the signal that is lost between fat and muscle: fascia and chemical shift.

    Without it all that is bright with a dark outline would be bone.
    """
    sigma = draws.uniform(0.7, 1.2) / pixel_mm
    fat_share = blur(_ramp(ct, 40.0, -100.0), sigma, 1.2 / pixel_mm, 2.5)
    across = F.pad(fat_share, (1, 1, 1, 1), mode="replicate")
    dy = across[:, :, 2:, 1:-1] - across[:, :, :-2, 1:-1]
    dx = across[:, :, 1:-1, 2:] - across[:, :, 1:-1, :-2]
    steepest = 2 / (2.5066 * sigma.clamp(min=0.6))  # of an edge from 0 to 1, over two pixels
    slope = dx.mul_(dx).addcmul_(dy, dy).sqrt_()
    return slope.mul_(1 / steepest).clamp_(max=1).mul_(draws.uniform(0, 0.8) * _thin_share(pixel_mm))


def _thin_share(pixel_mm: float) -> float:
    """Return how much of a pixel a fascia or a line of chemical shift fills at most."""
    return min(1.0, _THIN_MM / pixel_mm)


def _dark_details(shape: tuple[int, ...], spacing: tuple[float, float], draws: Draws) -> Tensor:
    """Return the share of the signal that is lost in vessels, fasciae and tendons, which CT does not tell from others.

    Without them all that is dark inside a body would be air or bone.
    """
    lines = draws.smooth_field(shape, float(draws.integer(10, 30)), spacing, 1 / draws.uniform(0.03, 0.15))
    lines.abs_().neg_().add_(1).clamp_(min=0).mul_(draws.uniform(0, 0.8) * _thin_share(spacing[1]))
    lines.mul_(draws.smooth_field(shape, float(draws.integer(20, 60)), spacing).gt_(0))
    rarity, cell = draws.uniform(2, 3.5), max(float(draws.integer(3, 8)), 2 * spacing[1])
    spots = draws.smooth_field(shape, cell, spacing, 4.0, -4 * rarity).clamp_(0, 1).mul_(draws.uniform(0.3, 1))
    return torch.maximum(lines, spots, out=lines)


def _skin(ct: Tensor, skin_mm: float, spacing: tuple[float, float], draws: Draws) -> Tensor:
    """Return the share of the signal that is lost in the skin and what lies close below it.

    Down to a depth that varies about the body, up to `skin_mm` and more where a patient was pressed, all is lost that
    can be; over a few more mm the signal rises. Real T1 MR of limbs showed no signal down to 0 to 3 mm.
    """
    # Depth below a flat surface from a blur of what is inside: blur = Phi(depth / sigma).
    pixel_mm = spacing[1]
    sigma_mm = max(_SKIN_SIGMA_MM, 1.2 * pixel_mm)
    sigma = torch.full_like(ct[:, :1, :1, :1], sigma_mm / pixel_mm)
    inside = blur(_without_outer_air(ct), sigma, sigma_mm / pixel_mm, 2.5)
    depth = _normal_quantile(inside).mul_(sigma_mm)
    dark = draws.smooth_field(ct.shape[1:], 80.0, spacing, 0.4, draws.uniform(-0.5, skin_mm)).clamp_(max=skin_mm + 1)
    slope = 1 / draws.uniform(0.5, 2.5)
    return depth.sub_(dark).mul_(slope).neg_().add_(1).clamp_(0, 1).mul_(draws.uniform(0.6, 1))


def _without_outer_air(ct: Tensor) -> Tensor:
    """Return 1 in bodies with their lungs and gas, 0 in the air about them, (N, S, H, W).

    Air is outer where a straight way through air, along a row or a column, leads to an edge of the picture.
    """
    air = (ct <= -500).to(ct.dtype)
    outer = torch.zeros_like(air)
    for axis in (2, 3):
        torch.maximum(outer, air.cumprod(axis), out=outer)
        torch.maximum(outer, air.flip(axis).cumprod(axis).flip(axis), out=outer)
    return outer.neg_().add_(1)


def _normal_quantile(share: Tensor) -> Tensor:
    """Return the standard normal quantile of shares from 0.01 to 0.99, which are changed; wrong by at most 0.014.

    A fit that takes a tenth of the time of torch's own on a CPU.
    """
    logit = share.clamp_(0.01, 0.99).logit_()
    square = logit * logit
    return (square * 1.65649e-4).add_(-8.90128e-3).mul_(square).add_(0.62341061).mul_(logit)
