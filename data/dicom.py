"""Reading one DICOM series from a folder, with the checks that keep its geometry right."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.errors import InvalidDicomError

from data.errors import InputError

# Positions along the slice normal may deviate from even spacing by this share of the spacing.
SPACING_TOLERANCE = 0.05
_TAGS = [
    "SeriesInstanceUID", "Modality", "SeriesDescription", "ImageOrientationPatient", "ImagePositionPatient",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "RescaleSlope", "RescaleIntercept",
]  # fmt: skip


@dataclass(frozen=True)
class DicomSeries:
    """The files of one series (path and header) in one folder."""

    uid: str
    files: tuple[tuple[Path, pydicom.Dataset], ...]

    def describe(self) -> str:
        """Return one line: UID, modality, description, number of files."""
        header = self.files[0][1]
        description = header.get("SeriesDescription", "no description")
        return f"{self.uid}  {header.get('Modality', '?')}  {description!r}  {len(self.files)} files"


def list_series(folder: Path) -> list[DicomSeries]:
    """Return the image series whose files lie directly in `folder`, by UID; other files are passed over."""
    series = defaultdict(list)
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        try:
            header = pydicom.dcmread(file, specific_tags=_TAGS, stop_before_pixels=True)
        except (InvalidDicomError, OSError, EOFError):
            continue
        if "Rows" in header and "SeriesInstanceUID" in header:
            series[str(header.SeriesInstanceUID)].append((file, header))
    return [DicomSeries(uid, tuple(files)) for uid, files in sorted(series.items())]


def read_series(folder: Path, series_uid: str | None = None) -> sitk.Image:
    """Read one series as a 3-D image, slices sorted along their normal, rescaled (CT: in HU).

    Raises:
        InputError: no series, several without `series_uid`, or slices that do not make one evenly spaced volume.
        RuntimeError: SimpleITK could not decode the pixels.
    """
    series = _choose(folder, list_series(folder), series_uid)
    if len(series.files) == 1 and int(series.files[0][1].get("NumberOfFrames", 1) or 1) > 1:
        return sitk.ReadImage(str(series.files[0][0]))
    files, spacing_mm = _sort_slices(folder, series)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file, _ in files])
    rescales = {(h.get("RescaleSlope", 1), h.get("RescaleIntercept", 0)) for _, h in files}
    if len(rescales) > 1 or any(float(value) % 1 for pair in rescales for value in pair):
        # The reader takes its pixel type from the first slice, which would truncate the others' fractions.
        reader.SetOutputPixelType(sitk.sitkFloat32)
    image = reader.Execute()
    image.SetSpacing((*image.GetSpacing()[:2], spacing_mm))
    return image


def _choose(folder: Path, found: list[DicomSeries], series_uid: str | None) -> DicomSeries:
    listing = "\n  ".join(series.describe() for series in found)
    if not found:
        raise InputError(f"{folder}: no DICOM image in this folder (folders below it are not searched)")
    if series_uid is not None:
        for series in found:
            if series.uid == series_uid:
                return series
        raise InputError(f"{folder}: no DICOM series {series_uid}; it holds\n  {listing}")
    if len(found) > 1:
        raise InputError(f"{folder}: {len(found)} DICOM series; choose one with --series_uid:\n  {listing}")
    return found[0]


def _sort_slices(folder: Path, series: DicomSeries) -> tuple[list[tuple[Path, pydicom.Dataset]], float]:
    """Return the files in the order of their position along the slice normal, and the spacing between them in mm."""
    for file, header in series.files:
        if "ImagePositionPatient" not in header or "ImageOrientationPatient" not in header:
            raise InputError(f"{file}: no slice position or orientation in the DICOM header")
    if len(series.files) < 2:
        raise InputError(f"{folder}: one DICOM slice; expected a series of several")
    _check_uniform(folder, series)
    row, column = np.reshape(np.asarray(series.files[0][1].ImageOrientationPatient, float), (2, 3))
    normal = np.cross(row, column)
    positions = np.array([np.asarray(h.ImagePositionPatient, float) for _, h in series.files])
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    steps = np.diff(along[order])
    spacing = float(np.median(steps))
    if steps.min() < 1e-3 * max(spacing, 1e-3):
        place = series.files[order[int(steps.argmin()) + 1]][0].name
        raise InputError(f"{folder}: two slices at one position ({place}): several echoes or time points in one series")
    worst = int(np.abs(steps - spacing).argmax())
    if abs(steps[worst] - spacing) > SPACING_TOLERANCE * spacing:
        before, after = (series.files[order[worst + k]][0].name for k in (0, 1))
        raise InputError(
            f"{folder}: missing or unevenly spaced slices: {steps[worst]:.3f} mm between {before} and {after}, "
            f"{spacing:.3f} mm elsewhere; complete the series or resample it"
        )
    drift = (positions - positions[order[0]]) - np.outer(along - along[order[0]], normal)
    if np.abs(drift).max() > 0.5:
        raise InputError(
            f"{folder}: sheared slices (gantry tilt): origins drift {np.abs(drift).max():.1f} mm in the plane"
        )
    return [series.files[index] for index in order], (along[order[-1]] - along[order[0]]) / (len(order) - 1)


def _check_uniform(folder: Path, series: DicomSeries) -> None:
    first = series.files[0][1]
    for file, header in series.files[1:]:
        if not np.allclose(header.ImageOrientationPatient, first.ImageOrientationPatient, atol=1e-3):
            raise InputError(f"{folder}: slices of different orientation in one series ({file.name}): a localiser?")
        if (header.Rows, header.Columns) != (first.Rows, first.Columns):
            size, expected = (header.Columns, header.Rows), (first.Columns, first.Rows)
            raise InputError(f"{file}: slice of {size} pixels in a series of {expected}")
