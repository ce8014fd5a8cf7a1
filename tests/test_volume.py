"""Reading and writing volumes and DICOM series: what goes in comes out, and every bad file gets one clear error."""

import gzip
import os
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from scipy.spatial.transform import Rotation

from data.errors import InputError
from data.files import write_json
from data.volumes.paths import hash_source
from data.volumes.volume import (
    Volume,
    describe_difference,
    describe_extent,
    from_sitk,
    read_volume,
    same_grid,
    volume_stem,
    volume_suffix,
    write_volume,
)

OBLIQUE = tuple(Rotation.from_euler("xyz", [0.1, -0.05, 0.2]).as_matrix().ravel())


def example_volume(dtype=np.int16, shape=(5, 6, 7)) -> Volume:
    array = np.random.default_rng(0).integers(-1000, 1500, shape).astype(dtype)
    return Volume(array, (0.7, 0.8, 3.5), (-12.5, 30.25, 100.125), OBLIQUE)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".mhd", ".nrrd"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_write_then_read_is_the_same_volume(tmp_path, suffix, dtype):
    volume = example_volume(dtype)
    path = write_volume(volume, tmp_path / "new folder" / f"patient 1{suffix}")
    back = read_volume(path)
    assert back.array.dtype == dtype
    np.testing.assert_array_equal(back.array, volume.array)
    for a, b in ((back.spacing, volume.spacing), (back.origin, volume.origin), (back.direction, volume.direction)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    left = {file.name for file in path.parent.iterdir()}
    assert left == {path.name} | ({"patient 1.raw"} if suffix == ".mhd" else set())


@pytest.mark.parametrize("dtype", [np.int16, np.float32, bool])
def test_a_compressed_nifti_is_the_one_that_simpleitk_reads_and_equal_volumes_are_equal_bytes(tmp_path, dtype):
    volume = example_volume(dtype)
    path = write_volume(volume, tmp_path / "a.nii.gz")
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume.array)
    assert same_grid(from_sitk(image), volume, tolerance=1e-6)
    assert path.read_bytes() == write_volume(volume, tmp_path / "b.nii.gz").read_bytes()
    header = nibabel.load(path).header
    assert (int(header["qform_code"]), int(header["sform_code"]), header.get_xyzt_units()[0]) == (1, 1, "mm")


def test_axes_and_geometry_are_simpleitk_s():
    volume = example_volume()
    image = volume.to_sitk()
    assert image.GetSize() == volume.size == (7, 6, 5)
    assert image.GetPixel(6, 2, 1) == volume.array[1, 2, 6]
    expected = np.array(volume.origin) + np.reshape(volume.direction, (3, 3)) @ (np.array(volume.spacing) * (6, 2, 1))
    np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((6, 2, 1)), expected)
    assert same_grid(from_sitk(image), volume)


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, suffix):
    path = write_volume(example_volume(), tmp_path / f"ct{suffix}")
    before = path.read_bytes()

    def fail(*args, **kwargs):
        Path(args[1]).write_bytes(b"half")
        raise RuntimeError("disk full")

    def fail_in_stream(image, stream):
        stream.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(sitk, "WriteImage", fail)
    monkeypatch.setattr(nibabel.Nifti1Image, "to_stream", fail_in_stream)
    with pytest.raises(InputError, match=r"ct\.(nii\.gz|mha): cannot be written: disk full"):
        write_volume(example_volume(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".NII.GZ", ".NII", ".MHA", ".MHD", ".NRRD"])
def test_upper_case_endings_are_written_and_read(tmp_path, suffix):
    volume = example_volume()
    path = write_volume(volume, tmp_path / f"Patient.1{suffix}")
    assert {file.name for file in tmp_path.iterdir()} - {"Patient.1.raw"} == {f"Patient.1{suffix}"}
    np.testing.assert_array_equal(read_volume(path).array, volume.array)
    assert same_grid(read_volume(path), volume)


