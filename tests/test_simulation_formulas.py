"""The simulated MR, written for speed, against the same formulas written plainly, from the same random numbers."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from data.simulation.draws import Draws
from data.simulation.settings import SimulationSettings
from data.simulation.simulated_mr import simulate_mr
from data.simulation.slab_stock import _grid
from data.simulation.soft_tissue import interfaces
from tests.test_simulated_mr import draws, limb

SPACING = (5.0, 2.0)
SETTINGS = SimulationSettings()


class PlainDraws(Draws):
    """The same numbers as `Draws`, with smooth fields interpolated by torch."""

    def smooth_field(self, shape, cell_mm, spacing, spread=1.0, mean=0.0):
        """See `Draws.smooth_field`."""
        slices, height, width = shape
        counts = [
            max(2, round(n * mm / cell_mm) + 2)
            for n, mm in zip(shape, (spacing[0], spacing[1], spacing[1]), strict=True)
        ]
        nodes = self.normal(counts[0], counts[2], counts[1]).transpose(2, 3)
        planes = F.interpolate(nodes, (height, width), mode="bicubic", align_corners=True)
        span = min(counts[0] - 1.0, (slices - 1) * spacing[0] / cell_mm)
        start = torch.rand(self.batch, 1, generator=self.generator) * (counts[0] - 1.0 - span)
        position = start + torch.linspace(0, span, slices)[None]
        below = position.floor().clamp(max=counts[0] - 2).long()
        share = (position - below)[:, :, None, None]
        index = below[:, :, None, None].expand(-1, -1, height, width)
        return mean + spread * (planes.gather(1, index) * (1 - share) + planes.gather(1, index + 1) * share)


def plain_blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Each slab's slices, blurred by a Gaussian of nine pixels."""
    offsets = torch.arange(-4.0, 5.0)
    blurred = []
    for slab, s in zip(image, sigma.view(-1), strict=True):
        kernel = torch.exp(-0.5 * (offsets / s.clamp(min=0.05)) ** 2)
        kernel = kernel / kernel.sum()
        padded = F.pad(slab[:, None], (4, 4, 4, 4), mode="replicate")
        blurred.append(F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, 9)), kernel.view(1, 1, 9, 1))[:, 0])
    return torch.stack(blurred)


def plain_acquisition(slab: Tensor, apart: float, sigma: float, phase: float) -> Tensor:
    """A slab (S, H, W) as acquired in slices so far apart, if farther than its own, then interpolated by numpy."""
    planes = slab.flatten(1).double().numpy()
    count = len(planes)
    places = np.arange(count, dtype=float)
    if apart > 1:
        sigma = max(sigma, apart / math.sqrt(12))
        nodes = np.arange(-1 + phase, count + 1) * apart
    else:
        nodes = places
    weights = np.exp(
        -0.5 * ((nodes[:, None] - places) / max(sigma, 0.05)) ** 2
        + 0.5 * np.min(((nodes[:, None] - places) / max(sigma, 0.05)) ** 2, axis=1, keepdims=True)
    )
    acquired = weights / weights.sum(1, keepdims=True) @ planes
    back = np.stack([np.interp(places, nodes, column) for column in acquired.T], 1)
    return torch.from_numpy(back).float().view_as(slab)


