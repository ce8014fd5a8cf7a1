"""DICOM folders: what cannot be read is named by its file, what can be read is read exactly, and nobody is named."""

import gzip
import locale
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

import test_adapt
import test_pipeline
from data.errors import InputError
from data.volumes.volume import read_volume, write_volume
from scripts import prepare_dataset
from tests.cohort_data import NAME, write_dicom_patient
from tests.faults.commands import adapt, assert_one_clear_error, pipeline, prepare, run, snapshot
from tests.test_preparation import ct_volume
from tests.test_volume import tilt, write_series

HTJ2K, MPEG2, JPEG_2000, UNKNOWN = (
    "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.90", "1.2.3.4.5",
)  # fmt: skip


def rewrite(folder: Path, change: Callable[[pydicom.Dataset], None]) -> None:
    for file in sorted(folder.glob("*.dcm")):
        header = pydicom.dcmread(file)
        change(header)
        header.save_as(file)


def to_jpeg_lossless(folder: Path) -> None:
    """Compress a series by ITK's own JPEG Lossless, whose writer leaves the process with the locale C."""
    before = locale.setlocale(locale.LC_ALL)
    for file in sorted(folder.glob("*.dcm")):
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        writer = sitk.ImageFileWriter()
        writer.SetUseCompression(True)
        writer.SetCompressor("JPEG")
        writer.SetFileName(str(folder / "scratch"))
        writer.SetImageIO("GDCMImageIO")
        writer.Execute(reader.Execute())
        packed, header = pydicom.dcmread(folder / "scratch"), pydicom.dcmread(file)
        (folder / "scratch").unlink()
        header.PixelData = packed.PixelData
        header["PixelData"].VR, header["PixelData"].is_undefined_length = "OB", True
        header.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
        header.save_as(file)
    locale.setlocale(locale.LC_ALL, before)


def label_as(uid: str) -> Callable[[pydicom.Dataset], None]:
    def change(header):
        header.PixelData = encapsulate([header.PixelData])
        header["PixelData"].VR, header["PixelData"].is_undefined_length = "OB", True
        header.file_meta.TransferSyntaxUID = uid

    return change


def deflate(header: pydicom.Dataset) -> None:
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian


@pytest.mark.parametrize(
    "compress",
    [
        lambda folder: rewrite(folder, lambda header: header.compress(RLELossless)),
        lambda folder: rewrite(folder, deflate),
        to_jpeg_lossless,
    ],
    ids=["RLE", "deflate", "JPEG lossless"],
)
def test_compressed_series_are_read_exactly(tmp_path, compress):
    write_dicom_patient(tmp_path / "plain")
    shutil.copytree(tmp_path / "plain", tmp_path / "packed")
    compress(tmp_path / "packed")
    syntaxes = {pydicom.dcmread(file).file_meta.TransferSyntaxUID for file in (tmp_path / "packed").glob("*.dcm")}
    assert all(syntax.is_compressed or syntax.is_deflated for syntax in syntaxes)
    np.testing.assert_array_equal(read_volume(tmp_path / "packed").array, read_volume(tmp_path / "plain").array)


@pytest.mark.parametrize("uid", [HTJ2K, MPEG2, JPEG_2000, UNKNOWN])
def test_what_cannot_be_decoded_names_file_and_syntax(tmp_path, uid):
    write_dicom_patient(tmp_path)
    rewrite(tmp_path, label_as(uid))
    with pytest.raises(
        InputError, match=r"\.dcm: its pixels cannot be decoded \(transfer syntax .*uncompressed"
    ) as error:
        read_volume(tmp_path)
    assert "0x" not in str(error.value) and "ITK" not in str(error.value)


def remove_pixels(header):
    del header.PixelData


def first_without_pixels(folder: Path) -> None:
    file = min(folder.glob("*.dcm"))
    header = pydicom.dcmread(file)
    del header.PixelData
    header.save_as(file)


def cut(share: float) -> Callable[[Path], None]:
    def change(folder):
        file = min(folder.glob("*.dcm"))
        data = file.read_bytes()
        file.write_bytes(data[: round(share * len(data))])

    return change


def claim_huge(header):
    header.Rows = header.Columns = 60000


def two_series(folder: Path) -> None:
    write_dicom_patient(folder)


def lose_a_slice(folder: Path) -> None:
    sorted(folder.glob("*.dcm"), key=lambda file: float(pydicom.dcmread(file).ImagePositionPatient[2]))[2].unlink()


