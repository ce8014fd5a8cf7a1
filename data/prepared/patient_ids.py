"""Find patients that are in both MR and CT of an unpaired data set, by their DICOM PatientID; volumes given twice."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pydicom

from data.prepared.manifest import Case
from data.prepared.sources import Source
from data.volumes.dicom import is_slice

log = logging.getLogger(__name__)


def warn_of_same_patients(mr: Sequence[Source], ct: Sequence[Source]) -> None:
    """Warn of DICOM volumes of MR and CT that have the same PatientID; the IDs themselves are not written out."""
    by_id = {found: source.path for source in mr if (found := patient_id(source.path))}
    pairs = [(by_id[found], source.path) for source in ct if (found := patient_id(source.path)) in by_id]
    if pairs:
        log.warning(
            "warning: MR and CT of %d patients have the same PatientID: %s; this is correct for --model paired; "
            "for unpaired training, use MR and CT of different patients, unless anonymisation gave them the same ID",
            len(pairs), ", ".join(f"{a} and {b}" for a, b in pairs),
        )  # fmt: skip


def warn_of_twins(cases: Sequence[Case]) -> None:
    """Warn of volumes of one split and domain whose files are the same, byte by byte."""
    first: dict[tuple, Case] = {}
    for case in cases:
        twin = first.setdefault((case.split, case.domain, case.source_sha256, case.series_uid), case)
        if twin is not case:
            log.warning(
                "warning: %s and %s are the same volume, which counts twice: leave out one of them, e.g. %s, and run "
                "the command again", twin.source, case.source, case.source,
            )  # fmt: skip


def patient_id(path: Path) -> str | None:
    """Return the PatientID of a DICOM folder's, or file's, first slice; None for other files and without one."""
    try:
        files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
        slices = (file for file in files if is_slice(file))
        if (first := next(slices, None)) is None:
            return None
        header = pydicom.dcmread(first, specific_tags=["PatientID"], stop_before_pixels=True, force=True)
        return str(header.get("PatientID") or "").strip() or None
    except Exception as error:  # whoever prepares the volume says why it cannot be read
        log.debug("%s: no PatientID: %s", path, error)
        return None
