"""Write a synthetic CT as a DICOM series: CT Image Storage (PS3.3 A.3), one instance a slice, HU as int16.

Made of a DICOM MR it belongs to the MR's patient and study, and lies in its frame of reference: contours, registrations
and dose carry over. It is a series of its own, which says that it is synthetic, of what images and by what model.

UIDs are those of UUIDs (PS3.5 B.2) and follow from what the result depends on, so that the same conversion has the same
UIDs. No instance says when it was made, so that it has the same bytes, too. Of an anonymous series the UIDs are random:
whoever has the MR could compute its hash, and find its CT by it (PS3.15 E.1.1 warns of hashes).
"""

import hashlib
import json
import secrets
import tomllib
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.config import RAISE
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds, validate_value

from data.errors import InputError
from data.files import whole_folder
from data.volumes.dicom_origin import ANATOMY, OPTIONAL, PATIENT, PLACE, STUDY, DicomOrigin, SourceImage
from data.volumes.volume import Volume, describe_difference, from_sitk, read_volume, same_grid

PROJECT = "unpaired-mr-to-ct"
# In the header of every file that is written here, and of none that others write.
IMPLEMENTATION_UID = f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, PROJECT).int}"
# To be said where a series without the patient was asked for.
NAMES_KEPT = (
    "--anonymous removed the patient from the DICOM files only: file and folder names (also that of the series), "
    "records and pages still contain the name of the input; if that identifies the patient, rename the input "
    "and convert it again"
)
_SERIES_NUMBER = 9001
_LO_LENGTH, _LT_LENGTH = 64, 10240
NOT_CLINICAL = "Synthetic CT, not for clinical use."
_CUT = " ... (cut: the report has all warnings)"
# What is compared after writing lies this near (mm, and direction cosines).
_SAME_GRID = 1e-4
# Values that are taken over as they are, valid or not: changed they would name another patient or study.
_IDENTIFYING = ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID")


@dataclass(frozen=True)
class Derivation:
    """What a series was made from, and by which model.

    Attributes:
        model: the model's name, as people know it; epoch: whose weights.
        model_sha256: hash of the model's weights and settings.
        method: number of the way from an MR to a CT, to be raised with it.
        precision: in which the networks computed.
        source_sha256: hash of all that went in (`source_hash`).
        warnings: of the checks of the result, for whoever sees the series alone.
    """

    model: str
    epoch: str
    model_sha256: str
    method: int
    precision: str
    source_sha256: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Identity:
    """Whose series it is.

    Attributes:
        name, patient_id: for an MR that does not say it, or in place of what it says with `anonymous`. None: made up
            of the source's hash, or at random if anonymous, so that no two patients become one.
        anonymous: whether patient, study and source images of a DICOM MR are left out, and all UIDs are random.
    """

    name: str | None = None
    patient_id: str | None = None
    anonymous: bool = False


def source_hash(volumes: Sequence[Volume], body: np.ndarray | None = None) -> str:
    """Return the SHA-256 of the MR's contrasts, voxels and grids and DICOM instances, and of a supplied body mask."""
    digest = hashlib.sha256()
    for volume in volumes:
        instances = volume.dicom and [image and image.instance for image in volume.dicom.images]
        grid = (volume.size, volume.spacing, volume.origin, volume.direction)
        digest.update(json.dumps([volume.array.dtype.str, grid, instances]).encode())
        digest.update(np.ascontiguousarray(volume.array))
    if body is not None:
        digest.update(np.packbits(body))
    return digest.hexdigest()


def check_text(vr: str, text: str) -> str:
    """Return a DICOM text of one line, a name (PN) or a long string (LO).

    Raises:
        InputError: it is none.
    """
    try:
        validate_value(vr, text, RAISE)
        fits = bool(text.strip()) and "\\" not in text and text.isprintable()
    except ValueError:
        fits = False
    if not fits:  # it names a patient, so it is not said what it is
        raise InputError(f"expected 1 to {_LO_LENGTH} printable characters without backslash")
    return text


def check_identity(source: Volume, identity: Identity) -> None:
    """Refuse a name or an id beside those that a DICOM MR has.

    Raises:
        InputError: it would be another patient in the same study.
    """
    if source.dicom and not identity.anonymous and (identity.name or identity.patient_id):
        raise InputError(
            "patient_name, patient_id: the DICOM MR names its patient; leave them out, or add --anonymous to "
            "replace the whole identity"
        )


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but a series written here, because its contents would be removed.

    Raises:
        InputError: it is such a folder, or no folder.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder}: exists and is not a folder; expected a new folder for the DICOM series")
    if not folder.exists():
        return
    for file in sorted(folder.iterdir()):
        if not written_here(file):
            raise InputError(
                f"{folder}: holds {file.name}, which is not a slice of a synthetic CT; expected a new folder for the "
                "DICOM series (--overwrite replaces only a series that was written here)"
            )


