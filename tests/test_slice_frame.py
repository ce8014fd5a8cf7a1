"""The frame: orientation, exact and bounded round trips, geometry, agreement with SimpleITK."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial.transform import Rotation

from data.errors import InputError
from data.prepared.manifest import Case
from data.prepared.pixel_spacing import choose_spacing, lost_body_message
from data.values.intensity import AIR_HU
from data.volumes.slice_frame import SliceFrame
from data.volumes.volume import Volume

SIGNED_PERMUTATIONS = [
    tuple(float(sign[r]) if perm[r] == c else 0.0 for r in range(3) for c in range(3))
    for perm in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    for sign in np.array(np.meshgrid([1, -1], [1, -1], [1, -1])).T.reshape(-1, 3)
]


def random_volume(size, spacing=(1.0, 1.0, 1.0), direction=SIGNED_PERMUTATIONS[0], seed=0, smooth=0.0) -> Volume:
    array = np.random.default_rng(seed).normal(size=size[::-1]) * 300
    if smooth:
        array = gaussian_filter(array, smooth, mode="nearest")
        array *= 300 / array.std()
    return Volume(array.astype(np.float32), spacing, (-31.25, 12.5, 7.75), direction)


def assert_same_geometry(a: Volume, b: Volume):
    assert a.size == b.size
    for x, y in ((a.spacing, b.spacing), (a.origin, b.origin), (a.direction, b.direction)):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)


@settings(max_examples=80, deadline=None)
@given(
    size=st.tuples(*[st.integers(2, 19)] * 3),
    direction=st.sampled_from(SIGNED_PERMUTATIONS),
    angle=st.floats(-0.5, 0.5),
    frame_size=st.integers(20, 33),
)
def test_round_trip_is_exact_without_resampling(size, direction, angle, frame_size):
    tilt = Rotation.from_euler("xyz", [angle, -angle / 2, angle / 3]).as_matrix()
    direction = tuple((tilt @ np.reshape(direction, (3, 3))).ravel())
    volume = random_volume(size, (1.5, 1.5, 1.5), direction)
    frame = SliceFrame.from_dict(json.loads(json.dumps(SliceFrame.of(volume, frame_size, 1.5).to_dict())))
    slices = frame.prepare(volume, fill=-7.0)
    back = frame.restore(slices, AIR_HU)
    assert slices.shape == (frame.slices, frame_size, frame_size)
    assert_same_geometry(back, volume)
    np.testing.assert_array_equal(back.array, volume.array)
    assert np.count_nonzero(slices == -7.0) == slices.size - volume.array.size


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(*[st.integers(2, 19)] * 3),
    direction=st.sampled_from(SIGNED_PERMUTATIONS),
    frame_size=st.integers(1, 18),
)
def test_round_trip_of_a_cropping_frame_is_exact_inside_it(size, direction, frame_size):
    volume = random_volume(size, (1.5, 1.5, 1.5), direction)
    frame = SliceFrame.of(volume, frame_size, 1.5)
    back = frame.restore(frame.prepare(volume, fill=-7.0), fill=AIR_HU)
    cut = back.array != volume.array
    assert np.all(back.array[cut] == AIR_HU)
    assert np.count_nonzero(cut) == frame.outside(np.ones(volume.array.shape, bool))
    mask = volume.array > 0
    np.testing.assert_array_equal(frame.inside(mask), mask & ~cut)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(*[st.integers(24, 41)] * 3),
    direction=st.sampled_from(SIGNED_PERMUTATIONS),
    ratio=st.floats(0.6, 1.4),
    slice_mm=st.sampled_from([None, 0.8, 1.3]),
    frame_size=st.sampled_from([20, 25, 96]),
)
@example(
    size=(39, 39, 40), direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0), ratio=1.375, slice_mm=1.3, frame_size=25
)
def test_round_trip_of_a_smooth_volume_is_bounded_with_resampling(size, direction, ratio, slice_mm, frame_size):
    volume = random_volume(size, (1.0, 1.0, 1.0), direction, smooth=3.0)
    frame = SliceFrame.of(volume, frame_size, ratio, slice_mm)
    back = frame.restore(frame.prepare(volume, fill=0.0), AIR_HU)
    assert_same_geometry(back, volume)
    # 300 HU of standard deviation, smoothed over 3 voxels: the bounds that docs/overview.md states. At the faces of
    # the volume the half voxel beyond the last centre is extrapolated, so the bound holds four voxels inside.
    # A frame that crops has such faces too.
    share = frame.restore(frame.prepare(Volume(np.ones_like(volume.array)), fill=0.0), fill=0.0).array
    held = share > 0.12  # along each axis a voxel has at least half its weight from filled pixels
    assert np.count_nonzero(~held) == frame.outside(np.ones(held.shape, bool))
    if held.all():
        middle = [n // 2 for n in share.shape]
        for line in (share[:, middle[1], middle[2]], share[middle[0], :, middle[2]], share[middle[0], middle[1]]):
            assert line.min() > 0.499
    inside = binary_erosion(held, np.ones((9, 9, 9)))
    error = np.abs(back.array - volume.array)[inside]
    assert error.mean() < 15.0
    assert error.max() < 70.0


@pytest.mark.parametrize("direction", SIGNED_PERMUTATIONS)
def test_slices_are_axial_whatever_the_stored_order(direction):
    """A volume that encodes its patient coordinates comes out with P along rows, L along columns, S along slices."""
    size, spacing = (7, 8, 9), (2.0, 2.0, 2.0)
    index = np.stack(np.meshgrid(*map(np.arange, size[::-1]), indexing="ij"))[::-1].reshape(3, -1)
    points = np.reshape(direction, (3, 3)) @ (index * 2.0)
    for axis, patient_axis in ((0, 2), (1, 1), (2, 0)):
        volume = Volume(points[patient_axis].reshape(size[::-1]).astype(np.float32), spacing, direction=direction)
        slices = SliceFrame.of(volume, 9, 2.0).prepare(volume, fill=np.nan)
        steps = np.diff(slices, axis=axis)
        np.testing.assert_allclose(steps[np.isfinite(steps)], 2.0, atol=1e-4)


@pytest.mark.parametrize("size", [(20, 23, 6), (21, 22, 6)])
@pytest.mark.parametrize("frame_size", [64, 63, 20])
def test_forward_agrees_with_simpleitk_when_upsampling(size, frame_size):
    """The slice's centre is the volume's centre, whatever is odd; the smallest frame crops."""
    volume = random_volume(size, (1.3, 0.9, 4.0), smooth=1.0)
    slices = SliceFrame.of(volume, frame_size, 0.65).prepare(volume, fill=AIR_HU)
    centre = np.array(volume.origin) + (np.array(volume.size) - 1) / 2 * volume.spacing
    reference = sitk.Image([frame_size, frame_size, 6], sitk.sitkFloat32)
    reference.SetSpacing((0.65, 0.65, 4.0))
    reference.SetOrigin([*(centre[:2] - (frame_size - 1) / 2 * 0.65), volume.origin[2]])
    resampled = sitk.GetArrayFromImage(
        sitk.Resample(volume.to_sitk(), reference, sitk.Transform(), sitk.sitkLinear, AIR_HU)
    )
    # SimpleITK pads from the outer voxels' centres on, the frame from half a voxel beyond: one pixel at each end.
    inside = resampled != AIR_HU
    inside &= np.abs(resampled) < 900
    assert inside.mean() > (0.9 if frame_size == 20 else 0.2)
    np.testing.assert_allclose(slices[inside], resampled[inside], atol=0.05)
    assert np.count_nonzero(slices != AIR_HU) - inside.sum() <= 6 * 2 * 2 * frame_size


def body_case(volume: Volume, mask: np.ndarray) -> Case:
    frame = SliceFrame.of(volume, 1, 1.0)
    return Case(
        name="p", patient="p", split="train", domain="A", source="", source_sha256="", mask_source_sha256=None,
        extent_mm=frame.body_extent_mm(mask), in_plane_mm=frame.in_plane_mm, percentiles=None,
    )  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 90), st.integers(2, 90)),
    spacing=st.tuples(*[st.sampled_from([0.6, 0.7, 0.97656, 1.0, 1.3, 2.1])] * 2),
    body=st.tuples(*[st.floats(0, 1)] * 4),
    size=st.integers(2, 24).map(lambda n: 4 * n),
    used_mm=st.floats(0.3, 3.0),
)
def test_no_body_is_cut_at_auto_spacing_or_at_the_spacing_advised(shape, spacing, body, size, used_mm):
    mask = np.zeros((2, *shape), bool)
    (y0, y1), (x0, x1) = (sorted(int(v * (n - 1)) for v in body[2 * k : 2 * k + 2]) for k, n in enumerate(shape))
    mask[1, y0 : y1 + 1, x0 : x1 + 1] = True
    volume = Volume(mask, (*spacing, 3.0))
    case = body_case(volume, mask)
    assert SliceFrame.of(volume, size, choose_spacing([case], size)).outside(mask) == 0
    frame = SliceFrame.of(volume, size, used_mm)
    if frame.outside(mask):
        advice = lost_body_message(case, size, used_mm)
        advised_mm = float(advice.split("--spacing_mm ")[1].split()[0])
        advised_size = int(advice.split("--size ")[1])
        assert advised_mm > used_mm
        assert SliceFrame.of(volume, size, advised_mm).outside(mask) == 0
        assert SliceFrame.of(volume, advised_size, used_mm).outside(mask) == 0


def test_a_body_beside_the_centre_of_an_odd_axis_fits_at_auto_spacing():
    mask = np.zeros((1, 807, 807), bool)
    mask[0, 300:500, 184:623] = True
    volume = Volume(mask, (0.6, 0.6, 3.0))
    case = body_case(volume, mask)
    for size in (256, 440):  # resampled, and at the acquired spacing
        spacing_mm = choose_spacing([case], size)
        assert spacing_mm == {256: 1.04, 440: 0.6}[size]
        assert SliceFrame.of(volume, size, spacing_mm).outside(mask) == 0
    assert SliceFrame.of(volume, 436, 0.6).outside(mask) > 0


def test_voxels_outside_the_frame_are_air():
    volume = random_volume((30, 20, 3))
    frame = SliceFrame.of(volume, 16, 1.0)
    back = frame.restore(frame.prepare(volume, fill=0.0), AIR_HU).array
    np.testing.assert_array_equal(back[:, 2:18, 7:23], volume.array[:, 2:18, 7:23])
    cut = np.ones(back.shape, bool)
    cut[:, 2:18, 7:23] = False
    assert np.all(back[cut] == AIR_HU)
    assert frame.outside(np.ones(back.shape, bool)) == cut.sum()


def test_downsampling_averages_rather_than_aliases():
    checker = (np.indices((2, 64, 64)).sum(axis=0) % 2 * 1000).astype(np.float32)
    volume = Volume(checker)
    slices = SliceFrame.of(volume, 32, 2.0).prepare(volume, fill=0.0)
    np.testing.assert_allclose(slices[:, 1:-1, 1:-1], 500.0, atol=1.0)


def test_labels_keep_their_values_and_place():
    labels = np.zeros((4, 21, 30), np.uint8)
    labels[1:3, 5:15, 8:20] = 3
    labels[1:3, 8:12, 10:14] = 7
    volume = Volume(labels, (1.0, 1.0, 3.0))
    frame = SliceFrame.of(volume, 64, 0.7)
    prepared = frame.prepare_labels(volume)
    assert set(np.unique(prepared)) == {0, 3, 7}
    for label in (3, 7):
        share = np.count_nonzero(prepared == label) * 0.7**2 / np.count_nonzero(labels == label)
        assert share == pytest.approx(1.0, abs=0.12)
        linear = frame.prepare(Volume((labels == label).astype(np.float32), volume.spacing), fill=0.0) > 0.5
        assert np.mean(linear == (prepared == label)) > 0.99


def test_body_extent_is_the_smallest_centred_square():
    mask = np.zeros((3, 40, 50), bool)
    mask[1, 10:30, 30:44] = True
    volume = Volume(mask, (2.0, 1.0, 5.0))
    frame = SliceFrame.of(volume, 50, 2.0)
    assert frame.body_extent_mm(mask) == 2 * (43 - 24.5 + 0.5) * 2.0
    assert SliceFrame.of(volume, 38, 2.0).outside(mask) == 0
    assert SliceFrame.of(volume, 36, 2.0).outside(mask) == 20


def test_slices_thicker_than_the_volume_are_one():
    """Damaged settings may ask for them; what comes back is the volume's value, not a crash."""
    volume = Volume(np.full((3, 5, 4), 7.0, np.float32))
    frame = SliceFrame.of(volume, 16, 1.0, 1e12)
    assert frame.prepare(volume, fill=0.0).shape[0] == 1
    np.testing.assert_array_equal(frame.restore(frame.prepare(volume, fill=0.0), AIR_HU).array, volume.array)


