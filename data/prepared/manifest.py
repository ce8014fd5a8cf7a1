"""The manifest of a prepared data set: every prepared file, its origin and how it was made."""

import math
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data.commands import prepare_command
from data.errors import InputError
from data.files import read_json, write_json
from data.volumes.contrasts import ONLY_CONTRAST, is_name
from data.volumes.slice_frame import VIEWS

MANIFEST_NAME = "manifest.json"
BODIES_PAGE = "bodies/index.html"
FORMAT_VERSION = 1
# File systems take 255 bytes; endings and the folder that a file is written in need some.
_NAME_BYTES = 230


def body_file(split: str, domain: str, name: str) -> str:
    """Return the path of a case's body mask on the volume's own grid, below the data set's root."""
    return f"bodies/{split}{domain}/{name}.nii.gz"


@dataclass(frozen=True)
class FurtherContrast:
    """A contrast of an MR beside its first, which gave body and frame; attributes are those of `Case`."""

    name: str
    source: str
    source_sha256: str
    series_uid: str | None
    percentiles: tuple[float, float]
    mr_median: float
    fat_level: float | None = None
    fat_problem: str | None = None


@dataclass(frozen=True)
class Case:
    """One prepared volume; of an MR of several contrasts, all of them.

    Attributes:
        name: unique in its domain; the stem of `<split><domain>/<name>.npy` and `mask<domain>/<name>.npy`.
        patient: the patient; cases of one patient never stand in both train and test.
        split: 'train' or 'test'.
        domain: 'A' (MR) or 'B' (CT).
        source, source_sha256: the file or DICOM folder it was made from, and the hash of its bytes.
        series_uid: the DICOM series of a folder that holds several.
        mask_source_sha256: hash of the supplied or corrected mask file; None if the body mask was computed.
        body_sha256: hash of the body mask as it was written; a file with another hash was corrected by hand.
        extent_mm: `SliceFrame.body_extent_mm`: in-plane width of the smallest centred square that holds the body.
        in_plane_mm: the source's finer in-plane spacing.
        percentiles: MR only: `data.values.intensity.MR_PERCENTILES` inside the body, in the source's units.
        mr_median: MR only: median inside the body, in the source's units.
        fat_level: MR only: `data.values.mr_scale.fat_level` inside the body; None if there is none, and in data
            sets of earlier versions.
        fat_problem: MR only: why there is no fat level.
        bias_corrected: whether the slices, and all that is recorded of the MR, were corrected by
            `data.values.bias_field.log_bias_field`.
        hu_histogram: CT only: `hu_histogram` inside the body; hu_slice_spread: how far its slices are from that
            (`data.prepared.training_statistics.slice_spread`). None in data sets of earlier versions.
        section_cm2, gas_share: CT only: `data.prepared.training_statistics.section_figures`; None in data sets of
            earlier versions.
        slices: number of slices; body_slices: first and one past the last slice with a body to train on.
        lost_voxels: body voxels of the source outside the frame.
        labels: labels that the mask tells apart: 1 (body), or more where the supplied mask has several.
        contrast: MR only: what its contrast, or the first of several, is called; None if it has no name.
        further: MR only: its other contrasts, in the order of an image's channels.
        method: `data.prepared.bodies.METHOD_VERSION` of what prepared it; 0 before that was recorded.
        view: how its slices lie, of `data.volumes.slice_frame.VIEWS`; extent_mm and in_plane_mm are theirs.
        frame: `SliceFrame.to_dict()`; empty while no slices, or half-written ones, are on disk.
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
    series_uid: str | None = None
    body_sha256: str | None = None
    mr_median: float | None = None
    hu_histogram: tuple[int, ...] | None = None
    hu_slice_spread: tuple[float, float] | None = None
    section_cm2: tuple[float, float] | None = None
    gas_share: float | None = None
    method: int = 0
    fat_level: float | None = None
    fat_problem: str | None = None
    bias_corrected: bool = False
    contrast: str | None = None
    further: tuple[FurtherContrast, ...] = ()
    view: str = "axial"

    @property
    def contrasts(self) -> tuple[str, ...]:
        """Names of an MR's contrasts in the order of an image's channels."""
        return (self.contrast or ONLY_CONTRAST, *(one.name for one in self.further))

    @property
    def has_body(self) -> bool:
        """Whether any slice shows body."""
        return self.body_slices[1] > self.body_slices[0]

    @property
    def image_files(self) -> tuple[str, ...]:
        """Paths of the slices of every contrast, the first one's at `image_file`."""
        further = (f"{self.split}{self.domain}/{one.name}/{self.name}.npy" for one in self.further)
        return (self.image_file, *further)

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
        """As the function `body_file` returns it."""
        return body_file(self.split, self.domain, self.name)

    def to_dict(self) -> dict:
        """Return a JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> "Case":
        """Return the case that `to_dict` wrote."""
        values: dict[str, Any]
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
        further = ({**one, "percentiles": tuple(one["percentiles"])} for one in values.pop("further", ()))
        return cls(**values, further=tuple(FurtherContrast(**one) for one in further))


@dataclass(frozen=True)
class Manifest:
    """A prepared data set: slices of `size` x `size` pixels of `spacing_mm`, `slice_mm` apart (None: as acquired).

    `view` is how they lie in the body, of `data.volumes.slice_frame.VIEWS`.
    """

    size: int
    spacing_mm: float
    slice_mm: float | None
    cases: tuple[Case, ...]
    versions: dict[str, str]
    view: str = "axial"

    def select(self, split: str, domain: str) -> list[Case]:
        """Return the cases of one split and domain, by name."""
        return sorted((c for c in self.cases if (c.split, c.domain) == (split, domain)), key=lambda case: case.name)

    def without(self, patients: Collection[str]) -> "Manifest":
        """Return the data set without the training volumes of some patients."""
        return replace(self, cases=tuple(c for c in self.cases if c.split != "train" or c.patient not in patients))

    def with_only(self, cases: Iterable[Case]) -> "Manifest":
        """Return the data set with only these of its cases."""
        used = {(case.split, case.domain, case.name) for case in cases}
        return replace(self, cases=tuple(c for c in self.cases if (c.split, c.domain, c.name) in used))

    @property
    def contrasts(self) -> tuple[str, ...]:
        """Names of the MR's contrasts in the order of an image's channels; those of all MR of a data set."""
        return next((case.contrasts for case in self.cases if case.domain == "A"), (ONLY_CONTRAST,))

    @property
    def bias_corrected(self) -> bool:
        """Whether the MR was corrected for its bias field; preparation does all MR of a data set alike."""
        return any(case.bias_corrected for case in self.cases)

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
    if not path.exists():
        raise InputError(f"{path}: no such file; make the data set with {prepare_command()}")
    data = read_json(path)
    version = data.pop("format_version", None)
    if version is True or version != FORMAT_VERSION:
        raise InputError(f"{path}: format version {version}, expected {FORMAT_VERSION}; prepare the data set again")
    try:
        cases = tuple(Case.from_dict(case) for case in data.pop("cases"))
        manifest = Manifest(cases=cases, **data)
        problems = [*_manifest_problems(manifest), *(problem for case in cases for problem in case_problems(case))]
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: damaged ({error}); prepare the data set again") from error
    if problems:
        raise InputError(f"{path}: damaged or edited: {'; '.join(problems[:5])}; prepare the data set again")
    check_splits(manifest.cases)
    return manifest


def _manifest_problems(manifest: Manifest) -> list[str]:
    """Return what is wrong with a manifest's own values."""
    lengths = {"spacing_mm": manifest.spacing_mm, "slice_mm": manifest.slice_mm or 1.0}
    problems = [f"{name} {value!r}" for name, value in lengths.items() if not (_is_number(value) and value > 0)]
    named = {case.contrasts for case in manifest.cases if case.domain == "A"}
    problems += [f"MR of different contrasts {sorted(named)}"] if len(named) > 1 else []
    problems += [f"view {manifest.view!r}"] if manifest.view not in VIEWS else []
    problems += ["cases of other views"] if {case.view for case in manifest.cases} - {manifest.view} else []
    return problems if _is_count(manifest.size) and manifest.size else [*problems, f"size {manifest.size!r}"]


