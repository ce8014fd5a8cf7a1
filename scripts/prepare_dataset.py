"""Prepare volumes for training: `python -m scripts.prepare_dataset --mr GLOB --ct GLOB --out DIR`.

Resamples all slices to one pixel spacing, computes body masks, removes the couch from CT, and writes slices with a
manifest. MR and CT may be of different patients; --model simulated_pairs needs CT alone. Another run prepares only
what is new or changed. A case is named after its file, or after the folder of a file that is just called mr.nii.gz or
the like. Wrong body masks can be corrected: edit them in DIR/bodies, and run the command again.
"""

import argparse
import logging
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from data.commands import python_command
from data.errors import InputError, counted, run_command
from data.prepared.contrast_sources import find_contrasts
from data.prepared.manifest import Manifest
from data.prepared.patient_ids import warn_of_same_patients
from data.prepared.pixel_spacing import lost_body_message
from data.prepared.preparation import prepare_dataset
from data.prepared.sources import Source, find_sources
from data.prepared.volume_jobs import Failure
from data.settings.declaration import HelpFormatter
from data.settings.parser import CommandParser, show_first
from data.settings.values import positive_int
from data.volumes.slice_frame import VIEWS
from visualization.bodies_page import write_bodies_page

log = logging.getLogger(__name__)


def prepare_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = CommandParser(
        short_help=True, prog="python -m scripts.prepare_dataset",
        usage="%(prog)s [--mr GLOB] --ct GLOB --out DIR [options]",
        description=__doc__, formatter_class=HelpFormatter,
    )  # fmt: skip
    _add_volumes(
        parser.add_argument_group(
            "volumes", "one or more globs or paths each, as in --ct 'site1/*/CT.nii.gz' 'site2/*.nii.gz'"
        )
    )
    _add_slices(parser.add_argument_group("slices"))
    _add_names(parser.add_argument_group("cases and patients"))
    parser.add_argument(
        "--workers", type=positive_int, metavar="N", help="processes (default: one for each core, at most 8)"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace files in --out that preparation did not make, and prepare an existing data set again with "
        "other slices",
    )
    parser.add_argument("--no_html", action="store_true", help="no page of the body masks")
    return parser


def _add_volumes(group: argparse._ArgumentGroup) -> None:
    first = [
        group.add_argument(
            "--mr", nargs="+", action="append", metavar="[NAME=]GLOB",
            help="MR volumes or DICOM folders to train on; for several contrasts --mr NAME=GLOB each; not needed for "
            "--model simulated_pairs, which simulates MR from the CT",
        ),
        group.add_argument(
            "--ct", nargs="+", action="extend", required=True, metavar="GLOB",
            help="CT volumes or DICOM folders to train on",
        ),
        group.add_argument(
            "--test_mr", nargs="+", action="append", metavar="[NAME=]GLOB",
            help="MR volumes of test patients, as in --mr",
        ),
        group.add_argument(
            "--test_ct", nargs="+", action="extend", metavar="GLOB", help="CT volumes of test patients"
        ),
        group.add_argument(
            "--mr_mask", nargs="+", action="extend", metavar="GLOB",
            help="body masks of the MR, matched by name or folder; computed where missing",
        ),
        group.add_argument(
            "--ct_mask", nargs="+", action="extend", metavar="GLOB", help="body masks of the CT, in the same way"
        ),
        group.add_argument(
            "--out", required=True, type=Path, metavar="DIR", help="data set to write, e.g. datasets/NAME"
        ),
    ]  # fmt: skip
    for action in first:
        show_first(action)
    group.add_argument(
        "--series_uid", nargs="+", action="extend", metavar="UID",
        help="in a DICOM folder with several series, use the one with one of these UIDs",
    )  # fmt: skip


def _add_slices(group: argparse._ArgumentGroup) -> None:
    show_first(group.add_argument("--size", type=int, default=256, help="rows and columns of the slices"))
    spacing = group.add_argument(
        "--spacing_mm", type=_spacing, default="auto",
        help="pixel spacing in mm; auto: the finest at which every body fits",
    )  # fmt: skip
    show_first(spacing)
    group.add_argument(
        "--slice_mm", type=_millimetres, help="resample to this slice spacing (default: keep the acquired slices)"
    )
    group.add_argument(
        "--view", choices=tuple(VIEWS), default="axial",
        help="orientation of the slices, independent of that of the volumes; test_adapt.py --name A B C fuses models "
             "of several views",
    )  # fmt: skip
    group.add_argument(
        "--bias_correction",
        action="store_true",
        help="correct the coils' shading of the MR, here and whenever the model is used",
    )


def _add_names(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--case_regex",
        help="part of a volume's path that names its case, e.g. 'raw/([^/]+)' (default: the parts that differ)",
    )
    group.add_argument("--patient_regex", help="part of a case's name that names its patient, e.g. '(STS_[0-9]+)'")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command's options."""
    parser = prepare_parser()
    options = parser.parse_args(arguments)
    if options.size < 4 or options.size % 4:
        parser.error(f"--size {options.size}: expected a positive multiple of 4, which the networks need")
    for option, needs in (("mr_mask", ("mr",)), ("bias_correction", ("mr", "test_mr"))):
        if getattr(options, option) and not any(getattr(options, name) for name in needs):
            parser.error(f"--{option} does nothing without --mr")
    options.workers = options.workers or min(os.cpu_count() or 1, 8)
    options.series_uid = options.series_uid or []
    return options