def ramp(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """0 below `low`, 1 above `high`."""
    return ((x - low) / (high - low)).clamp(0, 1)


def plain_soft_tissue(ct: Tensor, depth_mm: Tensor, fat: Tensor, muscle: Tensor, d: Draws) -> Tensor:
    """Fat, muscle and what is between, without bone."""
    shape = ct.shape[1:]
    lean = torch.where(ct > -200, ramp(ct, d.uniform(-110, -85), d.uniform(25, 60)), 1 - ramp(ct, -500, -200))
    lean = lean * (1 - d.uniform(0, 1) * (1 - lean))
    cell, spread = float(d.integer(15, 80)), d.uniform(0, 0.15)
    texture = spread * d.smooth_field(shape, cell, SPACING)
    cell, rarity = float(d.integer(25, 70)), -d.uniform(-1.6, -0.6)
    organs = ramp(d.smooth_field(shape, cell, SPACING), rarity, rarity + 0.15) * d.uniform(-1.2, 0.7)
    fluid, cord = (d.uniform(*torch.tensor(ends).log().tolist()) for ends in ((0.08, 0.8), (0.7, 1.5)))
    cord_share = ((-depth_mm - d.uniform(0.5, 9)) / d.uniform(0.5, 2)).clamp(0, 1)
    canal = torch.lerp(fluid, cord, cord_share)
    signal = (fat + (muscle - fat) * lean) * torch.exp(
        lean * torch.lerp(texture + organs, canal, (-depth_mm).clamp(0, 1))
    )
    return signal * ramp(ct, d.uniform(0, 70) - 1000, -130) * (1 - ramp(ct, d.uniform(80, 180), d.uniform(400, 800)))


def plain_interfaces(ct: Tensor, d: Draws) -> Tensor:
    """Loss of signal between fat and muscle."""
    sigma = d.uniform(0.7, 1.2) / SPACING[1]
    across = F.pad(plain_blur(1 - ramp(ct, -100, 40), sigma), (1, 1, 1, 1), mode="replicate")
    dy = (across[:, :, 2:, 1:-1] - across[:, :, :-2, 1:-1]) / 2
    dx = (across[:, :, 1:-1, 2:] - across[:, :, 1:-1, :-2]) / 2
    steepest = 1 / ((2 * torch.pi) ** 0.5 * sigma.clamp(min=0.6))
    return (torch.hypot(dx, dy) / steepest).clamp(0, 1) * d.uniform(0, 0.8)


def plain_details(shape: tuple[int, ...], d: Draws) -> Tensor:
    """Loss of signal in thin lines and spots."""
    cell, width = float(d.integer(10, 30)), d.uniform(0.03, 0.15)
    lines = (1 - d.smooth_field(shape, cell, SPACING).abs() / width).clamp(0, 1) * d.uniform(0, 0.8)
    lines = lines * (d.smooth_field(shape, float(d.integer(20, 60)), SPACING) > 0)
    rarity, cell = d.uniform(2, 3.5), max(float(d.integer(3, 8)), 2 * SPACING[1])
    spots = (4 * (d.smooth_field(shape, cell, SPACING) - rarity)).clamp(0, 1) * d.uniform(0.3, 1)
    return torch.maximum(lines, spots)


def plain_bone(ct: Tensor, fat: Tensor, muscle: Tensor, d: Draws) -> Tensor:
    """Marrow and mineral, by volume."""
    level, spread, cell = d.uniform(*SETTINGS.marrow), d.uniform(0, 0.3), float(d.integer(30, 120))
    marrow = torch.maximum(level * fat * torch.exp(spread * d.smooth_field(ct.shape[1:], cell, SPACING)), 0.8 * muscle)
    mineral = ramp(ct, d.uniform(*SETTINGS.bone_from_hu), d.uniform(*SETTINGS.bone_to_hu))
    return (1 - mineral) * marrow + mineral * d.uniform(0, 0.1) * fat


def without_outer_air(ct: Tensor) -> Tensor:
    """1 where something that is no air lies on all four sides, or is no air itself."""
    body = ct > -500
    sides = [body.cumsum(2), body.flip(2).cumsum(2).flip(2), body.cumsum(3), body.flip(3).cumsum(3).flip(3)]
    return torch.stack([side > 0 for side in sides]).all(0).float()


def plain_mr(ct: Tensor, depth_mm: Tensor, d: Draws) -> Tensor:
    """What `simulate_mr` should give, each step a line."""
    shape, pixel_mm = ct.shape[1:], SPACING[1]
    ones = torch.ones(len(ct), 1, 1, 1)
    ct = plain_blur(ct, d.uniform(0, 1) / pixel_mm)
    ct = torch.where(depth_mm > 3, plain_blur(ct, 1.5 / pixel_mm * ones), ct)
    fat, muscle = d.uniform(*SETTINGS.fat), d.uniform(*SETTINGS.muscle)
    signal = (
        plain_soft_tissue(ct, depth_mm, fat, muscle, d) * (1 - plain_interfaces(ct, d)) * (1 - plain_details(shape, d))
    )
    inside = (depth_mm - d.uniform(0.2, 1.2)).clamp(0, 1)
    signal = torch.lerp(signal, plain_bone(ct, fat, muscle, d), inside)
    sigma_mm = max(3.0, 1.2 * pixel_mm)
    depth = sigma_mm * torch.special.ndtri(
        plain_blur(without_outer_air(ct), sigma_mm / pixel_mm * ones).clamp(0.01, 0.99)
    )
    dark = d.uniform(-0.5, SETTINGS.skin_mm)
    dark = (dark + 0.4 * d.smooth_field(shape, 80.0, SPACING)).clamp(max=SETTINGS.skin_mm + 1)
    signal = signal * (1 - (1 - (depth - dark) / d.uniform(0.5, 2.5)).clamp(0, 1) * d.uniform(0.6, 1))
    apart, through, phase = d.uniform(0, SETTINGS.mr_slice_mm) / SPACING[0], d.uniform(0, 0.9), d.uniform(0, 1)
    scan = zip(apart.view(-1).tolist(), through.view(-1).tolist(), phase.view(-1).tolist(), strict=True)
    through_slices = [plain_acquisition(slab, *one) for slab, one in zip(signal, scan, strict=True)]
    signal = plain_blur(torch.stack(through_slices), d.uniform(0, 0.9) / pixel_mm)
    spread = d.uniform(*SETTINGS.bias)
    signal = signal * torch.exp(spread * d.smooth_field(shape, 120.0, SPACING))
    noise = d.uniform(*SETTINGS.noise)
    signal = torch.hypot(signal + noise * d.normal(*shape), noise * d.normal(*shape))
    return 2 * signal.clamp(0, 1) - 1


def limbs(slabs: int = 12, slices: int = 3) -> tuple[Tensor, Tensor]:
    """Slabs of a thigh with a lung's HU on one side and a canal on the other, and the depth in bone; (N, S, 64, 64)."""
    ct, radius = limb(64, (32, 30))
    ct[20:30, 2:9] = -700
    depth = torch.from_numpy((14 - radius).clip(0)).float()
    depth[26:38, 48:60] = -4.0
    return tuple(torch.as_tensor(a).float().expand(slabs, slices, 64, 64).contiguous() for a in (ct, depth))


def test_the_same_numbers_give_the_same_mr():
    ct, depth = limbs()
    ours = simulate_mr(ct, depth, SPACING, draws(12, 5), SETTINGS)
    plain = plain_mr(ct, depth, PlainDraws(12, torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)))
    difference = (ours - plain).abs()
    # Kernels end after 2.5 to 3 sigmas, and the skin's depth is by a fit: a tenth of the noise.
    assert difference.mean() < 2e-3
    assert torch.quantile(difference.flatten(), 0.999) < 0.05
    torch.testing.assert_close(ours.mean((1, 2, 3)), plain.mean((1, 2, 3)), atol=2e-3, rtol=0)
    torch.testing.assert_close(ours.std((1, 2, 3)), plain.std((1, 2, 3)), atol=2e-3, rtol=0)