def case_problems(case: Case) -> list[str]:
    """Return which values of a case cannot be: what reads it trusts their types, and its name to be a file's."""
    plain = (
        isinstance(case.name, str)
        and 0 < len(case.name.encode(errors="replace")) <= _NAME_BYTES
        and not set(case.name) & set("/\\\0")
    )
    pair = case.percentiles
    first, last = case.body_slices if isinstance(case.body_slices, tuple) and len(case.body_slices) == 2 else (-1, -1)
    counts = (first, last, case.slices)
    frame = case.frame if isinstance(case.frame, dict) else {"size": None}
    good = {
        "name": plain,
        "patient": isinstance(case.patient, str),
        "split": case.split in ("train", "test"),
        "domain": case.domain in ("A", "B"),
        "source_sha256": isinstance(case.source_sha256, str),
        "percentiles": (case.domain == "B" and pair is None) or _is_pair(pair),
        "fat_level": case.fat_level is None or (_is_number(case.fat_level) and case.fat_level > 0),
        "fat_problem": case.fat_problem is None or isinstance(case.fat_problem, str),
        "bias_corrected": isinstance(case.bias_corrected, bool),
        "slices": all(map(_is_count, counts)) and first <= last <= case.slices,
        "in_plane_mm": _is_number(case.in_plane_mm) and case.in_plane_mm > 0,
        "mr_median": case.mr_median is None or _is_number(case.mr_median),
        "hu_histogram": case.hu_histogram is None or _is_counts(case.hu_histogram),
        "hu_slice_spread": case.hu_slice_spread is None or _is_pair(case.hu_slice_spread),
        "section_cm2": case.section_cm2 is None or _is_pair(case.section_cm2),
        "gas_share": _is_number(case.gas_share) if case.section_cm2 else case.gas_share is None,
        "labels": _is_count(case.labels) and case.labels > 0,
        "method": _is_count(case.method),
        "contrast": case.contrast is None or (is_name(case.contrast) and case.domain == "A"),
        "further": not case.further or (case.contrast is not None and _are_contrasts(case)),
        "view": case.view in VIEWS,
        "frame": not frame or _is_count(frame.get("size")),
    }
    return [f"{name} {getattr(case, name)!r} of the case {case.name!r}" for name, fine in good.items() if not fine]


