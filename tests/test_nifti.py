"""Where a NIfTI file's voxels lie: which of its transforms counts, what is said, what is refused, what is written."""

import logging
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from data.errors import InputError
from data.volumes.volume import Volume, read_volume, write_volume

ARRAY = np.random.default_rng(0).integers(0, 900, (5, 8, 6)).astype(np.int16)
SPACING = (0.98, 0.98, 3.27)
SFORM = np.array([[-0.98, 0, 0, -100], [0, -0.98, 0, 27], [0, 0, 3.27, 588], [0, 0, 0, 1.0]])


def turned(transform, angles=(0.1, 0.05, -0.08)):
    """Return a transform after the patient has moved: turned, and shifted by 5 mm."""
    moved = transform.copy()
    moved[:3] = nibabel.eulerangles.euler2mat(*angles) @ transform[:3]
    moved[0, 3] += 5
    return moved


def write(path, sform=None, qform=None, codes=(1, 1), pixdim=None, units=2, dtype=np.int16, kind=nibabel.Nifti1Image):
    """Write a NIfTI file whose header says just this; return its path."""
    header = kind.header_class()
    header.set_data_dtype(dtype)
    header.set_data_shape(ARRAY.T.shape)
    if qform is not None:
        header.set_qform(qform, code=1)
    if sform is not None:
        header.set_sform(sform, code=1)
    header["qform_code"] = codes[0] if qform is not None else 0
    header["sform_code"] = codes[1] if sform is not None else 0
    header["pixdim"][1:4] = SPACING if pixdim is None else pixdim
    header["xyzt_units"] = units
    header["vox_offset"] = header.single_vox_offset
    data = header.binaryblock + bytes(header.single_vox_offset - header.sizeof_hdr)
    path.write_bytes(data + ARRAY.T.astype(header.get_data_dtype()).tobytes(order="F"))
    return path


