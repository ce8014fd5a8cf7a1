"""Read one DICOM series from a folder, with checks of its geometry."""

import logging
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.errors import InvalidDicomError

from data.errors import InputError
from data.volumes.dicom_checks import PLAIN_SYNTAXES, check_header, check_length, numbers, transfer_syntax, whole_number
from data.volumes.dicom_contrasts import (
    DISTINGUISHING,
    check_one_volume,
    describe_choices,
    other_than_t1,
    pick_contrast,
)
from data.volumes.dicom_frames import SEQUENCES, frame_number, frames_of, write_frames
from data.volumes.dicom_origin import DicomOrigin, SourceImage
from data.volumes.reader_process import find_unreadable, is_nested, read_slices

log = logging.getLogger(__name__)

# Values that are used are checked here, with the file's name; of others nothing is said.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
# Positions along the slice normal may deviate from even spacing by this share of the spacing.
SPACING_TOLERANCE = 0.05
# Direction cosines rounded to three decimals are off by so much in their products, at most.
_COSINES_ROUNDED = 2e-3
_TAGS = [
    "SeriesInstanceUID", "Modality", "SeriesDescription", "ImageOrientationPatient", "ImagePositionPatient",
    "PixelSpacing", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "RescaleSlope", "RescaleIntercept",
    "SOPClassUID", "SOPInstanceUID", "BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation",
    "RescaleType", "ImageType", "EchoTime", "MagneticFieldStrength",
    "ScanningSequence", "EchoPulseSequence", *DISTINGUISHING, *SEQUENCES,
]  # fmt: skip
_SUFFIXES = (".dcm", ".ima")
_PREAMBLE_BYTES = 128
# A file without the preamble starts with an element of group 0002 or 0008, of either byte order.
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")


@dataclass(frozen=True)
class DicomSeries:
    """The slices of one series (file and header) in one folder; `uid` is '' if they have none.

    Frames of a multi-frame image are slices, each with a header of its own.
    """

    uid: str
    files: tuple[tuple[Path, pydicom.Dataset], ...]

    def describe(self) -> str:
        """Return one line: UID, modality, description, number of files."""
        header = self.files[0][1]
        description = header.get("SeriesDescription", "no description")
        uid = self.uid or "no SeriesInstanceUID"
        files = len({file for file, _ in self.files})
        count = f"{files} files" if files == len(self.files) else f"{len(self.files)} frames"
        return f"{uid}  {header.get('Modality', '?')}  {description!r}  {count}"


def list_series(folder: Path) -> list[DicomSeries]:
    """Return the image series whose files lie directly in `folder`, by UID; other files are skipped.

    `folder` may be one file.
    """
    series = defaultdict(list)
    for file in _files(folder):
        header = _read_header(file)
        if header is not None:
            frames = [(file, frame) for frame in frames_of(header)]
            series[str(header.get("SeriesInstanceUID") or "")].extend(frames)
    return [DicomSeries(uid, tuple(files)) for uid, files in sorted(series.items())]


def _files(folder: Path) -> list[Path]:
    return [folder] if folder.is_file() else sorted(path for path in folder.iterdir() if path.is_file())


def is_multiframe(file: Path) -> bool:
    """Tell whether a file is a multi-frame DICOM image: a volume by itself."""
    header = _read_header(file)
    return header is not None and len(frames_of(header)) > 1


def holds_dicom(folder: Path) -> bool:
    """Tell whether a file that looks like DICOM lies directly in `folder`."""
    files = (path for path in folder.iterdir() if path.is_file())
    return any(path.suffix.lower() in _SUFFIXES or _looks_like_dicom(path) for path in files)


def is_slice(file: Path) -> bool:
    """Tell whether a file is a DICOM image, or was meant to be one."""
    return _read_header(file) is not None or _is_damaged(file)


def holds_slices(folder: Path) -> bool:
    """Tell whether a DICOM image lies directly in `folder`: a volume file beside it was made of it, or is its mask."""
    return any(is_slice(path) for path in folder.iterdir() if path.is_file())


