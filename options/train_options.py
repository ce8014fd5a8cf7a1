"""Options of `train.py`: the training methods, and the command line of each.

Names are those of pytorch-CycleGAN-and-pix2pix; what the published ones do is in data/settings/published_options.py.
Each option is declared once, as a field of the settings class of its subject.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ct_segmentation.method import ShapeExtractorModel
from data.errors import InputError, did_you_mean
from data.settings.declaration import options_of
from data.settings.parser import CommandParser, command_words, show_first
from data.settings.published import Command, translate
from data.settings.published_options import OPTIONS
from models.base_model import BaseModel
from models.cycle_gan_model import CycleGANModel
from models.paired_model import PairedModel
from models.refined_pairs_model import RefinedPairsModel
from models.simulated_pairs_model import SimulatedPairsModel
from training.option_files import OptionFiles, read_option_files
from training.settings import TrainingSettings, parse_training, training_parser

METHODS: dict[str, type[BaseModel]] = {
    "cycle_gan": CycleGANModel,
    "simulated_pairs": SimulatedPairsModel,
    "refined_pairs": RefinedPairsModel,
    "paired": PairedModel,
    "shape_extractor": ShapeExtractorModel,
}


def train_parser(model: str = "cycle_gan", values: Mapping[str, Any] | None = None) -> CommandParser:
    """Return the parser of `train.py` with the options of a method; `values` from files are its defaults."""
    method = METHODS[model]
    description = f"Train a model. These options are those of --model {model}. {method.__doc__}"
    prog = "train.py" if model == "cycle_gan" else f"train.py --model {model}"
    parser = training_parser(method, prog, description, values)
    _add_model(parser)
    for option, others in _of_other_methods(method).items():
        parser.instead.setdefault(option, f"it is an option of --model {', '.join(others)}")
    return parser


def _of_other_methods(method: type[BaseModel]) -> dict[str, list[str]]:
    """Return the options that a method lacks, and the methods that have them."""
    own = {field.name for field, _ in options_of(method.settings_type)}
    found: dict[str, list[str]] = {}
    for name, other in METHODS.items():
        for field, described in options_of(other.settings_type):
            if field.name not in own:
                for option in (f"--{field.name}", *described.aliases):
                    found.setdefault(option, []).append(name)
    return found


def _add_model(parser: argparse.ArgumentParser, default: str = "cycle_gan") -> None:
    model = parser.add_argument(
        "--model", choices=tuple(METHODS), default=default,
        help="training method; --help or --help_all after it lists the options of that method",
    )  # fmt: skip
    show_first(model)


def parse(arguments: Sequence[str] | None = None) -> TrainingSettings:
    """Return the checked settings; nothing changes them afterwards.

    Raises:
        InputError: a file with options cannot be used, or a run that should continue has no state.
    """
    words = command_words(arguments)
    files = files_of(words)
    if files.method not in (None, *METHODS):
        near = did_you_mean(str(files.method), METHODS)
        raise InputError(f"{files.method}: no such --model; expected one of {', '.join(METHODS)}{near}")
    first = CommandParser(add_help=False)
    _add_model(first, files.method or "cycle_gan")
    said = any(word.partition("=")[0] == "--model" for word in words)
    try:
        words, _ = translate(words, OPTIONS, Command.TRAIN, None if said else files.method)
    except InputError as error:
        train_parser().error(str(error))
    chosen = first.parse_known_args(words)[0].model
    method = METHODS[chosen]
    return parse_training(train_parser(chosen, files.values(method)), chosen, method, words, files.given(method))


def files_of(words: Sequence[str]) -> OptionFiles:
    """Return the options from files that a command line names: its `--config`, and the run that it continues."""
    first = CommandParser(add_help=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--continue_train", action="store_true")
    for name in ("--name", "--checkpoints_dir", "--dataroot"):
        first.add_argument(name)
    found, _ = first.parse_known_args(words)

    def folder(config: Mapping[str, Any]) -> Path | None:
        name = found.name or config.get("name")
        if not (name and (found.continue_train or config.get("continue_train") is True)):
            return None
        return Path(found.checkpoints_dir or config.get("checkpoints_dir", "checkpoints")) / str(name)

    return read_option_files(found.config, folder, complete=found.dataroot is not None)
