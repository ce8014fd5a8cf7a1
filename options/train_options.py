"""Options of `train.py`: which methods there are, and the command line of each.

Names are those of pytorch-CycleGAN-and-pix2pix; what the published ones do is in data/settings/published_options.py.
Each option is declared once, as a field of the settings class of its subject.
"""

import argparse
from collections.abc import Sequence

from ct_segmentation.method import ShapeExtractorModel
from data.errors import InputError
from data.settings.published import Command, translate
from data.settings.published_options import OPTIONS
from data.settings.values import protected_numbers
from models.base_model import BaseModel
from models.cycle_gan_model import CycleGANModel
from models.paired_model import PairedModel
from models.refined_pairs_model import RefinedPairsModel
from models.simulated_pairs_model import SimulatedPairsModel
from training.settings import TrainingSettings, parse_training, training_parser

METHODS: dict[str, type[BaseModel]] = {
    "cycle_gan": CycleGANModel,
    "simulated_pairs": SimulatedPairsModel,
    "refined_pairs": RefinedPairsModel,
    "paired": PairedModel,
    "shape_extractor": ShapeExtractorModel,
}


def train_parser(model: str = "cycle_gan") -> argparse.ArgumentParser:
    """Return the parser of `train.py` with the options of a method."""
    method = METHODS[model]
    description = f"Train a model. --model {model}: {method.__doc__}"
    parser = training_parser(method, "train.py", description)
    _add_model(parser)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", choices=tuple(METHODS), default="cycle_gan",
        help="how it is trained; with --help after it: that method's options",
    )  # fmt: skip


def parse(arguments: Sequence[str] | None = None) -> TrainingSettings:
    """Return the checked settings; nothing changes them afterwards."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_model(first)
    words = protected_numbers(arguments)
    try:
        words, _ = translate(words, OPTIONS, Command.TRAIN)
    except InputError as error:
        train_parser().error(str(error))
    chosen = first.parse_known_args(words)[0].model
    return parse_training(train_parser(chosen), chosen, METHODS[chosen], words)
