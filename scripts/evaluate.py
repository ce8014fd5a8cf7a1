"""Score synthetic CT against true CT: `python -m scripts.evaluate --pred F --ref F`.

Every path is one volume or a folder of cases. Cases are matched by name. In a folder the name of a case is the file
name without .nii.gz, .mha, ..., or what stands for {case} in the option's pattern. Where names do not match, the error
proposes a pattern. True CT without a result is not scored:

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
from data.outputs import check_free
from data.prepared.manifest import read_json
from data.settings.parser import CommandParser
from evaluation.case_folders import CaseVolumes
from evaluation.cases import find_cases
from evaluation.origin import check_exchanged
from evaluation.report import describe_mask, format_report, score_cohort, write_report

log = logging.getLogger(__name__)

_INPUTS = {
    "pred": "synthetic CT in HU",
    "ref": "true CT in HU, on the grid of --pred, or on another one with --resample_reference",
    "mr": "the MR, to score only where it has signal (above 0)",
    "mask": "a mask, to score only where it is not 0 (default: the body found in the true CT)",
}
_KINDS = {"pred": "sct", "ref": "ct", "mr": "mr", "mask": "mask"}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="python -m scripts.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, what in _INPUTS.items():
        required = name in ("pred", "ref")
        parser.add_argument(f"--{name}", type=Path, required=required, help=f"{what}; a volume or a folder of cases")
    for name in _INPUTS:
        parser.add_argument(
            f"--{name}_pattern",
            metavar="PATTERN",
            help=f"where a case lies below --{name}, e.g. '{{case}}/{_KINDS[name]}.nii.gz'",
        )
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="score these cases only")
    parser.add_argument(
        "--skip_missing", action="store_true", help="leave out results without a true CT (or MR or mask), and name them"
    )
    parser.add_argument(
        "--resample_reference", action="store_true", help="resample a true CT on another grid to that of --pred"
    )
    parser.add_argument(
        "--any_values", action="store_true", help="score a --pred whose values are not those of a CT in HU, too"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write scores, mean and standard deviation here")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the file of --json even if it holds other scores"
    )
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