def _spacing(text: str) -> float | None:
    if text == "auto":
        return None
    return _millimetres(text)


def _millimetres(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a positive number of mm")
    return value


def find_groups(options: argparse.Namespace) -> dict[tuple[str, str], list[Source]]:
    """Return the volumes that the options name, by (split, domain)."""
    how = (options.patient_regex, options.series_uid, options.case_regex)
    mr = find_contrasts("--mr", options.mr, options.mr_mask or (), *how) if options.mr else []
    groups = {("train", "A"): mr} if mr else {}
    groups["train", "B"] = find_sources(options.ct, options.ct_mask or (), *how)
    if options.test_mr:
        names = [source.contrast for first in mr[:1] for source in (first, *first.further) if source.contrast]
        groups["test", "A"] = find_contrasts("--test_mr", options.test_mr, (), *how, names)
    if options.test_ct:
        groups["test", "B"] = find_sources(options.test_ct, (), *how)
    return groups


def main(arguments: list[str] | None = None) -> int:
    """Prepare, report, and return 0, or 1 if a volume failed."""
    options = parse(arguments)
    log.info("searching for volumes")
    groups = find_groups(options)
    warn_of_same_patients(groups.get(("train", "A"), ()), groups["train", "B"])
    unknown = set(options.series_uid) - {
        one.series_uid for found in groups.values() for source in found for one in (source, *source.further)
    }
    if unknown:
        raise InputError(f"--series_uid {' '.join(sorted(unknown))}: in none of the DICOM folders")
    manifest, failures = prepare_dataset(
        options.out, groups, options.size, options.spacing_mm, options.slice_mm, options.workers, options.overwrite,
        options.bias_correction, options.view,
    )  # fmt: skip
    report(options, groups, manifest, failures)
    page = None if options.no_html else page_of_masks(options, groups, manifest, failures)
    if failures:
        log.error(
            "%d of %d volumes failed%s, and are not in the data set; if they belong there, fix them and run the "
            "command again",
            len(failures), len(manifest.cases) + len(failures), f", listed on {page}" if page else "",
        )  # fmt: skip
        return 1
    say_what_is_next(options, manifest, page)
    return 0


def report(
    options: argparse.Namespace, groups: dict[tuple[str, str], list[Source]], manifest: Manifest,
    failures: Sequence[Failure],
) -> None:  # fmt: skip
    """Log what was prepared, what is lost of it, and what failed."""
    for case in manifest.cases:
        if case.lost_voxels:
            log.warning("warning: %s", lost_body_message(case, manifest.size, manifest.spacing_mm))
    log.info(
        "%s: %s slices of %d x %d pixels of %g mm", options.out, manifest.view, manifest.size, manifest.size,
        manifest.spacing_mm,
    )  # fmt: skip
    if len(manifest.contrasts) > 1:
        log.info("  contrasts: %s", ", ".join(manifest.contrasts))
    for split, domain in groups:
        cases = manifest.select(split, domain)
        volumes = "1 volume" if len(cases) == 1 else f"{len(cases)} volumes"
        log.info("  %s%s  %s, %d slices", split, domain, volumes, sum(case.slices for case in cases))
    for failure in failures:
        log.error("failed: %s", failure.reason)


def page_of_masks(
    options: argparse.Namespace, groups: dict[tuple[str, str], list[Source]], manifest: Manifest,
    failures: Sequence[Failure],
) -> Path | None:  # fmt: skip
    """Write the page of the body masks and return it; one that fails is a warning, since the data set is there."""
    try:
        return write_bodies_page(options.out, manifest, groups, failures, options.workers)
    except InputError as error:
        log.warning("warning: no page of the body masks: %s", error)
        return None


def say_what_is_next(options: argparse.Namespace, manifest: Manifest, page: Path | None) -> None:
    """Log where the masks can be looked at, and the commands that train."""
    root = shlex.quote(str(options.out))
    log.info("look at the body masks first: %s", page or options.out / "bodies")
    mr, ct = ({case.patient for case in manifest.select("train", domain)} for domain in "AB")
    if both := mr & ct:
        log.info(
            "next: %s   (%s with both MR and CT: registered pairs, or synthetic CT for self-training)",
            python_command("train.py", "--model", "paired", "--dataroot", options.out, "--name", "NAME"),
            counted(len(both), "patient"),
        )
    log.info(
        "next: bash scripts/train_recommended.sh %s   (T1: it simulates MR from the CT; a GPU takes minutes)", root
    )
    log.info("or:   the small try, minutes on a CPU: its command is in README.md, step 2")
    if options.mr:
        extractor = python_command("-m", "ct_segmentation.train", "--dataroot", options.out)
        published = python_command("train.py", "--dataroot", options.out, "--name", "NAME")
        log.info("or:   %s && %s   (the published method; its shape extractor first)", extractor, published)
    else:
        lacking = "other methods" if options.test_mr else "other methods, and validation on real MR,"
        log.info(
            "prepared without MR; --model simulated_pairs needs none, but %s do: add --mr GLOB and "
            "--spacing_mm %g to this command", lacking, manifest.spacing_mm,
        )  # fmt: skip


if __name__ == "__main__":
    run_command(main)
