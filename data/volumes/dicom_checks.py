"""Check one DICOM slice: geometry and values in its header, and the number of its pixels."""

import math
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from data.errors import InputError
from data.volumes.dicom_frames import frame_number
from data.volumes.headers import DEFLATE_EXPANSION, JPEG_EXPANSION, check_claim

_GEOMETRY_TAGS = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
# Names of HU; US is "unspecified", and an empty tag says as little.
_HU_TYPES = ("HU", "US", "", None)
# Slices in one of these need no decoder; a file that names none is in the first.
PLAIN_SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, None)


def check_header(file: Path, header: pydicom.Dataset) -> None:
    """Refuse a slice whose header lacks geometry or values."""
    enhanced = "Enhanced" in UID(header.SOPClassUID).name
    if frame_number(header) is None and (enhanced or whole_number(file, header, "NumberOfFrames") > 1):
        kind = UID(header.SOPClassUID).name if enhanced else "multi-frame DICOM"
        raise InputError(
            f"{file}: {kind} whose frames are not described one by one (PerFrameFunctionalGroupsSequence); convert it "
            "to single-frame DICOM or NIfTI (dcm2niix does)"
        )
    samples = whole_number(file, header, "SamplesPerPixel")
    if samples > 1:
        raise InputError(f"{file}: SamplesPerPixel {samples} (a colour image); expected 1: leave this series out")
    if header.get("PhotometricInterpretation", "MONOCHROME2") not in ("MONOCHROME1", "MONOCHROME2"):
        raise InputError(
            f"{file}: {header.PhotometricInterpretation} pixels; expected gray values: leave this series out"
        )
    _check_size(file, header)
    for tag, count in _GEOMETRY_TAGS.items():
        values = numbers(file, header, tag)
        if len(values) != count:
            raise InputError(
                f"{file}: DICOM tag {tag} is missing or empty, or does not hold {count} numbers; export the series "
                "again"
            )
    if not np.all(numbers(file, header, "PixelSpacing") > 0):
        raise InputError(f"{file}: PixelSpacing {header.PixelSpacing}; expected positive numbers of mm")
    for tag in ("RescaleSlope", "RescaleIntercept"):
        # MR need no rescaling; without it a CT's values are no HU, and an empty tag tells that something was lost.
        if (tag in header or header.get("Modality") == "CT") and len(numbers(file, header, tag)) != 1:
            raise InputError(f"{file}: DICOM tag {tag} is missing or empty; export the series again")
    # Dual-energy scanners export maps of other quantities as CT.
    if header.get("Modality") == "CT" and header.get("RescaleType", "HU") not in _HU_TYPES:
        raise InputError(f"{file}: RescaleType {header.RescaleType}; expected HU: this CT series is not a CT in HU")


def _check_size(file: Path, header: pydicom.Dataset) -> None:
    """Refuse a slice whose header claims more pixels than its file can hold; most often it holds none."""
    rows, columns, bits = (whole_number(file, header, tag, default=0) for tag in ("Rows", "Columns", "BitsAllocated"))
    if min(rows, columns, bits) < 1:
        raise InputError(
            f"{file}: {rows} x {columns} pixels of {bits} bits; expected an image: export the series again"
        )
    syntax, expansion = transfer_syntax(header), 1
    if syntax == DeflatedExplicitVRLittleEndian:
        expansion = DEFLATE_EXPANSION
    elif syntax and not syntax.is_private and syntax.is_transfer_syntax and syntax.is_compressed:
        expansion = JPEG_EXPANSION
    frames = whole_number(file, header, "NumberOfFrames")
    check_claim(file, frames * rows * columns * bits // 8, file.stat().st_size, expansion)


def check_length(file: Path, header: pydicom.Dataset) -> None:
    """Refuse a slice with fewer or more pixels than its header says: GDCM makes up what is missing."""
    if transfer_syntax(header) not in (*PLAIN_SYNTAXES, DeflatedExplicitVRLittleEndian):
        return
    stored = pydicom.dcmread(file, specific_tags=["PixelData"], defer_size=1024, force=True)
    if "PixelData" not in stored:  # said where it is decoded
        return
    pixels = stored.get_item("PixelData", keep_deferred=True)
    assert isinstance(pixels, RawDataElement), "nothing has asked for its value"
    length = pixels.length
    row_bytes = header.Columns * header.BitsAllocated / 8
    frames = whole_number(file, header, "NumberOfFrames")
    expected = math.ceil(frames * header.Rows * row_bytes)
    # Some exports pad the pixels.
    if not expected <= length < expected + max(2, row_bytes):
        raise InputError(
            f"{file}: {length} bytes of pixels; its header says {header.Rows} x {header.Columns}"
            f"{f' x {frames}' if frames > 1 else ''} of {header.BitsAllocated} bits, {expected} bytes: damaged; export "
            "the series again"
        )


def whole_number(file: Path, header: pydicom.Dataset, tag: str, default: int = 1) -> int:
    """Return a tag's whole number, `default` if it is missing or empty."""
    values = numbers(file, header, tag)
    if len(values) > 1 or values.sum() % 1:
        raise InputError(f"{file}: DICOM tag {tag} is {values[:3].tolist()}; expected a whole number")
    return int(values[0]) if len(values) else default


def numbers(file: Path, header: pydicom.Dataset, tag: str) -> np.ndarray:
    """Return a tag's numbers, none if it is missing or empty."""
    try:
        value = header.get(tag)
        values = np.atleast_1d(np.asarray([] if value is None or value == "" else value, float))
    except Exception as error:  # pydicom decodes a value when it is asked for, and can fail in any way
        raise InputError(f"{file}: DICOM tag {tag} holds no numbers: {error}") from error
    if not np.all(np.isfinite(values)):
        raise InputError(f"{file}: DICOM tag {tag} is {values[:9].tolist()}; expected finite numbers")
    return values


def transfer_syntax(header: pydicom.Dataset) -> UID | None:
    """Return how a slice's pixels are encoded; None if its file does not say it."""
    return header.file_meta.get("TransferSyntaxUID") if hasattr(header, "file_meta") else None
