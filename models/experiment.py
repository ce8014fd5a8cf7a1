"""A run's folder, `checkpoints/NAME`: weights, training state, options, and what inference must know."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data.errors import InputError
from data.manifest import write_json
from models.cycle_gan_model import CycleGANModel
from models.state_dicts import load_checkpoint, load_network_weights, save_atomically, save_network_weights

log = logging.getLogger(__name__)

STATE_NAME = "latest_state.pth"
# The state before it, for the day when a disk gives the latest one back damaged.
PREVIOUS_STATE_NAME = "previous_state.pth"
STATE_KIND = "state of a training run"
STATE_VERSION = 1
# Options that may change when a run is continued: where and how fast it runs, what it shows, and for how long.
HARMLESS_OPTIONS = frozenset(
    "name checkpoints_dir dataroot device num_threads continue_train epoch init_from shape_extractor print_freq "
    "display_freq display_ncols display_window display_id display_server display_port display_env display_start "
    "no_html save_latest_freq save_epoch_freq n_epochs n_epochs_decay ct_window ct_transfer".split()
)


class Position(NamedTuple):
    """How far a run is: steps done of an epoch (from 1), and the sum of their losses over the epoch's steps."""

    epoch: int = 1
    iteration: int = 0
    epoch_loss: float = 0.0


def check_new(folder: Path) -> None:
    """Refuse to start a run where weights or a state lie; what a run left that never saved is cleared.

    Raises:
        InputError: the folder holds a run or a model.
    """
    if (folder / STATE_NAME).exists() or (folder / PREVIOUS_STATE_NAME).exists():
        raise InputError(
            f"{folder}: holds a run already; go on with it by --continue_train, choose another --name, or delete it"
        )
    if any(folder.glob("*_net_*.pth")):
        raise InputError(f"{folder}: holds a model already; choose another --name, or delete it")
    for name in ("losses.jsonl", "loss_log.txt"):
        (folder / name).unlink(missing_ok=True)


def weights_path(folder: Path, epoch: str | int, network: str) -> Path:
    """Return the file of one network's weights, e.g. `latest_net_G_A.pth`."""
    return folder / f"{epoch}_net_{network}.pth"


def save_weights(folder: Path, model: CycleGANModel, epoch: str | int) -> None:
    """Write the weights of every network as `<epoch>_net_<network>.pth`."""
    for name, net in model.kept_networks.items():
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


def options_record(options: dict[str, Any]) -> dict[str, str]:
    """Return as text the options that a run's result depends on, for its state."""
    return {key: str(value) for key, value in options.items() if key not in HARMLESS_OPTIONS}


def check_same_options(folder: Path, saved: dict[str, str], current: dict[str, str]) -> None:
    """Refuse to continue a run with options that would make another result of it.

    Raises:
        InputError: options differ; it names them with both values.
    """
    changed = [key for key in sorted(saved.keys() | current.keys()) if saved.get(key) != current.get(key)]
    if changed:
        listed = "; ".join(f"{key}: was {saved.get(key)}, now {current.get(key)}" for key in changed)
        raise InputError(
            f"{folder}: the run was started with other options ({listed}); continue it with those, or start a new run "
            "from its weights by --init_from"
        )


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the full training state, from which `load_state` lets a run go on; the one before it is kept."""
    random = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}
    header = {"kind": STATE_KIND, "format_version": STATE_VERSION, "random": random}
    latest, scratch = folder / STATE_NAME, folder / f"next_{STATE_NAME}"
    save_atomically({**header, **state}, scratch)
    if latest.exists():
        latest.replace(folder / PREVIOUS_STATE_NAME)
    scratch.replace(latest)  # killed between the two, the run goes on from the previous state


def load_state(folder: Path) -> dict[str, Any]:
    """Return the state that `save_state` wrote, or the one before it where the latest is gone or damaged.

    Raises:
        InputError: there is none, both are damaged, or it is of another kind or version.
    """
    latest, previous = folder / STATE_NAME, folder / PREVIOUS_STATE_NAME
    if not latest.exists() and not previous.exists():
        raise InputError(f"{latest}: no such file: nothing to continue; leave out --continue_train to start the run")
    try:
        return _load_state(latest)
    except InputError as error:
        if not previous.exists():
            raise
        state = _load_state(previous)
        log.warning("warning: %s; going on from the state before it, %s", error, previous.name)
        if latest.exists():  # or the next save would put it in place of the good one
            latest.replace(folder / f"damaged_{STATE_NAME}")
        return state


def _load_state(path: Path) -> dict[str, Any]:
    state = load_checkpoint(path)
    found = (state.get("kind"), state.get("format_version"))
    if found != (STATE_KIND, STATE_VERSION):
        raise InputError(
            f"{path}: is {found[0]} of version {found[1]}; expected {STATE_KIND} of version {STATE_VERSION}"
        )
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Set torch's random state to what it was when `state` was saved."""
    random = state["random"]
    torch.set_rng_state(random["cpu"])
    if torch.cuda.is_available() and len(random["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(random["cuda"])
