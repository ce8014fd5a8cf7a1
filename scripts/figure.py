"""Draw volumes side by side for a paper: `python -m scripts.figure --mr F --ct F... --out fig.png`.

A column for the MR, each CT, the true CT, each CT's difference from it, and an uncertainty; a row for each plane
through the middle (or through --at), or with --slices for each axial slice. All volumes lie on one grid and are shown
in patient orientation. --mask draws the outline of a mask on all of them.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from data.errors import InputError, run_command
from data.settings.parser import CommandParser, checked
from data.settings.values import positive_float, positive_int
from data.volumes.outputs import check_free
from data.volumes.volume import read_volume, resampling, same_grid
from visualization.figures import (
    axial_slices,
    check_figure_name,
    columns_of,
    draw_comparison,
    planes_through,
    save_figure,
)
from visualization.windows import CT_WINDOWS, parse_display_window

log = logging.getLogger(__name__)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="python -m scripts.figure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--mr", type=Path, help="MR volume")
    add("--ct", type=Path, nargs="+", default=[], help="CT volumes in HU")
    add("--reference", type=Path, help="true CT in HU; each CT's difference from it is shown")
    add("--uncertainty", type=Path, help="uncertainty of a CT in HU, as --uncertainty of test_adapt.py writes it")
    add("--mask", type=Path, help="mask whose outline is drawn, e.g. the body mask of a prepared data set")
    add("--labels", nargs="+", help="titles of MR, CTs and true CT, in this order")
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--at", type=float, nargs=3, metavar=("L", "P", "S"), help="planes through this point (LPS, mm)")
    rows.add_argument(
        "--slices", type=int, nargs="+", help="axial slices instead of planes, counted from the feet (the lowest is 1)"
    )
    rows.add_argument("--n_slices", type=positive_int, help="number of axial slices, evenly spaced")
    names = ", ".join(CT_WINDOWS)
    add(
        "--window",
        nargs="+",
        default=["default"],
        metavar="W",
        help=f"display window of CT: {names}, or LEVEL WIDTH in HU",
    )
    add("--difference_hu", type=positive_float, default=400.0, help="HU at the ends of the colours (default: 400)")
    add("--dpi", type=positive_int, default=300, help="pixels per inch of a PNG (default: 300)")
    add("--out", type=Path, required=True, help=".png, .pdf or .svg")
    add("--overwrite", action="store_true", help="replace the file of --out")
    options = parser.parse_args(arguments)
    if not (options.mr or options.ct):
        parser.error("--mr or --ct: one of them is required")
    if options.reference and not options.ct:
        parser.error("--reference: there is no --ct to compare it with")
    checked(parser, check_figure_name, options.out)  # before volumes are read
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the figure.

    Raises:
        InputError: a volume cannot be read, grids differ, or an option does not fit the volumes.
    """
    options = parse_arguments(arguments)
    try:
        window = parse_display_window(options.window)
    except InputError as error:
        raise InputError(f"--window {error}") from error
    given = (options.mr, *options.ct, options.reference, options.uncertainty, options.mask)
    inputs = [path for path in given if path]
    check_free([options.out], "--out", inputs, overwrite=options.overwrite)
    mr, reference, uncertainty = (
        path and read_volume(path) for path in (options.mr, options.reference, options.uncertainty)
    )
    cts = [read_volume(path) for path in options.ct]
    columns = columns_of(mr, cts, reference, options.labels, window, options.difference_hu, uncertainty)
    grid = columns[0].volume
    if options.slices is not None or options.n_slices is not None:
        cuts = axial_slices(grid, options.slices if options.slices is not None else options.n_slices)
    else:
        cuts = planes_through(grid, options.at)
    mask = options.mask and read_volume(options.mask)
    if mask and not same_grid(mask, grid):
        way = resampling(options.mask, options.mr or options.ct[0])
        raise InputError(f"{options.mask}: the mask is not on the volumes' grid; resample it first: {way}")
    log.info("figure: %s", save_figure(draw_comparison(columns, cuts, mask), options.out, options.dpi))


if __name__ == "__main__":
    run_command(main)