def _are_contrasts(case: Case) -> bool:
    return len(set(case.contrasts)) == len(case.contrasts) and all(
        is_name(one.name)
        and isinstance(one.source_sha256, str)
        and _is_pair(one.percentiles)
        and _is_number(one.mr_median)
        and (one.fat_level is None or (_is_number(one.fat_level) and one.fat_level > 0))
        and isinstance(one.fat_problem, str | None)
        for one in case.further
    )


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_counts(value: object) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(map(_is_count, value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_splits(cases: tuple[Case, ...] | list[Case]) -> None:
    """Refuse cases that share a name in one domain, or a patient or source volume between train and test."""
    check_names([(case.split, case.domain, case.name, case.patient) for case in cases])
    _check_disjoint("source", [(case.split, case.source_sha256, case.name) for case in cases])


def check_names(entries: list[tuple[str, str, str, str]]) -> None:
    """Refuse (split, domain, name, patient) that share a name in one domain, or a patient between train and test."""
    _check_disjoint("patient", [(split, patient, name) for split, _, name, patient in entries])
    names = Counter((domain, name) for _, domain, name, _ in entries)
    twice = sorted(name for (_, name), count in names.items() if count > 1)
    if twice:
        raise InputError(
            f"several volumes would be called {', '.join(twice[:5])}; give them different file or folder names"
        )


def _check_disjoint(what: str, entries: Iterable[tuple[str, str, str]]) -> None:
    """Refuse a value that stands in both splits; entries are (split, value, name)."""
    train, test = ({value: name for part, value, name in entries if part == split} for split in ("train", "test"))
    shared = sorted(train[value] for value in train.keys() & test.keys())
    if shared:
        raise InputError(f"the same {what} is in both train and test: {', '.join(shared[:5])}; leave it in one")
