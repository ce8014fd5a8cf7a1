"""Options of `test_pipeline.py`."""

import argparse
from dataclasses import fields
from pathlib import Path

from data.settings.values import positive_int
from options.base_options import finish
from options.cohort_settings import CohortSettings
from options.test_options import (
    add_anonymous,
    add_attenuation,
    add_dicom_choice,
    inference_parser,
    settle_attenuation,
    settle_dicom_choice,
)


def pipeline_parser() -> argparse.ArgumentParser:
    """Return the parser of `test_pipeline.py`."""
    parser = inference_parser(
        "test_pipeline.py",
        "Turn a cohort of MR volumes into synthetic CT: RESULTS_DIR/NAME/<case>.nii.gz, summary.csv and summary.json. "
        "Run again it does what is missing or changed. Exit code: 0 all done, 1 some failed, 2 nothing was started.",
    )
    cohort = parser.add_argument_group("cohort")
    where = cohort.add_mutually_exclusive_group(required=True)
    where.add_argument("--input_dir", type=Path, help="folder that is searched for volume files and DICOM series")
    where.add_argument(
        "--list",
        type=Path,
        metavar="CSV",
        help="table: id, path or a column for each contrast [, reference, mask, series_uid, patient_name, patient_id]",
    )
    cohort.add_argument(
        "--pattern", nargs="+", metavar="[NAME=]GLOB",
        help="which files and DICOM folders below --input_dir, in quotes, e.g. '**/*MR*.nii.gz' (default: all); of "
        "several contrasts a NAME=GLOB each",
    )  # fmt: skip
    add_dicom_choice(
        cohort,
        "which DICOM MR series below --input_dir: those whose description contains this, "
        "in upper or lower case (default: all)",
    )
    cohort.add_argument("--num_test", "--how_many", type=positive_int, metavar="N", help="at most this many volumes")
    cohort.add_argument("--overwrite", action="store_true", help="convert all, also what is up to date")
    cohort.add_argument("--no_html", action="store_true", help="a picture of each case, in place of results pages")
    cohort.add_argument(
        "--num_threads", "--nThreads", type=positive_int, metavar="N",
        help="patients read and prepared, and patients written, at a time beside the one on the device "
        "(default: 1 on a CPU; on a GPU the number of cores, at most 8)",
    )  # fmt: skip
    series = parser.add_argument_group("DICOM series")
    series.add_argument(
        "--dicom",
        action="store_true",
        help="write each synthetic CT as a DICOM series as well: RESULTS_DIR/NAME/dicom/<case>",
    )
    add_anonymous(series)
    add_attenuation(
        parser,
        action="store_true",
        help="write each attenuation at 511 keV, in 1/cm: RESULTS_DIR/NAME/mu_maps/<case>.nii.gz",
    )
    return parser


def parse(arguments: list[str] | None = None) -> CohortSettings:
    """Return the checked options; nothing changes them afterwards."""
    parser = pipeline_parser()
    options = finish(parser, arguments)
    if options.list and (options.pattern or options.series_description):
        parser.error("--pattern and --series_description: they search --input_dir; leave them out with --list")
    if options.anonymous and not options.dicom:
        parser.error("--anonymous: it concerns DICOM series; add --dicom")
    settle_attenuation(parser, options)
    settle_dicom_choice(options)
    return CohortSettings(**{field.name: getattr(options, field.name) for field in fields(CohortSettings)})
