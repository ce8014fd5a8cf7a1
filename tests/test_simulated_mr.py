"""Simulated MR: what is bright, dim and dark, on drawn limbs and against the MR of generated patients."""

import numpy as np
import pytest
import torch

from data.phantom.labels import body_mask
from data.phantom.patients import PhantomSettings, make_patient
from data.simulation.contrasts import contrast_images
from data.simulation.draws import Draws
from data.simulation.filters import acquired_through, blur
from data.simulation.settings import SimulationSettings
from data.simulation.simulated_mr import SimulatedPairs, field_of_view, simulate_mr
from data.simulation.simulation_volume import bone_depth, denoised, simulation_volume, without_contrast_agent
from data.values.intensity import CT_TRANSFERS, IntensityMap

AIR, FAT, MUSCLE, COMPACT, MARROW = -1000.0, -100.0, 45.0, 1200.0, -40.0


def limb(size: int = 128, centre: tuple[float, float] = (64, 64)) -> tuple[np.ndarray, np.ndarray]:
    """A thigh of 1 mm pixels: CT in HU, and the distance in mm from the femur's axis."""
    y, x = np.mgrid[:size, :size]
    radius = np.hypot(y - centre[0], x - centre[1])
    ct = np.full((size, size), AIR)
    for outer, hu in ((55, FAT), (42, MUSCLE), (14, COMPACT), (8, MARROW)):
        ct[radius < outer] = hu
    return ct, radius


def draws(batch: int, seed: int) -> Draws:
    return Draws(batch, torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed))


def simulated(ct: np.ndarray, seed: int, pixel_mm: float = 1.0, **settings) -> np.ndarray:
    """One slice's MR, (H, W) in [0, 1]."""
    maps = (torch.from_numpy(a)[None, None].float() for a in (ct, bone_depth(ct, pixel_mm)))
    mr = simulate_mr(*maps, (3.0, pixel_mm), draws(1, seed), SimulationSettings(**settings))
    return (mr[0, 0].numpy() + 1) / 2


@pytest.mark.parametrize("seed", range(8))
def test_fat_and_marrow_are_bright_muscle_dim_cortex_and_air_dark(seed):
    ct, radius = limb()
    mr = simulated(ct, seed, marrow=(0.7, 1.1))
    assert mr.dtype == np.float32
    fat, muscle, cortex, marrow, air = (
        np.median(mr[(radius > low) & (radius < high)])
        for low, high in ((44, 49), (20, 38), (10, 12), (0, 5), (62, 90))
    )
    assert air < 0.06
    assert cortex < 0.25
    assert cortex < muscle < 0.6
    assert fat > muscle + 0.1
    assert marrow > cortex + 0.3


def test_marrow_is_anything_from_red_to_fatty():
    ct, radius = limb()
    mr = [simulated(ct, seed, fat=(0.8, 0.8), muscle=(0.3, 0.3)) for seed in range(24)]
    marrow = np.array([np.median(one[radius < 5]) for one in mr])
    assert marrow.min() < 0.45
    assert marrow.max() > 0.75


def test_marrow_of_a_bone_that_the_picture_cuts_is_still_marrow():
    ct, radius = limb(centre=(64, 0))
    mr = simulated(ct, 0, marrow=(1.0, 1.0))
    assert np.median(mr[radius < 5]) > np.median(mr[(radius > 20) & (radius < 38)]) + 0.1


def test_a_calcification_in_muscle_is_dark_throughout():
    ct, radius = limb()
    ct[radius < 14] = MUSCLE
    ct[60:63, 60:63] = 800.0  # 9 mm2: no bone
    assert bone_depth(ct, 1.0).max() == 0
    assert simulated(ct, 0)[61, 61] < 0.15


