"""A volume to prepare: where it comes from, where its files go, and what is known of it from an earlier run."""

from dataclasses import dataclass, replace
from pathlib import Path

from data.errors import InputError
from data.files import read_json
from data.prepared.manifest import Case, body_file, case_problems
from data.prepared.sources import Source
from data.volumes.paths import hash_source

# What the record of a case says while its files are written for the first time.
BEGUN = {"begun": "a run of scripts.prepare_dataset that has not ended yet"}


@dataclass(frozen=True)
class Job:
    """One volume to prepare into `root`, and what was recorded of it before (None: nothing that still holds).

    `bias_correction`: whether an MR is corrected for its bias field. `view`: how its slices lie.
    """

    root: Path
    source: Source
    split: str
    domain: str
    known: Case | None = None
    bias_correction: bool = False
    view: str = "axial"

    @property
    def corrects_bias(self) -> bool:
        """Whether this volume is corrected: CT has no bias field."""
        return self.bias_correction and self.domain == "A"

    @property
    def analysed(self) -> Case:
        """What the first pass has found."""
        assert self.known is not None, "the first pass has analysed it"
        return self.known

    @property
    def record_path(self) -> Path:
        """Where the case's record goes."""
        return self.root / f"{self.split}{self.domain}" / f"{self.source.name}.json"

    @property
    def body_path(self) -> Path:
        """Where the body mask on the volume's own grid goes."""
        return self.root / body_file(self.split, self.domain, self.source.name)

    def is_body_file(self, path: Path) -> bool:
        """Tell whether a supplied mask is that very file."""
        return path.resolve() == self.body_path.resolve()

    def supplied_mask(self) -> Path | None:
        """Return the mask that the user supplied, or the body mask under `bodies/` if it was corrected by hand.

        Raises:
            InputError: both, and they are different files.
        """
        written = self.known.body_sha256 if self.known else None
        corrected = written is not None and self.body_path.exists() and hash_source(self.body_path) != written
        if self.source.mask is None:
            return self.body_path if corrected else None
        if corrected and not self.is_body_file(self.source.mask):
            raise InputError(
                f"{self.body_path}: corrected by hand, but {self.source.mask} is supplied as the mask; leave out the "
                "mask option to use the corrected mask, or remove it"
            )
        return self.source.mask


def open_job(root: Path, source: Source, split: str, domain: str, bias_correction: bool, view: str) -> Job:
    """Return the job of a source, with what an earlier run recorded, if that can be read."""
    job = Job(root, source, split, domain, bias_correction=bias_correction, view=view)
    try:
        known = Case.from_dict(read_json(job.record_path))
        fine = not case_problems(known)
    except (InputError, TypeError, AttributeError):
        fine = False
    return replace(job, known=known) if fine else job


def is_begun(record: Path) -> bool:
    """Tell whether a record says that a run which has not ended writes, or wrote, the files of its case."""
    try:
        return read_json(record) == BEGUN
    except InputError:
        return False
