"""Is one model better than another on your patients? `python -m scripts.compare_scores A=FILE B=FILE ...`.

Each FILE holds scores of the same patients: the `summary.csv` of `test_pipeline.py` or the JSON of `scripts.evaluate
--json`. A label before `=` is what the table calls it. Prints means over the patients that all files have, with 95 %
intervals (a bootstrap over patients), and with --against the differences from one of them, patient by patient. A
difference whose interval holds 0 may be chance. Intervals of few patients are too narrow: of ten, they hold the true
mean in 91 % of cases. Of fewer than six there are none.

    python -m scripts.compare_scores mine=results/mine/summary.csv threshold=scores.json --against threshold
"""

import argparse
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.errors import InputError, counted, did_you_mean, listed, run_command
from data.settings.parser import CommandParser, checked
from data.volumes.outputs import check_free
from evaluation.comparison import FEWEST_FOR_INTERVAL, Interval, Scores, mean_interval, read_scores, values_of
from evaluation.report import COLUMNS, markdown_table
from visualization.figures import check_figure_name, save_figure
from visualization.interval_chart import draw_intervals

log = logging.getLogger(__name__)

_SHOWN = ("mae", "dice_bone", "mae_bone")
_MOST_NAMES = 5


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="python -m scripts.compare_scores", usage="%(prog)s [LABEL=]FILE ... [options]", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add(
        "files", nargs="+", metavar="[LABEL=]FILE",
        help="summary.csv or JSON of scores (default label: the folder of a summary.csv, the name of a JSON)",
    )  # fmt: skip
    add("--against", metavar="LABEL", help="print differences from this one, too")
    add(
        "--scores", nargs="+", choices=COLUMNS, default=list(_SHOWN), metavar="NAME",
        help=f"which scores: {', '.join(COLUMNS)} (default: {' '.join(_SHOWN)})",
    )  # fmt: skip
    add("--figure", type=Path, metavar="FILE", help="draw means and intervals: .png, .pdf or .svg")
    add("--overwrite", action="store_true", help="replace the file of --figure")
    options = parser.parse_args(arguments)
    if options.against is not None and len(options.files) < 2:
        parser.error("--against needs another file to compare with")
    if options.figure is not None:
        checked(parser, check_figure_name, options.figure)
    return options


def labelled(arguments: Sequence[str]) -> dict[str, Path]:
    """Return the files by label. What is a file's path needs no label, though it may hold a `=`.

    Raises:
        InputError: two have one label, or a label would break the table.
    """
    files: dict[str, Path] = {}
    for argument in arguments:
        label, given, name = ("", "", argument) if Path(argument).exists() else argument.partition("=")
        if not given:
            name = argument
            label = Path(name).absolute().parent.name if Path(name).name == "summary.csv" else Path(name).stem
        if not label or set(label) & set("|\n"):
            raise InputError(f"{argument}: expected a label without | before the =")
        if label in files:
            raise InputError(f"{argument}: {label} is also the label of {files[label]}; give another: LABEL={name}")
        files[label] = Path(name)
    return files


def in_common(results: Mapping[str, Scores]) -> set[str]:
    """Return the cases that are scored in every result; say which are left out.

    Raises:
        InputError: there are none.
    """
    every = [set(scores) for scores in results.values()]
    common, some = set.intersection(*every), set.union(*every)
    if not common:
        shown = "; ".join(f"{label}: {listed(sorted(scores), _MOST_NAMES)}" for label, scores in results.items())
        raise InputError(
            f"no case is scored in all files; expected scores of the same patients, found {shown}. "
            "Where names differ, score with scripts.evaluate and patterns that give the same {case} for all, as "
            "--pred_pattern '{case}_MR_T1.nii.gz'"
        )
    if common < some:
        log.warning("warning: not scored in all files, left out: %s", listed(sorted(some - common), _MOST_NAMES))
    return common


def table(rows: Mapping[str, Mapping[str, Interval]], title: str, signed: bool = False) -> str:
    """Return means and intervals as a Markdown table."""
    names = list(next(iter(rows.values())))
    lines = [[title, *(COLUMNS[name][0] for name in names)]]
    lines += [[label, *(_cell(row[name], COLUMNS[name][1], signed) for name in names)] for label, row in rows.items()]
    return markdown_table(lines)


def _cell(value: Interval, digits: int, signed: bool) -> str:
    if math.isnan(value.mean):
        return "-"
    form = f"{'+' if signed else ''}.{digits}f"
    shown = f"{value.mean:{form}}"
    return shown if math.isnan(value.low) else f"{shown} ({value.low:{form}} to {value.high:{form}})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, compare, print and draw.

    Raises:
        InputError: a file cannot be read or holds no scores, a label is unknown or used twice, or no case is in all.
    """
    options = parse_arguments(arguments)
    files = labelled(options.files)
    if options.against is not None and options.against not in files:
        near = did_you_mean(options.against, files)
        raise InputError(f"--against {options.against}: no such label; expected one of {', '.join(files)}{near}")
    if options.figure is not None:
        check_free([options.figure], "--figure", list(files.values()), overwrite=options.overwrite)
    read = {label: read_scores(path) for label, path in files.items()}
    if len(places := {one.where for one in read.values() if one.where}) > 1:
        log.warning("warning: scored in different voxels: %s", "; ".join(sorted(places)))
    results = {label: one.scores for label, one in read.items()}
    common = in_common(results)
    results = {label: {case: scores[case] for case in sorted(common)} for label, scores in results.items()}
    values = {name: values_of(results, name) for name in options.scores}
    means = {label: {name: mean_interval(values[name][label]) for name in values} for label in results}
    sys.stdout.write(f"{table(means, f'mean of {len(common)}')}\n")
    if options.against is not None:
        differences = {
            label: {name: mean_interval(values[name][label] - values[name][options.against]) for name in values}
            for label in results
            if label != options.against
        }
        sys.stdout.write(f"\n{table(differences, f'difference from {options.against}', signed=True)}\n")
    counts = {name: len(next(iter(found.values()))) for name, found in values.items()}
    partial = [f"{COLUMNS[name][0]} over {count}" for name, count in counts.items() if count < len(common)]
    if partial:
        sys.stdout.write(f"undefined in some of the {len(common)} cases: {', '.join(partial)}\n")
    if options.figure is not None:
        titles = {name: COLUMNS[name][0] for name in values}
        few = f"too few for intervals, which need {FEWEST_FOR_INTERVAL}"
        bars = "bars: 95 % intervals" if len(common) >= FEWEST_FOR_INTERVAL else few
        caption = f"mean of {counted(len(common), 'case')}; {bars}"
        log.info("figure: %s", save_figure(draw_intervals(means, titles, caption), options.figure, dpi=100))


if __name__ == "__main__":
    run_command(main)
