"""Score synthetic CT against true CT: `python -m scripts.evaluate --pred PATH --ref PATH`.

Prints a row of scores for each case, and their mean. Scores are computed inside the body of the true CT, or inside
--mask; with --mr, only where the MR has signal. Every path is one volume or a folder of cases. Cases are matched by
name. Where names do not match, the error proposes a pattern. True CT without a result is not scored. For example:

    python -m scripts.evaluate --pred results --json results/scores.json \\
        --ref patients --ref_pattern '{case}/{case}_CT.nii.gz' \\
        --mr patients --mr_pattern '{case}/{case}_MR.nii.gz'
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from data.errors import InputError, run_command
from data.files import read_json
from data.settings.parser import CommandParser
from data.volumes.outputs import check_free
from evaluation.case_folders import CaseVolumes
from evaluation.cases import find_cases
from evaluation.origin import check_exchanged
from evaluation.report import describe_mask, format_report, score_cohort, write_report

log = logging.getLogger(__name__)

_INPUTS = {
    "pred": "synthetic CT in HU",
    "ref": "true CT in HU, on the grid of --pred, or on another one with --resample_reference",
    "mr": "the MR: score only where it has signal (above 0)",
    "mask": "a mask: score only where it is not 0 (default: the body found in the true CT)",
}
_KINDS = {"pred": "sct", "ref": "ct", "mr": "mr", "mask": "mask"}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="python -m scripts.evaluate", usage="%(prog)s --pred PATH --ref PATH [options]", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    group = parser.add_argument_group("volumes", "each is one volume, or a folder of cases")
    for name, what in _INPUTS.items():
        group.add_argument(f"--{name}", type=Path, required=name in ("pred", "ref"), metavar="PATH", help=what)
    group = parser.add_argument_group(
        "names of cases",
        "where a case lies below the folder, with {case} for its name; without a pattern every volume\n"
        "file in the folder is a case, called like the file",
    )
    for name, kind in _KINDS.items():
        group.add_argument(f"--{name}_pattern", metavar="PATTERN", help=f"of --{name}, e.g. '{{case}}/{kind}.nii.gz'")
    group = parser.add_argument_group("what is scored")
    add = group.add_argument
    add("--cases", nargs="+", metavar="NAME", help="score these cases only")
    add(
        "--skip_missing", action="store_true", help="leave out results without a true CT (or MR or mask), and name them"
    )
    add("--resample_reference", action="store_true", help="resample a true CT on another grid to that of --pred")
    add("--any_values", action="store_true", help="score a --pred whose values are not those of a CT in HU, too")
    group = parser.add_argument_group("results")
    add = group.add_argument
    add("--json", type=Path, metavar="FILE", help="write the scores, their mean and standard deviation to this file")
    add("--overwrite", action="store_true", help="replace the file of --json even if it holds other scores")
    options = parser.parse_args(arguments)
    for name in _INPUTS:
        if getattr(options, f"{name}_pattern") is not None and getattr(options, name) is None:
            parser.error(f"--{name}_pattern needs --{name}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Score, print the table, write the JSON; return 0, or 1 if one of several cases cannot be scored.

    Raises:
        InputError: cases do not match, or none can be scored.
    """
    options = parse_arguments(arguments)
    sources = {
        name: CaseVolumes(f"--{name}", getattr(options, name), getattr(options, f"{name}_pattern"), _KINDS[name])
        for name in _INPUTS
        if getattr(options, name) is not None
    }
    check_exchanged(sources["pred"], sources["ref"])
    cases = find_cases(**sources, names=options.cases, skip_missing=options.skip_missing)
    if options.json is not None:
        if options.json.is_dir():
            raise InputError(f"--json {options.json}: is a folder; expected a file")
        inputs = [path for case in cases for path in (case.pred, case.ref, case.mr, case.mask) if path]
        check_free([options.json], "--json", inputs, _made(options), options.overwrite)
    report = score_cohort(cases, options.resample_reference, options.any_values)
    where = describe_mask(with_mask=options.mask is not None, with_mr=options.mr is not None)
    report = {"inputs": _scored(options), "mask": where, **report}
    sys.stdout.write(f"{format_report(report)}\nscored in: {where}\n")
    if options.json is not None:
        log.info("scores: %s", write_report(report, options.json))
    for one in report["failed"]:
        log.error("failed: %s: %s", one["case"], one["reason"])
    if report["failed"]:
        log.error("%d of %d cases scored, %d failed", len(report["cases"]), len(cases), len(report["failed"]))
    return 1 if report["failed"] else 0


def _scored(options: argparse.Namespace) -> dict[str, object]:
    """Return what the JSON says of what was scored: where volumes lie and what they are called."""
    paths = {name: (path := getattr(options, name)) and str(path.absolute()) for name in _INPUTS}
    patterns = {f"{name}_pattern": getattr(options, f"{name}_pattern") for name in _INPUTS}
    return {**paths, **patterns, "cases": options.cases}


def _made(options: argparse.Namespace) -> list[Path]:
    """Return the file of --json if an earlier run wrote it for the same volumes: it may be renewed."""
    try:
        earlier = read_json(options.json)
    except InputError:
        return []
    return [options.json] if earlier.get("inputs") == _scored(options) else []


if __name__ == "__main__":
    run_command(main)
