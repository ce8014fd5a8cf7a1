"""NIfTI files: voxels and their position. One rule decides which of a header's transforms is used.

- The sform counts where its code is not 0, else the qform where its code is not 0. Where neither is, NIfTI's method 1
  does: index axes run to the right, the front and the head, and the first voxel is the origin.
- Spacing is the length of that transform's columns; pixdim where it is the same but for rounding.
- What else the header says and is not the same is said in a note. It is refused where no movement of the patient
  explains it: a qform with other voxel sizes or mirrored, an sform of ones beside a pixdim that is not.
- A transform that shears is refused; one that rounding has bent is straightened, and said.

Source of the methods: nifti1.h, https://nifti.nimh.nih.gov, "3D image (volume) orientation and location in space".
"""

import io
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.nifti1 import Nifti1Header
from nibabel.openers import ImageOpener

from data.errors import InputError
from data.volumes.headers import check_claim, check_size
from data.volumes.streams import check_data_file, decode

# A metre and a micrometre in mm, by the header's code of the unit; others are mm, or say nothing.
_UNITS_MM = {1: 1000.0, 3: 0.001}
# Voxel sizes that differ by less than this share are the same but for rounding.
_SIZE_TOLERANCE = 0.01
_ROUNDING = 1e-3
# Corners of the volume that lie apart by less than this are the same.
_SAME_MM = 0.1
# Elements of two transforms, in mm, that differ by less than this are of one geometry.
_UNMOVED = 1e-6
# What nibabel would say of a header is said here, with the file's name.
nibabel.imageglobals.logger.setLevel(logging.CRITICAL)
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class NiftiForms:
    """A header's transforms: 4 x 4, from voxel indices to RAS coordinates in mm.

    Attributes:
        used: the volume's own: that of its geometry, straightened.
        qform, sform: None if the header has none.
        qform_code, sform_code: as the header has them.
    """

    used: np.ndarray
    qform: np.ndarray | None
    sform: np.ndarray | None
    qform_code: int
    sform_code: int


class NiftiImage(NamedTuple):
    """What a NIfTI file holds: voxels (z, y, x), spacing, origin and direction as in `Volume`; transforms; notes."""

    array: np.ndarray
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]
    forms: NiftiForms
    notes: tuple[str, ...]


def read_nifti(path: Path, stored_bytes: int) -> NiftiImage:
    """Read a NIfTI file, `.nii`, `.nii.gz` or `.hdr` with `.img`.

    Args:
        path: the file.
        stored_bytes: of it and its data file.

    Raises:
        InputError: Analyze, no 3-D scalar volume, or transforms that shear or contradict each other.
    """
    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Pair):
        raise InputError(
            f"{path}: Analyze 7.5, which does not record left and right; expected NIfTI: convert it with the software "
            "that wrote it"
        )
    kind = image.get_data_dtype()
    if kind.fields:
        raise InputError(f"{path}: {len(kind.fields)} values a voxel (a colour image): extract one channel first")
    check_size(path, image.shape)
    check_claim(path, math.prod(image.shape) * kind.itemsize, stored_bytes)
    spacing, direction, forms, notes = _geometry(path, _header(image), image.shape[:3])
    voxels = np.asanyarray(_verified(path, image).dataobj)
    array = voxels.reshape(voxels.shape[:3], order="F").T
    native = np.dtype(np.float64) if kind.itemsize > 8 and array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    x, y, z = (_LPS @ forms.used)[:3, 3].tolist()
    return NiftiImage(array.astype(native, copy=False), spacing, (x, y, z), direction, forms, notes)


def _verified(path: Path, image: nibabel.Nifti1Pair) -> nibabel.Nifti1Pair:
    """Return an image with all its bytes in memory: nibabel stops at the last voxel, before the checksum."""
    stored, name = image.dataobj, image.file_map["image"].filename
    assert isinstance(stored, ArrayProxy) and name is not None, "it was read from a file"
    file = Path(name)
    check_data_file(file, path)
    encoding = "gzip" if file.name.lower().endswith(".gz") else "raw"
    data = decode(file, file.read_bytes(), encoding, stored.offset + math.prod(stored.shape) * stored.dtype.itemsize)
    return type(image).from_file_map({**image.file_map, "image": nibabel.FileHolder(fileobj=io.BytesIO(data))})


def set_forms(header: Nifti1Header, affine: np.ndarray, forms: NiftiForms | None) -> None:
    """Write a volume's transforms into a header that has its shape.

    Args:
        header: of the file to be.
        affine: the volume's, from voxel indices to RAS in mm.
        forms: those that the volume was read with; where it lies elsewhere by now, or None, both transforms are
            `affine`, in scanner coordinates.
    """
    header.set_xyzt_units("mm")
    # What is still the geometry that was read is the same to arithmetic's rounding; all else was moved.
    if forms is None or not np.allclose(forms.used, affine, rtol=0, atol=_UNMOVED):
        forms = NiftiForms(affine, affine, affine, 1, 1)
    header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
    if forms.qform is not None:
        header.set_qform(forms.qform, code="scanner")
    if forms.sform is not None:
        header.set_sform(forms.sform, code="scanner")
    header["qform_code"], header["sform_code"] = forms.qform_code, forms.sform_code


