"""Train the shape extractor on the CT slices and masks of a prepared data set.

It is the method `shape_extractor` of `train.py` and takes its options. `--out` is the run's folder, by default the one
in which `train.py` looks for it. Patients are split: some are used for validation only, by Dice over their whole
volumes. `extractor.pth` is the best extractor so far, `--continue_train` resumes from `latest_state.pth`, and
`validation.json` has the split and the scores.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ct_segmentation.method import ShapeExtractorModel
from data.errors import InputError, run_command
from data.settings.parser import CommandParser, command_words, show_first
from data.settings.published import Command, translate
from data.settings.published_options import OPTIONS
from data.settings.values import positive_int
from models.shape_extractor import FOLDER_NAME
from training.option_files import read_option_files
from training.run import train_method
from training.settings import TrainingSettings, parse_training, training_parser

NAME = "shape_extractor"


def parse(arguments: Sequence[str] | None = None) -> TrainingSettings:
    """Return the settings of the command line: `--out` is the folder that `--name` in `--checkpoints_dir` would be."""
    words = command_words(arguments)
    own = CommandParser(add_help=False)
    own.add_argument("--continue_train", action="store_true")
    for name in ("--out", "--config"):
        own.add_argument(name, type=Path)
    for name in ("--dataroot", "--name", "--checkpoints_dir"):
        own.add_argument(name)
    found, _ = own.parse_known_args(words)
    files = read_option_files(
        found.config,
        lambda config: _folder(found, config) if found.continue_train or config.get("continue_train") is True else None,
        complete=found.dataroot is not None,
    )
    values = files.values(ShapeExtractorModel)
    parser = training_parser(ShapeExtractorModel, "python -m ct_segmentation.train", __doc__, values)
    parser.usage = "%(prog)s --dataroot DATAROOT [--out FOLDER] [options]"
    out = parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help=f"the run's folder (default: DATAROOT/{FOLDER_NAME})"
    )
    show_first(out)
    parser.add_argument(
        "--epochs", dest="n_epochs", type=positive_int, default=argparse.SUPPRESS, help="the same as --n_epochs"
    )
    try:
        words, _ = translate(words, OPTIONS, Command.TRAIN, NAME)
    except InputError as error:
        parser.error(str(error))
    named = found.name is not None or found.checkpoints_dir is not None
    if found.out and named:
        parser.error("--out and --name or --checkpoints_dir: expected one of them; both name the run's folder")
    if not named:
        folder = _folder(found, files.config)
        words = [*words, "--checkpoints_dir", str(folder.parent), "--name", folder.name]
    return parse_training(parser, NAME, ShapeExtractorModel, words, files.given(ShapeExtractorModel))


def _folder(found: argparse.Namespace, config: Mapping[str, Any]) -> Path:
    """Return the run's folder from the command line, or else from the config file."""
    if found.out or found.name or found.checkpoints_dir:
        return (found.out or Path(found.checkpoints_dir or "checkpoints") / (found.name or "")).absolute()
    if "name" in config:
        return (Path(config.get("checkpoints_dir", "checkpoints")) / str(config["name"])).absolute()
    return (Path(found.dataroot or config.get("dataroot", ".")) / FOLDER_NAME).absolute()


def main(arguments: Sequence[str] | None = None) -> int:
    """Train from the first epoch, or from the saved state with `--continue_train`, to the last; return the exit code.

    Raises:
        InputError: the data set or the run's folder is unusable.
    """
    return train_method(ShapeExtractorModel, parse(arguments))


if __name__ == "__main__":
    run_command(main)
