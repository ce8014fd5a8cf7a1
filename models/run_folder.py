"""A run's folder, `checkpoints/NAME`: weights, training state, options, and what inference needs."""

import fcntl
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data.errors import InputError, did_you_mean, is_out_of_memory
from data.files import read_json, write_json
from data.settings.declaration import Nature
from data.volumes.outputs import check_free
from models.base_model import BaseModel
from models.inference_settings import FILE_NAME, read_inference_settings
from models.state_dicts import load_checkpoint, load_network_weights, save_atomically, save_network_weights

log = logging.getLogger(__name__)

STATE_NAME = "latest_state.pth"
OPTIONS_NAME = "opt.json"
# Options that say how a process starts; a run that resumes does not take them from `opt.json`.
STARTING_OPTIONS = ("name", "checkpoints_dir", "continue_train", "init_from", "epoch")
# The state before it, for the day when a disk gives the latest one back damaged.
PREVIOUS_STATE_NAME = "previous_state.pth"
STATE_KIND = "state of a training run"
STATE_VERSION = 4
# What a state is made of, and as what it is stored.
STATE_PARTS = {
    "model": dict,
    "rate": dict,
    "position": dict,
    "processes": list,
    "options": dict,
    "spent": float,
    "best": dict,
}


class DamagedStateError(InputError):
    """A saved state is damaged or does not match its run; the state before it may."""


class Position(NamedTuple):
    """How far a run is: samples done of an epoch (from 1), and the sum of their losses over the epoch's steps.

    The sum is the mean over all processes. `validated`: the validation after the last step is done.
    """

    epoch: int = 1
    samples: int = 0
    epoch_loss: float = 0.0
    validated: bool = False


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a run's folder until the block ends.

    The lock is the operating system's, so it ends with the process, however that ends. The file that it is on,
    `.NAME.lock` beside the folder, stays and says nothing.

    Raises:
        InputError: another training has the folder, or nothing can be written there.
    """
    real = folder.resolve()  # a link to a run is that run
    path = real.with_name(f".{real.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{folder}: another training is writing to it; wait for it to end, stop it, or choose another --name"
            ) from error
        except OSError as error:
            log.warning("warning: %s: cannot be locked (%s); a second training could write into it", folder, error)
        yield


def check_new(folder: Path) -> None:
    """Refuse to start a run where weights, a state or files of others lie; what a run left that never saved is cleared.

    Raises:
        InputError: the folder holds a run or a model, or what is no run's under a name that a run writes.
    """
    if has_state(folder):
        raise InputError(
            f"{folder}: already holds a run; resume it with --continue_train, choose another --name, or delete it"
        )
    if any(folder.glob("*_net_*.pth")):
        raise InputError(f"{folder}: already holds a model; choose another --name, or delete it")
    written = [folder / name for name in (FILE_NAME, OPTIONS_NAME, "losses.jsonl", "loss_log.txt", "web")]
    if not _was_begun(folder):
        check_free(written, "--name", overwrite=None)
    for name in ("losses.jsonl", "loss_log.txt"):
        (folder / name).unlink(missing_ok=True)


def _was_begun(folder: Path) -> bool:
    """Tell whether a run wrote into a folder: what its use must know, or its options, come first."""
    try:
        read_inference_settings(folder)
    except InputError:
        try:
            return read_json(folder / OPTIONS_NAME).keys() >= {"name", "dataroot"}
        except InputError:
            return False
    return True


def weights_path(folder: Path, epoch: str | int, network: str) -> Path:
    """Return the file of one network's weights, e.g. `latest_net_G_A.pth`."""
    return folder / f"{epoch}_net_{network}.pth"


def find_weights(folder: Path, epoch: str | int, network: str) -> Path:
    """Return the file of one network's weights, which there must be.

    Raises:
        InputError: there is none; it lists of which epochs there are.
    """
    path = weights_path(folder, epoch, network)
    if path.exists():
        return path
    epochs = [file.name.partition("_net_")[0] for file in folder.glob(f"*_net_{network}.pth")]
    epochs.sort(key=lambda name: (name.isdigit(), int(name) if name.isdigit() else name))
    there = (
        f"there are those of {', '.join(epochs)}: choose one with --epoch" if epochs else f"there are none of {network}"
    )
    why = "; only trainings with --val keep the best" if epoch == "best" else ""
    raise InputError(f"{path}: no such file; expected the weights of a model; {there}{why}")


