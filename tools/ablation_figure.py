"""Draw what each step of `recommended` brings: `python -m tools.ablation_figure --table docs/ablation.csv --out FILE`.

The table has a row for each training: its name, then mean, lower and upper bound of each score. Bounds may be empty.
"""

import argparse
import csv
import logging
import math
from collections.abc import Sequence
from pathlib import Path

from data.errors import InputError, run_command
from data.settings.parser import CommandParser, checked
from data.volumes.outputs import check_free
from evaluation.comparison import Interval
from evaluation.report import COLUMNS
from visualization.figures import check_figure_name, save_figure
from visualization.interval_chart import draw_intervals

log = logging.getLogger(__name__)


def read_intervals(path: Path) -> dict[str, dict[str, Interval]]:
    """Return the table's intervals by training, then by score.

    Raises:
        InputError: it is no such table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            _, *columns = next(rows := csv.reader(file))
            table = {label: dict(zip(columns, map(_number, cells), strict=True)) for label, *cells in rows}
        names = [name for name in columns if name in COLUMNS]
        if not table or not names:
            raise ValueError("no rows or no scores")
        return {
            label: {name: Interval(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in names}
            for label, row in table.items()
        }
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise InputError(
            f"{path}: expected a row for each training: its name, then NAME, NAME_low, NAME_high of scores: {error!r}"
        ) from error


def _number(cell: str) -> float:
    return float(cell) if cell else math.nan


def main(arguments: Sequence[str] | None = None) -> None:
    """Read and draw."""
    parser = CommandParser(
        prog="python -m tools.ablation_figure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--table", type=Path, required=True, help="CSV of means and bounds")
    parser.add_argument("--out", type=Path, required=True, help="figure: .png, .pdf or .svg")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    options = parser.parse_args(arguments)
    checked(parser, check_figure_name, options.out)
    check_free([options.out], "--out", [options.table], overwrite=options.overwrite)
    table = read_intervals(options.table)
    titles = {name: COLUMNS[name][0] for name in next(iter(table.values()))}
    log.info("figure: %s", save_figure(draw_intervals(table, titles), options.out, dpi=90))


if __name__ == "__main__":
    run_command(main)
