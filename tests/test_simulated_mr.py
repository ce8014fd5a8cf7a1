"""Simulated MR: what is bright, dim and dark, on drawn limbs and against the MR of generated patients."""

import numpy as np
import pytest
import torch

from data.intensity import CT_TRANSFERS, IntensityMap
from data.phantom import PhantomSettings, make_patient
from data.phantom_labels import body_mask
from data.simulated_mr import SimulatedPairs, bone_depth, denoised, random_field_of_view, simulate_mr

AIR, FAT, MUSCLE, COMPACT, MARROW = -1000.0, -100.0, 45.0, 1200.0, -40.0


def limb(size: int = 128, centre: tuple[float, float] = (64, 64)) -> tuple[np.ndarray, np.ndarray]:
    """A thigh of 1 mm pixels: CT in HU, and the distance in mm from the femur's axis."""
    y, x = np.mgrid[:size, :size]
    radius = np.hypot(y - centre[0], x - centre[1])
    ct = np.full((size, size), AIR)
    for outer, hu in ((55, FAT), (42, MUSCLE), (14, COMPACT), (8, MARROW)):
        ct[radius < outer] = hu
    return ct, radius


@pytest.mark.parametrize("seed", range(8))
def test_fat_and_marrow_are_bright_muscle_dim_cortex_and_air_dark(seed):
    ct, radius = limb()
    mr = (simulate_mr(ct, 1.0, np.random.default_rng(seed)) + 1) / 2
    assert mr.dtype == np.float32
    fat, muscle, cortex, marrow, air = (
        np.median(mr[(radius > low) & (radius < high)])
        for low, high in ((44, 49), (20, 38), (10, 12), (0, 5), (62, 90))
    )
    assert air < 0.05
    assert cortex < 0.25
    assert cortex + 0.05 < muscle < 0.45
    assert fat > muscle + 0.2
    assert marrow > muscle + 0.1


def test_marrow_of_a_bone_that_the_picture_cuts_is_still_marrow():
    ct, radius = limb(centre=(64, 0))
    mr = (simulate_mr(ct, 1.0, np.random.default_rng(0)) + 1) / 2
    assert np.median(mr[radius < 5]) > np.median(mr[(radius > 20) & (radius < 38)]) + 0.1


def test_a_calcification_in_muscle_is_dark_throughout():
    ct, radius = limb()
    ct[radius < 14] = MUSCLE
    ct[60:63, 60:63] = 800.0  # 9 mm2: no bone
    assert bone_depth(ct, 1.0).max() == 0
    assert simulate_mr(ct, 1.0, np.random.default_rng(0))[61, 61] < -0.7


@pytest.mark.parametrize("centre", [(64, 64), (64, 0), (0, 0)])
def test_depth_in_bone_is_the_distance_to_its_outside(centre):
    ct, radius = limb(centre=centre)
    depth = bone_depth(ct, 1.0)
    whole = radius < 12
    np.testing.assert_allclose(depth[whole], 14 - radius[whole], atol=1.5)
    assert not depth[radius > 15.5].any()
    np.testing.assert_allclose(bone_depth(ct, 0.5), depth / 2, atol=1.0)  # the same picture at half the size


def test_a_limb_s_muscle_is_not_marrow_because_air_or_another_limb_is_around_it():
    ct, _ = limb()
    ct[ct > 1000] = MUSCLE
    assert not bone_depth(ct, 1.0).any()


def test_denoising_removes_noise_and_keeps_outlines_and_bone():
    ct, radius = limb()
    noisy = ct + np.random.default_rng(0).normal(0, 25, ct.shape)
    clean = denoised(noisy)
    muscle = (radius > 17) & (radius < 39)
    assert clean[muscle].std() < 8 < noisy[muscle].std()
    assert clean[muscle].mean() == pytest.approx(MUSCLE, abs=3)
    assert abs(np.mean(clean[(radius > 10) & (radius < 12)]) - COMPACT) < 10
    assert np.mean((clean > -500) != (ct > -500)) < 0.002
    air = np.full((8, 8), AIR)
    np.testing.assert_array_equal(denoised(air), air)


def test_the_simulation_follows_its_generator_alone():
    ct, _ = limb(64, (32, 32))
    a, b, c = (simulate_mr(ct, 1.0, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    assert a.min() >= -1
    assert a.max() <= 1


def test_a_pair_is_cut_to_one_field_of_view():
    ct_map = IntensityMap(CT_TRANSFERS["soft_tissue"])
    ct, _ = limb()
    ct[ct == AIR] = FAT  # body everywhere: what is air afterwards was cut
    pairs = SimulatedPairs(ct_map, 1.0)
    cut = []
    for seed in range(20):
        image = torch.from_numpy(ct_map.to_network(ct))[None]
        mr, target = pairs(image, np.random.default_rng(seed))
        assert mr.shape == target.shape == image.shape
        assert mr.dtype == target.dtype == torch.float32
        outside = target == -1
        cut.append(bool(outside.any()))
        assert (mr[outside] == -1).all()
        assert torch.equal(target[~outside], image[~outside])
        assert torch.equal(image, torch.from_numpy(ct_map.to_network(ct))[None])
    assert 0 < sum(cut) < 20


def test_the_field_of_view_is_a_rectangle_that_keeps_the_middle():
    rng = np.random.default_rng(0)
    whole = 0
    for _ in range(200):
        seen = random_field_of_view((40, 60), rng)
        rows, columns = seen.any(axis=1), seen.any(axis=0)
        np.testing.assert_array_equal(seen, rows[:, None] & columns)
        assert seen[18:22, 27:33].all()
        whole += seen.all()
    assert 0.15 * 200 < whole < 0.45 * 200  # one in five, and one in 16 of the others


def test_it_resembles_the_mr_of_a_generated_patient():
    """The same patient's MR, made by other code from labels: correlated inside the body, where CT itself is not."""
    patient = make_patient(3, 0, "test", PhantomSettings(64, 24, 8, 52))
    z = 6  # thighs
    body = body_mask(patient.labels.array[z])
    ct, mr = patient.ct.array[z].astype(float), patient.mr.array[z].astype(float)
    ct = np.where(body, ct, AIR)
    simulated = simulate_mr(ct, 8.0, np.random.default_rng(0))
    correlation = np.corrcoef(simulated[body], mr[body])[0, 1]
    assert correlation > 0.55
    assert np.corrcoef(ct[body], mr[body])[0, 1] < correlation - 0.4