def test_a_series_of_a_plain_file_is_refused(tmp_path):
    path = write_volume(example_volume(), tmp_path / "mr.nii")
    with pytest.raises(InputError, match=r"mr\.nii: a file, but --series_uid chooses"):
        read_volume(path, series_uid="1.2.3")


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr", ".hdr", ".img"])
def test_the_hash_of_a_header_covers_its_data(tmp_path, suffix):
    image = example_volume().to_sitk()
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    (tmp_path / "b.raw").write_bytes(b"another volume's")
    before = hash_source(tmp_path / f"a{suffix}")
    (tmp_path / "b.raw").write_bytes(b"changed")
    assert hash_source(tmp_path / f"a{suffix}") == before
    header = (tmp_path / f"a{suffix}").read_bytes()
    image[1, 2, 3] = 77
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    assert (tmp_path / f"a{suffix}").read_bytes() == header or suffix == ".img"
    assert hash_source(tmp_path / f"a{suffix}") != before


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ("my voxels.bin", ["my voxels.bin"]),
        ("%03d.bin 1 2 1", ["001.bin", "002.bin"]),
        ("LIST\nx.bin\ny.bin", ["x.bin", "y.bin"]),
    ],
)
def test_the_hash_follows_the_names_in_a_header(tmp_path, data, names):
    header = f"NDims = 3\nDimSize = 2 2 2\nElementSpacing = 1 1 1\nElementType = MET_SHORT\nElementDataFile = {data}\n"
    (tmp_path / "a.mhd").write_text(header)
    for name in names:
        (tmp_path / name).write_bytes(b"1")
    hashes = {hash_source(tmp_path / "a.mhd")}
    for name in names:
        (tmp_path / name).write_bytes(b"2")
        hashes.add(hash_source(tmp_path / "a.mhd"))
    assert len(hashes) == len(names) + 1


def test_what_cannot_be_hashed_or_written_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"gone\.nii: cannot be read"):
        hash_source(tmp_path / "gone.nii")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"a\.json: cannot be written"):
        write_json(tmp_path / "file/a.json", {})


def test_unknown_formats_are_refused(tmp_path):
    with pytest.raises(InputError, match="unknown volume format"):
        write_volume(example_volume(), tmp_path / "ct.png")
    with pytest.raises(InputError, match=r"ct\.Nii: ending in mixed case"):
        write_volume(example_volume(), tmp_path / "ct.Nii")


@pytest.mark.parametrize(
    ("name", "suffix", "stem"),
    [("a.b.nii.gz", ".nii.gz", "a.b"), ("a.nii", ".nii", "a"), ("A.NRRD", ".nrrd", "A"), ("a.txt", "", "a.txt")],
)
def test_suffix_and_stem(name, suffix, stem):
    assert (volume_suffix(name), volume_stem(name)) == (suffix, stem)


def test_a_difference_of_grids_names_what_differs_and_an_extent_is_where_voxels_lie():
    turned = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    one = Volume(np.zeros((3, 4, 5), np.int16), (2.0, 1.0, 3.0), (-10.0, 0.0, 7.0), turned)
    other = Volume(np.zeros((3, 4, 6), np.int16), (2.0, 1.0, 3.00001), (-10.0, 0.25, 7.0), turned)
    assert describe_difference(one, other) == (
        "size 5 x 4 x 3, expected 6 x 4 x 3; origin (-10, 0, 7) mm, expected (-10, 0.25, 7) mm"
    )
    assert describe_difference(one, replace(one, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1))) == (
        "direction (0, 1, 0, -1, 0, 0, 0, 0, 1), expected (1, 0, 0, 0, 1, 0, 0, 0, 1)"
    )
    assert describe_extent(one) == "x -10 to -7, y -8 to 0, z 7 to 13 mm"  # columns run to -y, rows to x


def test_same_grid_sees_every_part_of_the_geometry():
    volume = example_volume()
    assert same_grid(volume, volume.with_array(volume.array + 1))
    for change in (
        {"spacing": (0.7, 0.8, 3.51)},
        {"origin": (-12.5, 30.25, 100.2)},
        {"direction": tuple(np.eye(3).ravel())},
        {"array": volume.array[1:]},
    ):
        assert not same_grid(volume, Volume(**(vars(volume) | change)))


def write_raw(path: Path, image: sitk.Image) -> Path:
    sitk.WriteImage(image, str(path))
    return path


def nan_image() -> sitk.Image:
    array = np.zeros((3, 4, 5), np.float32)
    array[1, 2, 3], array[0, 0, 0] = np.nan, np.inf
    return sitk.GetImageFromArray(array)


