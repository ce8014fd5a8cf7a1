"""A run's folder, `checkpoints/NAME`: weights, training state, options, and what inference must know."""

import logging
from pathlib import Path
from typing import Any

import torch

from data.errors import InputError
from data.manifest import write_json
from models.cycle_gan_model import CycleGANModel
from models.state_dicts import load_checkpoint, load_network_weights, save_atomically, save_network_weights

log = logging.getLogger(__name__)

STATE_NAME = "latest_state.pth"
STATE_VERSION = 1


def weights_path(folder: Path, epoch: str | int, network: str) -> Path:
    """Return the file of one network's weights, e.g. `latest_net_G_A.pth`."""
    return folder / f"{epoch}_net_{network}.pth"


def save_weights(folder: Path, model: CycleGANModel, epoch: str | int) -> None:
    """Write the weights of every network as `<epoch>_net_<network>.pth`."""
    for name, net in model.networks.items():
        save_network_weights(net, weights_path(folder, epoch, name))


def load_weights(folder: Path, model: CycleGANModel, epoch: str | int) -> None:
    """Start from the weights of the run in `folder`; networks that it does not have, and optimisers, stay fresh.

    Raises:
        InputError: it has no generators, or weights do not fit.
    """
    for name, net in model.networks.items():
        path = weights_path(folder, epoch, name)
        if path.exists() or name.startswith("G_"):
            load_network_weights(net, path)
        else:
            log.info("%s: not there; %s starts anew", path, name)


def save_options(folder: Path, options: dict[str, Any]) -> None:
    """Write the run's options to `opt.json`; what JSON cannot hold is written as text."""
    plain = (str, int, float, list, tuple, type(None))
    values = {key: value if isinstance(value, plain) else str(value) for key, value in options.items()}
    write_json(folder / "opt.json", values)


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the full training state, from which `load_state` lets a run go on."""
    random = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}
    save_atomically({"format_version": STATE_VERSION, "random": random, **state}, folder / STATE_NAME)


def load_state(folder: Path) -> dict[str, Any]:
    """Return the state that `save_state` wrote, and set torch's random state to what it was.

    Raises:
        InputError: there is none, or it is damaged or of another version.
    """
    path = folder / STATE_NAME
    if not path.exists():
        raise InputError(f"{path}: no such file: nothing to continue; leave out --continue_train to start the run")
    state = load_checkpoint(path)
    if state.get("format_version") != STATE_VERSION:
        raise InputError(f"{path}: format version {state.get('format_version')}, expected {STATE_VERSION}")
    random = state["random"]
    torch.set_rng_state(random["cpu"])
    if torch.cuda.is_available() and len(random["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(random["cuda"])
    return state
