"""Frames of a multi-frame DICOM image (Enhanced MR and CT, as Siemens XA and Philips export) as slices of their own.

What a single-frame image says in its header a multi-frame one says in functional groups, some of which all frames share
(PS3.3 C.7.6.16). Here each frame gets the header that it would have as a single-frame image; its pixels are read from a
copy that has them alone, compressed as they are, so that all that holds for single-frame series holds for frames.
"""

from collections.abc import Iterable
from pathlib import Path

import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)

SEQUENCES = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
# By the group's sequence and the attribute in it: what a single-frame image calls it.
_ATTRIBUTES = {
    ("PlanePositionSequence", "ImagePositionPatient"): "ImagePositionPatient",
    ("PlaneOrientationSequence", "ImageOrientationPatient"): "ImageOrientationPatient",
    ("PixelMeasuresSequence", "PixelSpacing"): "PixelSpacing",
    ("PixelValueTransformationSequence", "RescaleSlope"): "RescaleSlope",
    ("PixelValueTransformationSequence", "RescaleIntercept"): "RescaleIntercept",
    ("PixelValueTransformationSequence", "RescaleType"): "RescaleType",
    ("MRImageFrameTypeSequence", "FrameType"): "ImageType",
    ("CTImageFrameTypeSequence", "FrameType"): "ImageType",
    ("MRImageFrameTypeSequence", "ComplexImageComponent"): "ComplexImageComponent",
    ("MREchoSequence", "EffectiveEchoTime"): "EchoTime",
    ("MRTimingAndRelatedParametersSequence", "FlipAngle"): "FlipAngle",
    ("MRModifierSequence", "InversionTimes"): "InversionTime",
    ("MRDiffusionSequence", "DiffusionBValue"): "DiffusionBValue",
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"): "TriggerTime",
    ("FrameContentSequence", "StackID"): "StackID",
    ("FrameContentSequence", "TemporalPositionIndex"): "TemporalPositionIdentifier",
    ("FrameContentSequence", "FrameAcquisitionNumber"): "AcquisitionNumber",
}
# What a copy of one frame has of its image, and of the frame.
_IMAGE = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Modality", "SamplesPerPixel", "Rows", "Columns",
          "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")  # fmt: skip
_FRAME = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
_NATIVE = (ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, None)


def frames_of(header: Dataset) -> list[Dataset]:
    """Return a header for each frame of a multi-frame image, with its number in ReferencedFrameNumber.

    The header alone is returned of a single-frame image, and where frames are not described one by one.
    """
    try:
        shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
        frames = header.get("PerFrameFunctionalGroupsSequence") or []
        if not frames or len(frames) != int(header.get("NumberOfFrames") or 0):
            return [header]
        return [_flattened(header, number, [frame, shared[0]]) for number, frame in enumerate(frames, start=1)]
    except Exception:  # pydicom decodes a value when it is asked for, and can fail in any way
        return [header]


def frame_number(header: Dataset) -> int | None:
    """Return which frame a header of `frames_of` is of, from 1; None of a single-frame image."""
    return int(header.ReferencedFrameNumber) if "ReferencedFrameNumber" in header else None


def _flattened(header: Dataset, number: int, groups: list[Dataset]) -> Dataset:
    frame = Dataset()
    frame.update({element.tag: element for element in header if element.keyword not in SEQUENCES})
    frame.file_meta = header.file_meta
    for (sequence, name), keyword in _ATTRIBUTES.items():
        items = next((group.get(sequence) for group in groups if group.get(sequence)), None)
        if items and name in items[0]:
            # A new element: that of the image is every frame's.
            frame.add_new(keyword, dictionary_VR(keyword), items[0][name].value)
    frame.ReferencedFrameNumber = number
    return frame


def _offsets(image: Dataset) -> tuple[bytes, bytes] | None:
    """Return the offsets of compressed frames, for an image that stores them beside its pixels."""
    found = image.get("ExtendedOffsetTable"), image.get("ExtendedOffsetTableLengths")
    return found if all(found) else None


def write_frames(file: Path, frames: Iterable[tuple[Dataset, Path]]) -> None:
    """Write frames of a file, each with its header of `frames_of`, as single-frame images.

    Raises any error of pydicom on damaged files.
    """
    image = pydicom.dcmread(file, force=True)
    count, syntax = int(image.NumberOfFrames), image.file_meta.get("TransferSyntaxUID")
    compressed = syntax is not None and not syntax.is_private and syntax.is_encapsulated
    size = image.Rows * image.Columns * image.BitsAllocated // 8
    for header, path in frames:
        index = int(header.ReferencedFrameNumber) - 1
        one = Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax in _NATIVE else syntax
        one.SOPClassUID = CTImageStorage if header.get("Modality") == "CT" else MRImageStorage
        one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID
        one.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        for source, names in ((image, _IMAGE), (header, _FRAME)):
            one.update({source[name].tag: source[name] for name in names if name in source})
        one.PhotometricInterpretation = "MONOCHROME2"  # of MONOCHROME1 GDCM would invert the values
        if compressed:
            frame = get_frame(image.PixelData, index, number_of_frames=count, extended_offsets=_offsets(image))
            one.PixelData = encapsulate([frame])
        else:
            one.PixelData = image.PixelData[index * size : (index + 1) * size]
        one["PixelData"].VR = "OB" if compressed or image.BitsAllocated == 8 else "OW"
        one.save_as(path, enforce_file_format=True)
