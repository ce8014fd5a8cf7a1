"""Options of `test_adapt.py`, and those that it shares with `test_pipeline.py`."""

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.errors import InputError
from data.settings.values import positive_float, positive_int
from data.values.attenuation import DEFAULT_KVP, LINES, MuSettings
from data.volumes.contrasts import split_name
from data.volumes.dicom_series import check_text
from data.volumes.volume import WRITABLE_SUFFIXES, volume_suffix
from options.base_options import base_parser, finish


def inference_parser(prog: str, description: str, several: bool = False) -> argparse.ArgumentParser:
    """Return a parser with the options of the commands that use a trained model, or `several`."""
    parser = base_parser(prog, description, precision="auto", several=several)
    use = parser.add_argument_group("use of the model")
    use.add_argument("--results_dir", type=Path, default=Path("results"), help="where results go")
    use.add_argument(
        "--batch_size", "--batchSize", type=batch_size, default="auto", metavar="N",
        help="slices in one pass; auto: by the free memory",
    )  # fmt: skip
    use.add_argument("--spacing_mm", type=positive_float, help="pixel spacing, for a model trained on plain images")
    return parser


def batch_size(text: str) -> int | None:
    """Return a number of slices, or None for 'auto'."""
    return None if text == "auto" else positive_int(text)


def named_path(text: str) -> tuple[str | None, Path]:
    """Return the name of a contrast, None where none is said, and its path."""
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


def add_dicom_choice(group: argparse._ArgumentGroup | argparse.ArgumentParser, series: str) -> None:
    """Add the options that choose a DICOM series by its description, helped by `series`, and among its images."""
    group.add_argument("--series_description", type=regular_expression, metavar="REGEX", help=series)
    group.add_argument(
        "--contrast",
        help="which volume of a DICOM series that holds several; the error message lists their names",
    )
    group.add_argument("--echo", type=positive_int, metavar="N", help="which echo of such a series: 1 is the earliest")


def settle_dicom_choice(options: argparse.Namespace) -> None:
    """Put what is chosen of a DICOM series together as `chosen`, the names that its images must have."""
    echo = f"echo{options.echo}" if options.echo else None
    options.chosen = [name for name in (options.contrast, echo) if name]
    del options.contrast, options.echo


def regular_expression(text: str) -> re.Pattern:
    """Return a regular expression that ignores case."""
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r}: not a regular expression: {error}") from error


def add_anonymous(group: argparse._ArgumentGroup) -> None:
    """Add the option that every command has that writes DICOM."""
    group.add_argument(
        "--anonymous", action="store_true",
        help="leave patient, study and source images of a DICOM MR out of the DICOM series",
    )  # fmt: skip


def add_attenuation(parser: argparse.ArgumentParser, **mu_map: Any) -> None:
    """Add the options of the mu-map; `mu_map`: how the one that asks for it is declared."""
    pet = parser.add_argument_group("PET")
    pet.add_argument("--mu_map", **mu_map)
    pet.add_argument(
        "--kvp", type=int, choices=LINES,
        help=f"tube voltage of the CT that the model was trained on (default: {DEFAULT_KVP})",
    )  # fmt: skip
    pet.add_argument(
        "--pet_fwhm_mm",
        type=positive_float,
        help="smooth the mu-map to this resolution of the PET (default: no smoothing)",
    )


