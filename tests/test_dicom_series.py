"""Synthetic CT as DICOM: whose it is, what it says of itself, where it lies; and it appears whole or not at all."""

import json
import shutil
import subprocess
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import CTImageStorage

import test_adapt
import test_pipeline
from cohort.results import Results as CaseResults
from data.errors import InputError
from data.files import whole_folder
from data.volumes import dicom_series
from data.volumes.dicom_series import Derivation, Identity, check_text, source_hash, write_series
from data.volumes.volume import Volume, from_sitk, read_volume, same_grid, write_volume
from tests.cohort_data import NAME, patient_mr, write_dicom_patient, write_model
from tests.faults.commands import adapt, pipeline
from tests.test_volume import OBLIQUE, example_volume

SHARED = Path(__file__).resolve().parents[1].parent / "shared/data/sts"
PATIENT = {
    "PatientName": "Müller^Jürgen", "PatientID": "id-4711", "PatientBirthDate": "19500102", "PatientSex": "M",
    "StudyInstanceUID": "1.2.840.1.77", "StudyDate": "20240304", "StudyTime": "101112.123", "StudyID": "st-9",
    "AccessionNumber": "acc-3", "ReferringPhysicianName": "Refer^Ring", "FrameOfReferenceUID": "1.2.840.1.88",
    "PatientPosition": "FFS", "PositionReferenceIndicator": "bed of Mx", "StudyDescription": "Leg left",
    "PatientWeight": "71.5", "BodyPartExamined": "LEG",
}  # fmt: skip
MADE = Derivation("recommended", "latest", "ab" * 32, 2, "fp32", "cd" * 32)


def write_mr(folder: Path, charset: str = "ISO_IR 100", **changes) -> Volume:
    """Write an oblique MR series of a patient and return it as it is read."""

    def change(k, header):
        header.SpecificCharacterSet = charset
        for name, value in {**PATIENT, **changes}.items():
            setattr(header, name, value)

    write_dicom_patient(folder, change=change)
    return read_volume(folder)


def ct_of(mr: Volume) -> Volume:
    hu = np.random.default_rng(3).integers(-1024, 3000, mr.array.shape).astype(np.int16)
    hu[0, 0, :2] = -32768, 32767
    return mr.with_array(hu)


def headers(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(file) for file in sorted(folder.iterdir())]


def made_of(mr: Volume, **changes) -> Derivation:
    return replace(MADE, source_sha256=source_hash([mr]), **changes)


@pytest.fixture
def mr(tmp_path) -> Volume:
    return write_mr(tmp_path / "mr")


def test_a_series_is_of_the_mr_s_patient_and_study_and_says_what_it_is(mr, tmp_path):
    write_series(ct_of(mr), tmp_path / "ct", made_of(mr), Identity())
    sources = [pydicom.dcmread(file) for file in (tmp_path / "mr").glob("*.dcm")]
    at = {tuple(np.round(np.array(h.ImagePositionPatient, float), 6)): h.SOPInstanceUID for h in sources}
    found = headers(tmp_path / "ct")
    assert len(found) == len(at) == 6
    assert len({h.SeriesInstanceUID for h in found}) == 1
    assert found[0].SeriesInstanceUID != sources[0].SeriesInstanceUID
    assert len({h.SOPInstanceUID for h in found} | set(at.values())) == 12
    for k, header in enumerate(found):
        carried = {name: str(header[name].value) for name in PATIENT}
        assert carried == PATIENT
        assert (header.SOPClassUID, header.Modality, header.InstanceNumber) == (CTImageStorage, "CT", k + 1)
        assert header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID
        assert list(header.ImageType)[:2] == ["DERIVED", "SECONDARY"]
        assert "ynthetic" in header.SeriesDescription and "not for clinical use" in header.SeriesDescription
        assert "recommended" in header.DerivationDescription and "ab" * 32 in header.DerivationDescription
        assert header.Manufacturer and header.ManufacturerModelName == "recommended" and header.SoftwareVersions
        assert (header.RescaleSlope, header.RescaleIntercept, header.RescaleType) == (1, 0, "HU")
        (reference,) = header.SourceImageSequence
        here = tuple(np.round(np.array(header.ImagePositionPatient, float), 6))
        assert reference.ReferencedSOPInstanceUID == at[here]
        assert reference.ReferencedSOPClassUID == sources[0].SOPClassUID