def mix_orientations(folder: Path) -> None:
    shutil.rmtree(folder)
    write_dicom_patient(folder, change=tilt)


FAULTS = {
    "two series": (two_series, "2 DICOM series; expected one: put it into a folder of its own"),
    "missing slice": (lose_a_slice, "missing or unevenly spaced slices"),
    "mixed orientations": (mix_orientations, "slices of different orientation in one series"),
    "no pixel data": (
        lambda folder: rewrite(folder, remove_pixels),
        ".dcm: cannot be read as a volume: its header claims",
    ),
    "one without": (first_without_pixels, ".dcm: cannot be read as a volume: its header claims"),
    "truncated by a little": (cut(0.99), ".dcm: its pixels cannot be decoded"),
    "truncated by half": (cut(0.5), ".dcm: cannot be read as a volume: its header claims"),
    "truncated in the header": (cut(0.05), ".dcm: a damaged DICOM image"),
    "empty file": (cut(0), ".dcm: a damaged DICOM image"),
    "claims 60000 x 60000": (lambda folder: rewrite(folder, claim_huge), "its header claims 7200000000 bytes"),
    "no DICOM": (lambda folder: [file.unlink() for file in folder.glob("*.dcm")], "no DICOM image in this folder"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_patient(site, fault):
    change, words = FAULTS[fault]
    write_dicom_patient(site / "series")
    change(site / "series")
    before = snapshot(site)
    with pytest.raises(InputError) as error:
        test_adapt.main(adapt(site, site / "series"))
    assert words in str(error.value)
    assert snapshot(site) == before


def test_exit_code_and_line(site):
    write_dicom_patient(site / "series")
    rewrite(site / "series", remove_pixels)
    before = snapshot(site)
    assert_one_clear_error(
        run("test_adapt.py", *adapt(site, site / "series")), "its header claims 7200 bytes of voxels"
    )
    assert snapshot(site) == before


PERSON = {
    "PatientName": "Mustermann^Erika",
    "PatientID": "PID-4711-0815",
    "PatientBirthDate": "19610203",
    "OtherPatientIDs": "OTHER-998877",
    "PatientAddress": "Heidestrasse 17",
    "AccessionNumber": "ACC-554433",
    "ReferringPhysicianName": "Quacksalber^Hans",
    "InstitutionName": "Charlottenklinik",
}
WORDS = [word.encode() for value in PERSON.values() for word in value.replace("^", " ").split(" ") if len(word) > 7]


def name_person(k, header):
    for tag, value in PERSON.items():
        setattr(header, tag, value)


def leaks(folder: Path) -> Iterator[str]:
    """Yield where below a folder, in names or bytes (those of gzip files too), something of the person stands."""
    for path in folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        for word in WORDS:
            if word.lower() in (str(path.relative_to(folder)).encode() + b"\n" + data).lower():
                yield f"{path}: {word}"


def test_patient_data_stay_in_the_dicom_files(site, capfd, caplog):
    """In no volume, record, page, picture, manifest, log or file name, of good series and of bad ones."""
    caplog.set_level("DEBUG")
    for name in ("a", "bad"):
        write_dicom_patient(site / "in" / name, change=name_person)
    lose_a_slice(site / "in/bad")
    assert list(leaks(site / "in"))  # what finds nothing below does find it here
    test_adapt.main(adapt(site, site / "in/a"))
    with pytest.raises(InputError) as error:
        test_adapt.main(adapt(site, site / "in/bad"))
    assert test_pipeline.main(pipeline(site, site / "in")) == 1
    write_volume(ct_volume(), site / "ct/q0.mha")
    assert prepare_dataset.main(prepare(site, mr="in/*")) == 1
    assert (site / "out" / NAME / "summary.json").exists() and (site / "set/manifest.json").exists()
    assert not list(leaks(site / "out")) and not list(leaks(site / "set"))
    said = (caplog.text + "".join(capfd.readouterr()) + str(error.value)).lower().encode()
    assert b"bad" in said and not [word for word in WORDS if word.lower() in said]


def test_two_series_are_told_apart_without_naming_anybody(tmp_path):
    for uid in ("1.2.3.1111", "1.2.3.2222"):
        write_series(tmp_path, uid=uid, change=name_person)
    with pytest.raises(InputError) as error:
        read_volume(tmp_path)
    assert "1.2.3.1111" in str(error.value)
    assert not [word for word in WORDS if word in str(error.value).encode()]