def save_weights(folder: Path, model: BaseModel, epoch: str | int) -> None:
    """Write the weights of every network as `<epoch>_net_<network>.pth`."""
    for name, net in model.kept_networks.items():
        save_network_weights(net, weights_path(folder, epoch, name))


def load_weights(folder: Path, model: BaseModel, epoch: str | int) -> None:
    """Start from the weights of the run in `folder`; networks that it does not have, and optimisers, stay fresh.

    Raises:
        InputError: the model's first network is not there, or weights do not fit.
    """
    needed = next(iter(model.networks))
    there = [name for name in model.networks if name == needed or weights_path(folder, epoch, name).exists()]
    for name in there:
        load_network_weights(model.networks[name], find_weights(folder, epoch, name))
    anew = [name for name in model.networks if name not in there]
    log.info(
        "%s: %s loaded (%s)%s", folder, ", ".join(there), epoch,
        f"; missing, so started from random weights: {', '.join(anew)}" if anew else "",
    )  # fmt: skip


def save_options(folder: Path, options: Mapping[str, Any]) -> None:
    """Write the run's options, plain values by name, to `opt.json`."""
    write_json(folder / OPTIONS_NAME, dict(options))


def update_options(folder: Path, options: Mapping[str, Any], natures: Mapping[str, Nature]) -> None:
    """Write the options that a run resumes with, and name those that differ and change no result.

    How the run was started (`STARTING_OPTIONS`) stays as it was. Where `opt.json` is damaged it is written anew.
    """
    try:
        saved = read_json(folder / OPTIONS_NAME)
    except InputError as error:
        log.warning("warning: %s; it is written again", error)
        saved = {}
    now = {name: value for name, value in options.items() if name not in STARTING_OPTIONS or name not in saved}
    for name, value in json.loads(json.dumps(now)).items():
        if name in saved and saved[name] != value and natures.get(name) == Nature.FREE:
            log.info("resumed with another option: %s: was %s, now %s", name, saved[name], value)
    save_options(folder, saved | now)


def check_options(
    folder: Path, saved: Mapping[str, str], current: Mapping[str, str], natures: Mapping[str, Nature]
) -> None:
    """Compare the options of a resumed run with its own: a change that affects the result gets a warning.

    One of the run's length is only told.

    Args:
        folder: the run's.
        saved, current: options and facts that its result depends on, as text; a name that only one of them has counts.
        natures: what a change of each means; of a name that is missing, that the result changes.

    Raises:
        InputError: options differ that the saved state is bound to; it names them with both values.
    """
    changed = {
        key: f"{key}: was {saved.get(key)}, now {current.get(key)}"
        for key in sorted(saved.keys() | current.keys())
        if saved.get(key) != current.get(key) and natures.get(key) != Nature.FREE  # an older version recorded more
    }
    fixed = [text for key, text in changed.items() if _is_fixed(natures.get(key), saved.get(key), current.get(key))]
    if fixed:
        raise InputError(
            f"{folder}: the run was started with other options ({'; '.join(fixed)}); resume it with those, or start a "
            "new run: from its weights with --init_from, if the generator, --slab and the CT window stay as they are"
        )
    for key, text in changed.items():
        if natures.get(key) == Nature.LENGTH:
            log.info("the run has another length now, and the learning rate follows it: %s", text)
        else:
            log.warning("warning: the run resumes with another option, which changes its result: %s", text)


def _is_fixed(nature: Nature | None, saved: str | None, current: str | None) -> bool:
    """Tell whether a saved state does not allow a change of an option from one value, as text, to another."""
    if nature == Nature.SWITCH and saved is not None and current is not None:
        return (float(saved) == 0) != (float(current) == 0)
    return nature == Nature.FIXED


def clear_scratch(folder: Path) -> None:
    """Remove the half-written files of a run that was killed while saving."""
    for scratch in folder.rglob(".writing-*"):
        shutil.rmtree(scratch, ignore_errors=True)


def has_state(folder: Path) -> bool:
    """Tell whether a run's folder holds a state to resume from."""
    return (folder / STATE_NAME).exists() or (folder / PREVIOUS_STATE_NAME).exists()


