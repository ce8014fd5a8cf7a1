"""Tells results of this project from other volumes, by the records and reports beside them, and by their headers."""

import logging
from pathlib import Path

from data.errors import InputError
from data.files import read_json
from data.volumes.dicom_series import written_here
from data.volumes.volume import WRITABLE_SUFFIXES, description_in, volume_stem, volume_suffix
from evaluation.case_folders import CaseVolumes, search

log = logging.getLogger(__name__)

# Folders of a cohort's extras, whose records lie beside the folder.
_EXTRAS = ("dicom", "mu_maps", "uncertainty")
# What the header of a result says, by the direction of its model.
SYNTHETIC = {"AtoB": "synthetic CT in HU, computed from MR", "BtoA": "synthetic MR, computed from CT"}


def check_exchanged(pred: CaseVolumes, ref: CaseVolumes) -> None:
    """Refuse results as references where the predictions are not known to be results; else warn of them.

    Raises:
        InputError: it says what tells, and what each option takes.
    """
    if (told_by := _result_in(ref)) is None:
        return
    if _result_in(pred):
        log.warning("warning: %s", _not_true(f"{ref.option} {ref.path}", told_by))
    else:
        raise InputError(
            f"{ref.option} {ref.path}: a synthetic CT according to {told_by}, but nothing marks {pred.option} "
            f"{pred.path} as one. They seem to be swapped: {pred.option} takes the synthetic CT, {ref.option} the true "
            "CT"
        )


def reference_warnings(option: str, reference: Path) -> list[str]:
    """Return the warning of a reference that is a result of this project; `option`: that which names it."""
    told_by = result_told_by(reference)
    return [_not_true(f"{option} {reference}", told_by)] if told_by else []


def result_told_by(volume: Path) -> str | None:
    """Return what tells that a volume is a result of this project, in words; None for another one.

    Args:
        volume: a file, or the folder of a DICOM series.
    """
    if (record := next(filter(_is_record, _records(volume)), None)) is not None:
        return str(record)
    if volume.is_dir():
        first = next((file for file in sorted(volume.iterdir()) if file.is_file()), None)
        return "its header" if first and written_here(first) else None
    return "its header" if description_in(volume).startswith(SYNTHETIC["AtoB"]) else None


def _result_in(source: CaseVolumes) -> str | None:
    """Return what tells that one of the volumes is a result, None where nothing does."""
    found = search(source)
    if not found and source.path.is_dir() and found is not None:  # by a pattern that is the other option's
        found = {path.name: path for path in source.path.iterdir() if volume_suffix(path) in WRITABLE_SUFFIXES}
    volumes = [source.path] if found is None else found.values()
    return next(filter(None, map(result_told_by, volumes)), None)


def _records(volume: Path) -> list[Path]:
    """Return where a cohort's record of a volume, or of an extra in a folder of its own, and a patient's report lie."""
    name = f"{volume_stem(volume) if volume.is_file() else volume.name}.json"
    folder = volume.absolute().parent
    cohort = folder.parent if folder.name in _EXTRAS else folder
    return [cohort / "records" / name, folder / name]


def _is_record(path: Path) -> bool:
    try:
        data = read_json(path) if path.is_file() else None
    except InputError:
        return False
    return isinstance(data, dict) and {"case", "input", "made"} <= data.keys() and bool(data["made"])


def _not_true(reference: str, told_by: str) -> str:
    return (
        f"{reference}: synthetic CT, as {told_by} says. The scores tell how far two results agree, not how far they "
        "are from a true CT"
    )