def written_here(file: Path) -> bool:
    """Tell whether a DICOM file is a slice of a series that `write_series` wrote."""
    try:
        meta = pydicom.filereader.read_file_meta_info(file)
    except Exception:  # pydicom raises errors of many types on what is no DICOM
        return False
    return meta.get("ImplementationClassUID") == IMPLEMENTATION_UID


def write_series(
    ct: Volume,
    folder: Path,
    made: Derivation,
    identity: Identity,
    further: Sequence[DicomOrigin | None] = (),
    notes: list[str] | None = None,
) -> Path:
    """Write a CT as a DICOM series; the folder appears whole, read back and compared, or not at all.

    The slices are the MR's own where it was DICOM. Of a volume file the axes are put into the order nearest to axial
    slices seen from the feet, without interpolation: not every order can be that of a series.

    Args:
        ct: int16 in HU, on the MR's grid and with its origin.
        folder: a new one, an empty one, or that of a series that was written here.
        made: by what.
        identity: whose.
        further: origins of the MR's further contrasts.
        notes: what is worth knowing is added to it: which invalid values of the MR were not copied.

    Raises:
        InputError: the folder holds something else or cannot be written, the CT has one slice, or what is read back is
            not what was written.
    """
    check_folder(folder)
    slices = ct if ct.dicom else from_sitk(sitk.DICOMOrient(ct.to_sitk(), "LPS"))
    if len(slices.array) < 2:
        raise InputError(f"{folder}: a DICOM series of one slice; expected two or more: write a volume file instead")
    if identity.anonymous:
        made = replace(made, source_sha256=secrets.token_hex(32))
    header = _header(ct.dicom, made, identity, [] if notes is None else notes)
    origins = [] if identity.anonymous else [origin for origin in (ct.dicom, *further) if origin]
    sources = [_images(origin, ct, slices) for origin in origins]
    with whole_folder(folder) as scratch:
        for k in range(len(slices.array)):
            _put_slice(header, slices, k, [image for images in sources if (image := images[k])])
            header.save_as(scratch / f"CT_{k + 1:04d}.dcm", enforce_file_format=True)
        _compare(read_volume(scratch), slices, folder)
        check_folder(folder)  # again: somebody may have written there meanwhile
    return folder


def _compare(back: Volume, written: Volume, folder: Path) -> None:
    if not np.array_equal(back.array, written.array):
        raise InputError(f"{folder}: the series reads back with other voxels: a damaged disk? Write it again")
    if not same_grid(back, written, _SAME_GRID):
        raise InputError(
            f"{folder}: the series would lie elsewhere: {describe_difference(back, written, _SAME_GRID)}: "
            "DICOM needs axes at right angles: resample the MR first"
        )


