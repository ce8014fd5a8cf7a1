"""The manifest of a prepared data set: what every prepared file is, where it came from and how it was made."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data.errors import InputError
from data.files import whole_file

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Case:
    """One prepared volume.

    Attributes:
        name: unique in its domain; the stem of `<split><domain>/<name>.npy` and `mask<domain>/<name>.npy`.
        patient: the patient; cases of one patient never stand in both train and test.
        split: 'train' or 'test'.
        domain: 'A' (MR) or 'B' (CT).
        source, source_sha256: the file or DICOM folder it was made from, and the hash of its bytes.
        mask_source_sha256: hash of the supplied mask file; None where the body mask was computed.
        extent_mm: in-plane width of the smallest centred square that holds the body.
        in_plane_mm: the source's finer in-plane spacing.
        percentiles: MR only: `data.intensity.MR_PERCENTILES` inside the body, in the source's units.
        slices: number of slices; body_slices: first and one past the last slice with a body to train on.
        lost_voxels: body voxels of the source outside the frame.
        labels: labels that the mask tells apart: 1 (body), or more where the supplied mask has several.
        frame: `SliceFrame.to_dict()`.
    """

    name: str
    patient: str
    split: str
    domain: str
    source: str
    source_sha256: str
    mask_source_sha256: str | None
    extent_mm: float
    in_plane_mm: float
    percentiles: tuple[float, float] | None
    slices: int = 0
    body_slices: tuple[int, int] = (0, 0)
    lost_voxels: int = 0
    labels: int = 1
    frame: dict = field(default_factory=dict)

    @property
    def image_file(self) -> str:
        """Path of the slices below the data set's root: (slices, size, size), MR float32 in its units, CT int16 HU."""
        return f"{self.split}{self.domain}/{self.name}.npy"

    @property
    def mask_file(self) -> str:
        """Path of the masks below the data set's root: (slices, size, size), uint8."""
        return f"mask{self.domain}/{self.name}.npy"

    @property
    def body_file(self) -> str:
        """Path of the body mask on the source's own grid."""
        return f"bodies/{self.split}{self.domain}/{self.name}.nii.gz"

    def to_dict(self) -> dict:
        """Return a JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> "Case":
        """Return the case that `to_dict` wrote."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in data.items()})


@dataclass(frozen=True)
class Manifest:
    """A prepared data set: slices of `size` x `size` pixels of `spacing_mm`, `slice_mm` apart (None: as acquired)."""

    size: int
    spacing_mm: float
    slice_mm: float | None
    cases: tuple[Case, ...]
    versions: dict[str, str]

    def select(self, split: str, domain: str) -> list[Case]:
        """Return the cases of one split and domain, by name."""
        return sorted((c for c in self.cases if (c.split, c.domain) == (split, domain)), key=lambda case: case.name)

    def write(self, root: Path) -> Path:
        """Write `manifest.json` below `root`, atomically."""
        data = {"format_version": FORMAT_VERSION, **asdict(self)}
        return write_json(root / MANIFEST_NAME, data)


def read_manifest(root: str | Path) -> Manifest:
    """Read `root`'s manifest.

    Raises:
        InputError: it is missing, damaged, of another format version, or has one patient in train and test.
    """
    path = Path(root) / MANIFEST_NAME
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; make the data set with python -m scripts.prepare_dataset") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    version = data.pop("format_version", None) if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(f"{path}: format version {version}, expected {FORMAT_VERSION}; prepare the data set again")
    try:
        cases = tuple(Case.from_dict(case) for case in data.pop("cases"))
        manifest = Manifest(cases=cases, **data)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged ({error}); prepare the data set again") from error
    check_splits(manifest.cases)
    return manifest


def check_splits(cases: tuple[Case, ...] | list[Case]) -> None:
    """Refuse cases that share a name in one domain, or a patient or source volume between train and test."""
    for key in ("patient", "source_sha256"):
        train, test = ({getattr(c, key): c.name for c in cases if c.split == split} for split in ("train", "test"))
        shared = sorted(train[value] for value in train.keys() & test.keys())
        if shared:
            raise InputError(
                f"the same {key.split('_')[0]} stands in train and test: {', '.join(shared[:5])}; leave it in one"
            )
    names = Counter((case.domain, case.name) for case in cases)
    twice = sorted(name for (_, name), count in names.items() if count > 1)
    if twice:
        raise InputError(
            f"several volumes would be called {', '.join(twice[:5])}; give them different file or folder names"
        )


def write_json(path: Path, data: dict) -> Path:
    """Write JSON to `path`; the file appears whole or not at all."""
    with whole_file(path) as scratch:
        scratch.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    return path


def hash_source(path: Path) -> str:
    """Return the SHA-256 of a file, or of all files of a (DICOM) folder in the order of their names."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    for file in files:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()
