"""The spinal canal: found in drawn spines and in no other bone, and simulated as fluid with a cord in it."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from data.simulation.settings import SimulationSettings
from data.simulation.simulated_mr import simulate_mr
from data.simulation.simulation_volume import simulation_volume
from data.simulation.spinal_canal import spinal_canal
from tests.test_simulated_mr import draws, limb

AIR, FAT, MUSCLE, FLUID, SPONGY, COMPACT = -1000.0, -100.0, 45.0, 15.0, 220.0, 700.0
PIXEL_MM, SLICE_MM, SLICES = 2.0, 3.0, 24
CENTRE = (78, 64)  # (y, x) of the canal in the first slice


def spine(open_arches: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    """A trunk whose spine leans back by half a pixel a slice: CT (N, 128, 128), and its canal, bool.

    In the slices `open_arches` muscle takes the place of the vertebra's arch.
    """
    y, x = np.mgrid[:128, :128] * PIXEL_MM
    ct, canal = np.full((SLICES, 128, 128), AIR), np.zeros((SLICES, 128, 128), bool)
    for k in range(SLICES):
        cy, cx = (CENTRE[0] + k / 2) * PIXEL_MM, CENTRE[1] * PIXEL_MM
        ct[k][np.hypot((y - 128) / 100, (x - 128) / 118) < 1] = FAT
        ct[k][np.hypot((y - 128) / 88, (x - 128) / 106) < 1] = MUSCLE
        if k not in open_arches:
            ct[k][np.hypot(y - cy, x - cx) < 15] = COMPACT
        body = np.hypot((y - cy + 26) / 18, (x - cx) / 22)
        ct[k][body < 1], ct[k][body < 0.85] = COMPACT, SPONGY
        canal[k] = np.hypot(y - cy, x - cx) < 9
        ct[k][canal[k]] = FLUID
    return ct, canal


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def found(ct: np.ndarray) -> np.ndarray:
    return simulation_volume(ct, ct > -500, PIXEL_MM, SLICE_MM).depth


@pytest.mark.parametrize("open_arches", [(), (5, 6, 7, 8), (10, 11, 12, 18)], ids=str)
def test_the_canal_is_found_also_where_an_arch_is_open(open_arches):
    ct, canal = spine(open_arches)
    depth = found(ct)
    assert dice(depth < 0, canal) > 0.93
    # From its wall to its middle, 9 mm away, in quarters of a mm; bone begins beyond the wall.
    assert depth.min() == pytest.approx(-4 * 9, abs=5)
    assert (depth[3][ndimage.binary_dilation(canal[3], iterations=3) & (ct[3] == COMPACT)] >= 0).all()


def test_the_vertebra_s_own_marrow_stays_bone():
    ct, _ = spine()
    assert (found(ct)[ct == SPONGY] > 0).all()


def test_marrow_of_a_long_bone_is_no_canal():
    ct, radius = limb(128)
    ct[radius < 8] = 40.0
    slices = [np.repeat(plane[None], SLICES, 0) for plane in (ct, (radius >= 8) & (radius < 14), radius < 8)]
    assert not spinal_canal(*slices, 1.0, SLICE_MM).any()
    # With more bone in front of it, it would be one.
    slices[1][:, 40:52, 50:78] = True
    np.testing.assert_array_equal(spinal_canal(*slices, 1.0, SLICE_MM), slices[2])


@pytest.mark.parametrize(("slices", "is_canal"), [(16, True), (15, False)])
def test_a_canal_reaches_through_45_mm(slices, is_canal):
    ct, canal = (volume[:slices] for volume in spine())
    assert spinal_canal(ct, ct > 160, canal, PIXEL_MM, SLICE_MM).any() == is_canal


def test_a_hole_far_from_the_middle_of_the_body_is_no_canal():
    ct, _ = spine()
    beside = np.roll(ct, 24, 2)  # 48 mm
    beside[ct == AIR] = AIR
    trunk = np.where(np.roll(ct > 100, 24, 2) | np.roll(ct == FLUID, 24, 2), beside, np.where(ct > AIR, MUSCLE, AIR))
    assert found(trunk).min() == 0


def mr_of(seed: int, **settings) -> tuple[np.ndarray, np.ndarray]:
    """A middle slice's MR in [0, 1], and how far its pixels lie from the middle of the canal in mm."""
    ct, _ = spine()
    volume = simulation_volume(ct, ct > -500, PIXEL_MM, SLICE_MM)
    maps = (torch.from_numpy(a[10:13])[None].float() for a in (volume.hu, volume.depth / 4))
    mr = simulate_mr(*maps, (SLICE_MM, PIXEL_MM), draws(1, seed), SimulationSettings(**settings))
    y, x = np.mgrid[:128, :128] * PIXEL_MM
    return (mr[0, 1].numpy() + 1) / 2, np.hypot(y - (CENTRE[0] + 5.5) * PIXEL_MM, x - CENTRE[1] * PIXEL_MM)


def test_fluid_is_darker_than_muscle_and_a_cord_as_bright_or_brighter():
    edge, middle = [], []
    for seed in range(40):
        mr, from_middle = mr_of(seed, muscle=(0.4, 0.4), fat=(0.8, 0.8), noise=(0.0, 0.0), bias=(0.0, 0.0))
        edge.append(np.median(mr[(from_middle > 5) & (from_middle < 8)]) / 0.4)
        middle.append(np.median(mr[from_middle < 3]) / 0.4)
    edge, middle = np.array(edge), np.array(middle)
    # Some canals hold fluid alone, some a cord with a dark rim, some a cord that fills them.
    assert (middle < 0.6).mean() > 0.05
    assert ((middle > 0.7) & (edge < 0.75 * middle)).mean() > 0.2
    assert (np.maximum(edge, middle) < 1.9).all()
    assert np.median(edge) < 0.8


def test_of_other_sequences_fluid_may_be_brighter_than_all_else():
    settings = {"other_sequences": 1.0, "noise": (0.0, 0.0), "bias": (0.0, 0.0)}
    fluid = [np.median(mr[(at > 5) & (at < 8)]) for mr, at in (mr_of(seed, **settings) for seed in range(30))]
    assert max(fluid) > 0.85
    assert min(fluid) < 0.2
