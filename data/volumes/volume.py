"""Volumes on disk and in memory, with their geometry.

A `Volume` is an array in (z, y, x) order with spacing, origin and direction as SimpleITK defines them: the voxel
with index (i, j, k) along (x, y, z) lies at ``origin + direction @ (spacing * (i, j, k))`` in patient coordinates
(LPS, mm).
"""

import logging
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
import scipy
import SimpleITK as sitk
from isal import igzip
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from data.commands import python_command
from data.errors import InputError, listed
from data.files import check_regular, not_there, whole_file
from data.volumes import dicom
from data.volumes.dicom_origin import DicomOrigin
from data.volumes.gipl import read_gipl
from data.volumes.headers import UNKNOWN, describe_content, read_start, unreadable
from data.volumes.metaimage import read_metaimage
from data.volumes.nifti import NiftiForms, read_nifti, set_forms
from data.volumes.nrrd import read_nrrd

log = logging.getLogger(__name__)

WRITABLE_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")
NIFTI_SUFFIXES = (".nii.gz", ".nii", ".hdr", ".img", ".img.gz")
READABLE_SUFFIXES = (*WRITABLE_SUFFIXES, *NIFTI_SUFFIXES, ".nhdr", ".gipl", ".gipl.gz", ".dcm")
_LISTED = 5
# What the libraries raise on damaged files.
_UNREADABLE = (RuntimeError, OSError, EOFError, ValueError, OverflowError, zlib.error, ImageFileError, HeaderDataError)
# Beyond these a spacing is a mistake, of its unit or of its header.
SPACING_RANGE_MM = (0.01, 100.0)
# A NIfTI volume in two files.
_PAIRED_SUFFIXES = (".hdr", ".img", ".img.gz")
_PARSERS = {
    ".mha": read_metaimage, ".mhd": read_metaimage, ".nrrd": read_nrrd, ".nhdr": read_nrrd, ".gipl": read_gipl,
    ".gipl.gz": read_gipl,
}  # fmt: skip
_CONTENTS = {".nii": "a NIfTI or Analyze file", ".hdr": "a NIfTI or Analyze file", ".mha": "a MetaImage",
             ".mhd": "a MetaImage", ".nrrd": "an NRRD file", ".nhdr": "an NRRD file"}  # fmt: skip
# The line of a text header that holds a description: MetaImage, NRRD.
_COMMENT = re.compile(rb"^Comment(?: = |:=)(.*)$", re.MULTILINE)
# Of ISA-L's four levels the last: on CT no slower than the others, with the smallest files (docs/performance.md).
_GZIP_LEVEL = 3


@dataclass(frozen=True)
class Volume:
    """A 3-D image with its geometry.

    Attributes:
        array: voxels, shape (z, y, x).
        spacing: voxel spacing in mm along (x, y, z).
        origin: centre of the first voxel in patient coordinates (LPS, mm).
        direction: 3 x 3 direction cosines, row-major, 9 numbers; column c is the direction of index axis c (x, y, z).
        nifti: the transforms of the NIfTI file that it was read from; those of a file that is written of it.
        dicom: the series that it was read from; patient and study of a series that is written of it.
        notes: what had to be decided when it was read, in words.
    """

    array: np.ndarray
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    nifti: NiftiForms | None = None
    dicom: DicomOrigin | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an array or a geometry that no volume can have."""
        if self.array.ndim != 3:
            raise ValueError(f"a volume's array has 3 axes (z, y, x), got shape {self.array.shape}")
        if len(self.spacing) != 3 or len(self.origin) != 3 or len(self.direction) != 9:
            raise ValueError("a volume's spacing, origin and direction have 3, 3 and 9 numbers")

    @property
    def size(self) -> tuple[int, int, int]:
        """Number of voxels along (x, y, z)."""
        z, y, x = self.array.shape
        return x, y, z

    def with_array(self, array: np.ndarray) -> "Volume":
        """Return another volume on this one's grid. `array` has this volume's shape."""
        if array.shape != self.array.shape:
            raise ValueError(f"array of shape {array.shape} on a grid of shape {self.array.shape}")
        return replace(self, array=array)

    def to_sitk(self) -> sitk.Image:
        """Return a SimpleITK image with the same voxels and geometry (booleans become uint8)."""
        array = self.array.astype(np.uint8) if self.array.dtype == bool else self.array
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image


def from_sitk(image: sitk.Image) -> Volume:
    """Return a `Volume` with the voxels and geometry of a 3-D SimpleITK image."""
    return Volume(sitk.GetArrayFromImage(image), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def axial_order(direction: tuple[float, ...]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Return how to turn an array (z, y, x) to axial order: axes to the head (S), the back (P) and the left (L).

    Args:
        direction: 3 x 3 direction cosines, as in `Volume`.

    Returns:
        Which array axis runs nearest to S, P and L, each used once, and whether it runs against it.
    """
    cosines = np.reshape(direction, (3, 3))  # rows: patient axes L, P, S; columns: index axes x, y, z
    _, index_axes = scipy.optimize.linear_sum_assignment(-np.abs(cosines))
    order = tuple(2 - int(index_axes[patient_axis]) for patient_axis in (2, 1, 0))
    return order, tuple(bool(cosines[2 - d, 2 - order[d]] < 0) for d in range(3))


