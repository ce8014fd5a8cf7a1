"""Split the patients of a prepared data set into training and validation, and find the true CT of an MR."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data.errors import InputError
from data.prepared.manifest import Case, Manifest
from data.volumes.slice_frame import SliceFrame
from data.volumes.volume import resampling

log = logging.getLogger(__name__)

# The share of the training patients that validates where nobody said another.
VAL_SHARE = 0.15
VALIDATION_FACTS = ("patients to validate with", "volumes to validate with")
# How far apart numbers of two frames (mm, direction cosines) may be where they are one.
_SAME_GRID = 1e-3


class OfPatient(Protocol):
    """What a split must know of a volume, or of a set of images."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def patient(self) -> str:
        """Whose it is."""
        ...

    @property
    def domain(self) -> str:
        """'A' of MR, 'B' of CT."""
        ...

    @property
    def source_sha256(self) -> str:
        """The hash of its files."""
        ...


def split_by_patient[C: OfPatient](cases: Sequence[C], val_share: float, seed: int) -> tuple[list[C], list[C]]:
    """Return the cases to train on and those to validate with; no patient has cases in both.

    Patients are ranked by a hash of `seed` and their names, so that the split depends on nothing else; the first
    `val_share` of them, at least one, validate.

    Raises:
        InputError: fewer than two patients, or one source volume under the names of two patients.
    """
    patients = sorted({case.patient for case in cases}, key=lambda name: hash_number(name, seed))
    if len(patients) < 2:
        modality = "MR" if {case.domain for case in cases} == {"A"} else "CT"
        raise InputError(
            f"{len(patients)} {modality} patients to train on ({', '.join(patients)}); expected 2 or more: some are "
            "needed for validation (--patient_regex of scripts.prepare_dataset defines what a patient is)"
        )
    count = min(max(round(val_share * len(patients)), 1), len(patients) - 1)
    chosen = set(patients[:count])
    train = [case for case in cases if case.patient not in chosen]
    validation = [case for case in cases if case.patient in chosen]
    known = {case.source_sha256: case for case in train}
    for case in validation:
        if twin := known.get(case.source_sha256):
            raise InputError(
                f"{case.name} and {twin.name} are the same volume under the patients {case.patient} and "
                f"{twin.patient}; prepare the data set with one of them"
            )
    return train, validation


def hash_number(name: str, seed: int) -> int:
    """Return a number of 256 bits that follows from a name and a seed alone."""
    return int(hashlib.sha256(f"{seed}:{name}".encode()).hexdigest(), 16)


@dataclass(frozen=True)
class ValidationCases:
    """The prepared volumes that validate.

    Attributes:
        mr, ct: the volumes, by name; no training sees them.
        left_out: patients of the training split that they are of: `Manifest.without` them is trained on.
    """

    mr: tuple[Case, ...]
    ct: tuple[Case, ...]
    left_out: frozenset[str]

    def facts(self) -> dict[str, str]:
        """Return by `VALIDATION_FACTS` who validates: a run must neither train on them later nor measure others."""
        patients = {case.patient for case in (*self.mr, *self.ct)} | self.left_out
        volumes = [f"{m} {case.name}" for m, cases in (("MR", self.mr), ("CT", self.ct)) for case in cases]
        return dict(zip(VALIDATION_FACTS, (", ".join(sorted(patients)), ", ".join(volumes)), strict=True))

    def true_ct(self, mr: Case) -> Case | None:
        """Return the CT of an MR's patient on the very grid of that MR, the first by name; None if there is none."""
        of_patient = [case for case in self.ct if case.patient == mr.patient]
        on_grid = [case for case in of_patient if same_frame(mr, case)]
        if of_patient and not on_grid:
            log.info(
                "%s: the patient's CT (%s) lies on another grid, so it cannot serve as the true CT; register it to the "
                "MR and resample it to the MR's grid: %s",
                mr.name, ", ".join(case.name for case in of_patient), resampling("CT", "MR"),
            )  # fmt: skip
        return on_grid[0] if on_grid else None


def validation_cases(manifest: Manifest, val_share: float | None, seed: int) -> ValidationCases:
    """Return what validates: of each domain the test split, or else, by `split_by_patient`, a share of the training's.

    A patient held back in one domain is held back in the other too. `val_share`: None, where nobody said it, is
    `VAL_SHARE`.

    Raises:
        InputError: too few patients to hold any back, nothing would be left to train on, or a share was said and there
            are test patients of both domains.
    """
    tested = {domain: _with_body(manifest.select("test", domain)) for domain in "AB"}
    if val_share is not None and all(tested.values()):
        names = sorted({case.patient for cases in tested.values() for case in cases})
        raise InputError(
            f"--val_patients {val_share:g} does nothing: the data set has test patients ({', '.join(names)}), which "
            "are used for validation; leave it out. A run that was begun without them cannot go on with them: start a "
            "new one, or prepare the data set without --test_mr and --test_ct"
        )
    held_back: set[str] = set()
    domains = [domain for domain in "AB" if manifest.select("train", domain)]  # of CT alone MR is simulated
    for domain in (domain for domain in domains if not tested[domain]):
        validation = split_by_patient(manifest.select("train", domain), val_share or VAL_SHARE, seed)[1]
        held_back.update(case.patient for case in validation)

    def chosen(domain: str) -> tuple[Case, ...]:
        held = [case for case in manifest.select("train", domain) if case.patient in held_back]
        return tuple(tested[domain] or _with_body(held))

    rest = manifest.without(held_back)
    for domain, modality in (("A", "MR"), ("B", "CT")):
        if domain in domains and not rest.select("train", domain):
            raise InputError(
                f"validation would hold back every patient with {modality} ({', '.join(sorted(held_back))}); expected "
                "some to train on: prepare more patients, or separate ones for validation, with --test_mr and "
                "--test_ct of scripts.prepare_dataset"
            )
    return ValidationCases(chosen("A"), chosen("B"), frozenset(held_back))


def _with_body(cases: list[Case]) -> list[Case]:
    return [case for case in cases if case.has_body]


def same_frame(a: Case, b: Case) -> bool:
    """Tell whether the slices of two cases lie at the same places of the patient."""
    if not a.frame or not b.frame:
        return False
    first, second = SliceFrame.from_dict(a.frame), SliceFrame.from_dict(b.frame)
    return first.source_size == second.source_size and all(
        np.allclose(x, y, rtol=0, atol=_SAME_GRID)
        for x, y in (
            (first.source_spacing, second.source_spacing),
            (first.source_origin, second.source_origin),
            (first.source_direction, second.source_direction),
        )
    )
