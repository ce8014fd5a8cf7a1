"""Average the weights of several trainings that began with the same ones.

    python -m tools.mean_weights --name A B C --checkpoints_dir checkpoints --out checkpoints/mean

The mean of networks that were trained on from one network is often better than each of them, at the cost of one
("model soups": Wortsman et al., ICML 2022). Networks that began at different random weights have no useful mean: for
those give `test_adapt.py` several models. DIR/inference.json is that of the first.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from data.errors import InputError, run_command
from data.settings.parser import CommandParser
from data.volumes.outputs import check_free
from models.inference_settings import FILE_NAME, differing, read_inference_settings
from models.networks import build_generator
from models.run_folder import find_weights, weights_path
from models.state_dicts import load_network_weights, save_atomically

# What networks that began at the same weights have in common.
_SAME = ("generator", "direction", "contrasts", "ct", "slab", "view", "spacing_mm", "mr_window")

log = logging.getLogger(__name__)


def mean_state(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of state dicts of one architecture; whole numbers (counts) are those of the first."""
    return {
        key: torch.stack([state[key] for state in states]).mean(0) if first.is_floating_point() else first
        for key, first in states[0].items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Average and write.

    Raises:
        InputError: fewer than two models, models of other networks, pixels or intensities, or the result exists.
    """
    parser = CommandParser(
        prog="python -m tools.mean_weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", nargs="+", required=True, help="models to average, folders in --checkpoints_dir")
    parser.add_argument("--checkpoints_dir", type=Path, default=Path("checkpoints"), help="folder that holds them")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to, which holds no model yet")
    opt = parser.parse_args(arguments)
    if len(set(opt.name)) < 2:
        raise InputError(f"--name {' '.join(opt.name)}: expected two or more different models")
    folders = [opt.checkpoints_dir / name for name in opt.name]
    first, *others = (read_inference_settings(folder) for folder in folders)
    for folder, settings in zip(folders[1:], others, strict=True):
        if different := differing(first, settings, _SAME):
            raise InputError(
                f"{folder}: other settings than {folders[0]} ({'; '.join(different)}); expected models that were "
                "trained on from the same one"
            )
    target = weights_path(opt.out, "latest", "G_A")
    check_free([target, opt.out / FILE_NAME], "--out")
    states = []
    for folder in folders:
        net = build_generator(first.generator)
        load_network_weights(net, find_weights(folder, "latest", "G_A"))
        states.append(net.state_dict())
    replace(first, steps=None, unfinished="").write(opt.out)
    save_atomically(mean_state(states), target)
    log.info("mean of %d models: %s", len(states), opt.out)


if __name__ == "__main__":
    run_command(main)