def flipped(array: np.ndarray, flips: Sequence[bool]) -> np.ndarray:
    """Return a view of an array that is reversed along the axes in `flips`."""
    return array[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


def in_axial_order(grid: Volume, *arrays: np.ndarray) -> tuple[list[np.ndarray], tuple[float, ...]]:
    """Return views of arrays (z, y, x) of a grid, axes to the head, the back and the left, and their spacing in mm."""
    order, flips = axial_order(grid.direction)
    return [flipped(array.transpose(order), flips) for array in arrays], tuple(grid.spacing[2 - axis] for axis in order)


def volume_suffix(path: str | Path) -> str:
    """Return the file-name ending that names the format ('.nii.gz', '.mha', ...), or '' if it is not one of ours."""
    name = Path(path).name.lower()
    return max((suffix for suffix in READABLE_SUFFIXES if name.endswith(suffix)), key=len, default="")


def writable_suffix(path: Path) -> str:
    """Return the ending of a volume file that can be written, in lower case.

    Raises:
        InputError: it is not such an ending.
    """
    suffix = volume_suffix(path)
    if suffix not in WRITABLE_SUFFIXES:
        raise InputError(f"{path}: unknown volume format; use one of {' '.join(WRITABLE_SUFFIXES)}")
    if path.name[-len(suffix) :] not in (suffix, suffix.upper()):
        raise InputError(f"{path}: ending in mixed case, which readers refuse; expected {suffix}")
    return suffix


def volume_stem(path: str | Path) -> str:
    """Return a volume's file name without the ending that names its format; of a folder, its name."""
    path = Path(path).absolute()
    try:
        is_folder = path.is_dir()
    except OSError:  # whoever reads it says so
        is_folder = False
    return path.name if is_folder else path.name[: len(path.name) - len(volume_suffix(path))]


def volume_files(path: Path) -> list[Path]:
    """Return a volume's file and the files that its voxels, or its header, lie in.

    Raises:
        InputError: the file is none of its name's format, or a header that says where the voxels are is damaged.
    """
    suffix = volume_suffix(path)
    if suffix in _PARSERS:
        _check_content(path, suffix)
        return list(dict.fromkeys([path, *_PARSERS[suffix](path).files]))
    if suffix not in _PAIRED_SUFFIXES:
        return [path]
    stem = path.name[: -len(suffix)]
    found = {path.with_name(stem + end) for ending in _PAIRED_SUFFIXES for end in (ending, ending.upper())}
    return [path, *sorted(file for file in found - {path} if file.is_file())]


def same_grid(a: Volume, b: Volume, tolerance: float = 1e-3) -> bool:
    """Tell whether two volumes share one grid: size equal, spacing, origin (mm) and direction within `tolerance`."""
    return a.size == b.size and all(
        np.allclose(x, y, rtol=0, atol=tolerance)
        for x, y in ((a.spacing, b.spacing), (a.origin, b.origin), (a.direction, b.direction))
    )


def describe_difference(found: Volume, expected: Volume, tolerance: float = 1e-3) -> str:
    """Return what makes two grids differ by `same_grid`, for messages: "size 8 x 8 x 5, expected 8 x 8 x 4; ..."."""
    sizes = (" x ".join(map(str, volume.size)) for volume in (found, expected))
    differences = ["size {}, expected {}".format(*sizes)] if found.size != expected.size else []
    for name, unit in (("spacing", " mm"), ("origin", " mm"), ("direction", "")):
        ours, theirs = getattr(found, name), getattr(expected, name)
        if not np.allclose(ours, theirs, rtol=0, atol=tolerance):
            texts = (f"({', '.join(f'{v:.6g}' for v in row)}){unit}" for row in (ours, theirs))
            differences.append("{} {}, expected {}".format(name, *texts))
    return "; ".join(differences)


def describe_extent(volume: Volume) -> str:
    """Return where a volume's voxel centres lie in the patient, for messages: "x -10 to 40, y 0 to 9, z 3 to 8 mm"."""
    steps = np.reshape(volume.direction, (3, 3)) * volume.spacing * (np.array(volume.size) - 1)
    corners = [volume.origin + steps @ corner for corner in np.ndindex(2, 2, 2)]
    ends = zip("xyz", np.min(corners, 0), np.max(corners, 0), strict=True)
    return ", ".join(f"{axis} {low:.0f} to {high:.0f}" for axis, low, high in ends) + " mm"


def resampling(what: object, like: object) -> str:
    """Return the command that resamples one volume to another one's grid, for messages."""
    return python_command("-m", "scripts.resample", "--input", what, "--like", like)


def read_volume(
    path: str | Path,
    series_uid: str | None = None,
    log_notes: bool = True,
    contrast: str | None = None,
    chosen: Sequence[str] = (),
    description: re.Pattern | None = None,
) -> Volume:
    """Read a volume file (NIfTI, MetaImage, NRRD, ..., multi-frame DICOM) or a folder that holds a DICOM series.

    Args:
        path: a file of one of `READABLE_SUFFIXES`, or a folder of DICOM files.
        series_uid: which series of the folder; needed where it holds several.
        log_notes: whether what was decided on reading is logged; not where the volume was read before.
        contrast: which one of a folder that holds several, by its name (`data.volumes.dicom_contrasts`).
        chosen: names of the same kind that the images must have.
        description: what the description of the series must hold.

    Raises:
        InputError: the path is missing, is not a readable 3-D scalar volume, or its voxels or geometry are unusable;
            its stream is damaged, or its header says another number of voxels; a series is named but the path is no
            folder.
    """
    path = Path(path)
    try:
        str(path).encode()
    except UnicodeEncodeError as error:  # ITK ends the whole process on such a name
        raise InputError(f"{str(path)!a}: the name is not UTF-8 text; rename the file or folder") from error
    if not path.exists():
        raise InputError(f"{path}: {not_there(path)}")
    check_regular(path)
    try:
        is_dicom = path.is_dir() or dicom.is_multiframe(path)
        if not is_dicom and (series_uid is not None or chosen or description):
            option = "--series_uid" if series_uid is not None else "--contrast, --echo or --series_description"
            raise InputError(f"{path}: a file, but {option} chooses DICOM images of a folder; leave it out")
        if path.is_dir():
            _check_slices(path)
        dicom_choice = (series_uid, contrast, chosen, description)
        volume = _read_dicom(path, *dicom_choice) if is_dicom else _read_file(path)
    except InputError:
        raise
    except _UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as a volume: {_reason(error)}") from error
    _check_voxels(volume, path)
    _check_geometry(volume, path)
    for note in volume.notes if log_notes else ():
        log.warning("warning: %s: %s", path, note)
    return volume


def write_volume(volume: Volume, path: str | Path, description: str = "") -> Path:
    """Write a volume; the file appears whole under its name or not at all.

    Args:
        volume: what is written.
        path: of the file; its ending names the format.
        description: what the header says of the values: `descrip` of a NIfTI file, which has 79 ASCII characters, and
            `Comment` of the others.

    Raises:
        InputError: the ending is not a format that can be written, or writing failed.
    """
    path = Path(path)
    suffix = writable_suffix(path)
    try:
        with whole_file(path) as scratch:
            # ITK knows most endings in lower case only.
            written = scratch.with_name(path.name[: -len(suffix)] + suffix)
            if suffix in (".nii", ".nii.gz"):
                _write_nifti(volume, written, description)
            else:
                image = volume.to_sitk()
                if description:
                    image.SetMetaData("Comment", description)
                sitk.WriteImage(image, str(written), useCompression=suffix in (".mha", ".nrrd"))
            written.replace(scratch)
    except (RuntimeError, HeaderDataError) as error:
        raise InputError(f"{path}: cannot be written: {_reason(error)}") from error
    return path


def description_in(path: Path) -> str:
    """Return what a file's header says of its values (`descrip`, `Comment`), in ASCII; '' where it says nothing."""
    try:
        if volume_suffix(path) in NIFTI_SUFFIXES:
            said = nibabel.load(path).header["descrip"].item()  # type: ignore[index]
        else:
            found = _COMMENT.search(read_start(path))
            said = found[1] if found else b""
    except (InputError, *_UNREADABLE):  # whoever reads its voxels says so
        return ""
    return "".join(filter(str.isprintable, said.decode("ascii", "ignore"))).strip()


def _write_nifti(volume: Volume, path: Path, description: str) -> None:
    """Write what ITK would, .nii.gz at a sixth of its processor time; equal volumes become equal bytes.

    ITK's writer of .nii does not notice a full disk, and leaves a truncated file.
    """
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(volume.direction, (3, 3)) * volume.spacing
    affine[:3, 3] = volume.origin
    affine[:2] *= -1  # LPS to RAS
    array = volume.array.astype(np.uint8) if volume.array.dtype == bool else volume.array
    image = nibabel.Nifti1Image(array.T, None, dtype=array.dtype)
    image.header["descrip"] = description
    set_forms(image.header, affine, volume.nifti)
    with path.open("wb") as file:
        if path.suffix == ".nii":
            image.to_stream(file)
            return
        with igzip.IGzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as handle:
            image.to_stream(handle)


def _check_slices(folder: Path) -> None:
    """Refuse a folder that holds volume files and no DICOM slices."""
    formats = set(READABLE_SUFFIXES) - {".dcm"}
    files = sorted(file.name for file in folder.iterdir() if file.name[0] != "." and volume_suffix(file) in formats)
    if files and not dicom.holds_slices(folder):
        raise InputError(
            f"{folder}: no DICOM slices in this folder, but volume files: {listed(files, _LISTED)}; expected one "
            "volume: name one of the files (test_pipeline.py --input_dir converts all files of a folder)"
        )


def _read_dicom(
    path: Path, series_uid: str | None, contrast: str | None, chosen: Sequence[str], description: re.Pattern | None
) -> Volume:
    image, origin = dicom.read_series(path, series_uid, contrast, chosen, description)
    return replace(from_sitk(image), dicom=origin)


def _read_file(path: Path) -> Volume:
    suffix = volume_suffix(path)
    _check_content(path, suffix)
    if suffix in NIFTI_SUFFIXES:
        image = read_nifti(path, sum(file.stat().st_size for file in volume_files(path)))
        return Volume(*image[:4], nifti=image.forms, notes=image.notes)
    stored = _PARSERS[suffix](path)
    return Volume(stored.read(), stored.spacing, stored.origin, stored.direction)


def _check_content(path: Path, suffix: str) -> None:
    """Refuse a file whose content does not match its name, or whose format is not supported."""
    start = read_start(path)
    if not start:
        raise InputError(f"{path}: the file is empty")
    found = describe_content(start)
    if suffix == ".dcm" or found == "a DICOM file":
        raise InputError(f"{path}: a single DICOM file; name the folder of its series")
    if not suffix:
        formats = " ".join(suffix for suffix in READABLE_SUFFIXES if suffix != ".dcm")
        raise unreadable(path, f"{found}; supported are {formats} and folders of DICOM slices; convert it to .nii.gz")
    if suffix == ".img":  # nothing but voxels
        return
    fitting = _CONTENTS.get(suffix, "a gzip-compressed file" if suffix.endswith(".gz") else None)
    if found not in (fitting, UNKNOWN) or (suffix.endswith(".gz") and found != fitting):
        raise unreadable(path, f"it is named {suffix}, but is {found}; rename it, or convert it to .nii.gz")


def _check_voxels(volume: Volume, path: Path) -> None:
    if volume.array.size == 0:
        raise InputError(f"{path}: no voxels (size {volume.size})")
    if np.iscomplexobj(volume.array):
        raise InputError(f"{path}: complex voxels; expected magnitudes")
    if volume.array.dtype.kind == "f":
        bad = volume.array.size - int(np.count_nonzero(np.isfinite(volume.array)))
        if bad:
            raise InputError(f"{path}: {bad} of {volume.array.size} voxels are NaN or infinite; expected finite values")


def _check_geometry(volume: Volume, path: Path) -> None:
    if not np.all(np.isfinite(volume.origin)):
        raise InputError(f"{path}: origin {volume.origin} mm; expected finite numbers")
    if not all(np.isfinite(s) and s > 0 for s in volume.spacing):
        raise InputError(f"{path}: spacing {volume.spacing} mm; expected positive numbers")
    low, high = SPACING_RANGE_MM
    if not all(low <= s <= high for s in volume.spacing):
        raise InputError(
            f"{path}: spacing {volume.spacing} mm; expected {low:g} to {high:g} mm: was it written in another unit?"
        )
    direction = np.reshape(volume.direction, (3, 3))
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-3):
        raise InputError(
            f"{path}: direction {volume.direction} is not orthonormal (sheared or scaled axes): resample it to "
            "orthogonal axes with other software"
        )


def _reason(error: Exception) -> str:
    """Return the sentence of an ITK error that describes it, without file and line of ITK's sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception thrown", "sitk::ERROR: Unable", "/"))]
    return (telling or lines or [repr(error)])[-1].removeprefix("sitk::ERROR:").strip()
