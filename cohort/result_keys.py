"""What a case's result depends on, and what of that concerns its scores alone."""

from collections.abc import Sequence
from pathlib import Path

from cohort.inputs import CohortCase, exists
from data.volumes.paths import hash_source
from models.synthesis import METHOD_VERSION

_OF_SCORES = ("reference_sha256", "resample_reference")


def result_key(
    case: CohortCase,
    model_sha256: str,
    precision: str,
    chosen: Sequence[str] = (),
    resample_reference: bool = False,
    air_outside: bool = False,
) -> dict:
    """Return everything that a case's result depends on. Raises `InputError` if a file cannot be read.

    `chosen`: names of the images in a DICOM series of several volumes.
    `precision` is the one asked for: machines of one cluster may resolve 'auto' differently, and their results count
    as the same.
    """
    return {
        "input_sha256": case.hash(),
        "series_uid": case.series_uid,
        "mask_sha256": case.mask and hash_source(case.mask),
        "reference_sha256": case.reference and _hash_of_reference(case.reference),
        "model_sha256": model_sha256,
        "precision": precision,
        "method": METHOD_VERSION,
        **({"chosen": list(chosen)} if chosen else {}),
        **({"air_outside": True} if air_outside else {}),
        **({"resample_reference": True} if resample_reference and case.reference else {}),
    }


def is_made(made: dict, wanted: dict, scored: bool) -> bool:
    """Tell whether what was made is what is wanted; where no true CT is given, what is `scored` stays so."""
    if scored and wanted.get("reference_sha256") is None:
        made, wanted = without_reference(made), without_reference(wanted)
    return made == wanted


def without_reference(key: dict) -> dict:
    """Return what the volume depends on: a true CT matters to its scores alone."""
    return {name: value for name, value in key.items() if name not in _OF_SCORES}


def _hash_of_reference(path: Path) -> str:
    """Return the hash of a true CT; a missing one is a matter of scoring, and no reason not to convert."""
    return hash_source(path) if exists(path) else "missing"
