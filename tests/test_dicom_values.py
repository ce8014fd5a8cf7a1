"""What a DICOM series' voxels are worth: the values that its headers say, whatever differs between its slices."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from data.errors import InputError
from data.volumes.volume import read_volume
from tests.test_volume import SLICES, write_series


def stored(dtype: str, bits: int | None = None):
    """Return a change of a slice that stores random values of a type, its whole range."""

    def change(k, header):
        kind = np.dtype(dtype)
        header.BitsAllocated, header.PixelRepresentation = 8 * kind.itemsize, int(kind.kind == "i")
        header.BitsStored = bits or header.BitsAllocated
        header.HighBit = header.BitsStored - 1
        low = -(2 ** (header.BitsStored - 1)) if kind.kind == "i" else 0
        values = np.random.default_rng(k).integers(low, low + 2**header.BitsStored, (8, 10))
        header.PixelData = values.astype(kind).tobytes()
        header["PixelData"].VR = "OB" if kind.itemsize == 1 else "OW"

    return change


def rescaled(slope, intercept, modality="CT"):
    def change(k, header):
        header.Modality, header.RescaleSlope, header.RescaleIntercept = modality, slope, intercept

    return change


def monochrome1(k, header):
    header.PhotometricInterpretation = "MONOCHROME1"


def rle(k, header):
    header.compress(RLELossless)


def truth(folder) -> np.ndarray:
    """Return the values as PS3.3 C.7.6.3 and C.11.1 say: stored values by slope and intercept, along the normal."""
    slices = sorted(map(pydicom.dcmread, folder.glob("*.dcm")), key=lambda d: d.SOPInstanceUID)
    row, column = np.reshape(np.array(slices[0].ImageOrientationPatient, float), (2, 3))
    slices.sort(key=lambda d: np.cross(row, column) @ np.array(d.ImagePositionPatient, float))
    return np.stack([
        d.pixel_array.astype(float) * float(d.get("RescaleSlope", 1)) + float(d.get("RescaleIntercept", 0))
        for d in slices
    ])  # fmt: skip


VARYING = {
    "8 bit, then 16": ([stored("u1")], [stored("u2")]),
    "16 bit, then 8": ([stored("u2")], [stored("u1")]),
    "unsigned, then signed": ([stored("u2")], [stored("i2")]),
    "signed, then unsigned": ([stored("i2"), rescaled(1, 0)], [stored("u2"), rescaled(1, 0)]),
    "12 bits, then 16": ([stored("u2", 12), rescaled(1, -1024)], [stored("u2", 16), rescaled(1, -1024)]),
    "16 bit, then 32": ([stored("i2")], [stored("i4")]),
    "slope 1, then 100": ([stored("u2"), rescaled(1, 0)], [stored("u2"), rescaled(100, 0)]),
    "whole slope, then a fraction": ([stored("i2"), rescaled(1, 0)], [stored("i2"), rescaled("0.5", "-0.25")]),
    "no rescale, then some": ([stored("u2")], [stored("u2"), rescaled(3, -7, "MR")]),
    "MONOCHROME1": ([stored("u2", 12), monochrome1], [stored("u2", 12), monochrome1]),
    "MONOCHROME1, signed": ([stored("i2"), monochrome1], [stored("i2"), monochrome1]),
    "MONOCHROME1, signed 12 bits": ([stored("i2", 12), monochrome1], [stored("i2", 12), monochrome1]),
    "MONOCHROME1, 8 bit": ([stored("u1"), monochrome1], [stored("u1"), monochrome1]),
    "MONOCHROME1, 32 bit": ([stored("i4"), monochrome1], [stored("i4"), monochrome1]),
    "MONOCHROME1, RLE": ([stored("u2"), monochrome1, rle], [stored("u2"), monochrome1, rle]),
    "one MONOCHROME1": ([stored("u2", 12)], [stored("u2", 12), monochrome1]),
    "MONOCHROME1 of HU": ([stored("u2", 12), rescaled(1, -1024), monochrome1], [stored("i2"), rescaled(1, 0)]),
}


@pytest.mark.parametrize("first", [1, SLICES - 1])
@pytest.mark.parametrize("kind", VARYING)
def test_every_slice_has_its_own_values(tmp_path, kind, first):
    """The first slices are of one type, the others of another; none wraps, is inverted or rounded."""

    def change(k, header):
        for one in VARYING[kind][k >= first]:
            one(k, header)

    write_series(tmp_path, change=change)
    np.testing.assert_array_equal(read_volume(tmp_path).array, truth(tmp_path))


def set_all(**tags):
    def change(k, header):
        for tag, value in tags.items():
            setattr(header, tag, value)

    return change


@pytest.mark.parametrize("kind", ["Z_EFF", "ED", "HU_MOD", "OD"])
def test_a_ct_of_another_quantity_is_refused(tmp_path, kind):
    write_series(tmp_path, change=set_all(Modality="CT", RescaleSlope=1, RescaleIntercept=0, RescaleType=kind))
    with pytest.raises(InputError, match=rf"dcm: RescaleType {kind}; expected HU"):
        read_volume(tmp_path)


@pytest.mark.parametrize("kind", ["HU", "US", ""])
def test_a_ct_in_hu_is_read(tmp_path, kind):
    tags = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": kind}
    array = write_series(tmp_path, change=set_all(**tags))
    np.testing.assert_array_equal(read_volume(tmp_path).array, array.astype(int) - 1024)


ENHANCED = {"Enhanced MR": "1.2.840.10008.5.1.4.1.1.4.1", "Enhanced CT": "1.2.840.10008.5.1.4.1.1.2.1"}


@pytest.mark.parametrize("name", ENHANCED)
@pytest.mark.parametrize("frames", [None, 1, 6])
def test_enhanced_dicom_is_called_by_its_name(tmp_path, name, frames):
    """Its geometry stands in sequences, so that tags would seem to be missing."""

    def change(k, header):
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = ENHANCED[name]
        for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            delattr(header, tag)
        if frames:
            header.NumberOfFrames = frames

    write_series(tmp_path, change=change)
    with pytest.raises(InputError, match=rf"dcm: {name} Image Storage whose frames are not described one by one"):
        read_volume(tmp_path)


@pytest.mark.parametrize("uid", ["", None])
def test_an_emptied_series_uid_is_named(tmp_path, uid):
    write_series(tmp_path, change=set_all(SeriesInstanceUID=uid))
    with pytest.raises(InputError, match=r"its DICOM images have an empty SeriesInstanceUID .*write the same new UID"):
        read_volume(tmp_path)


def test_images_with_and_without_a_series_uid_are_listed(tmp_path):
    write_series(tmp_path, uid="1.2.3.1111", change=set_all(SeriesInstanceUID=""))
    whole = write_series(tmp_path, uid="1.2.3.2222")
    with pytest.raises(
        InputError, match=r"2 DICOM series; expected one: .*\n  no SeriesInstanceUID  MR  'T1'  6 files"
    ):
        read_volume(tmp_path)
    np.testing.assert_array_equal(read_volume(tmp_path, "1.2.3.2222").array, whole)


def test_palette_colours_are_no_intensities(tmp_path):
    write_series(tmp_path, change=set_all(PhotometricInterpretation="PALETTE COLOR"))
    with pytest.raises(InputError, match="dcm: PALETTE COLOR pixels; expected gray values"):
        read_volume(tmp_path)


@pytest.mark.parametrize("tag", ["BitsStored", "PixelRepresentation"])
def test_empty_pixel_tags_are_no_traceback(tmp_path, tag):
    write_series(tmp_path, change=set_all(**{tag: None}))
    try:
        volume = read_volume(tmp_path)
    except InputError as error:
        assert ".dcm: " in str(error)
    else:
        assert volume.array.shape == (SLICES, 8, 10)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize(("change", "length"), [
    (lambda pixels: pixels[:-2], 158), (lambda pixels: pixels[:80], 80), (lambda pixels: pixels + pixels, 320),
    (lambda pixels: pixels + bytes(20), 180),
])  # fmt: skip
def test_pixels_fewer_or_more_than_the_header_says_are_refused(tmp_path, syntax, change, length):
    """GDCM fills up a short slice with whatever there is."""

    def damage(k, header):
        header.file_meta.TransferSyntaxUID = syntax
        if k == 2:
            header.PixelData = change(header.PixelData)

    write_series(tmp_path, change=damage)
    with pytest.raises(
        InputError, match=rf"\.dcm: {length} bytes of pixels; its header says 8 x 10 of 16 bits, 160 bytes"
    ):
        read_volume(tmp_path)


def test_padding_after_the_pixels_is_passed_over(tmp_path):
    array = write_series(tmp_path, change=lambda k, header: setattr(header, "PixelData", header.PixelData + bytes(6)))
    np.testing.assert_array_equal(read_volume(tmp_path).array, array)