def _looks_like_dicom(file: Path) -> bool:
    with file.open("rb") as handle:
        start = handle.read(_PREAMBLE_BYTES + 4)
    return start[_PREAMBLE_BYTES:] == b"DICM" or start.startswith(_FIRST_GROUPS)


def _read_header(file: Path) -> pydicom.Dataset | None:
    """Return the header of a DICOM image, with or without the preamble; None for any other file."""
    try:
        if not _looks_like_dicom(file):
            return None
        header = pydicom.dcmread(file, specific_tags=_TAGS, stop_before_pixels=True, force=True)
        return header if header.get("SOPClassUID") and header.get("Rows") else None
    except (InvalidDicomError, OSError, EOFError):
        return None
    except Exception as error:  # a forced read of some other file's bytes can fail in any way
        log.debug("%s: passed over, not DICOM: %s", file, error)
        return None


def _is_damaged(file: Path) -> bool:
    """Tell whether a file that is in no series was meant to be a slice, by its ending or by its header."""
    if file.name.startswith("."):
        return False
    try:
        if not _looks_like_dicom(file):
            return file.suffix.lower() in _SUFFIXES
        stored = pydicom.filereader.read_file_meta_info(file).get("MediaStorageSOPClassUID")
        return stored is None or "Image Storage" in stored.name
    except Exception:  # pydicom raises errors of many types on damaged headers
        return file.suffix.lower() in _SUFFIXES


def read_series(
    folder: Path,
    series_uid: str | None = None,
    contrast: str | None = None,
    chosen: Sequence[str] = (),
    description: re.Pattern | None = None,
) -> tuple[sitk.Image, DicomOrigin]:
    """Read one series, or the slices in it that show a contrast, as a 3-D image in the order of its normal, rescaled.

    Arguments as in `data.volumes.volume.read_volume`.

    Returns:
        The image, and what it remembers of its series.

    Raises:
        InputError: no series, several without `series_uid`, a damaged file, slices that do not make one evenly spaced
            volume, or several volumes, colour images, a header without the geometry, or pixels that cannot be decoded.
    """
    found = list_series(folder)
    read = {file for one in found for file, _ in one.files}
    if description:
        found = _described(folder, found, description)
    if contrast or chosen:
        found = [one for one in found if one.uid == series_uid] or found
        picked = pick_contrast(folder, [one.files for one in found], contrast, chosen)
        found = [replace(one, files=tuple(files)) for one, files in zip(found, picked, strict=True) if files]
    series = _choose(folder, found, series_uid)
    for file in (path for path in _files(folder) if path not in read):
        if _is_damaged(file):  # at an end of the series its loss would show nowhere
            raise InputError(f"{file}: a damaged DICOM image, most often truncated; copy it again, or remove it")
    for file, header in series.files:
        check_header(file, header)
    for file, header in dict(series.files).items():
        check_length(file, header)
    check_one_volume(folder, series.files)
    files, spacing_mm = _sort_slices(folder, series)
    pixel_type = None
    if not _have_one_type(files):
        # The reader takes its pixel type from the first slice: other slices would wrap, or lose their fractions.
        deep = any(whole_number(file, header, "BitsAllocated") > 16 for file, header in files)
        pixel_type = sitk.sitkFloat64 if deep else sitk.sitkFloat32
    nested = any(is_nested(file) for file in {file for file, header in files if not frame_number(header)})
    apart = nested or any(transfer_syntax(header) not in PLAIN_SYNTAXES for _, header in files)
    try:
        with _as_stored(files) as paths:
            image = read_slices(paths, pixel_type, apart)
    except RuntimeError as error:
        raise InputError(_undecoded(files)) from error
    first, header = files[0]
    # Of some classes of images (secondary capture of grey words, nuclear medicine) the reader ignores the geometry.
    down, across = map(float, header.PixelSpacing)
    image.SetSpacing((across, down, spacing_mm))
    image.SetOrigin(tuple(map(float, header.ImagePositionPatient)))
    image.SetDirection(_axes(first, header).ravel().tolist())
    return image, DicomOrigin(first, tuple(_source_image(one) for _, one in files), other_than_t1(header))