def test_every_reader_finds_the_same_voxels_on_the_same_oblique_grid(mr, tmp_path):
    ct = ct_of(mr)
    write_series(ct, tmp_path / "ct", made_of(mr), Identity())
    ours = read_volume(tmp_path / "ct")
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "ct"))
    itk = from_sitk(sitk.ReadImage(files))
    for back in (ours, itk):
        assert back.array.dtype == np.int16
        np.testing.assert_array_equal(back.array, ct.array)
        assert same_grid(back, ct, tolerance=1e-6)
    for k, header in enumerate(headers(tmp_path / "ct")):
        hu = header.pixel_array * int(header.RescaleSlope) + int(header.RescaleIntercept)
        np.testing.assert_array_equal(hu, ct.array[k])
        x, y, z = np.reshape(ct.direction, (3, 3)).T
        np.testing.assert_allclose(header.ImageOrientationPatient, [*x, *y], atol=1e-12)
        np.testing.assert_allclose(header.ImagePositionPatient, ct.origin + z * ct.spacing[2] * k, atol=1e-9)
        np.testing.assert_allclose(header.PixelSpacing, ct.spacing[1::-1])
        assert header.SliceThickness == pytest.approx(ct.spacing[2])


@pytest.mark.parametrize("decimals", [3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_rounded_direction_cosines_are_read_and_written_as_right_angles(tmp_path, decimals, seed):
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    cosines = np.round(turn[:, :2].T.ravel(), decimals)

    def change(k, header):
        header.ImageOrientationPatient = cosines.tolist()
        header.ImagePositionPatient = np.round(np.cross(turn[:, 0], turn[:, 1]) * 5.0 * k, 3).tolist()

    write_dicom_patient(tmp_path / "mr", change=change)
    mr = read_volume(tmp_path / "mr")
    direction = np.reshape(mr.direction, (3, 3))
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(direction[:, :2].T.ravel(), cosines, atol=2 * 10.0**-decimals)
    assert np.linalg.det(direction) == pytest.approx(1)
    assert mr.spacing == pytest.approx((2.0, 2.0, 5.0), abs=2e-3)
    ct = ct_of(mr)
    back = read_volume(write_series(ct, tmp_path / "ct", made_of(mr), Identity()))
    assert same_grid(back, ct, 1e-6) and np.array_equal(back.array, ct.array)


def test_axes_that_are_not_at_right_angles_are_refused(tmp_path):
    write_dicom_patient(
        tmp_path / "mr", change=lambda k, h: setattr(h, "ImageOrientationPatient", [1, 0, 0, 0.1, 1, 0])
    )
    with pytest.raises(InputError, match=r"ImageOrientationPatient \[1.0, 0.0, 0.0, 0.1, 1.0, 0.0\]: expected two dir"):
        read_volume(tmp_path / "mr")


AXES = [
    (np.eye(3)[:, order] * signs).ravel()
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
    if order in ((0, 1, 2), (1, 2, 0), (0, 2, 1))
]


@pytest.mark.parametrize("axes", AXES)
def test_of_a_volume_file_every_voxel_is_at_its_place_in_axial_slices(tmp_path, axes):
    """Whatever its axes are: a sagittal volume, one that runs to the feet, one that no series can have as it is."""
    tilt = np.reshape(OBLIQUE, (3, 3))
    ct = replace(example_volume(), direction=tuple((tilt @ axes.reshape(3, 3)).ravel()))
    write_series(ct, tmp_path / "ct", MADE, Identity())
    back = read_volume(tmp_path / "ct")
    assert sorted(back.size) == sorted(ct.size)
    for index in ((0, 0, 0), (6, 0, 0), (0, 5, 0), (0, 0, 4), (3, 2, 1)):
        there = back.to_sitk().TransformPhysicalPointToContinuousIndex(
            ct.to_sitk().TransformIndexToPhysicalPoint(index)
        )
        i, j, k = np.rint(there).astype(int)
        np.testing.assert_allclose(there, (i, j, k), atol=1e-4)
        assert back.array[k, j, i] == ct.array[index[::-1]]
    cosines = np.reshape(back.direction, (3, 3))
    assert np.all(np.diag(cosines) > 0.9), "axes to the left, the back and the head"


def test_the_same_conversion_has_the_same_bytes_and_any_other_has_other_uids(mr, tmp_path):
    def instances(name, made=None, identity=None, source=mr):
        folder = write_series(ct_of(source), tmp_path / name, made or made_of(source), identity or Identity())
        return [(h.SeriesInstanceUID, h.SOPInstanceUID) for h in headers(folder)]

    first, again = instances("a"), instances("b")
    assert first == again
    for one, other in zip(sorted((tmp_path / "a").iterdir()), sorted((tmp_path / "b").iterdir()), strict=True):
        assert one.name == other.name and one.read_bytes() == other.read_bytes()
    moved = replace(mr, origin=(0.0, 0.0, 1.0))
    others = [
        instances("model", made_of(mr, model_sha256="12" * 32)),
        instances("precision", made_of(mr, precision="bf16")),
        instances("method", made_of(mr, method=3)),
        instances("mask", replace(MADE, source_sha256=source_hash([mr], mr.array > 3))),
        instances("moved", source=moved),
        instances("voxel", replace(MADE, source_sha256=source_hash([mr.with_array(mr.array + 1)]))),
        instances("warnings", made_of(mr, warnings=("something is odd",))),
        instances("anonymous", identity=Identity(anonymous=True)),
        instances("pseudonym", identity=Identity(patient_id="P7", anonymous=True)),
    ]
    uids = [uid for found in (first, *others) for pair in found for uid in set(pair)]
    assert len(set(uids)) == len(others) + 1 + 6 * (len(others) + 1)
    assert all(uid.startswith("2.25.") and len(uid) <= 64 and pydicom.uid.UID(uid).is_valid for uid in uids)


def test_anonymous_leaves_nothing_that_leads_to_the_patient(mr, tmp_path):
    folder = write_series(ct_of(mr), tmp_path / "ct", made_of(mr), Identity(anonymous=True))
    sources = [pydicom.dcmread(file) for file in (tmp_path / "mr").glob("*.dcm")]
    kept = {"PatientPosition", "BodyPartExamined", "PatientSex"}  # M is a letter of other words
    secrets = [value for name, value in PATIENT.items() if name not in kept]
    secrets += [uid for h in sources for uid in (h.SOPInstanceUID, h.SeriesInstanceUID)]
    for file in folder.iterdir():
        content = file.read_bytes()
        assert [s for s in secrets if s.encode() in content or s.encode("latin-1") in content] == []
    for header in headers(folder):
        assert header.PatientIdentityRemoved == "YES" and header.DeidentificationMethod
        assert header.PatientSex == header.PatientBirthDate == header.StudyDate == header.AccessionNumber == ""
        assert header.StudyID == header.StudyTime == header.ReferringPhysicianName == ""
        assert header.LongitudinalTemporalInformationModified == "REMOVED"
        assert "SourceImageSequence" not in header and header.PatientPosition == "FFS"
    pseudonym = write_series(ct_of(mr), tmp_path / "p", made_of(mr), Identity("A^B", "P7", anonymous=True))
    assert {(str(h.PatientName), h.PatientID) for h in headers(pseudonym)} == {("A^B", "P7")}


@pytest.mark.parametrize("of_a_file", [False, True])
def test_an_anonymous_series_is_consistent_and_nobody_who_has_the_mr_can_compute_its_uids(mr, tmp_path, of_a_file):
    mr = replace(mr, dicom=None) if of_a_file else mr
    levels = ("StudyInstanceUID", "FrameOfReferenceUID", "SeriesInstanceUID", "PatientID", "PatientName")
    sources = [pydicom.dcmread(file) for file in (tmp_path / "mr").glob("*.dcm")]
    seen = {str(h[name].value) for h in sources for name in (*levels, "SOPInstanceUID")}
    for name, anonymous in (("named", False), ("once", True), ("again", True)):
        found = headers(write_series(ct_of(mr), tmp_path / name, made_of(mr), Identity(anonymous=anonymous)))
        shared = {level: {str(h[level].value) for h in found} for level in levels}
        assert {len(values) for values in shared.values()} == {1}, "one patient, study, frame and series"
        new = {value for values in shared.values() for value in values} | {h.SOPInstanceUID for h in found}
        assert len(new) == len(levels) + len(found)
        assert all(pydicom.uid.UID(value).is_valid for value in new if value.startswith("2.25."))
        if anonymous:
            assert not new & seen, "neither the MR's, nor those of another run"
            assert made_of(mr).source_sha256[:8] not in "".join(new)
        seen |= new


def test_warnings_travel_with_every_image(mr, tmp_path):
    (plain, *_) = headers(write_series(ct_of(mr), tmp_path / "plain", made_of(mr), Identity()))
    assert plain.ImageComments == "Synthetic CT, not for clinical use."
    two = ("dark lines, as in\n opposed phase", "12 of 20 slices are larger: 500 cm² of body")
    found = headers(write_series(ct_of(mr), tmp_path / "two", made_of(mr, warnings=two), Identity(anonymous=True)))
    assert {h.ImageComments for h in found} == {
        "Synthetic CT, not for clinical use.\r\nWarning: dark lines, as in opposed phase\r\n"
        "Warning: 12 of 20 slices are larger: 500 cm² of body"
    }
    assert found[0].DerivationDescription == plain.DerivationDescription
    (long, *_) = headers(write_series(ct_of(mr), tmp_path / "l", made_of(mr, warnings=("x" * 6000,) * 2), Identity()))
    assert len(long.ImageComments) == 10240, "what the value representation LT takes"
    assert long.ImageComments.endswith("xxx ... (cut: the report has all warnings)")


def test_of_a_volume_file_there_is_a_patient_and_two_are_not_one(tmp_path):
    one, two = example_volume(), replace(example_volume(), origin=(0.0, 0.0, 0.0))
    ids = set()
    for name, ct in (("a", one), ("b", two)):
        (header, *_) = headers(write_series(ct, tmp_path / name, made_of(ct), Identity()))
        ids |= {str(header.PatientID), str(header.PatientName), header.StudyInstanceUID, header.FrameOfReferenceUID}
        assert "SourceImageSequence" not in header and "PatientIdentityRemoved" not in header
    assert len(ids) == 8
    (header, *_) = headers(write_series(one, tmp_path / "c", MADE, Identity("Doe^Jane", "0815")))
    assert (str(header.PatientName), header.PatientID) == ("Doe^Jane", "0815")
    # Another model's series of the same file belongs to the same study, in the same place.
    (other, *_) = headers(write_series(one, tmp_path / "d", replace(MADE, model_sha256="9" * 64), Identity()))
    assert (other.StudyInstanceUID, other.FrameOfReferenceUID) == (header.StudyInstanceUID, header.FrameOfReferenceUID)
    assert other.SeriesInstanceUID != header.SeriesInstanceUID


@pytest.mark.parametrize(
    ("charset", "name"),
    [("ISO_IR 144", "Иванов^Иван"), ("ISO_IR 192", "王^小東"), (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎")],
)
def test_names_in_any_character_set_stay_the_names(tmp_path, charset, name):
    mr = write_mr(tmp_path / "mr", charset, PatientName=name, StudyDescription="", ReferringPhysicianName="")
    (header, *_) = headers(write_series(ct_of(mr), tmp_path / "ct", made_of(mr), Identity()))
    assert str(header.PatientName) == name


def test_what_the_mr_lacks_or_has_wrong_does_not_make_the_series_invalid(tmp_path):
    mr = write_mr(tmp_path / "mr", StudyID="much longer than sixteen", PatientBirthDate="1950-01-02", PatientWeight="")
    notes = []
    (header, *_) = headers(write_series(ct_of(mr), tmp_path / "a", made_of(mr), Identity(), (), notes))
    assert header.StudyID == header.PatientBirthDate == "" and "PatientWeight" not in header
    assert notes == [
        f"the series leaves out the MR's DICOM tag {tag}, whose value is invalid; the series itself is valid"
        for tag in ("PatientBirthDate", "StudyID")
    ]
    lacks = read_without(tmp_path / "mr", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName")
    (header, *_) = headers(write_series(ct_of(lacks), tmp_path / "b", made_of(mr), Identity()))
    assert all(pydicom.uid.UID(uid).is_valid for uid in (header.StudyInstanceUID, header.FrameOfReferenceUID))
    assert header.PatientID and header.PatientName and header.AccessionNumber == "acc-3"


def read_without(folder: Path, *names: str) -> Volume:
    for file in folder.glob("*.dcm"):
        header = pydicom.dcmread(file)
        for name in names:
            del header[name]
        header.save_as(file)
    return read_volume(folder)


def test_an_mr_that_is_gone_is_one_clear_error(mr, tmp_path):
    shutil.rmtree(tmp_path / "mr")
    with pytest.raises(InputError, match=r"dcm: patient and study cannot be read"):
        write_series(ct_of(mr), tmp_path / "ct", made_of(mr), Identity())


def test_several_contrasts_are_all_referenced(mr, tmp_path):
    other = write_mr(tmp_path / "fat")
    (header, *_) = headers(write_series(ct_of(mr), tmp_path / "ct", made_of(mr), Identity(), [other.dicom, None]))
    first = [image.instance for image in (mr.dicom.images[0], other.dicom.images[0])]
    assert [one.ReferencedSOPInstanceUID for one in header.SourceImageSequence] == first


@pytest.mark.parametrize(
    ("iop", "along"),
    [([1, 0, 0, 0, 1, 0], 1), ([-1, 0, 0, 0, 1, 0], -1), ([0, 1, 0, 0, 0, -1], 0), ([1, 0, 0, 0, 0, -1], 0)],
    ids=["axial", "mirrored", "sagittal", "coronal"],
)
def test_further_contrasts_of_a_volume_file_are_referenced_at_their_place_or_not_at_all(tmp_path, iop, along):
    """A volume file's axes are reordered for the series; slices across a further contrast's images have no source."""
    normal = np.cross(iop[:3], iop[3:])

    def change(k, header):
        header.ImageOrientationPatient, header.ImagePositionPatient = iop, list(normal * 3.0 * k)

    write_dicom_patient(tmp_path / "fat", change=change)
    fat = read_volume(tmp_path / "fat")
    ct = replace(ct_of(fat), dicom=None)
    found = headers(write_series(ct, tmp_path / "ct", MADE, Identity(), [fat.dicom]))
    if not along:
        assert all("SourceImageSequence" not in header for header in found)
        return

    def depth(header):
        return round(float(np.dot(header.ImagePositionPatient, normal)), 6)

    at = {depth(one): one.SOPInstanceUID for one in map(pydicom.dcmread, (tmp_path / "fat").glob("*.dcm"))}
    named = [header.SourceImageSequence[0].ReferencedSOPInstanceUID for header in found]
    assert len(at) == len(found) and named == [at[depth(header)] for header in found]


def test_what_others_put_into_a_folder_is_never_taken_away(mr, tmp_path):
    (tmp_path / "empty").mkdir()
    write_series(ct_of(mr), tmp_path / "empty", made_of(mr), Identity())
    write_series(ct_of(mr), tmp_path / "empty", made_of(mr, model_sha256="1" * 64), Identity())
    assert "1" * 64 in headers(tmp_path / "empty")[0].DerivationDescription
    before = {file.name: file.read_bytes() for file in (tmp_path / "empty").iterdir()}
    (tmp_path / "empty/RTSTRUCT.dcm").write_bytes(next((tmp_path / "mr").glob("*.dcm")).read_bytes())
    with pytest.raises(InputError, match=r"empty: holds RTSTRUCT.dcm, which is not a slice of a synthetic CT"):
        write_series(ct_of(mr), tmp_path / "empty", made_of(mr), Identity())
    assert {file.name: file.read_bytes() for file in (tmp_path / "empty").iterdir()}.items() > before.items()
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "mr", target_is_directory=True)
    for name in ("file", "link"):
        with pytest.raises(InputError, match=f"{name}: exists and is not a folder"):
            write_series(ct_of(mr), tmp_path / name, made_of(mr), Identity())
    with pytest.raises(InputError, match="which is not a slice of a synthetic CT"):
        write_series(ct_of(mr), tmp_path / "mr", made_of(mr), Identity())


@pytest.mark.parametrize("fault", ["voxels", "grid", "disk"])
def test_a_series_that_is_not_read_back_as_written_leaves_what_was_there(mr, tmp_path, monkeypatch, fault):
    folder = write_series(ct_of(mr), tmp_path / "out/ct", made_of(mr), Identity())
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    back = read_volume(folder)

    def read(path):
        if fault == "disk":
            raise OSError("No space left on device")
        return replace(back, spacing=(2.0, 2.0, 2.6)) if fault == "grid" else back.with_array(back.array[::-1])

    monkeypatch.setattr(dicom_series, "read_volume", read)
    said = {"voxels": "reads back with other voxels", "grid": "would lie elsewhere", "disk": "cannot be written"}
    with pytest.raises(InputError, match=f"ct: .*{said[fault]}"):
        write_series(ct_of(mr), folder, made_of(mr, model_sha256="1" * 64), Identity())
    with pytest.raises(InputError, match=said[fault]):
        write_series(ct_of(mr), tmp_path / "out/new", made_of(mr), Identity())
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ct"]


def test_a_folder_that_cannot_take_its_place_leaves_the_former_one(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/old").write_text("1")
    rename = Path.rename

    def fail(self, target):
        if target == tmp_path / "a" and (self / "new").exists():
            raise OSError("stale handle")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(InputError, match="a: cannot be written: stale handle"), whole_folder(tmp_path / "a") as scratch:
        (scratch / "new").write_text("2")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "old"]


def test_one_slice_is_refused(tmp_path):
    with pytest.raises(InputError, match="a DICOM series of one slice"):
        write_series(example_volume(shape=(1, 6, 7)), tmp_path / "ct", MADE, Identity())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "  ", "x" * 65, "a\\b", "a\nb"])
def test_a_text_that_dicom_cannot_hold_is_refused(text):
    for vr in ("PN", "LO"):
        with pytest.raises(InputError):
            check_text(vr, text)
    assert check_text("PN", "Müller^Jürgen") == "Müller^Jürgen"


def validated(folder: Path) -> list[str]:
    """Return what dciodvfy calls an error in a series that DCMTK can read."""
    errors = []
    for file in sorted(folder.iterdir()):
        done = subprocess.run(["dciodvfy", file], capture_output=True, text=True, errors="replace")
        assert "CTImage" in done.stderr + done.stdout
        errors += [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("Error")]
        for program in ("dcmdump", "dcm2xml"):
            if shutil.which(program):
                said = subprocess.run([program, file], capture_output=True)
                assert said.returncode == 0 and not said.stderr
    return errors


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (Debian: dicom3tools) is not installed")
@pytest.mark.parametrize("identity", [Identity(), Identity(anonymous=True), Identity("Doe^Jane", "0815")])
def test_dciodvfy_and_dcmtk_find_no_error(mr, tmp_path, identity):
    ct = example_volume() if identity.name else ct_of(mr)
    assert validated(write_series(ct, tmp_path / "ct", made_of(ct), identity)) == []


def test_one_patient_as_a_series_beside_or_instead_of_the_volume(tmp_path, capsys):
    write_model(tmp_path)
    write_mr(tmp_path / "mr")
    both = ["--output", tmp_path / "out/ct.nii.gz", "--dicom", tmp_path / "elsewhere/ct"]
    assert test_adapt.main(adapt(tmp_path, tmp_path / "mr", *both)) == 0
    assert test_adapt.main(adapt(tmp_path, tmp_path / "mr", "--output", f"{tmp_path}/out/")) == 0
    volume = read_volume(tmp_path / "out/ct.nii.gz")
    warnings = json.loads((tmp_path / "out/ct.json").read_text())["warnings"]
    comments = "\r\n".join(["Synthetic CT, not for clinical use.", *(f"Warning: {text}" for text in warnings)])
    assert warnings and {h.ImageComments for h in headers(tmp_path / "elsewhere/ct")} == {comments}
    for folder in ("elsewhere/ct", "out/mr"):
        back = read_volume(tmp_path / folder)
        np.testing.assert_array_equal(back.array, volume.array)
        assert same_grid(back, volume, tolerance=1e-4)
    found = [{h.SOPInstanceUID for h in headers(tmp_path / folder)} for folder in ("elsewhere/ct", "out/mr")]
    assert found[0] == found[1] and len(found[0]) == 6
    files = {f"{stem}{end}" for stem in ("ct", "mr") for end in (".png", "_page", ".json")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files | {"ct.nii.gz", "mr"}
    # What it made itself is renewed; what lies there otherwise is not.
    assert test_adapt.main(adapt(tmp_path, tmp_path / "mr", *both, "--anonymous")) == 0
    assert headers(tmp_path / "elsewhere/ct")[0].PatientID.startswith("synthetic_")
    write_volume(patient_mr(), tmp_path / "other.nii.gz")
    with pytest.raises(InputError, match=r"elsewhere/ct: exists already.* another --dicom"):
        test_adapt.main(adapt(tmp_path, tmp_path / "other.nii.gz", "--dicom", tmp_path / "elsewhere/ct"))
    with pytest.raises(InputError, match="patient_id: the DICOM MR names its patient"):
        test_adapt.main(adapt(tmp_path, tmp_path / "mr", "--dicom", tmp_path / "x", "--patient_id", "7"))
    with pytest.raises(InputError, match=r"mr: holds .*, which is not a slice of a synthetic CT"):
        test_adapt.main(adapt(tmp_path, tmp_path / "other.nii.gz", "--dicom", tmp_path / "mr", "--overwrite"))
    named = ["--dicom", tmp_path / "named", "--patient_id", "7", "--patient_name", "Doe^Jane"]
    assert test_adapt.main(adapt(tmp_path, tmp_path / "other.nii.gz", *named)) == 0
    assert (headers(tmp_path / "named")[0].PatientID, headers(tmp_path / "named")[0].PatientName) == ("7", "Doe^Jane")


def test_both_commands_say_which_names_anonymous_leaves(tmp_path, caplog):
    caplog.set_level("INFO")
    write_model(tmp_path)
    write_mr(tmp_path / "in/DoeJane1950")
    single = adapt(tmp_path, tmp_path / "in/DoeJane1950", "--output", f"{tmp_path}/one/", "--anonymous")
    assert test_adapt.main([*single, "--mu_map", str(tmp_path / "one/mu.mha")]) == 0
    assert caplog.text.count(dicom_series.NAMES_KEPT) == 1
    assert test_pipeline.main(pipeline(tmp_path, tmp_path / "in", "--dicom", "--anonymous")) == 0
    assert caplog.text.count(dicom_series.NAMES_KEPT) == 2
    for series, records in ((tmp_path / "one", "*.json"), (tmp_path / "out" / NAME / "dicom", "../*.json")):
        (folder,) = (path for path in series.iterdir() if path.is_dir() and not path.name.endswith("_page"))
        assert folder.name == "DoeJane1950", "as it says"
        assert any(b"DoeJane1950" in file.read_bytes() for file in series.glob(records)), "as it says"
        assert len(list(folder.iterdir())) == 6
        secrets = (b"DoeJane", b"id-4711", b"1.2.840.1.77", b"1.2.840.1.88", str(tmp_path).encode())
        for file in (*folder.iterdir(), *series.glob("*.mha")):
            assert not [secret for secret in secrets if secret in file.read_bytes()]


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_for_the_result_holds_all_that_is_made(tmp_path, capsys, slash):
    write_model(tmp_path)
    folder = tmp_path / "sct"
    if not slash:
        folder.mkdir()  # without a slash it is a folder because it is there
    for patient in ("P07", "P08"):
        write_volume(patient_mr(), tmp_path / f"in/{patient}.nii.gz")
        arguments = adapt(tmp_path, tmp_path / f"in/{patient}.nii.gz", "--output", f"{folder}{slash}")
        assert test_adapt.main(arguments) == test_adapt.main(arguments) == 0  # what it made itself is renewed
    made = {f"{patient}{end}" for patient in ("P07", "P08") for end in ("", ".png", "_page", ".json")}
    assert {path.name for path in folder.iterdir()} == made
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "in", "sct"}
    assert len(headers(folder / "P07")) == 6
    assert set(json.loads((folder / "P07.json").read_text())["made"]) == {name for name in made if "P07" in name}
    (tmp_path / "file").touch()
    for output, found in ((folder / "P07", "holds DICOM images"), (f"{tmp_path}/file/", "exists and is not a folder")):
        with pytest.raises(SystemExit):
            test_adapt.main(adapt(tmp_path, tmp_path / "in/P08.nii.gz", "--output", output))
        assert f"{found}; expected a folder for results, in which the DICOM series" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--output", "ct.nii.gzz"], "a folder for a DICOM series, with a slash at its end"),
        (["--output", "ct.nii.gz/"], "a folder for a DICOM series"),
        (["--output", "a/", "--dicom", "b"], "two DICOM series"),
        (["--patient_id", "7"], "they concern a DICOM series"),
        (["--anonymous", "--output", "ct.nii"], "they concern a DICOM series"),
        (["--dicom", "b", "--patient_id", "x" * 65], "expected 1 to 64 printable characters"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, capsys, options, said):
    with pytest.raises(SystemExit):
        test_adapt.main(adapt(tmp_path, tmp_path / "mr.nii", *options))
    assert said in capsys.readouterr().err


def test_a_series_that_fails_leaves_the_volume_and_says_so(tmp_path, monkeypatch, caplog):
    write_model(tmp_path)
    write_volume(patient_mr(), tmp_path / "mr.nii.gz")

    def full(*args, **kwargs):
        raise InputError("cannot be written: No space left on device")

    monkeypatch.setattr(test_adapt, "write_series", full)
    arguments = adapt(tmp_path, tmp_path / "mr.nii.gz", "--output", tmp_path / "ct.nii.gz", "--dicom", tmp_path / "ct")
    assert test_adapt.main(arguments) == 1
    said = "warning: series not made: cannot be written: No space left on device; the volume itself is written: "
    assert f"{said}{tmp_path}" in caplog.text
    assert (tmp_path / "ct.nii.gz").exists() and (tmp_path / "ct.png").exists()


def test_a_cohort_s_series_are_written_once_and_renewed_where_one_was_changed(tmp_path):
    write_model(tmp_path)
    write_mr(tmp_path / "in/a")
    write_volume(patient_mr(), tmp_path / "in/b.nii.gz")
    arguments = pipeline(tmp_path, tmp_path / "in", "--no_html")
    out = tmp_path / "out" / NAME
    assert test_pipeline.main(arguments) == 0
    assert not (out / "dicom").exists()
    assert test_pipeline.main([*arguments, "--dicom"]) == 0
    for case in "ab":
        back, volume = read_volume(out / "dicom" / case), read_volume(out / f"{case}.nii.gz")
        np.testing.assert_array_equal(back.array, volume.array)
        assert same_grid(back, volume, tolerance=1e-4)
    assert headers(out / "dicom/a")[0].PatientID == "id-4711"
    warnings = CaseResults(out).read("a").warnings
    assert warnings and headers(out / "dicom/a")[0].ImageComments.count("Warning: ") == len(warnings)
    assert all(text in headers(out / "dicom/a")[0].ImageComments for text in warnings)
    elsewhere = ("--output", tmp_path / "single.nii.gz", "--dicom", tmp_path / "one")
    assert test_adapt.main(adapt(tmp_path, tmp_path / "in/a", "--precision", "fp32", *elsewhere)) == 0
    assert [h.SOPInstanceUID for h in headers(out / "dicom/a")] == [h.SOPInstanceUID for h in headers(tmp_path / "one")]

    def times():
        return {file: file.stat().st_mtime_ns for file in (out / "dicom").rglob("*.dcm")}

    before = times()
    assert test_pipeline.main([*arguments, "--dicom"]) == 0
    assert times() == before
    (out / "dicom/a/CT_0003.dcm").unlink()
    assert test_pipeline.main([*arguments, "--dicom"]) == 0
    changed = {file.parent.name for file, made in times().items() if before.get(file) != made}
    assert changed == {"a"} and len(times()) == 12
    assert test_pipeline.main([*arguments, "--dicom", "--anonymous"]) == 0
    assert all(h.PatientID.startswith("synthetic_") for h in headers(out / "dicom/a"))
    before = times()
    assert test_pipeline.main([*arguments, "--dicom", "--anonymous"]) == 0
    assert times() == before, "random UIDs are no reason to write a series again"
    (out / "dicom/a/notes.txt").write_text("mine")
    assert test_pipeline.main([*arguments, "--dicom", "--overwrite"]) == 1
    assert (out / "dicom/a/notes.txt").read_text() == "mine"


def test_a_cohort_s_table_says_whose_series_are(tmp_path, caplog):
    write_model(tmp_path)
    write_mr(tmp_path / "in/a")
    write_volume(patient_mr(), tmp_path / "in/b.nii.gz")
    rows = "id,path,patient_id,patient_name\na,in/a,P1,\nb,in/b.nii.gz,P2,Doe^Jane\nc,in/b.nii.gz,P\\3,\n"
    (tmp_path / "list.csv").write_text(rows)
    where = ["--list", str(tmp_path / "list.csv"), "--dicom", "--no_html"]
    arguments = [
        word for word in pipeline(tmp_path, tmp_path / "in") if word not in ("--input_dir", str(tmp_path / "in"))
    ]
    assert test_pipeline.main([*arguments, *where]) == 1
    out = tmp_path / "out" / NAME / "dicom"
    assert [folder.name for folder in out.iterdir()] == ["b"]
    assert (headers(out / "b")[0].PatientID, str(headers(out / "b")[0].PatientName)) == ("P2", "Doe^Jane")
    assert "a: failed: patient_name, patient_id: the DICOM MR" in caplog.text
    assert "list.csv, line 4: patient_id: expected 1 to 64 printable characters without backslash" in caplog.text
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file() and file.suffix != ".dcm"]
    assert not [file for file in files if b"Jane" in file.read_bytes()] and "Jane" not in caplog.text


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="development data absent")
@pytest.mark.parametrize("folder", ["dicom/STS_024/MR_T1", "raw_oblique/STS_001_MR_T1"])
def test_real_mr(tmp_path, folder):
    mr = read_volume(SHARED / folder)
    ct = mr.with_array((mr.array.astype(int) % 2400 - 1000).astype(np.int16))
    write_series(ct, tmp_path / "ct", made_of(mr), Identity())
    back = from_sitk(sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "ct"))))
    np.testing.assert_array_equal(back.array, ct.array)
    assert same_grid(back, ct, tolerance=1e-4)
    source = pydicom.dcmread(next((SHARED / folder).glob("*.dcm")))
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID", "AccessionNumber"):
        assert {str(h.get(name)) for h in headers(tmp_path / "ct")} == {str(source.get(name))}
    referenced = {h.SourceImageSequence[0].ReferencedSOPInstanceUID for h in headers(tmp_path / "ct")}
    assert referenced == {pydicom.dcmread(file).SOPInstanceUID for file in (SHARED / folder).glob("*.dcm")}
    if shutil.which("dciodvfy"):
        assert validated(tmp_path / "ct") == []
