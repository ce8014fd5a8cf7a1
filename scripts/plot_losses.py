"""Compare the losses of training runs in one figure: `python -m scripts.plot_losses NAME... --out losses.png`."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from data.errors import InputError, run_command
from data.settings.declaration import HelpFormatter
from data.settings.parser import CommandParser, checked
from data.settings.values import nonnegative_float, positive_int
from data.volumes.outputs import check_free
from visualization.figures import check_figure_name, draw_losses, save_figure
from visualization.records import RECORDS_NAME, read_records

log = logging.getLogger(__name__)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="python -m scripts.plot_losses",
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("names", nargs="+", metavar="NAME", help="runs in --checkpoints_dir")
    add("--checkpoints_dir", type=Path, default=Path("checkpoints"), help="where models are kept")
    add("--losses", nargs="+", metavar="LOSS", help="which losses (default: all)")
    add(
        "--smooth",
        type=nonnegative_float,
        default=0.9,
        help="smoothing of the curves: weight of earlier values, 0 to below 1",
    )
    add("--dpi", type=positive_int, default=200, help="pixels per inch of a PNG")
    add("--out", type=Path, default=Path("losses.png"), help=".png, .pdf or .svg")
    add("--overwrite", action="store_true", help="replace the file of --out")
    options = parser.parse_args(arguments)
    if options.smooth >= 1:
        parser.error(f"--smooth {options.smooth}: expected a number from 0 to below 1")
    checked(parser, check_figure_name, options.out)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the figure.

    Raises:
        InputError: a run has no losses, or no run has a loss that is asked for.
    """
    options = parse_arguments(arguments)
    check_free([options.out], "--out", overwrite=options.overwrite)
    runs = {name: read_records(options.checkpoints_dir / name) for name in options.names}
    for name, records in runs.items():
        if not records:
            known = sorted(path.parent.name for path in options.checkpoints_dir.glob(f"*/{RECORDS_NAME}")) or ["none"]
            raise InputError(f"{options.checkpoints_dir / name}: no losses; runs with losses: {', '.join(known)}")
    figure = draw_losses(runs, options.losses, options.smooth)
    log.info("figure: %s", save_figure(figure, options.out, options.dpi))


if __name__ == "__main__":
    run_command(main)
