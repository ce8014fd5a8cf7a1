"""Options of `test_adapt.py`."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.errors import InputError
from data.settings.declaration import option, redeclare
from data.settings.dicom_choice import DicomChoice
from data.settings.published import Command
from data.volumes.contrasts import split_name
from data.volumes.dicom import holds_slices
from data.volumes.dicom_series import check_text
from data.volumes.volume import WRITABLE_SUFFIXES, volume_suffix, writable_suffix
from options.base_options import (
    DicomOutput,
    MuMapSettings,
    ReferenceChoice,
    UseSettings,
    parse_use,
    use_parser,
)


def is_volume_file(output: Path) -> bool:
    """Tell whether what `--output` names is a volume file; else it is a folder for a DICOM series."""
    return volume_suffix(output) in WRITABLE_SUFFIXES


def file_or_folder(text: str) -> Path:
    """Return the path of a volume file, or of a folder, which exists or ends in a slash."""
    path = Path(text)
    if is_volume_file(path) == text.endswith(os.sep) and not path.is_dir():
        raise argparse.ArgumentTypeError(
            f"{text}: expected a file ending in {' '.join(WRITABLE_SUFFIXES)}, or a folder for a DICOM series, with a "
            f"slash at its end: FOLDER{os.sep}"
        )
    if is_volume_file(path):
        try:
            writable_suffix(path)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return path


def check_for_results(folder: Path) -> None:
    """Refuse a folder of DICOM images for results, which would be lost among them, and what is no folder.

    Raises:
        InputError: it is one of the two.
    """
    if folder.exists() and not folder.is_dir():
        found = "exists and is not a folder"
    elif folder.exists() and holds_slices(folder):
        found = "holds DICOM images"
    else:
        return
    raise InputError(
        f"--output {folder}: {found}; expected a folder for results, in which the DICOM series gets a folder of its own"
    )


def named_path(text: str) -> tuple[str | None, Path]:
    """Return the name of a contrast, None if there is none, and its path."""
    name, path = split_name(text)
    return name, Path(path)


def dicom_text(vr: str) -> Callable[[str], str]:
    """Return the type of options that take a DICOM text: a name (PN) or a long string (LO)."""

    def text_of(text: str) -> str:
        try:
            return check_text(vr, text)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return text_of


@dataclass(frozen=True, kw_only=True)
class PatientSeries(DicomOutput):
    """DICOM series."""

    patient_name: str | None = option(
        None,
        parse=dicom_text("PN"),
        metavar="FAMILY^GIVEN",
        help="patient's name in the DICOM series, if the MR has none, or with --anonymous",
    )
    patient_id: str | None = option(
        None,
        parse=dicom_text("LO"),
        metavar="ID",
        help="patient's ID in the DICOM series, if the MR has none, or with --anonymous",
    )


@dataclass(frozen=True, kw_only=True)
class PatientSettings(UseSettings, DicomChoice, ReferenceChoice, PatientSeries, MuMapSettings):
    """patient."""

    input: list[tuple[str | None, Path]] = option(
        parse=named_path, repeated=True, metavar="[NAME=]PATH", first=True,
        help="MR volume, or folder of one DICOM series; for several contrasts one --input NAME=PATH each",
    )  # fmt: skip
    series_uid: str | None = option(None, help="which DICOM series of the folder")
    mask: Path | None = option(None, parse=Path, help="body mask on the MR's grid (default: computed)")
    reference: Path | None = option(
        None, parse=Path, metavar="PATH", first=True, help="true CT on the MR's grid: the result is scored against it"
    )
    output: Path | None = option(
        None, parse=file_or_folder, metavar="PATH", first=True,
        help="where to write the synthetic CT: a volume file (default: RESULTS_DIR/NAME/<patient>.nii.gz), or a "
             "folder, with a trailing slash, for a DICOM series <patient>/ with report, picture and page beside it",
    )  # fmt: skip
    no_mirrored: bool = option(False, help="convert each slice once, without averaging over mirrorings: faster")
    no_solid_body: bool = option(
        False, first=True, help="do not fill air inside the body with tissue (models that do, like recommended)"
    )
    uncertainty: Path | None = option(
        None, parse=Path, metavar="FILE",
        help="write the uncertainty: the standard deviation in HU over models, overlapping slabs and mirrorings",
    )  # fmt: skip
    volume_only: bool = option(False, help="write no picture, page or report beside the volume")
    overwrite: bool = option(
        False, first=True, help="replace existing files that this command did not make from this input"
    )
    dicom: Path | None = redeclare(DicomOutput, "dicom")
    mu_map: Path | None = redeclare(MuMapSettings, "mu_map")

    def __post_init__(self) -> None:
        """Refuse options that do not go together.

        Raises:
            InputError: it names them.
        """
        UseSettings.__post_init__(self)
        in_output = self.output is not None and not is_volume_file(self.output)
        if self.output and in_output:
            check_for_results(self.output)
        if self.dicom and in_output:
            raise InputError(
                f"--output {self.output} and --dicom {self.dicom}: two DICOM series; leave one of them out"
            )
        if not (self.dicom or in_output) and (self.patient_name or self.patient_id or self.anonymous):
            raise InputError(
                "--patient_name, --patient_id, --anonymous: they concern a DICOM series; add --dicom FOLDER"
            )
        MuMapSettings.__post_init__(self)
        if self.resample_reference and not self.reference:
            raise InputError("--resample_reference does nothing without --reference")
        if self.volume_only and self.reference:
            raise InputError("--volume_only and --reference: scores are in the report; leave one of them out")
        for name, path in (("mu_map", self.mu_map), ("uncertainty", self.uncertainty)):
            if path and not is_volume_file(path):
                raise InputError(f"--{name} {path}: expected a file ending in {' '.join(WRITABLE_SUFFIXES)}")
            if path:
                writable_suffix(path)


def test_parser() -> argparse.ArgumentParser:
    """Return the parser of `test_adapt.py`."""
    description = "Convert one patient's MR to a synthetic CT in HU on the MR's own grid."
    return use_parser(PatientSettings, Command.ADAPT, "--name NAME --input PATH", description)


test_parser.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test


def parse(arguments: Sequence[str] | None = None) -> PatientSettings:
    """Return the checked settings; nothing changes them afterwards."""
    return parse_use(test_parser(), PatientSettings, Command.ADAPT, arguments)
