"""What a volume keeps of the DICOM series it was read from, for a series derived from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pydicom

from data.errors import InputError

# What every image has, if empty, of patient and study; then what may be absent.
PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
STUDY = (
    "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID",
    "AccessionNumber",
)  # fmt: skip
OPTIONAL = (
    "IssuerOfPatientID", "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    "StudyDescription", "PatientAge", "PatientSize", "PatientWeight", "AcquisitionDate", "AcquisitionTime",
)  # fmt: skip
# Free text on where the frame of reference lies; then coded values, which say nothing of who the patient is.
PLACE = ("PositionReferenceIndicator",)
ANATOMY = ("PatientPosition", "BodyPartExamined", "Laterality")


class SourceImage(NamedTuple):
    """An image that a slice was read from: its class and instance, and in a multi-frame one the frame, from 1."""

    sop_class: str
    instance: str
    frame: int | None = None


@dataclass(frozen=True)
class DicomOrigin:
    """The series that a volume was read from.

    Whose it is stays in the file until it is asked for: nothing else that is written or said may hold it.

    Attributes:
        file: of the first slice.
        images: of each slice, in the order of the volume's z axis; None for a slice without an instance UID.
        other_contrast: in words what the header says that the images are, where that is no T1 in phase.
    """

    file: Path
    images: tuple[SourceImage | None, ...]
    other_contrast: str | None = None

    def read_header(self) -> pydicom.Dataset:
        """Return the first slice's header: patient, study, place and anatomy.

        Raises:
            InputError: it cannot be read any more.
        """
        tags = [*PATIENT, *STUDY, *OPTIONAL, *PLACE, *ANATOMY]
        try:
            return pydicom.dcmread(self.file, specific_tags=list(tags), stop_before_pixels=True, force=True)
        except Exception as error:  # pydicom raises errors of many types on damaged headers
            raise InputError(f"{self.file}: patient and study cannot be read: {type(error).__name__}") from error