def test_impossible_frames_are_refused():
    volume = random_volume((4, 4, 4))
    for size, spacing in ((0, 1.0), (16, 0.0), (16, -1.0), (16, float("nan"))):
        with pytest.raises(InputError, match="expected positive"):
            SliceFrame.of(volume, size, spacing)


@given(
    count=st.integers(4, 30),
    slice_mm=st.floats(0.6, 12.0),
    first=st.integers(0, 29),
    length=st.integers(1, 5),
    direction=st.sampled_from(SIGNED_PERMUTATIONS),
)
def test_slices_with_a_mask_are_all_that_its_voxels_come_back_from(count, slice_mm, first, length, direction):
    """Spoiling every other slice leaves the mask's voxels as they are, and each of these holds a part of the mask."""
    lie = random_volume((count,) * 3, (3.0,) * 3, direction)
    frame = SliceFrame.of(lie, 8, 12.0, slice_mm)
    order, _ = frame._order
    mask = np.zeros(lie.array.shape, bool)
    np.moveaxis(mask, order[0], 0)[first % count : first % count + length] = True
    used = frame.slices_with(mask)
    slices = np.zeros((frame.slices, 8, 8), np.float32)
    slices[~used] = 1000
    assert np.abs(frame.restore(slices, fill=0.0).array[mask]).max() < 1e-3
    parts = frame.prepare(lie.with_array(mask.astype(np.float32)), 0.0)
    np.testing.assert_array_equal(used, parts.max(axis=(1, 2)) > 0)
    assert used.any() and used.shape == (frame.slices,)