def _source_image(header: pydicom.Dataset) -> SourceImage | None:
    instance = str(header.get("SOPInstanceUID") or "")
    return SourceImage(str(header.SOPClassUID), instance, frame_number(header)) if instance else None


def _have_one_type(files: list[tuple[Path, pydicom.Dataset]]) -> bool:
    """Tell whether all slices have one pixel type and one rescaling, of whole numbers."""
    tags = {"BitsAllocated": 16, "BitsStored": 16, "PixelRepresentation": 0, "RescaleSlope": 1, "RescaleIntercept": 0}
    types = {
        tuple(float(next(iter(numbers(file, header, tag)), default)) for tag, default in tags.items())
        for file, header in files
    }
    return len(types) == 1 and not any(value % 1 for value in types.pop())


@contextmanager
def _as_stored(files: list[tuple[Path, pydicom.Dataset]]) -> Iterator[list[Path]]:
    """Yield paths from which GDCM reads the slices' values as they are stored, of frames too.

    MONOCHROME1 says how values are displayed (PS3.3 C.7.6.3.1.2); GDCM inverts the values. It gets a copy that says
    MONOCHROME2.
    """
    with tempfile.TemporaryDirectory() as scratch:
        paths = []
        frames = defaultdict(list)
        for number, (file, header) in enumerate(files):
            if frame_number(header):
                frames[file].append((header, Path(scratch, f"{number}.dcm")))
                file = frames[file][-1][1]
            elif header.get("PhotometricInterpretation") == "MONOCHROME1":
                copy = Path(scratch, f"{number}.dcm")
                try:
                    image = pydicom.dcmread(file, force=True)
                    image.PhotometricInterpretation = "MONOCHROME2"
                    image.save_as(copy)
                except Exception as error:  # pydicom raises errors of many types on damaged files
                    raise InputError(f"{file}: MONOCHROME1, and cannot be read to the end: {error}") from error
                file = copy
            paths.append(file)
        for file, headers in frames.items():
            try:
                write_frames(file, headers)
            except Exception as error:  # pydicom raises errors of many types on damaged files
                raise InputError(f"{file}: its frames cannot be read: {error}; export the series again") from error
        yield paths


def _undecoded(files: list[tuple[Path, pydicom.Dataset]]) -> str:
    """Say which slice cannot be decoded, and how it is compressed."""
    found = find_unreadable([file for file, _ in files])
    if found:
        file, reason = found
        syntax = transfer_syntax(dict(files)[file])
        way = f"transfer syntax {syntax.name if syntax else 'not given'}" + (
            f"; {reason}" if "crashed" in reason else ""
        )
        return (
            f"{file}: its pixels cannot be decoded ({way}): truncated, without pixel data, damaged, or in an "
            "unsupported compression; export the series uncompressed"
        )
    return f"{files[0][0].parent}: its slices cannot be read as one volume; export the series again, uncompressed"


def _described(folder: Path, found: list[DicomSeries], description: re.Pattern) -> list[DicomSeries]:
    fitting = [one for one in found if description.search(str(one.files[0][1].get("SeriesDescription", "")))]
    if not fitting:
        listing = "\n  ".join(series.describe() for series in found) or "no DICOM image"
        raise InputError(
            f"{folder}: no DICOM series whose description matches {description.pattern!r}; it has\n  {listing}"
        )
    return fitting


def _choose(folder: Path, found: list[DicomSeries], series_uid: str | None) -> DicomSeries:
    listing = "\n  ".join(series.describe() for series in found)
    if not found:
        children = sorted(child for child in folder.iterdir() if child.is_dir())
        inside = [child.name for child in children if holds_slices(child)]
        way_out = f"; give one of its folders with DICOM: {', '.join(inside)}" if inside else ""
        if children and not inside:
            way_out = f"; name a volume in one of them, or, where a glob is taken, several: '{folder}/*/NAME'"
        raise InputError(f"{folder}: no DICOM image in this folder (folders below it are not searched){way_out}")
    if series_uid:
        for series in found:
            if series.uid == series_uid:
                return series
        raise InputError(f"{folder}: no DICOM series {series_uid}; it holds\n  {listing}")
    if len(found) > 1:
        raise InputError(
            f"{folder}: {len(found)} DICOM series; expected one: put it into a folder of its own (a series to convert "
            f"or prepare is chosen by its UID, --series_uid, or with --series_description):\n  {listing}"
        )
    if not found[0].uid:
        raise InputError(
            f"{folder}: its DICOM images have an empty SeriesInstanceUID (emptied to anonymise them?), so whether "
            "they are one series is unknown; write the same new UID into all slices of a series"
        )
    return found[0]