def test_four_dimensions_of_which_one_is_real_are_a_volume(tmp_path):
    array = np.arange(60, dtype=np.float32).reshape(1, 3, 4, 5)
    path = write_raw(tmp_path / "mr.nii.gz", sitk.GetImageFromArray(array, isVector=False))
    np.testing.assert_array_equal(read_volume(path).array, array[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none.nii.gz", "no such file or folder$"),
        (
            lambda p: write_raw(p / "mr_t1.nii.gz", nan_image()).with_name("mr_t2.nii.gz"),
            r"folder; did you mean mr_t1\.nii\.gz\?",
        ),
        (lambda p: write_raw(p / "a.nii", sitk.Image([4, 5], sitk.sitkInt16)), "2-D image"),
        (lambda p: write_raw(p / "a.nii", sitk.Image([4, 5, 1], sitk.sitkInt16)), "2-D image"),
        (lambda p: write_raw(p / "a.nii", sitk.Image([4, 5, 6, 2], sitk.sitkInt16)), "4-D image"),
        (lambda p: write_raw(p / "a.mha", sitk.Image([4, 5, 6], sitk.sitkVectorUInt8, 3)), "3 values a voxel"),
        (lambda p: write_raw(p / "a.nii.gz", nan_image()), "2 of 60 voxels are NaN or infinite"),
        (lambda p: write_raw(p / "a.nii", nan_image()), "2 of 60 voxels are NaN or infinite"),
        (lambda p: write_raw(p / "a.mha", nan_image()), "2 of 60 voxels are NaN or infinite"),
    ],
)
def test_unusable_images_get_one_clear_error(tmp_path, make, message):
    path = make(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        read_volume(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_truncated_files_are_refused(tmp_path, suffix):
    path = write_volume(example_volume(shape=(20, 30, 30)), tmp_path / f"a{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"cannot be read as a volume"):
        read_volume(path)


def test_a_truncated_data_file_is_refused(tmp_path):
    path = write_volume(example_volume(), tmp_path / "a.mhd")
    raw = path.with_suffix(".raw")
    raw.write_bytes(raw.read_bytes()[:100])
    with pytest.raises(InputError, match=r"a\.raw: cannot be read as a volume: 100 bytes .*; expected 420: truncated"):
        read_volume(path)


def test_nifti_scaling_is_applied(tmp_path):
    """A stored slope and intercept (as scanners' converters write) gives the same values as ITK reads."""
    image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([2.0, 2.0, 3.0, 1.0]))
    image.header.set_slope_inter(0.5, -10.0)
    nibabel.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    itk = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    np.testing.assert_allclose(volume.array, sitk.GetArrayFromImage(itk), atol=1e-6)
    assert same_grid(volume, from_sitk(itk), tolerance=0)


@pytest.mark.parametrize("content", [b"", b"not an image", gzip.compress(b"not an image", mtime=0)])
def test_files_that_are_no_volumes_are_refused(tmp_path, content):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.nii\.gz: (the file is empty|cannot be read as a volume)"):
        read_volume(path)


def test_a_sheared_direction_is_refused(tmp_path):
    header = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nspace: left-posterior-superior\nendian: little\n"
    header += b"encoding: raw\nspace directions: (1,0,0) (0.5,1,0) (0,0,1)\nspace origin: (0,0,0)\n\n"
    path = tmp_path / "a.nrrd"
    path.write_bytes(header + np.zeros(8, np.int16).tobytes())
    with pytest.raises(InputError, match=r"orthonormal|cannot be read"):
        read_volume(path)


SLICES, SPACING_MM = 6, 2.5


def write_series(folder: Path, uid: str | None = None, change=lambda k, header: None, description="T1") -> np.ndarray:
    """Write an oblique MR series, files in scrambled order; return its voxels (z, y, x)."""
    folder.mkdir(parents=True, exist_ok=True)
    uid = uid or generate_uid()
    array = np.random.default_rng(1).integers(0, 900, (SLICES, 8, 10)).astype(np.uint16)
    matrix = np.reshape(OBLIQUE, (3, 3))
    for k in range(SLICES):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        header = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        header.SOPClassUID, header.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        header.SeriesInstanceUID, header.StudyInstanceUID = uid, "1.2.3"
        header.Modality, header.SeriesDescription = "MR", description
        header.Rows, header.Columns, header.SamplesPerPixel = 8, 10, 1
        header.PixelSpacing, header.SliceThickness = [0.8, 0.7], SPACING_MM
        header.ImageOrientationPatient = [round(v, 12) for v in (*matrix[:, 0], *matrix[:, 1])]
        position = np.array([-12.5, 30.25, 100.125]) + matrix[:, 2] * k * SPACING_MM
        header.ImagePositionPatient = [round(v, 9) for v in position]
        header.BitsAllocated = header.BitsStored = 16
        header.HighBit, header.PixelRepresentation, header.PhotometricInterpretation = 15, 0, "MONOCHROME2"
        header.PixelData = array[k].tobytes()
        change(k, header)
        header.save_as(folder / f"{uid[-4:]}_{(k * 5) % SLICES}{k}.dcm", enforce_file_format=bool(header.preamble))
    (folder / "notes.txt").write_text("not DICOM")
    return array


def test_a_dicom_series_is_sorted_by_position(tmp_path):
    array = write_series(tmp_path)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, array)
    expected = Volume(array, (0.7, 0.8, SPACING_MM), (-12.5, 30.25, 100.125), OBLIQUE)
    assert same_grid(volume, expected, tolerance=1e-6)


@pytest.mark.parametrize("sop_class", ["7.3", "1", "20"], ids=["word capture", "radiograph", "nuclear"])
def test_a_series_lies_where_its_header_says_whatever_its_class(tmp_path, sop_class):
    """Of some classes GDCM takes no geometry from the header."""

    def change(k, header):
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = f"1.2.840.10008.5.1.4.1.1.{sop_class}"

    expected = Volume(write_series(tmp_path, change=change), (0.7, 0.8, SPACING_MM), (-12.5, 30.25, 100.125), OBLIQUE)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, expected.array)
    assert same_grid(volume, expected, tolerance=1e-6)


