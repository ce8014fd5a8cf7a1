"""T1-like MR simulated from CT on the training device: pairs whose CT is known, from patients without any MR.

What belongs to a CT volume (its noise removed, depth in bone) is computed once
(`data/simulation/simulation_volume.py`). What is drawn anew for every pair is here and in
`data/simulation/soft_tissue.py`: a few dozen pointwise operations and blurs on whole batches, in torch.

A voxel's signal is the sum of what its tissues give, by volume (v, m: shares of fat and of mineral, from HU):

    outside bone    s = (1 - m) (w fat + (1 - w) muscle) e^(t (1 - w))     w = v (1 + c (1 - v)), c >= 0
    inside bone     s = (1 - m) marrow + m cortex            marrow: from red (like muscle) to fatty (like fat)

Thin fat between muscles is brighter in MR than its share of a CT voxel says, by c. Lean tissues of one HU differ by t:
organs and tumours. How much of a signal is fat's gives
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

from data.simulation.contrasts import contrast_images
from data.simulation.draws import Draws
from data.simulation.filters import acquired_through, blur, normal_quantile, ramp
from data.simulation.settings import SimulationSettings
from data.simulation.simulation_volume import bone_depth, denoised
from data.simulation.soft_tissue import brightness, dark_details, interfaces, soft_tissue
from data.values.intensity import AIR_HU, IntensityMap
from data.volumes.contrasts import ONLY_CONTRAST

# Standard deviation of a slice as thick as the distance to the next, in shares of it.
_BOX = 12**-0.5
# Depth below the skin is told down to 2.3 times this.
_SKIN_SIGMA_MM = 3.0


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
        settings = SimulationSettings(contrasts=self.contrasts, mr_slice_mm=0.0)  # no slices beyond the slab to mix in
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
        depth_mm: (N, S, H, W), how deep below its bone's surface a pixel's centre lies; in the spinal canal how far
            from its wall, below zero; 0 elsewhere.
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
    fat, muscle = brightness(draws, settings)
    several = settings.contrasts != (ONLY_CONTRAST,)
    # The whole signal and, where several contrasts are made of it, that of fat.
    parts = soft_tissue(ct, (-depth_mm).clamp_(min=0), fat, muscle, spacing, draws, settings)
    for lost in (interfaces(ct, pixel_mm, draws), dark_details(shape, spacing, draws)):
        parts = [_less(part, lost) for part in parts]
    inside = (depth_mm - draws.uniform(0.2, 1.2)).clamp_(0, 1)
    bone = _bone(ct, fat, muscle, spacing, draws, settings, several)
    parts = [part.lerp_(of_bone, inside) for part, of_bone in zip(parts, bone, strict=True)]
    if settings.skin_mm:
        lost = _skin(ct, settings.skin_mm, spacing, draws)
        parts = [_less(part, lost) for part in parts]
    through, width = _acquisition(spacing[0], draws, settings), draws.uniform(0, 0.9) / pixel_mm
    parts = [blur(acquired_through(part, *through, margin), width, 0.9 / pixel_mm) for part in parts]
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


def _acquisition(slice_mm: float, draws: Draws, settings: SimulationSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Return profile, distance and phase of the acquired slices (see `acquired_through`).

    Most MR have thicker slices than CT, one beside the other, and get to the CT's distance by interpolation.
    """
    if settings.mr_slice_mm <= slice_mm:
        profile = draws.uniform(0, 0.9)
        return profile, torch.ones_like(profile), torch.zeros_like(profile)
    distance = draws.uniform(0, settings.mr_slice_mm) / slice_mm
    coarser = (distance > 1).to(distance.dtype)
    profile = torch.maximum(draws.uniform(0, 0.9), coarser * distance * _BOX)
    return profile, distance.clamp(min=1), draws.uniform(0, 1) * coarser


def _less(signal: Tensor, lost: Tensor) -> Tensor:
    """Return `signal`, changed in place, less the share that is lost."""
    return signal.addcmul_(signal, lost, value=-1)


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
    mineral = ramp(ct, draws.uniform(*settings.bone_from_hu), draws.uniform(*settings.bone_to_hu))
    signal = marrow.lerp_(draws.uniform(0.0, 0.1) * fat, mineral)
    return [signal] if fat_share is None else [signal, fat_share.mul_(signal)]


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
    depth = normal_quantile(inside).mul_(sigma_mm)
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