def _header(image: nibabel.Nifti1Pair) -> Nifti1Header:
    """Return an image's header as it stands in the file: nibabel's own copy has spacings of 0 put to 1."""
    name = image.file_map.get("header", image.file_map["image"]).filename
    assert name is not None, "it was read from a file"
    with ImageOpener(name) as file:
        return type(image.header).from_fileobj(file, check=False)


def _geometry(path: Path, header: Nifti1Header, size: tuple[int, ...]) -> tuple:
    """Return spacing and direction (as in `Volume`), the transforms, and notes on what does not agree."""
    scale = np.diag([_UNITS_MM.get(int(header["xyzt_units"]) & 7, 1.0)] * 3 + [1.0])
    pixdim = np.asarray(header["pixdim"][1:4], float) * scale[0, 0]
    sound = bool(np.all(np.isfinite(pixdim)) and np.all(pixdim > 0))
    codes = int(header["qform_code"]), int(header["sform_code"])
    sform = scale @ np.asarray(header.get_sform(), float) if codes[1] > 0 else None
    if sform is None and not sound:
        raise InputError(f"{path}: spacing {_numbers(pixdim)} mm (pixdim); expected positive numbers")
    qform = scale @ np.asarray(header.get_qform(), float) if codes[0] > 0 and sound else None
    if sform is not None and qform is not None and not np.all(np.isfinite(qform)):
        qform = None
    notes = []
    used = sform if sform is not None else qform
    if used is None:
        used = np.diag([*pixdim, 1.0])
        notes.append(
            "the header has no orientation (qform and sform code 0); NIfTI's method 1 is used: axes to the right, "
            "the front and the head"
        )
    if not np.all(np.isfinite(used)):
        raise InputError(f"{path}: the header's transform holds NaN or infinite numbers; export the volume again")
    name = "sform" if sform is not None else "qform"
    spacing, direction, bent_mm = _straightened(path, name, used, size, other=qform)
    if bent_mm > _SAME_MM:
        notes.append(f"its {name} is not quite orthogonal; straightened, which moves voxels by up to {bent_mm:.2g} mm")
    if sform is not None:
        notes += _disagreement(path, sform, qform, spacing, pixdim, size)
    if sound and np.allclose(spacing, pixdim, rtol=_ROUNDING, atol=0):
        spacing = pixdim
    own = used.copy()
    own[:3, :3] = direction * spacing
    forms = NiftiForms(own, qform, sform, codes[0] if qform is not None else 0, codes[1] if sform is not None else 0)
    direction = _LPS[:3, :3] @ direction
    return tuple(spacing.tolist()), tuple(direction.ravel().tolist()), forms, tuple(notes)


def _straightened(
    path: Path, name: str, transform: np.ndarray, size: tuple[int, ...], other: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return a transform's voxel sizes, its nearest rotation or mirroring, and by how much (mm) that moves voxels."""
    columns = transform[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    if not np.all(spacing > 0):
        raise InputError(f"{path}: its {name} has voxels of {_numbers(spacing)} mm; expected positive sizes")
    direction = columns / spacing
    if not np.allclose(direction.T @ direction, np.eye(3), rtol=0, atol=1e-6):  # beyond what float32 rounds
        left, _, right = np.linalg.svd(direction)
        direction = left @ right
    straight = transform.copy()
    straight[:3, :3] = direction * spacing
    bent_mm = _apart_mm(straight, transform, size)
    if bent_mm > max(_SAME_MM, spacing.min()):
        way_out = "resample it to orthogonal axes"
        if name == "sform" and other is not None:
            way_out += ", or set its code to 0 if the qform is right"
        raise InputError(
            f"{path}: direction not orthonormal: its {name} shears or was rounded (by up to {bent_mm:.3g} mm, voxels "
            f"have {_numbers(spacing)} mm); expected orthogonal axes: {way_out}"
        )
    return spacing, direction, bent_mm


def _disagreement(
    path: Path, sform: np.ndarray, qform: np.ndarray | None, spacing: np.ndarray, pixdim: np.ndarray, size: tuple
) -> list[str]:
    """Return how a header's other values differ from its sform; refuse what no movement explains."""
    same_size = np.allclose(pixdim, spacing, rtol=_SIZE_TOLERANCE, atol=0)
    found = f"its sform has voxels of {_numbers(spacing)} mm, pixdim of {_numbers(pixdim)} mm"
    placeholder = np.allclose(spacing, 1, rtol=1e-6) and np.all(pixdim > 0)
    if not same_size and (qform is not None or placeholder):
        raise InputError(f"{path}: {found}: which is right is unknown; expected the same: correct the header")
    if not same_size:
        return [f"{found}; the sform is used"]
    if qform is None:
        return []
    if np.linalg.det(qform[:3, :3]) * np.linalg.det(sform[:3, :3]) < 0:
        raise InputError(
            f"{path}: its sform and qform mirror each other: which side is left is unknown; expected the same: set "
            "the code of the wrong one to 0"
        )
    apart_mm = _apart_mm(sform, qform, size)
    return [f"its sform and qform lie up to {apart_mm:.3g} mm apart; the sform is used"] if apart_mm > _SAME_MM else []


def _apart_mm(a: np.ndarray, b: np.ndarray, size: tuple[int, ...]) -> float:
    """Return how far apart (mm) two transforms put a corner of a volume, at most."""
    corners = np.array(np.meshgrid(*((0, n - 1) for n in size), [1])).reshape(4, -1)
    return float(np.linalg.norm((a - b) @ corners, axis=0).max())


def _numbers(values: np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