def check_state(folder: Path) -> None:
    """Refuse a run's folder that holds no state to resume from.

    Raises:
        InputError: it says which other runs beside it do.
    """
    if has_state(folder):
        return
    runs = sorted(run.name for run in folder.parent.glob("*") if has_state(run))
    there = (
        f"Runs in {folder.parent} that can be continued: {', '.join(runs)}"
        if runs
        else (f"No run in {folder.parent} can be continued")
    )
    if (folder / OPTIONS_NAME).exists():
        raise InputError(
            f"{folder / STATE_NAME}: no such file: nothing to continue, the run was stopped before it saved its first "
            "state; start it again with the options that it was started with, without --continue_train"
        )
    raise InputError(
        f"{folder / STATE_NAME}: no such file: nothing to continue{did_you_mean(folder.name, runs) or '.'} {there}. "
        "Leave out --continue_train to start a new run"
    )


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the full training state, from which `load_state` lets a run resume; the one before it is kept."""
    latest, scratch = folder / STATE_NAME, folder / f"next_{STATE_NAME}"
    save_atomically({"kind": STATE_KIND, "format_version": STATE_VERSION, **state}, scratch)
    if latest.exists():
        latest.replace(folder / PREVIOUS_STATE_NAME)
    scratch.replace(latest)  # killed between the two, the run resumes from the previous state


def load_state(
    folder: Path,
    take_over: Callable[[dict[str, Any]], None] = lambda state: None,
    parts: Mapping[str, type] = STATE_PARTS,
) -> dict[str, Any]:
    """Return the state that `save_state` wrote, or the one before it where the latest is gone or damaged.

    Args:
        folder: the run's.
        take_over: restores the run from a state; where it meets entries that are missing or of another kind, that state
            counts as damaged.
        parts: what the state is made of, and as what it is stored.

    Raises:
        InputError: there is none, both are damaged, or `take_over` refuses.
    """
    latest, previous = folder / STATE_NAME, folder / PREVIOUS_STATE_NAME
    check_state(folder)
    try:
        return _load_state(latest, take_over, parts)
    except DamagedStateError as error:
        if not previous.exists():
            raise
        try:
            state = _load_state(previous, take_over, parts)
        except DamagedStateError as second:
            raise InputError(
                f"{error}; and the state before it: {second}; start a new run from the weights with --init_from"
            ) from second
        log.warning("warning: %s; resuming from the state before it, %s", error, previous.name)
        if latest.exists():  # or the next save would put it in place of the good one
            latest.replace(folder / f"damaged_{STATE_NAME}")
        return state


def _load_state(path: Path, take_over: Callable[[dict[str, Any]], None], parts: Mapping[str, type]) -> dict[str, Any]:
    try:
        state = load_checkpoint(path)
    except InputError as error:
        raise DamagedStateError(str(error)) from error
    found = (state.get("kind"), state.get("format_version"))
    if found != (STATE_KIND, STATE_VERSION):
        raise DamagedStateError(
            f"{path}: is {found[0]} of version {found[1]}; expected {STATE_KIND} of version {STATE_VERSION}: start a "
            "new run from its weights with --init_from"
        )
    if missing := [name for name, kind in parts.items() if not isinstance(state.get(name), kind)]:
        raise DamagedStateError(f"{path}: damaged: no {', '.join(missing)} in it, as every saved state has")
    try:
        take_over(state)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        what = " ".join(str(error).split())[:300]
        raise DamagedStateError(
            f"{path}: damaged: it lacks what the run needs, or has it in another form ({type(error).__name__}: {what})"
        ) from error
    return state


def saved_position(state: dict[str, Any]) -> Position:
    """Return how far the run was that a state was saved of.

    Raises:
        KeyError, TypeError, ValueError: that is no place in a run.
    """
    at = Position(*(state["position"][name] for name in Position._fields))
    counts = [value for value in (at.epoch, at.samples) if type(value) is int and value >= 0]
    if len(counts) < 2 or at.epoch < 1 or not math.isfinite(at.epoch_loss) or type(at.validated) is not bool:
        raise ValueError(f"position {at}")
    return at


def random_state(device: torch.device) -> dict[str, Any]:
    """Return torch's random state of this process, and of its GPU where it trains on one."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set torch's random state to what `random_state` returned; a GPU's only where there was one."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
