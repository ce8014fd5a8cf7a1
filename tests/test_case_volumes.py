"""What results pages show: patient order of any grid, the region that is cut out, and the packing of voxels."""

import base64
import gzip
from itertools import permutations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data.volumes.volume import Volume
from tests.test_pages import patient
from visualization.case_volumes import HU_STEP, ShownVolume, pack, region_to_show
from visualization.planes import PLANES, patient_order


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, -1)])
def test_whatever_the_grid_patients_are_shown_the_same_way(axes, signs):
    """Storage order of axes must not matter: voxels in patient order, and their positions, are those of the patient."""
    canonical = np.random.default_rng(0).normal(size=(4, 5, 6))  # to S, P, L
    spacing_spl, first_lps = (5.0, 3.0, 2.0), np.array([-7.0, 11.0, 100.0])
    stored = canonical.transpose(axes)
    direction, spacing, origin = np.zeros((3, 3)), [0.0] * 3, first_lps.copy()
    for array_axis, (spl_axis, sign) in enumerate(zip(axes, signs, strict=True)):
        index_axis, lps_axis = 2 - array_axis, 2 - spl_axis
        direction[lps_axis, index_axis], spacing[index_axis] = sign, spacing_spl[spl_axis]
        if sign < 0:
            stored = np.flip(stored, array_axis)
            origin[lps_axis] += spacing_spl[spl_axis] * (canonical.shape[spl_axis] - 1)
    volume = Volume(stored, tuple(spacing), tuple(origin), tuple(direction.ravel()))
    lie = patient_order(volume)
    np.testing.assert_array_equal(lie.array(volume.array), canonical)
    assert lie.spacing_mm == spacing_spl and lie.oblique_deg == 0
    np.testing.assert_allclose(lie.affine @ [3, 2, 1, 1], [*first_lps + np.array([2, 6, 15])])


def test_oblique_grids_are_measured():
    direction = tuple(Rotation.from_euler("x", 20, degrees=True).as_matrix().ravel())
    volume = Volume(np.zeros((3, 4, 5)), (1.0, 2.0, 3.0), (5.0, 6.0, 7.0), direction)
    lie = patient_order(volume)
    assert lie.oblique_deg == pytest.approx(20)
    image = volume.to_sitk()
    expected = image.TransformIndexToPhysicalPoint((4, 1, 2))
    np.testing.assert_allclose(lie.affine @ [2, 1, 4, 1], expected, atol=1e-9)


def test_planes_follow_the_radiological_convention():
    spl = np.zeros((3, 3, 3))
    spl[2, 0, 0] = 1  # at the head, in front, on the right
    axial, coronal, sagittal = (plane.cut(spl, index) for plane, index in zip(PLANES, (2, 0, 0), strict=True))
    assert axial[0, 0] == 1  # front up, right at the left
    assert coronal[0, 0] == 1  # head up, right at the left
    assert sagittal[0, 0] == 1  # head up, front at the left
    assert [plane.letters for plane in PLANES] == [tuple("RLAP"), tuple("RLHF"), tuple("APHF")]


def unpack(text, shape):
    low, high = np.frombuffer(gzip.decompress(base64.b64decode(text)), np.uint8).reshape(2, -1).astype(np.uint16)
    return (low | (high << 8)).astype(np.uint16).view(np.int16).reshape(shape)


def test_stored_voxels_are_the_volume_s_to_a_hu():
    rng = np.random.default_rng(0)
    ct = Volume(rng.integers(-1024, 3072, (9, 11, 13)).astype(np.int16), (1, 2, 3))
    shown = ShownVolume.of("ct", "CT", "CT", ct)
    region = region_to_show([shown])
    assert region.shape == (9, 11, 13)
    assert np.abs(unpack(pack(shown, region), region.shape) * HU_STEP - ct.array).max() <= HU_STEP / 2
    mr = Volume(np.full((9, 11, 13), 4e6, np.float32), (1, 2, 3))
    shown = ShownVolume.of("mr", "MR", "MR", mr)
    np.testing.assert_allclose(unpack(pack(shown, region), region.shape) * shown.scale, 4e6, rtol=1e-3)


def test_air_around_the_patient_is_cut_off_and_positions_stay_right():
    _, ct, _ = patient()
    region = region_to_show([ShownVolume.of("ct", "CT", "CT", ct)])
    assert region.start == (0, 0, 1) and region.stop == (12, 20, 29)  # the block and 4 voxels
    first = region.affine @ [0, 0, 0, 1]
    np.testing.assert_allclose(first, [-30 + 2, -20, 700])
    empty = ct.with_array(np.full_like(ct.array, -1000))
    assert region_to_show([ShownVolume.of("ct", "CT", "CT", empty)]).shape == ct.array.shape


def test_large_volumes_are_averaged_finest_axes_first():
    ct = Volume(np.arange(8 * 12 * 16, dtype=np.float32).reshape(8, 12, 16), (1.0, 1.0, 5.0), (100.0, 0.0, 0.0))
    shown = ShownVolume.of("ct", "CT", "CT", ct)
    region = region_to_show([shown], max_voxels=400)
    assert region.factor == (1, 2, 2) and region.shape == (8, 6, 8) and region.spacing_mm == (5, 2, 2)
    np.testing.assert_allclose(region.affine @ [0, 0, 0, 1], [100.5, 0.5, 0])
    np.testing.assert_allclose(region.cut(ct.array), ct.array.reshape(8, 6, 2, 8, 2).mean(axis=(2, 4)))
    thick = region_to_show([shown], max_voxels=40)  # along the slices as well
    (a, b, c), (n, m, k) = thick.factor, thick.shape
    assert a > 1
    blocks = ct.array[: n * a, : m * b, : k * c].reshape(n, a, m, b, k, c)
    np.testing.assert_allclose(thick.cut(ct.array), blocks.mean(axis=(1, 3, 5)), rtol=1e-6)