def _sort_slices(folder: Path, series: DicomSeries) -> tuple[list[tuple[Path, pydicom.Dataset]], float]:
    """Return the files in the order of their position along the slice normal, and the spacing between them in mm."""
    if len(series.files) < 2:
        raise InputError(f"{folder}: one DICOM slice; expected a series of several")
    _check_uniform(folder, series)
    normal = _axes(*series.files[0])[:, 2]
    positions = np.array([np.asarray(h.ImagePositionPatient, float) for _, h in series.files])
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    steps = np.diff(along[order])
    spacing = float(np.median(steps))
    if steps.min() < 1e-3 * max(spacing, 1e-3):
        place = _name(*series.files[order[int(steps.argmin()) + 1]])
        raise InputError(
            f"{folder}: two slices at one position ({place}), and nothing in their headers distinguishes them; remove "
            "one of the images"
        )
    worst = int(np.abs(steps - spacing).argmax())
    if abs(steps[worst] - spacing) > SPACING_TOLERANCE * spacing:
        before, after = (_name(*series.files[order[worst + k]]) for k in (0, 1))
        raise InputError(
            f"{folder}: missing or unevenly spaced slices: {steps[worst]:.3f} mm between {before} and {after}, "
            f"{spacing:.3f} mm elsewhere; complete the series or resample it{describe_choices(series.files)}"
        )
    drift = (positions - positions[order[0]]) - np.outer(along - along[order[0]], normal)
    if np.abs(drift).max() > 0.5:
        raise InputError(
            f"{folder}: sheared slices (gantry tilt): origins drift {np.abs(drift).max():.1f} mm in the plane"
        )
    return [series.files[index] for index in order], (along[order[-1]] - along[order[0]]) / (len(order) - 1)


def _axes(file: Path, header: pydicom.Dataset) -> np.ndarray:
    """Return the directions of a slice's rows, of its columns and of its normal, orthonormal, the columns of (3, 3).

    Headers round cosines, often to three decimals: rows and columns are as near to those as right angles allow.
    """
    row, column = np.reshape(np.asarray(header.ImageOrientationPatient, float), (2, 3))
    if not np.allclose((row @ row, column @ column, row @ column), (1, 1, 0), atol=_COSINES_ROUNDED):
        raise InputError(
            f"{file}: ImageOrientationPatient {[*row.tolist(), *column.tolist()]}: expected two directions of length 1 "
            "at right angles: resample the series to orthogonal axes with other software"
        )
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    column /= np.linalg.norm(column)
    return np.stack([np.cross(column, normal), column, normal], 1)


def _name(file: Path, header: pydicom.Dataset) -> str:
    number = frame_number(header)
    return f"{file.name}, frame {number}" if number else file.name


def _check_uniform(folder: Path, series: DicomSeries) -> None:
    first = series.files[0][1]
    for file, header in series.files[1:]:
        if not np.allclose(header.ImageOrientationPatient, first.ImageOrientationPatient, atol=1e-3):
            raise InputError(
                f"{folder}: slices of different orientation in one series ({_name(file, header)}): a localiser?"
                f"{describe_choices(series.files)}"
            )
        if not np.allclose(header.PixelSpacing, first.PixelSpacing, rtol=1e-4):
            spacings = list(header.PixelSpacing), list(first.PixelSpacing)
            raise InputError(f"{file}: PixelSpacing {spacings[0]} mm in a series of {spacings[1]} mm")
        if (header.Rows, header.Columns) != (first.Rows, first.Columns):
            size, expected = (header.Columns, header.Rows), (first.Columns, first.Rows)
            raise InputError(f"{file}: slice of {size} pixels in a series of {expected}")
