"""Tells results of this project from other volumes, by the records and reports beside them."""

import logging
from pathlib import Path

from data.errors import InputError
from data.prepared.manifest import read_json
from data.volumes.volume import WRITABLE_SUFFIXES, volume_stem, volume_suffix
from evaluation.case_folders import CaseVolumes, search

log = logging.getLogger(__name__)

# Folders of a cohort's extras, whose records lie beside the folder.
_EXTRAS = ("dicom", "mu_maps", "uncertainty")


def check_exchanged(pred: CaseVolumes, ref: CaseVolumes) -> None:
    """Refuse results as references where the predictions are not known to be results; else warn of them.

    Raises:
        InputError: it names the record that tells, and what each option takes.
    """
    if (record := _record_of(ref)) is None:
        return
    if _record_of(pred):
        log.warning(
            "warning: %s %s: synthetic CT, as %s says. The scores tell how far two results agree, not how far they are "
            "from a true CT",
            ref.option, ref.path, record,
        )  # fmt: skip
    else:
        raise InputError(
            f"{ref.option} {ref.path}: synthetic CT, as {record} says, while nothing says so of {pred.option} "
            f"{pred.path}. They seem to be exchanged: {pred.option} takes the synthetic CT, {ref.option} the true CT"
        )


def _record_of(source: CaseVolumes) -> Path | None:
    """Return the record of one of the volumes, None where none has one."""
    found = search(source)
    if not found and source.path.is_dir() and found is not None:  # by a pattern that is the other option's
        found = {path.name: path for path in source.path.iterdir() if volume_suffix(path) in WRITABLE_SUFFIXES}
    volumes = [source.path] if found is None else found.values()
    return next((record for volume in volumes for record in _records(volume) if _is_record(record)), None)


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