@pytest.mark.parametrize("centre", [(64, 64), (64, 0), (0, 0)])
def test_depth_in_bone_is_the_distance_to_its_surface(centre):
    ct, radius = limb(centre=centre)
    depth = bone_depth(ct, 1.0)
    whole = radius < 12
    np.testing.assert_allclose(depth[whole], 14 - radius[whole], atol=1.5)
    assert not depth[radius > 15.5].any()
    np.testing.assert_allclose(bone_depth(ct, 0.5), depth / 2, atol=1.0)  # the same picture at half the size


def test_depth_is_the_same_in_mm_whatever_the_pixels():
    """A slab of bone 24 mm wide: its middle lies 12 mm deep, the outermost pixels half a pixel."""
    for pixel_mm in (1.0, 2.0, 4.0):
        width = round(24 / pixel_mm)
        ct = np.full((40, 20 + width), MUSCLE)
        ct[:, 10 : 10 + width] = 275.0  # the threshold lies half way up
        depth = bone_depth(ct, pixel_mm)[20]
        assert depth[10] == depth[9 + width] == pytest.approx(pixel_mm / 2)
        assert depth.max() == pytest.approx(12 - pixel_mm / 2)


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


def trunk() -> tuple[np.ndarray, np.ndarray]:
    """A trunk of 2 mm pixels and 24 slices of 4 mm: spine behind, a rib near the skin, a kidney with contrast agent."""
    y, x = np.mgrid[:128, :160]
    body = ((y - 64) / 52) ** 2 + ((x - 80) / 70) ** 2 < 1
    ct = np.where(body, MUSCLE, AIR)
    ct[(np.abs(y - 92) < 14) & (np.abs(x - 80) < 14)] = 300.0  # vertebral body
    shell = (np.abs(y - 92) < 14) & (np.abs(x - 80) < 14) & ~((np.abs(y - 92) < 12) & (np.abs(x - 80) < 12))
    ct[shell] = 900.0
    ct[np.hypot(y - 64, x - 17) < 4] = 700.0  # rib
    ct[np.hypot(y - 70, x - 45) < 12] = 260.0  # kidney
    return np.repeat(ct[None], 24, 0).astype(np.float32), np.repeat(body[None], 24, 0)


def test_contrast_agent_becomes_soft_tissue_and_bones_stay():
    ct, body = trunk()
    clean = without_contrast_agent(ct, body, 2.0, 4.0)
    assert clean[12, 70, 45] == 60
    np.testing.assert_array_equal(clean[:, 80:104, 68:92], ct[:, 80:104, 68:92])
    np.testing.assert_array_equal(clean[:, 60:68, 14:20], ct[:, 60:68, 14:20])
    assert clean[12, 30, 80] == MUSCLE
    assert (clean <= ct).all()


@pytest.mark.parametrize(("ends", "kept"), [(slice(None), True), (slice(1, -1), False)], ids=["through", "within"])
def test_a_deep_bone_of_a_short_volume_is_no_contrast_agent(ends, kept):
    plane, radius = limb()  # 30 mm long: 18 ml of femur, 41 mm below the skin
    ct = np.repeat(np.where(radius < 42, MUSCLE, plane)[None], 6, 0).astype(np.float32)
    ct[ends] = plane
    clean = without_contrast_agent(ct, ct > -500, 1.0, 5.0)
    compact = (radius > 9) & (radius < 13)
    assert np.median(clean[3][compact]) == (COMPACT if kept else 60)


def test_a_volume_is_kept_in_whole_hu_and_quarters_of_a_mm():
    ct, body = trunk()
    volume = simulation_volume(ct[:6], body[:6], 2.0, 4.0)
    assert (volume.hu.dtype, volume.depth.dtype) == (np.int16, np.int8)
    assert volume.depth[3, 92, 80] == pytest.approx(4 * 27, abs=8)  # the middle of a bone 54 mm wide
    assert not volume.depth[:, 30:60, 40:120].any()


