"""Large volumes go slice by slice: the voxels are those of the whole volume at once, and memory is bounded."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from data.volumes.slice_frame import VIEWS, RestoredVolume, SliceFrame
from data.volumes.volume import Volume
from models import solid_body
from models.ensemble import synthesize_ensemble
from models.solid_body import fill_air
from models.synthesis import NetworkSlices, Synthesiser, prepare_volume, restore_volume, synthesize_volume
from models.test_model import TestModel
from tests.test_synthesis import CPU, SETTINGS, ramp_mr

# Spacing of a volume of 2 x 2 mm pixels and of slices 5 mm apart, as it goes into frames of 32 pixels of 2 mm.
FRAMES = {
    "nothing is interpolated": {},
    "in the plane": {"spacing_mm": 1.7},
    "between slices, finer": {"slice_mm": 3.0},
    "between slices, coarser": {"slice_mm": 7.5},
    "all axes": {"spacing_mm": 2.6, "slice_mm": 4.0},
    "coronal": {"view": "coronal", "spacing_mm": 3.0, "slice_mm": 2.5},
    "sagittal": {"view": "sagittal", "spacing_mm": 3.0},
}


class Mixing(torch.nn.Module):
    """A generator whose planes depend on all of the slab's, and on where a pixel lies."""

    def __init__(self, planes: int, channels: int) -> None:
        super().__init__()
        mix = np.random.default_rng(7).uniform(-1, 1, (planes, channels)).astype(np.float32) / channels
        self.mix = torch.from_numpy(mix)

    def forward(self, x):
        ramp = torch.linspace(-0.1, 0.1, x.shape[-1])
        return (torch.einsum("pc,nchw->nphw", self.mix, x) + ramp).clamp(-1, 1)


def mixing(contrasts=("mr",), slab=1, **changes) -> Synthesiser:
    generator = replace(SETTINGS.generator, input_nc=slab * len(contrasts), output_nc=slab)
    settings = replace(SETTINGS, slab=slab, generator=generator, contrasts=contrasts, **changes)
    model = TestModel.__new__(TestModel)
    net = Mixing(slab, slab * len(contrasts)).eval()
    super(TestModel, model).__init__(net, slab, CPU, "fp32", settings.mirrored)
    return Synthesiser(settings, model)


def noise_mr(shape=(11, 24, 20), seed=0) -> Volume:
    rng = np.random.default_rng(seed)
    return ramp_mr(shape=shape).with_array(rng.uniform(0, 500, shape).astype(np.float32))


def body_with_gaps(shape=(11, 24, 20)) -> np.ndarray:
    body = np.zeros(shape, bool)
    body[1:4, 3:20, 2:17] = body[6:10, 5:22, 4:19] = True
    return body


def whole(mr: Volume, synthesiser: Synthesiser, body: np.ndarray, further=()) -> np.ndarray:
    """Return the synthetic CT of slices that were all prepared, then all translated, then all restored."""
    slices, plan = prepare_volume(mr, synthesiser.settings, body, further)
    return restore_volume(synthesiser.model.translate(np.asarray(slices)), plan).array


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("use", [{}, {"slab": 3}, {"slab": 5, "mirrored": "xy"}, {"solid_body": True}])
def test_voxels_do_not_depend_on_how_many_slices_go_at_a_time(monkeypatch, frame, use):
    mr, body, synthesiser = noise_mr(), body_with_gaps(), mixing(**FRAMES[frame], **use)
    expected = whole(mr, synthesiser, body)
    assert len(np.unique(expected)) > 100
    for batch_size, voxels in ((1, 1), (2, 500), (3, 1000), (50, 10**8)):
        monkeypatch.setattr(solid_body, "FILL_VOXELS", voxels)
        np.testing.assert_array_equal(synthesize_volume(mr, synthesiser, body, batch_size).array, expected)


def test_contrasts_stream_together():
    contrasts = ("in_phase", "fat")
    synthesiser = mixing(contrasts, slab=3, slice_mm=3.0, mr_window={"in_phase": (0.0, 500.0), "fat": "percentile"})
    mr, further, body = noise_mr(), [noise_mr(seed=1)], body_with_gaps()
    expected = whole(mr, synthesiser, body, further)
    for batch_size in (1, 4):
        found = synthesize_volume(mr, synthesiser, body, batch_size, further).array
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("fusion", ["mean", "median"])
def test_the_uncertainty_does_not_depend_on_how_many_slices_go_at_a_time(fusion):
    mr, body = noise_mr(), body_with_gaps()
    models = [mixing(slab=3, slice_mm=4.0), mixing(slab=5, mirrored="xy"), mixing(spacing_mm=1.5, solid_body=True)]
    expected = synthesize_ensemble(mr, models, body, 50, fusion=fusion)
    assert expected[1].array[body].min() > 0
    for batch_size in (1, 3):
        for one, other in zip(synthesize_ensemble(mr, models, body, batch_size, fusion=fusion), expected, strict=True):
            np.testing.assert_array_equal(one.array, other.array)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("spacing", [(2.0, 2.0, 5.0), (1.3, 2.2, 5.0), (1.3, 2.2, 4.0), (1.3, 2.2, 7.0)])
