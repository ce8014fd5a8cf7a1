"""Options that training and testing share, and the types of option values."""

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from data.errors import InputError
from data.values.intensity import CT_TRANSFERS, CT_WINDOW_HU, MR_RULES, IntensityMap, parse_ct_transfer
from data.values.mr_rules import Rule, parse_named_rules
from models.precision import PRECISIONS

# More than any count or size can be that a computer takes.
LARGEST_INT = 2**31 - 1
NAME_PATTERN = re.compile(r"[^/\\\0]+")


def base_parser(prog: str, description: str, precision: str = "fp32") -> argparse.ArgumentParser:
    """Return a parser with the options that every command on a model has; `precision` is the default."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--name", type=experiment_name, required=True, help="the model's name: its folder in --checkpoints_dir"
    )
    run.add_argument("--checkpoints_dir", type=Path, default=Path("checkpoints"), help="where models are kept")
    run.add_argument("--epoch", "--which_epoch", type=epoch_name, default="latest", help="latest, or a saved epoch")
    run.add_argument("--device", type=torch_device, default="auto", help="auto, cpu, cuda, cuda:1, ... or mps")
    run.add_argument(
        "--gpu_ids", metavar="IDS", help="as upstream: the GPU's number, -1 for the CPU; overrides --device"
    )
    run.add_argument("--precision", choices=PRECISIONS, default=precision, help="of the networks, not of the losses")
    return parser


def positive_int(text: str) -> int:
    """Return an integer of 1 or more."""
    return _number(text, int, lambda value: 1 <= value <= LARGEST_INT, f"a whole number of 1 or more, to {LARGEST_INT}")


def nonnegative_int(text: str) -> int:
    """Return an integer of 0 or more."""
    return _number(text, int, lambda value: 0 <= value <= LARGEST_INT, f"a whole number of 0 or more, to {LARGEST_INT}")


def positive_float(text: str) -> float:
    """Return a finite number above 0."""
    return _number(text, float, lambda value: 0 < value < float("inf"), "a number above 0")


def nonnegative_float(text: str) -> float:
    """Return a finite number of 0 or more."""
    return _number(text, float, lambda value: 0 <= value < float("inf"), "a number of 0 or more")


def share(text: str) -> float:
    """Return a number from 0 to below 1."""
    return _number(text, float, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def _number(text: str, kind: type, fits, expected: str):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
    return value


def experiment_name(text: str) -> str:
    """Return a name that is one folder, not a path out of the folder of models."""
    if not NAME_PATTERN.fullmatch(text) or text in (".", ".."):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a name without slashes")
    return text


def epoch_name(text: str) -> str:
    """Return 'latest' or the number of an epoch, as file names have it."""
    return text if text == "latest" else str(positive_int(text))


def torch_device(text: str) -> torch.device:
    """Return the device that `--device` names; 'auto' is the GPU where there is one.

    Raises:
        argparse.ArgumentTypeError: unknown, or not on this machine.
    """
    if text == "auto":
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(best)
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected auto, cpu, cuda, cuda:N or mps")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{text}: this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise argparse.ArgumentTypeError("mps: not available on this machine")
    return device


def finish(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Parse, and resolve `--gpu_ids` into `device`."""
    options = parse_numbers(parser, arguments)
    if options.gpu_ids is not None:
        try:
            ids = [int(text) for text in options.gpu_ids.split(",")]
            if len(ids) > 1:
                parser.error(f"--gpu_ids {options.gpu_ids}: one a process; for several, torchrun train.py")
            options.device = torch_device("cpu" if ids[0] < 0 else f"cuda:{ids[0]}")
        except ValueError:
            parser.error(f"--gpu_ids {options.gpu_ids!r}: expected a number, or -1 for the CPU")
        except argparse.ArgumentTypeError as error:
            parser.error(f"--gpu_ids {error}")
    del options.gpu_ids
    return options


def parse_numbers(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Parse; words that begin like a negative number (-1e3, -1000:-1,...) are values, never options."""
    words = sys.argv[1:] if arguments is None else arguments
    # argparse takes such words for options unless they are plain negative numbers; a leading space settles it, and
    # float() does not mind.
    return parser.parse_args([f" {word}" if re.match(r"-\.?\d", word) else word for word in words])


def mr_window_rule(parser: argparse.ArgumentParser, words: list[str], named: bool = False) -> Rule | Mapping[str, Rule]:
    """Return the value of `--mr_window`: one of `MR_RULES` or (low, high); `named`: or one for each contrast."""
    rules = checked(parser, parse_named_rules, words) if named else None
    if rules is not None:
        return rules
    if len(words) == 1 and words[0] in MR_RULES:
        return words[0]
    return window(parser, "--mr_window", words, f"{', '.join(MR_RULES)} or LO HI")


def window(
    parser: argparse.ArgumentParser, option: str, words: list[str], expected: str = "LO HI"
) -> tuple[float, float]:
    """Return two numbers, the first below the second."""
    try:
        low, high = map(float, words)
        if low < high:
            return low, high
    except ValueError:
        pass
    raise parser.error(f"{option} {' '.join(map(str, words))}: expected {expected} with LO below HI")


def checked(parser: argparse.ArgumentParser, build, *args):
    """Return `build(*args)`; its `InputError` ends the parsing."""
    try:
        return build(*args)
    except InputError as error:
        raise parser.error(str(error)) from error


def add_ct_map(group) -> None:
    """Add `--ct_window` and `--ct_transfer` to a parser or group."""
    group.add_argument("--ct_window", nargs=2, metavar=("LO", "HI"), help="HU at -1 and 1 (default: -1000 1400)")
    names = ", ".join(CT_TRANSFERS)
    group.add_argument("--ct_transfer", help=f"curve in place of --ct_window: {names} or HU:VALUE,HU:VALUE,...")


def ct_map(parser: argparse.ArgumentParser, options: argparse.Namespace) -> IntensityMap:
    """Return the map that `--ct_window` or `--ct_transfer` names."""
    if options.ct_window and options.ct_transfer:
        parser.error("--ct_window and --ct_transfer: expected one of them")
    if options.ct_transfer:
        return checked(parser, parse_ct_transfer, options.ct_transfer)
    return IntensityMap.window(*window(parser, "--ct_window", options.ct_window or CT_WINDOW_HU))