def test_fractional_rescaling_is_kept(tmp_path):
    def rescale(k, header):
        header.RescaleSlope, header.RescaleIntercept = "0.25", str(k)

    array = write_series(tmp_path, change=rescale)
    expected = array * 0.25 + np.arange(SLICES)[:, None, None]
    np.testing.assert_allclose(read_volume(tmp_path).array, expected)


def test_several_series_are_listed_and_chosen_by_uid(tmp_path):
    write_series(tmp_path, uid="1.2.3.1111", description="T1 in phase")
    other = write_series(tmp_path, uid="1.2.3.2222", description="T2")
    with pytest.raises(InputError, match="2 DICOM series; expected one: put it into a folder of its own") as error:
        read_volume(tmp_path)
    for part in ("1.2.3.1111  MR  'T1 in phase'  6 files", "1.2.3.2222  MR  'T2'  6 files"):
        assert part in str(error.value)
    np.testing.assert_array_equal(read_volume(tmp_path, series_uid="1.2.3.2222").array, other)
    with pytest.raises(InputError, match=r"no DICOM series 9\.9; it holds"):
        read_volume(tmp_path, series_uid="9.9")


def test_a_missing_slice_is_refused(tmp_path):
    write_series(tmp_path)
    next(tmp_path.glob("*3.dcm")).unlink()
    with pytest.raises(InputError, match=r"missing or unevenly spaced slices: 5\.000 mm between .*2\.500 mm elsewhere"):
        read_volume(tmp_path)


def shift(k, header):
    if k == 2:
        header.ImagePositionPatient = list(
            np.array(header.ImagePositionPatient, float) + 0.3 * np.reshape(OBLIQUE, (3, 3))[:, 2]
        )


def shear(k, header):
    header.ImagePositionPatient = list(
        np.array(header.ImagePositionPatient, float) + k * np.reshape(OBLIQUE, (3, 3))[:, 1]
    )


def tilt(k, header):
    if k == 0:
        header.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


def resize(k, header):
    if k == 0:
        header.Rows, header.Columns = 10, 8


def repeat(k, header):
    header.ImagePositionPatient = [0, 0, k // 2]
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]


def without(tag):
    def remove(k, header):
        if k == 1:
            delattr(header, tag)

    return remove


def with_value(tag, value):
    def change(k, header):
        if k == 1:
            setattr(header, tag, value)

    return change


def unscaled_ct(k, header):
    header.Modality = "CT"


def colour(k, header):
    header.SamplesPerPixel, header.PlanarConfiguration, header.PhotometricInterpretation = 3, 0, "RGB"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shift, "unevenly spaced"),
        (shear, "sheared slices"),
        (tilt, "different orientation"),
        (resize, r"slice of \(8, 10\) pixels in a series of \(10, 8\)|slice of \(10, 8\) pixels"),
        (repeat, "two slices at one position"),
        (without("ImagePositionPatient"), r"dcm: DICOM tag ImagePositionPatient is missing"),
        (without("PixelSpacing"), r"dcm: DICOM tag PixelSpacing is missing"),
        (with_value("ImageOrientationPatient", None), r"dcm: DICOM tag ImageOrientationPatient is missing or empty"),
        (with_value("ImagePositionPatient", [1, 2]), r"dcm: DICOM tag ImagePositionPatient .* does not hold 3 numbers"),
        (with_value("RescaleSlope", None), r"dcm: DICOM tag RescaleSlope is missing or empty"),
        (unscaled_ct, r"dcm: DICOM tag RescaleSlope is missing or empty"),
        (with_value("PixelSpacing", [0.0, 0.7]), r"PixelSpacing .*expected positive"),
        (with_value("PixelSpacing", [0.9, 0.7]), r"PixelSpacing \[.*\] mm in a series of"),
        (with_value("NumberOfFrames", 4), r"dcm: multi-frame DICOM whose frames are not described one by one"),
        (colour, r"dcm: SamplesPerPixel 3 \(a colour image\)"),
    ],
)
def test_slices_that_make_no_volume_are_refused(tmp_path, change, message):
    write_series(tmp_path, change=change)
    with pytest.raises(InputError, match=message):
        read_volume(tmp_path)