def test_both_ways_are_products_with_the_axes_matrices(view, spacing):
    """Against float64 and the whole volume at once."""
    mr = replace(noise_mr(), spacing=spacing)
    frame = SliceFrame.of(mr, 30, 2.0, 5.0, view)
    forward, backward = ([np.float64(getattr(axis, way)()) for axis in frame._axes] for way in ("forward", "backward"))
    inside = np.einsum("az,by,cx,zyx->abc", *forward, frame._canonical(mr) - 7.0)
    slices = frame.prepare(mr, 7.0)
    np.testing.assert_allclose(slices, inside + 7.0, atol=1e-3)
    restored = np.einsum("az,by,cx,zyx->abc", *backward, slices - np.float64(-9.0)) - 9.0
    found = frame.restore(slices, -9.0)
    np.testing.assert_allclose(frame._canonical(found), restored, atol=1e-3)
    rounded = frame.restoring(-9.0, np.int16)
    for index, one in enumerate(slices):
        rounded.add(index, one)
    np.testing.assert_array_equal(rounded.finished(), np.rint(found.array).astype(np.int16))


@pytest.mark.parametrize("left_out", [[], [0], [3, 4, 5], [11, 12], range(1, 13), range(13)])
def test_slices_that_are_left_out_are_of_nothing_but_the_fill(left_out):
    mr = noise_mr((9, 12, 12))
    frame = SliceFrame.of(mr, 12, 2.2, 3.5)
    assert frame.slices == 13
    slices = frame.prepare(mr, 0.0)
    slices[list(left_out)] = -1000.0
    some = frame.restoring(-1000.0)
    for index in sorted(set(range(frame.slices)) - set(left_out)):
        some.add(index, slices[index])
    np.testing.assert_array_equal(some.finished(), frame.restore(slices, -1000.0).array)


@pytest.mark.parametrize("smooth_mm", [0, 2.0, 6.0])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
def test_air_is_filled_alike_in_parts_and_at_once(monkeypatch, smooth_mm, share):
    """With many voxels equally near, and tissue so rare that it lies beyond the planes that are looked at first."""
    rng = np.random.default_rng(0)
    hu = np.where(rng.random((40, 9, 8)) < share, -1000, rng.integers(-199, 1400, (40, 9, 8))).astype(np.int16)
    hu[10:25] = -1000
    body = ndimage.gaussian_filter(rng.random(hu.shape), 1) < 0.55
    expected = fill_air(hu.copy(), body, (2.0, 2.0, 3.0), smooth_mm)
    nearest = ndimage.distance_transform_edt(
        ~(body & (hu >= -200)), sampling=(3.0, 2.0, 2.0), return_distances=False, return_indices=True
    )
    if not smooth_mm:
        np.testing.assert_array_equal(expected, np.where(body, hu[tuple(nearest)], hu))
    for voxels, planes in ((1, 1), (200, 1), (700, 3)):
        monkeypatch.setattr(solid_body, "FILL_VOXELS", voxels)
        monkeypatch.setattr(solid_body, "FILL_PLANES", planes)
        np.testing.assert_array_equal(fill_air(hu.copy(), body, (2.0, 2.0, 3.0), smooth_mm), expected)


@pytest.mark.parametrize("slab", [1, 5])
def test_slices_are_prepared_just_before_and_restored_just_after_the_network(monkeypatch, slab):
    made, added, ahead = [], [], []
    make, add = NetworkSlices._made, RestoredVolume.add

    def making(self, index):
        made.append(index)
        ahead.append(len(made) - len(added))
        return make(self, index)

    def adding(self, index, one):
        added.append(index)
        add(self, index, one)

    monkeypatch.setattr(NetworkSlices, "_made", making)
    monkeypatch.setattr(RestoredVolume, "add", adding)
    mr = noise_mr((60, 24, 20))
    synthesize_volume(mr, mixing(slab=slab), np.ones(mr.array.shape, bool), 2)
    assert made == added == list(range(60))  # each once, in order
    assert max(ahead) <= 2 + slab + 1


@pytest.mark.parametrize("use", [{}, {"slice_mm": 4.0, "slab": 3}, {"solid_body": True}])
def test_memory_does_not_grow_as_slices_in_float_would(monkeypatch, use):
    """Each further voxel takes the result's two bytes and a few booleans, not four and more for each step."""
    monkeypatch.setattr(solid_body, "FILL_VOXELS", 4 * 64 * 64)
    peaks = {}
    for count in (40, 120):
        mr = noise_mr((count, 64, 64))
        body = np.ones(mr.array.shape, bool)
        synthesiser = mixing(size=64, **use)
        slices, plan = prepare_volume(mr, synthesiser.settings, body)
        tracemalloc.start()
        try:
            restore_volume(synthesiser.model.stream(slices, 2), plan)
            peaks[count] = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert (peaks[120] - peaks[40]) / (80 * 64 * 64) < (5.5 if "solid_body" in use else 3.5)
