"""The options that say what CT means in [-1, 1], as `train.py` has them."""

import argparse

from data.intensity import CT_TRANSFERS, CT_WINDOW_HU, IntensityMap, parse_ct_transfer
from options.base_options import checked, window


def add_ct_map(parser: argparse.ArgumentParser) -> None:
    """Add `--ct_window` and `--ct_transfer`."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--ct_window", nargs=2, metavar=("LO", "HI"), default=CT_WINDOW_HU, help="HU at -1 and 1")
    group.add_argument(
        "--ct_transfer", help=f"curve in place of --ct_window: {', '.join(CT_TRANSFERS)} or HU:VALUE,HU:VALUE,..."
    )


def ct_map(parser: argparse.ArgumentParser, options: argparse.Namespace) -> IntensityMap:
    """Return the map that the options name."""
    if options.ct_transfer:
        return checked(parser, parse_ct_transfer, options.ct_transfer)
    return IntensityMap.window(*window(parser, "--ct_window", options.ct_window))
