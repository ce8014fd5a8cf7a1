"""Options of `test_pipeline.py`."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.errors import InputError
from data.settings.declaration import option, redeclare
from data.settings.dicom_choice import DicomChoice
from data.settings.published import Command
from data.settings.values import positive_int
from options.base_options import (
    DicomOutput,
    MuMapSettings,
    ReferenceChoice,
    UseSettings,
    parse_use,
    use_parser,
)


@dataclass(frozen=True, kw_only=True)
class CohortSettings(UseSettings, DicomChoice, ReferenceChoice, DicomOutput, MuMapSettings):
    """cohort."""

    input_dir: Path | None = option(
        None, parse=Path, metavar="FOLDER", first=True,
        help="folder to search for volume files and DICOM series; a folder of images, or one with images in testA, is "
             "converted to images and a page",
    )  # fmt: skip
    list: Path | None = option(
        None, parse=Path, metavar="CSV", first=True,
        help="table of cases, in place of --input_dir; columns: id, path or one for each contrast, and optionally "
             "reference, mask, series_uid, patient_name, patient_id",
    )  # fmt: skip
    pattern: Sequence[str] | None = option(
        None, nargs="+", metavar="[NAME=]GLOB", first=True,
        help="which files and DICOM folders below --input_dir, in quotes, e.g. '**/*_MR.nii.gz' (default: all); "
             "several are allowed; for several contrasts a NAME=GLOB each",
    )  # fmt: skip
    reference_pattern: str | None = option(
        None, metavar="PATTERN", first=True,
        help="where the true CT of a case lies below --input_dir, to score against, e.g. '{case}/ct.nii.gz'; cases "
             "without one are converted, too",
    )  # fmt: skip
    num_test: int | None = option(
        None, parse=positive_int, aliases=("--how_many",), metavar="N", help="convert at most this many volumes"
    )
    overwrite: bool = option(False, first=True, help="convert everything again, even what is up to date")
    no_html: bool = option(False, help="write a picture of each case in place of results pages")
    num_threads: int | None = option(
        None, parse=positive_int, aliases=("--nThreads",), metavar="N",
        help="number of patients to prepare, and number to write, while one is on the device (default: 1 on a CPU; "
             "on a GPU the number of cores, at most 8)",
    )  # fmt: skip
    dicom: bool = redeclare(
        DicomOutput, "dicom", False,
        help="also write each synthetic CT as a DICOM series: RESULTS_DIR/NAME/dicom/<case>",
    )  # fmt: skip
    mu_map: bool = redeclare(
        MuMapSettings, "mu_map", False,
        help="write each case's attenuation at 511 keV, in 1/cm: RESULTS_DIR/NAME/mu_maps/<case>.nii.gz",
    )  # fmt: skip
    uncertainty: bool = option(
        False,
        help="write each case's uncertainty, the standard deviation in HU over models, overlapping slabs and "
             "mirrorings: RESULTS_DIR/NAME/uncertainty/<case>.nii.gz",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse options that do not go together.

        Raises:
            InputError: it names them.
        """
        UseSettings.__post_init__(self)
        if not self.input_dir and not self.list:
            raise InputError("--input_dir or --list: one of them is required, a folder to search or a table of cases")
        if self.input_dir and self.list:
            raise InputError("--list: not allowed with --input_dir; expected one of them")
        if self.list and (self.pattern or self.series_description):
            raise InputError("--pattern and --series_description: they search --input_dir; leave them out with --list")
        if self.list and self.reference_pattern:
            raise InputError("--reference_pattern: it searches --input_dir; give a --list the column reference")
        if self.reference_pattern and not self.pattern:
            raise InputError(
                "--reference_pattern: needs --pattern, which says what the MR is called, e.g. --pattern '*/mr.nii.gz'"
            )
        if self.resample_reference and not (self.list or self.reference_pattern):
            raise InputError(
                "--resample_reference does nothing without true CT: give --reference_pattern, or --list with the "
                "column reference"
            )
        if self.anonymous and not self.dicom:
            raise InputError("--anonymous: it concerns DICOM series; add --dicom")
        MuMapSettings.__post_init__(self)


def pipeline_parser() -> argparse.ArgumentParser:
    """Return the parser of `test_pipeline.py`."""
    description = (
        "Convert a cohort of MR volumes to synthetic CT: RESULTS_DIR/NAME/<case>.nii.gz, summary.csv and "
        "summary.json. Run again, it converts only what is missing or changed. Exit code: 0 all done, 1 some failed or "
        "not scored, 2 nothing was started. Example: python test_pipeline.py --name recommended --input_dir patients "
        "--pattern '*/mr.nii.gz'"
    )
    parser = use_parser(CohortSettings, Command.PIPELINE, "--name NAME --input_dir FOLDER", description)
    parser.instead["--reference"] = (
        "give --reference_pattern with --input_dir, or a --list with a column reference (docs/batch_conversion.md)"
    )
    for name in ("mask", "series_uid", "patient_name", "patient_id"):
        parser.instead[f"--{name}"] = f"give a --list with a column {name} (docs/batch_conversion.md)"
    return parser


def parse(arguments: Sequence[str] | None = None) -> CohortSettings:
    """Return the checked settings; nothing changes them afterwards."""
    return parse_use(pipeline_parser(), CohortSettings, Command.PIPELINE, arguments)