def test_files_without_the_preamble_are_slices_too(tmp_path):
    def strip(k, header):
        if k in (0, 3, 5):  # the first and the last: their loss would go unnoticed
            header.preamble = None
            del header.file_meta

    array = write_series(tmp_path, change=strip)
    assert sum(file.read_bytes()[128:132] == b"DICM" for file in tmp_path.glob("*.dcm")) == 3
    np.testing.assert_array_equal(read_volume(tmp_path).array, array)


def test_a_single_dicom_file_is_refused(tmp_path):
    write_series(tmp_path)
    with pytest.raises(InputError, match="a single DICOM file; name the folder"):
        read_volume(next(tmp_path.glob("*.dcm")))


def test_a_folder_without_dicom_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no DICOM image in this folder \(folders below it are not searched\)$"):
        read_volume(tmp_path)
    (tmp_path / "P07").mkdir()
    with pytest.raises(InputError, match=rf"; name a volume in one of them, or, .*: '{tmp_path}/\*/NAME'$"):
        read_volume(tmp_path)


def test_a_folder_of_volume_files_is_said_to_be_one(tmp_path):
    for name in ("b.nii.gz", "a.mha", "._a.mha", "notes.txt", *(f"c{k}.nii" for k in range(5))):
        (tmp_path / name).touch()
    with pytest.raises(InputError) as error:
        read_volume(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: no DICOM slices in this folder, but volume files: a.mha, b.nii.gz, c0.nii, c1.nii, c2.nii and 2 "
        "more; expected one volume: name one of the files (test_pipeline.py --input_dir converts all files of a folder)"
    )
    write_series(tmp_path)  # beside slices they are left out
    assert read_volume(tmp_path).array.shape == (SLICES, 8, 10)


def test_one_slice_is_no_series(tmp_path):
    write_series(tmp_path)
    for file in sorted(tmp_path.glob("*.dcm"))[1:]:
        file.unlink()
    with pytest.raises(InputError, match="one DICOM slice"):
        read_volume(tmp_path)


SHARED = Path(__file__).parents[1].parent / "shared/data/sts"


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="development data absent")
@pytest.mark.parametrize("patient", ["STS_024", "STS_042"])
def test_real_dicom_equals_real_nifti(patient):
    dicom = read_volume(SHARED / f"dicom/{patient}/MR_T1")
    nifti = read_volume(SHARED / f"dev/{patient}/{patient}_MR_T1.nii.gz")
    np.testing.assert_array_equal(dicom.array, nifti.array)
    assert same_grid(dicom, nifti, tolerance=1e-4)  # NIfTI keeps the origin in single precision
    ct = read_volume(SHARED / f"dicom/{patient}/CT")
    on_mr_grid = read_volume(SHARED / f"dev/{patient}/{patient}_CT_on_MR_grid.nii.gz")
    resampled = sitk.Resample(ct.to_sitk(), nifti.to_sitk(), sitk.Transform(), sitk.sitkLinear, -1000.0)
    assert np.abs(sitk.GetArrayFromImage(resampled).astype(int) - on_mr_grid.array).max() <= 1


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="development data absent")
def test_the_real_oblique_series_has_its_headers_geometry():
    folder = SHARED / "raw_oblique/STS_001_MR_T1"
    volume = read_volume(folder)
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in folder.glob("*.dcm")]
    row, column = np.reshape(np.array(headers[0].ImageOrientationPatient, float), (2, 3))
    matrix = np.reshape(volume.direction, (3, 3))
    np.testing.assert_allclose(matrix.T, [row, column, np.cross(row, column)], atol=1e-6)
    first = min(headers, key=lambda h: np.array(h.ImagePositionPatient, float) @ matrix[:, 2])
    np.testing.assert_allclose(volume.origin, np.array(first.ImagePositionPatient, float), atol=1e-4)
    np.testing.assert_array_equal(volume.array[0], pydicom.dcmread(first.filename or folder).pixel_array)


def test_a_name_that_is_not_text_is_refused_before_itk_ends_the_process(tmp_path):
    with pytest.raises(InputError, match=r"p\\udcff.nii.gz': the name is not UTF-8 text"):
        read_volume(tmp_path / os.fsdecode(b"p\xff.nii.gz"))