def settle_attenuation(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Put the options of the mu-map together as `mu_settings`, None where there is none."""
    if not options.mu_map and (options.kvp or options.pet_fwhm_mm):
        parser.error("--kvp, --pet_fwhm_mm: they concern a mu-map; add --mu_map")
    options.mu_settings = MuSettings(options.kvp or DEFAULT_KVP, options.pet_fwhm_mm) if options.mu_map else None
    del options.kvp, options.pet_fwhm_mm


def test_parser() -> argparse.ArgumentParser:
    """Return the parser of `test_adapt.py`."""
    parser = inference_parser(
        "test_adapt.py", "Turn one patient's MR into a synthetic CT in HU on the MR's own grid.", several=True
    )
    parser.add_argument(
        "--no_mirrored", action="store_true", help="convert each slice once, not as the mean of its mirrorings: faster"
    )
    parser.add_argument("--no_solid_body", action="store_true", help="leave air inside the body as the model gives it")
    patient = parser.add_argument_group("patient")
    patient.add_argument(
        "--input", type=named_path, action="append", required=True, metavar="[NAME=]PATH",
        help="MR volume, or folder of one DICOM series; of several contrasts one --input NAME=PATH each",
    )  # fmt: skip
    patient.add_argument("--series_uid", help="which DICOM series of the folder")
    add_dicom_choice(
        patient,
        "which DICOM series of the folder: the one whose description contains this",
    )
    patient.add_argument("--mask", type=Path, help="body mask on the MR's grid (default: computed)")
    patient.add_argument("--reference", type=Path, help="true CT on the MR's grid: the result is scored against it")
    patient.add_argument(
        "--resample_reference", action="store_true", help="put a --reference that lies on another grid onto the MR's"
    )
    patient.add_argument(
        "--output", help="the synthetic CT: a volume file (default: RESULTS_DIR/NAME/<patient>.nii.gz), or the new "
        "folder of a DICOM series, with a slash at its end",
    )  # fmt: skip
    patient.add_argument(
        "--uncertainty", type=Path, metavar="FILE",
        help="write the uncertainty: the standard deviation in HU over models, overlapping slabs and mirrorings",
    )  # fmt: skip
    patient.add_argument("--overwrite", action="store_true", help="replace files that this command did not make of it")
    series = parser.add_argument_group("DICOM series")
    series.add_argument("--dicom", type=Path, metavar="FOLDER", help="write the synthetic CT as a DICOM series as well")
    series.add_argument("--patient_name", type=dicom_text("PN"), metavar="FAMILY^GIVEN", help="where the MR says none")
    series.add_argument("--patient_id", type=dicom_text("LO"), metavar="ID", help="where the MR says none")
    add_anonymous(series)
    add_attenuation(
        parser, type=Path, metavar="FILE", help="write the attenuation at 511 keV, in 1/cm, as a volume file"
    )
    return parser


test_parser.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test


def is_file(output: Path) -> bool:
    """Tell whether what `--output` names is a volume file; else it is the folder of a DICOM series."""
    return volume_suffix(output) in WRITABLE_SUFFIXES


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the checked options; nothing changes them afterwards."""
    parser = test_parser()
    options = finish(parser, arguments)
    settle_dicom_choice(options)
    series = [options.dicom] if options.dicom else []
    if options.output is not None:
        text, options.output = options.output, Path(options.output)
        if is_file(options.output) == text.endswith(os.sep) and not options.output.is_dir():
            parser.error(
                f"--output {text}: expected a file ending in {' '.join(WRITABLE_SUFFIXES)}, or a folder for a DICOM "
                f"series, with a slash at its end: FOLDER{os.sep}"
            )
        series += [] if is_file(options.output) else [options.output]
    if len(series) > 1:
        parser.error(f"--output {options.output} and --dicom {options.dicom}: two DICOM series; leave one of them out")
    if not series and (options.patient_name or options.patient_id or options.anonymous):
        parser.error("--patient_name, --patient_id, --anonymous: they concern a DICOM series; add --dicom FOLDER")
    settle_attenuation(parser, options)
    for option in ("mu_map", "uncertainty"):
        path = getattr(options, option)
        if path and not is_file(path):
            parser.error(f"--{option} {path}: expected a file ending in {' '.join(WRITABLE_SUFFIXES)}")
    if options.resample_reference and not options.reference:
        parser.error("--resample_reference does nothing without --reference")
    if len(set(options.name)) < len(options.name):
        parser.error(f"--name {' '.join(options.name)}: a model is named twice; name each once")
    return options