def test_what_is_cut_off_only_mixes_into_its_neighbours():
    ct, depth = limbs(slices=5)
    ct = ct + 20 * torch.arange(5).view(1, 5, 1, 1)
    still = SimulationSettings(bias=(0, 0), noise=(0, 0))
    whole, cut = (simulate_mr(ct, depth, SPACING, draws(12, 3), still, margin) for margin in (0, 1))
    torch.testing.assert_close(cut, whole[:, 1:-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("shape", "cell_mm"), [((3, 40, 64), 8.0), ((1, 64, 64), 300.0), ((7, 33, 20), 20.0)])
def test_a_smooth_field_is_interpolated_as_torch_does(shape, cell_mm):
    spread, mean = torch.rand(4, 1, 1, 1), torch.rand(4, 1, 1, 1)
    ours, plain = (
        kind(4, torch.Generator().manual_seed(1), torch.Generator()).smooth_field(shape, cell_mm, SPACING, spread, mean)
        for kind in (Draws, PlainDraws)
    )
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


def test_a_grid_is_that_of_torch():
    theta = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(_grid(theta, 13), F.affine_grid(theta, [3, 1, 13, 13], align_corners=False))


def test_a_fascia_is_a_part_of_a_large_pixel():
    ct = torch.full((64, 1, 16, 16), -100.0)
    ct[..., 8:] = 45.0
    lost = {mm: interfaces(ct, mm, draws(64, 0)).amax((1, 2, 3)) for mm in (1.0, 2.0, 4.0)}
    assert 0.5 < lost[1.0].max() <= 0.8
    assert 0.5 < lost[2.0].max() <= 0.8
    assert 0.2 < lost[4.0].max() <= 0.4  # 2 mm of 4