def test_the_simulation_follows_its_generators_alone():
    ct, _ = limb(64, (32, 32))
    a, b, c = (simulated(ct, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    assert a.min() >= 0
    assert a.max() <= 1


def test_what_belongs_to_the_scan_is_one_for_a_slab_and_noise_is_each_slices_own():
    ct, radius = limb()
    slab = torch.from_numpy(np.repeat(ct[None], 5, 0))[None].float()
    depth = torch.from_numpy(np.repeat(bone_depth(ct, 1.0)[None], 5, 0))[None].float()
    mr = simulate_mr(slab, depth, (3.0, 1.0), draws(1, 3), SimulationSettings(noise=(0.01, 0.01)))[0].numpy()
    fat = (radius > 44) & (radius < 49)
    levels = np.median(mr[:, fat], axis=1)
    assert np.ptp(levels) < 0.1  # one contrast, over scans it spreads by 0.7
    noise = mr[:, :20, :20] - mr[:, :20, :20].mean(0)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.5
    assert not np.array_equal(mr[0], mr[1])


def test_blurs_keep_the_mean_and_spread_as_gaussians_do():
    image = torch.zeros(2, 5, 31, 31)
    image[:, 2, 15, 15] = 1
    sigma = torch.tensor([0.8, 0.05]).view(2, 1, 1, 1)
    plane = blur(image, sigma, 1.0)[:, 2]
    offsets = torch.arange(31) - 15.0
    variance = (plane[0].sum(0) * offsets**2).sum() / plane[0].sum()
    assert plane[0].sum().item() == pytest.approx(1, abs=1e-6)
    assert variance.item() == pytest.approx(0.64, rel=0.03)
    torch.testing.assert_close(plane[1], image[1, 2])
    once = torch.ones_like(sigma), torch.zeros_like(sigma)
    through = acquired_through(image, sigma, *once)[:, :, 15, 15]
    assert through[0, 1] == through[0, 3] > 0
    torch.testing.assert_close(through[1], image[1, :, 15, 15])
    torch.testing.assert_close(acquired_through(torch.ones_like(image), sigma, *once), torch.ones_like(image))


def test_slices_between_those_acquired_are_interpolated_linearly():
    """Every second and every third one: there a neighbour is as far from it as the other is from itself."""
    image = torch.randn(2, 13, 4, 5, generator=torch.Generator().manual_seed(0))
    tiny, apart, phase = (torch.tensor(pair).view(2, 1, 1, 1) for pair in ((0.05, 0.05), (2.0, 3.0), (0.5, 0.0)))
    seen = acquired_through(image, tiny, apart, phase, 3)
    assert seen.shape == (2, 7, 4, 5)
    torch.testing.assert_close(seen[0, [0, 2, 4, 6]], image[0, [3, 5, 7, 9]])  # acquired: 1, 3, 5, ...
    torch.testing.assert_close(seen[0, [1, 3, 5]], (image[0, [3, 5, 7]] + image[0, [5, 7, 9]]) / 2)
    torch.testing.assert_close(seen[1, [0, 3, 6]], image[1, [3, 6, 9]])  # 0, 3, 6, ...
    torch.testing.assert_close(seen[1, [1, 4]], (2 * image[1, [3, 6]] + image[1, [6, 9]]) / 3)
    level = 2.0 * torch.arange(13.0).view(1, 13, 1, 1).expand(2, 13, 4, 5)  # a slope stays one, whatever the profile
    thick = acquired_through(level, apart * 12**-0.5, apart, phase, 5)
    torch.testing.assert_close(thick, level[:, 5:-5], atol=0.02, rtol=0)


def test_simulated_mr_are_as_smooth_across_slices_as_mr_of_thick_slices():
    """Every other second difference nearly vanishes, as in real MR of 6.5 mm that were interpolated to 3.27 mm."""
    noise = np.random.default_rng(0).normal(0, 60, (24, 1, 1))
    ct = torch.from_numpy(np.clip(noise + np.zeros((24, 32, 32)), -100, 60))[None].float()
    still = {"bias": (0.0, 0.0), "noise": (0.0, 0.0), "skin_mm": 0.0}

    def second_differences(mr_slice_mm: float, seed: int) -> np.ndarray:
        settings = SimulationSettings(mr_slice_mm=mr_slice_mm, **still)
        mr = simulate_mr(ct, torch.zeros_like(ct), (1.0, 1.0), draws(1, seed), settings)[0]
        return mr.diff(dim=0).diff(dim=0).square().mean((1, 2)).sqrt().numpy()

    rough = [np.median(second_differences(0.0, seed)) for seed in range(8)]
    smooth = [np.median(second_differences(9.0, seed)) for seed in range(8)]
    assert np.median(smooth) < 0.3 * np.median(rough)


def test_a_smooth_field_has_unit_spread_and_the_scale_that_was_asked_for():
    fields = [draws(4, seed).smooth_field((3, 64, 64), 8.0, (3.0, 1.0)) for seed in range(30)]
    values = torch.cat(fields)
    assert values.shape == (120, 3, 64, 64)
    assert values.mean().item() == pytest.approx(0, abs=0.05)
    assert 0.4 < values.std().item() < 1.05  # one at the nodes, less between them
    near, far = (
        torch.corrcoef(torch.stack([values[..., :-k].flatten(), values[..., k:].flatten()]))[0, 1] for k in (1, 24)
    )
    assert near > 0.95
    assert abs(far) < 0.1


def test_a_pair_is_cut_to_one_field_of_view():
    ct_map = IntensityMap(CT_TRANSFERS["soft_tissue"])
    ct, _ = limb()
    ct[ct == AIR] = FAT  # body everywhere: what is air afterwards was cut
    pairs = SimulatedPairs(ct_map, 1.0)
    cut = []
    for seed in range(24):
        image = torch.from_numpy(ct_map.to_network(ct))[None]
        mr, target = pairs(image, np.random.default_rng(seed))
        assert mr.shape == target.shape == image.shape
        assert mr.dtype == target.dtype == torch.float32
        outside = target == -1
        cut.append(bool(outside.any()))
        assert (mr[outside] == -1).all()
        assert torch.equal(target[~outside], image[~outside])
        assert torch.equal(image, torch.from_numpy(ct_map.to_network(ct))[None])
    assert 0 < sum(cut) < 24


def test_the_field_of_view_is_a_rectangle_that_keeps_the_middle():
    seen = field_of_view((40, 60), 0.8, draws(400, 0))[:, 0]
    rows, columns = seen.any(2), seen.any(1)
    assert torch.equal(seen, rows[:, :, None] & columns[:, None])
    assert seen[:, 18:22, 27:33].all()
    whole = seen.flatten(1).all(1).float().mean().item()
    # Each of the four sides is left as it is with probability 1 - 0.8 / 2.
    assert whole == pytest.approx(0.6**4, abs=0.06)
    assert field_of_view((40, 60), 0.0, draws(50, 0)).all()


def test_it_resembles_the_mr_of_a_generated_patient():
    """The same patient's MR, made by other code from labels: correlated inside the body, where CT itself is not."""
    patient = make_patient(3, 0, "test", PhantomSettings(64, 24, 8, 52))
    z = 6  # thighs
    body = body_mask(patient.labels.array[z])
    ct, mr = patient.ct.array[z].astype(float), patient.mr.array[z].astype(float)
    ct = np.where(body, ct, AIR)
    # What is generated has bright skin.
    correlations = [np.corrcoef(simulated(ct, seed, 8.0, skin_mm=0.0)[body], mr[body])[0, 1] for seed in range(8)]
    assert np.mean(correlations) > 0.6
    assert np.corrcoef(ct[body], mr[body])[0, 1] < np.mean(correlations) - 0.4


def test_skin_gives_no_signal_to_a_depth_drawn_up_to_skin_mm_and_what_is_deeper_is_left():
    """Of a block of fat, in pixels of 1 mm."""
    ct = np.full((96, 96), AIR)
    ct[16:80, 16:80] = -100.0
    still = {"noise": (0.0, 0.0), "bias": (0.0, 0.0)}
    bare, skin = (
        np.stack([simulated(ct, seed, skin_mm=mm, **still)[48, 16:48] for seed in range(60)]) for mm in (0.0, 3.0)
    )
    fat = np.median(bare[:, 10:], axis=1, keepdims=True)
    bare, skin = (np.median(image / fat, axis=0) for image in (bare, skin))
    assert bare[1] > 0.9
    assert skin[0] < 0.3  # half a mm deep
    assert (np.diff(skin[:6]) > -0.02).all()
    assert skin[7:].mean() == pytest.approx(bare[7:].mean(), abs=0.05)
    dark = [(simulated(ct, seed, skin_mm=3.0, **still)[48, 18] / f).item() for seed, f in enumerate(fat[:, 0])]
    assert (
        np.quantile(dark, 0.1) < 0.4 < 0.9 < np.quantile(dark, 0.9)
    )  # at 2.5 mm: of some patients dark, of others not


def test_lungs_and_gas_are_no_skin():
    """A lung in a trunk, in pixels of 1 mm: its signal, and that of the tissue about it, are those without skin."""
    _, radius = limb()
    ct = np.where(radius < 20, -800.0, np.where(radius < 55, 45.0, AIR))
    for seed in range(6):
        bare, skin = (simulated(ct, seed, skin_mm=mm, noise=(0, 0), bias=(0, 0)) for mm in (1e-9, 3.0))
        np.testing.assert_allclose(skin[radius < 40], bare[radius < 40], atol=1e-6)
        assert np.median(skin[radius < 15]) > 0.02


def test_a_mixture_of_fat_and_muscle_is_as_bright_as_its_fat_or_brighter():
    _, radius = limb()
    values = []
    for hu in (-100.0, -30.0, 45.0):
        flat = np.where(radius < 55, hu, AIR)
        values.append([np.median(simulated(flat, seed, noise=(0, 0), bias=(0, 0))[radius < 40]) for seed in range(40)])
    fat, mixture, muscle = np.array(values)
    share = ((mixture - muscle) / (fat - muscle))[fat > muscle + 0.2]
    assert 0.45 < np.quantile(share, 0.1) < np.quantile(share, 0.9) < 0.85
    assert np.median(share) > 0.53


DIXON = ("in_phase", "opposed_phase", "water", "fat")
STILL = {"bias": (0.0, 0.0), "noise": (0.0, 0.0), "skin_mm": 0.0}


def dixon(ct: np.ndarray, seed: int, contrasts=DIXON, **settings) -> np.ndarray:
    """The images of one scan of a slice, (C, H, W) in [0, 1]."""
    maps = (torch.from_numpy(a)[None, None].float() for a in (ct, bone_depth(ct, 1.0)))
    mr = simulate_mr(*maps, (3.0, 1.0), draws(1, seed), SimulationSettings(contrasts=contrasts, **settings))
    return (mr[0].numpy() + 1) / 2


def test_echoes_give_water_and_fat_by_their_half_sum_and_difference():
    """Without noise, and where both echoes leave the same signal, all four follow from W and F."""
    water, fat = torch.tensor([0.4, 0.0, 0.1]).view(1, 1, 1, 3), torch.tensor([0.0, 0.7, 0.3]).view(1, 1, 1, 3)
    muscle, none = torch.full((1, 1, 1, 1), 0.4), torch.zeros(1, 1, 1, 1)
    source = draws(1, 0)
    source.uniform = lambda low, high: torch.full((1, 1, 1, 1), 1.0 if high > 1 else 0.8)
    images = contrast_images([water + fat, fat], muscle, DIXON, none, source)
    expected = torch.cat([water + fat, (water - fat).abs(), water * 0.8 / 0.4, fat], 1)
    assert torch.allclose((images + 1) / 2, expected, atol=1e-6)
    for names in (("fat", "in_phase"), ("water",)):
        chosen = contrast_images([water + fat, fat.clone()], muscle, names, none, source)
        assert torch.equal(chosen, images[:, [DIXON.index(name) for name in names]])


@pytest.mark.parametrize("seed", [0, 2, 6, 8])  # scans that are not sharp to the voxel
def test_fat_is_in_the_fat_image_muscle_in_the_water_image_and_their_border_dark_in_opposed_phase(seed):
    ct, radius = limb()
    in_phase, opposed, water, fat = dixon(ct, seed, marrow=(1.0, 1.0), **STILL)
    subcutaneous, muscle, marrow, border = (
        (radius > low) & (radius < high) for low, high in ((45, 49), (20, 38), (0, 4), (41, 43))
    )
    assert np.median(fat[muscle]) < 0.1 * np.median(fat[subcutaneous])
    assert np.median(water[subcutaneous]) < 0.25 * np.median(water[muscle])
    assert 0.4 < np.median(water[muscle]) < 1
    assert np.median(fat[marrow]) > 0.6 * np.median(in_phase[marrow])
    # Where both fill a voxel they cancel.
    left = opposed / in_phase.clip(1e-6)
    assert left[border].min() < 0.5 < 0.65 < min(np.median(left[muscle]), np.median(left[subcutaneous]))


def test_of_several_contrasts_the_first_is_the_single_one_drawn_alike():
    """The scan is the same, whatever is made of it."""
    ct, _ = limb()
    alone = dixon(ct, 3, ("mr",))
    assert np.allclose(dixon(ct, 3)[:1], alone, atol=1e-6)
    assert np.allclose(dixon(ct, 3, ("in_phase",))[:1], alone, atol=1e-6)


def test_other_sequences_have_either_tissue_brighter_and_the_window_filled():
    ct, radius = limb()
    fat, muscle = [], []
    for seed in range(60):
        mr = simulated(ct, seed, other_sequences=1.0, **STILL)
        fat.append(np.median(mr[(radius > 45) & (radius < 49)]))
        muscle.append(np.median(mr[(radius > 20) & (radius < 38)]))
    brighter = np.mean(np.array(fat) > np.array(muscle))
    assert 0.3 < brighter < 0.7  # of 60 with a probability of a half: within three standard deviations
    assert np.quantile(np.maximum(fat, muscle), 0.1) > 0.5
    ratio = np.minimum(fat, muscle) / np.maximum(fat, muscle)
    assert ratio.min() < 0.25 and ratio.max() > 0.7


def test_dixon_images_simulated_from_the_ct_of_a_generated_patient_are_like_its_own():
    """Whose water and fat follow from its tissues, not from HU."""
    patient = make_patient(3, 0, "test", PhantomSettings(64, 24, 8, 52), dixon=True)
    z = 6  # thighs
    body = body_mask(patient.labels.array[z])
    ct = np.where(body, patient.ct.array[z].astype(float), AIR)
    maps = [torch.from_numpy(a)[None, None].float() for a in (denoised(ct), bone_depth(denoised(ct), 8.0))]
    settings = SimulationSettings(contrasts=DIXON, skin_mm=0.0)
    simulated = np.mean([simulate_mr(*maps, (52.0, 8.0), draws(1, seed), settings)[0].numpy() for seed in range(8)], 0)
    like = np.array([
        [np.corrcoef(made[body], patient.dixon[name].array[z][body])[0, 1] for name in DIXON] for made in simulated
    ])  # fmt: skip
    assert (like.diagonal() > 0.5).all(), like
    assert like[2].argmax() == 2 and like[3].argmax() == 3, like
    assert like[:2, 2].max() < 0 < like[:2, :2].min(), like