def affine(volume: Volume) -> np.ndarray:
    """Return a volume's transform from voxel indices to RAS."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(volume.direction, (3, 3)) * volume.spacing
    matrix[:3, 3] = volume.origin
    return np.diag([-1, -1, 1, 1]) @ matrix


@pytest.mark.parametrize("pixdim", [SPACING, (1, 1, 1), (0, 0, 0), (np.nan, 1, 1), (0.98, 0.98, 4), (-0.98, 0.98, 3)])
def test_a_sound_sform_counts_whatever_pixdim_says_and_a_difference_is_said(tmp_path, caplog, pixdim):
    with caplog.at_level(logging.WARNING):
        volume = read_volume(write(tmp_path / "a.nii", turned(SFORM), pixdim=pixdim))
    np.testing.assert_allclose(affine(volume), turned(SFORM), atol=1e-5)
    np.testing.assert_allclose(volume.spacing, SPACING, rtol=1e-6)
    np.testing.assert_array_equal(volume.array, ARRAY)
    assert len(volume.notes) == (pixdim != SPACING)
    assert all("a.nii: its sform has voxels of 0.98 x 0.98 x 3.27 mm, pixdim" in line for line in caplog.messages)
    assert len(caplog.messages) == len(volume.notes)


@pytest.mark.parametrize("codes", [(1, 1), (1, 2), (2, 1), (1, 4)])
def test_of_two_transforms_the_sform_counts_and_both_are_written_again(tmp_path, codes):
    path = write(tmp_path / "a.nii", turned(SFORM), SFORM, codes)
    volume = read_volume(path)
    np.testing.assert_allclose(affine(volume), turned(SFORM), atol=1e-5)
    (note,) = volume.notes
    far = np.abs((turned(SFORM) - SFORM) @ [5, 7, 4, 1]).max()
    assert "its sform and qform lie up to" in note and far < float(note.split(" up to ")[1].split()[0]) < 120
    written = nibabel.load(write_volume(volume.with_array(volume.array + 1), tmp_path / "b.nii.gz")).header
    assert (int(written["qform_code"]), int(written["sform_code"])) == codes
    np.testing.assert_allclose(written.get_qform(), SFORM, atol=1e-4)
    np.testing.assert_allclose(written.get_sform(), turned(SFORM), atol=1e-4)


@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 2), (3, 4)])
def test_equal_transforms_are_read_without_a_word_and_keep_their_codes(tmp_path, codes):
    sform, qform = (SFORM if code else None for code in codes[::-1])
    volume = read_volume(write(tmp_path / "a.nii", sform, qform, codes))
    assert volume.notes == ()
    np.testing.assert_allclose(affine(volume), SFORM, atol=1e-5)
    written = nibabel.load(write_volume(volume, tmp_path / "b.nii")).header
    assert (int(written["qform_code"]), int(written["sform_code"])) == codes
    np.testing.assert_allclose(written.get_zooms(), SPACING, rtol=1e-6)
    assert affine(read_volume(tmp_path / "b.nii")) == pytest.approx(affine(volume), abs=1e-6)


def test_a_volume_that_was_moved_is_written_where_it_lies(tmp_path):
    volume = read_volume(write(tmp_path / "a.nii", SFORM, SFORM, (2, 3)))
    moved = Volume(volume.array, (2.0, 2.0, 2.0), (1.0, 2.0, 3.0), volume.direction, volume.nifti)
    written = nibabel.load(write_volume(moved, tmp_path / "b.nii"))
    np.testing.assert_allclose(written.affine, affine(moved), atol=1e-6)
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == (1, 1)


@pytest.mark.parametrize(
    "move",
    [
        lambda v: replace(v, origin=tuple(np.add(v.origin, (0.05, 0, 0)))),
        lambda v: replace(v, spacing=tuple(np.multiply(v.spacing, 1.0005))),
        lambda v: replace(v, direction=tuple((nibabel.eulerangles.euler2mat(0.03) @ np.diag([1, 1, 1])).ravel())),
    ],
    ids=["0.05 mm", "0.05 % larger", "turned by 1.7 degrees"],
)
def test_a_volume_that_was_moved_a_little_is_written_where_it_lies(tmp_path, move):
    moved = move(read_volume(write(tmp_path / "a.nii", SFORM, SFORM, (2, 3))))
    written = nibabel.load(write_volume(moved, tmp_path / "b.nii"))
    np.testing.assert_allclose(written.affine, affine(moved), atol=1e-5)
    assert int(written.header["sform_code"]) == 1


@pytest.mark.parametrize("pixdim", [SPACING, tuple(np.multiply(SPACING, 1.0008)), (1, 1, 4)])
@pytest.mark.parametrize("bend", [0.0, 0.004, 0.05])
def test_whatever_is_straightened_on_reading_the_transform_is_written_as_it_was(tmp_path, pixdim, bend):
    """So that the synthetic CT lies on the MR in a viewer that does not straighten."""
    bent = SFORM.copy()
    bent[0, 1] += bend
    volume = read_volume(write(tmp_path / "a.nii", bent, pixdim=pixdim))
    written = nibabel.load(write_volume(volume.with_array(volume.array + 1), tmp_path / "b.nii.gz"))
    np.testing.assert_allclose(written.affine, bent, atol=1e-5)
    assert affine(read_volume(tmp_path / "b.nii.gz")) == pytest.approx(affine(volume), abs=2e-5)


def test_without_orientation_it_is_nifti_s_method_1(tmp_path):
    """Axes to the right, the front and the head from the first voxel; ITK takes left, back and head."""
    volume = read_volume(write(tmp_path / "a.nii"))
    np.testing.assert_allclose(affine(volume), np.diag([*SPACING, 1]), rtol=1e-6)
    assert "no orientation (qform and sform code 0)" in volume.notes[0]
    written = nibabel.load(write_volume(volume, tmp_path / "b.nii.gz")).header
    assert (int(written["qform_code"]), int(written["sform_code"])) == (0, 0)
    np.testing.assert_allclose(written.get_zooms(), SPACING, rtol=1e-6)
    assert affine(read_volume(tmp_path / "b.nii.gz")) == pytest.approx(affine(volume), rel=1e-6)


def sheared(by):
    transform = SFORM.copy()
    transform[1, 2] = by * 3.27
    return transform


MIRRORED = SFORM @ np.diag([-1, 1, 1, 1])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"sform": sheared(0.5)}, "sform shears .*resample it to orthogonal axes$"),
        ({"sform": sheared(0.5), "qform": SFORM}, "sform shears .*or set its code to 0"),
        ({"sform": SFORM + 0.5 * np.eye(4)[:, [1, 0, 2, 3]] * [1, 1, 0, 0]}, "sform shears"),
        ({"sform": np.diag([0, 1, 1, 1.0])}, "sform has voxels of 0 x 1 x 1 mm"),
        ({"sform": SFORM, "qform": SFORM, "pixdim": (0.98, 0.98, 4)}, "3.27 mm, pixdim of .* 4 mm: which is right"),
        ({"sform": SFORM, "qform": SFORM, "pixdim": (1, 1, 1)}, "which is right is unknown"),
        ({"sform": np.diag([-1, -1, 1, 1.0]), "qform": SFORM}, "voxels of 1 x 1 x 1 mm, pixdim of 0.98"),
        ({"sform": np.diag([-1, -1, 1, 1.0])}, "voxels of 1 x 1 x 1 mm, pixdim of 0.98"),
        ({"sform": MIRRORED, "qform": SFORM}, "sform and qform mirror each other: which side is left"),
        ({"sform": MIRRORED, "qform": SFORM, "codes": (1, 4)}, "sform and qform mirror each other"),
        ({"sform": SFORM * np.nan}, "transform holds NaN"),
        ({"pixdim": (0, 1, 1)}, "spacing 0 x 1 x 1 mm"),
        ({"qform": SFORM, "pixdim": (np.nan, 1, 1)}, "spacing nan x 1 x 1 mm"),
    ],
)
def test_what_no_movement_explains_is_refused(tmp_path, header, message):
    with pytest.raises(InputError, match=rf"a\.nii: .*{message}"):
        read_volume(write(tmp_path / "a.nii", **header))


@pytest.mark.parametrize("digits", [2, 3, 4])
def test_a_rounded_transform_is_straightened(tmp_path, digits):
    """ITK refuses it: 'No orthonormal definition found'."""
    exact = turned(SFORM, (0.3, -0.2, 0.4))
    volume = read_volume(write(tmp_path / "a.nii", np.round(exact, digits)))
    direction = np.reshape(volume.direction, (3, 3))
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-6)
    corner = [5, 7, 4, 1]
    assert np.abs((affine(volume) - exact) @ corner).max() < 8 * 10.0**-digits
    assert all("not quite orthogonal; straightened" in note for note in volume.notes)


@pytest.mark.parametrize(("units", "factor"), [(1, 1000), (2, 1), (3, 0.001), (0, 1), (10, 1)])
def test_units_of_the_header_become_mm(tmp_path, units, factor):
    scale = np.diag([1 / factor] * 3 + [1])
    pixdim = np.array(SPACING) / factor
    for name, forms in (("sform", {"sform": scale @ SFORM}), ("qform", {"qform": scale @ SFORM})):
        volume = read_volume(write(tmp_path / f"{name}.nii", units=units, pixdim=pixdim, **forms))
        np.testing.assert_allclose(affine(volume), SFORM, rtol=1e-5)
    assert read_volume(write_volume(volume, tmp_path / "b.nii")).spacing == pytest.approx(SPACING)


@pytest.mark.parametrize("dtype", [">i2", ">f4", "<f8", "<u2"])
@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii.gz"])
def test_every_byte_order_can_be_written_in_every_format(tmp_path, dtype, suffix):
    header = nibabel.Nifti1Image(ARRAY.T.astype(dtype), SFORM).header.as_byteswapped(dtype[0])
    image = nibabel.Nifti1Image(ARRAY.T.astype(dtype), SFORM, header)
    nibabel.save(image, tmp_path / "a.nii")
    assert nibabel.load(tmp_path / "a.nii").header.endianness == dtype[0]
    volume = read_volume(tmp_path / "a.nii")
    assert volume.array.dtype.isnative
    np.testing.assert_array_equal(read_volume(write_volume(volume, tmp_path / f"b{suffix}")).array, ARRAY)


def test_nifti_2_is_read(tmp_path):
    nibabel.save(nibabel.Nifti2Image(ARRAY.T, SFORM), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.array, ARRAY)
    np.testing.assert_allclose(affine(volume), SFORM, atol=1e-6)


@pytest.mark.parametrize("kind", [nibabel.AnalyzeImage, nibabel.Spm99AnalyzeImage])
@pytest.mark.parametrize("suffix", [".hdr", ".img"])
def test_analyze_is_refused(tmp_path, kind, suffix):
    kind(ARRAY.T, SFORM).to_filename(tmp_path / "a.img")
    with pytest.raises(InputError, match=r"Analyze 7\.5, which does not record left and right; expected NIfTI"):
        read_volume(tmp_path / f"a{suffix}")


def test_a_pair_of_header_and_image_is_read(tmp_path):
    nibabel.Nifti1Pair(ARRAY.T, SFORM).to_filename(tmp_path / "a.img")
    for suffix in (".hdr", ".img"):
        volume = read_volume(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(volume.array, ARRAY)
        np.testing.assert_allclose(affine(volume), SFORM, atol=1e-6)


def test_colours_are_refused(tmp_path):
    colours = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, SFORM), tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"3 values a voxel \(a colour image\)"):
        read_volume(tmp_path / "a.nii")