def _header(origin: DicomOrigin | None, made: Derivation, identity: Identity, notes: list[str]) -> Dataset:
    """Return the attributes that all slices share; UIDs follow from the derivation and the identity."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    header.SpecificCharacterSet = "ISO_IR 192"
    _put_identity(header, origin, made, identity, notes)
    _put_derivation(header, made)
    key = json.dumps([asdict(made), asdict(identity), str(header.PatientName), header.PatientID, *_study(header)])
    header.SeriesInstanceUID = _uid("series", key)
    header.SeriesNumber = _SERIES_NUMBER
    header.AcquisitionNumber = header.KVP = None
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation = 15, 1
    header.RescaleIntercept, header.RescaleSlope, header.RescaleType = "0", "1", "HU"
    header.WindowCenter, header.WindowWidth = "40", "400"
    return header


def _study(header: Dataset) -> tuple[str, str]:
    return str(header.StudyInstanceUID), str(header.FrameOfReferenceUID)


def _put_identity(
    header: Dataset, origin: DicomOrigin | None, made: Derivation, identity: Identity, notes: list[str]
) -> None:
    source = origin.read_header() if origin else Dataset()
    _carry(source, header, ANATOMY, notes)
    if not identity.anonymous:
        _carry(source, header, (*PATIENT, *STUDY, *OPTIONAL, *PLACE), notes)
    elif origin:
        header.PatientIdentityRemoved = "YES"
        header.DeidentificationMethod = "Patient, study and source images left out, random UIDs"
        header.LongitudinalTemporalInformationModified = "REMOVED"
    for name in (*PATIENT, *STUDY, *PLACE, "PatientPosition", "Laterality"):
        header.setdefault(name, None)
    made_up = made.source_sha256[:8]
    header.PatientName = header.PatientName or identity.name or f"synthetic^{made_up}"
    header.PatientID = header.PatientID or identity.patient_id or f"synthetic_{made_up}"
    for name, what in (("StudyInstanceUID", "study"), ("FrameOfReferenceUID", "frame of reference")):
        if not header.get(name):
            header.add_new(name, "UI", _uid(what, made.source_sha256))


def _put_derivation(header: Dataset, made: Derivation) -> None:
    header.SOPClassUID, header.Modality = CTImageStorage, "CT"
    header.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    say = "Synthetic CT ({}), not for clinical use"
    header.SeriesDescription = say.format(made.model[: _LO_LENGTH - len(say.format(""))])
    header.DerivationDescription = (
        f"Synthetic CT in HU, made from MR by the model {made.model}, epoch {made.epoch}, SHA-256 {made.model_sha256}. "
        "Not for clinical use."
    )
    header.ImageComments = _comments(made.warnings)
    header.Manufacturer = PROJECT
    header.ManufacturerModelName = made.model[:_LO_LENGTH]
    header.SoftwareVersions = _version()


def _comments(warnings: Iterable[str]) -> str:
    """Return what viewers show beside an image: a line that it is not for clinical use, and one for each warning."""
    text = "\r\n".join([NOT_CLINICAL, *(f"Warning: {' '.join(warning.split())}" for warning in warnings)])
    return text if len(text) <= _LT_LENGTH else text[: _LT_LENGTH - len(_CUT)] + _CUT


def _version() -> str:
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    return tomllib.loads(project.read_text())["project"]["version"]


def _images(origin: DicomOrigin, ct: Volume, slices: Volume) -> Sequence[SourceImage | None]:
    """Return for each of `slices`, those of `ct` in any order of axes, the image of an origin on the grid of `ct`."""
    before, after = (np.reshape(volume.direction, (3, 3))[:, 2] for volume in (ct, slices))
    along = round(float(before @ after))  # of axes at right angles: 1, -1 (reversed), or 0 (across the images)
    return origin.images[::along] if along else [None] * len(slices.array)


def _put_slice(header: Dataset, ct: Volume, k: int, sources: Sequence[SourceImage]) -> None:
    """Set what is a slice's own: its place, its pixels, and `sources`, the images there that it was made of."""
    direction = np.reshape(ct.direction, (3, 3))
    position = np.array(ct.origin) + direction[:, 2] * ct.spacing[2] * k
    header.SOPInstanceUID = _uid("image", f"{header.SeriesInstanceUID} {k}")
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.InstanceNumber = k + 1
    header.ImagePositionPatient = _decimals(position)
    header.ImageOrientationPatient = _decimals(direction[:, :2].T.ravel())
    header.PixelSpacing = _decimals((ct.spacing[1], ct.spacing[0]))
    (header.SliceThickness,) = _decimals([ct.spacing[2]])
    header.Rows, header.Columns = ct.array.shape[1:]
    header.PixelData = np.ascontiguousarray(ct.array[k], "<i2").tobytes()
    header.pop("SourceImageSequence", None)
    if sources:
        header.SourceImageSequence = [_reference(*image) for image in sources]


def _reference(sop_class: str, instance: str, frame: int | None) -> Dataset:
    reference, purpose = Dataset(), Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = sop_class, instance
    if frame is not None:
        reference.ReferencedFrameNumber = frame
    purpose.CodeValue, purpose.CodingSchemeDesignator = "121322", "DCM"
    purpose.CodeMeaning = "Source image for image processing operation"
    reference.PurposeOfReferenceCodeSequence = [purpose]
    return reference


def _carry(source: Dataset, header: Dataset, names: Iterable[str], notes: list[str]) -> None:
    """Copy attributes that have a value; an invalid value, which is noted, would make the whole series invalid."""
    for name in names:
        if name not in source:
            continue
        try:
            element = source[name]
            value = str(element.value) if element.VR == "PN" else element.value  # free of its character set
            if name not in _IDENTIFYING and isinstance(value, str):
                validate_value(element.VR, value, RAISE)
        except Exception:  # pydicom decodes a value when it is asked for, and can fail in any way
            # What it holds may name the patient.
            notes.append(
                f"the series leaves out the MR's DICOM tag {name}, whose value is invalid; the series itself is valid"
            )
            continue
        if not element.is_empty:
            header.add_new(element.tag, element.VR, value)


def _decimals(values: Iterable[float]) -> list[str]:
    """Return numbers as decimal strings of at most 16 characters: of more digits than any scanner has."""
    return [format_number_as_ds(float(value)) for value in values]


def _uid(what: str, key: str) -> str:
    digest = hashlib.sha256(f"{PROJECT} {what} {key}".encode(errors="surrogateescape")).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"
