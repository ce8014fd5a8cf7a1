"""Weights and checkpoints on disk: written whole or not at all, read without running code they carry."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import InputError
from data.files import whole_file

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def save_atomically(obj: Mapping[str, Any], path: str | Path) -> None:
    """Write a mapping of tensors, numbers, strings, lists and mappings; `path` is whole and new or as before.

    Raises:
        InputError: the file cannot be written.
        TypeError: `obj` holds something that `load_checkpoint` would refuse, such as NumPy values.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is not a regular file, so it is not replaced; expected a file name")
    try:
        with whole_file(path) as scratch:
            with scratch.open("wb") as file:  # given a name, torch does not say why it could not write
                torch.save(obj, file)
            # Found now, and not when a run of days is to be resumed.
            if refused := torch.serialization.get_unsafe_globals_in_checkpoint(scratch):
                raise TypeError(f"{path}: not written: holds {', '.join(refused)}, which loading refuses")
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be written: {_reason(error)}") from error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what `save_atomically` (or `torch.save`) wrote, with all tensors on the CPU.

    Raises:
        InputError: the file is missing, truncated, foreign, or holds objects beside tensors and plain values;
            nothing in it is run.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected weights or a checkpoint written by torch")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's readers raise errors of nearly any type on foreign bytes
        raise InputError(
            f"{path}: cannot be read: {_reason(error)}; expected a whole file written by torch that "
            "holds tensors and plain values only: fetch or write it again"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise InputError(f"{path}: holds a {type(checkpoint).__name__}; expected named tensors or a checkpoint")
    return dict(checkpoint)


def save_network_weights(net: nn.Module, path: str | Path) -> None:
    """Write the parameters and buffers of `net`, on the CPU, as `save_atomically` does."""
    save_atomically({key: value.detach().cpu() for key, value in net.state_dict().items()}, path)


def load_network_weights(net: nn.Module, source: str | Path | Mapping[str, Tensor]) -> None:
    """Copy parameters and buffers into `net`, from a file or from a state dict; all or none.

    Takes state dicts of wrapped networks (names that begin with 'module.'), and drops the normalisation
    statistics that the published code kept and `net` has not.

    Raises:
        InputError: the file cannot be read, or tensors are missing, unexpected or of another shape.
    """
    from_file = isinstance(source, str | Path)
    where = str(source) if from_file else "state dict"
    state = load_checkpoint(source) if from_file else dict(source)
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise InputError(f"{where}: holds other things than named tensors; expected the weights of one network")
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    own = net.state_dict()
    state = {key: value for key, value in state.items() if key in own or not key.endswith(STATISTICS)}
    reshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if state[key].shape != own[key].shape
    ]
    problems = {
        "missing": own.keys() - state.keys(),
        "unexpected": state.keys() - own.keys(),
        "of another shape": reshaped,
    }
    if any(problems.values()):
        found = "; ".join(f"{what}: {_listed(keys)}" for what, keys in problems.items() if keys)
        raise InputError(
            f"{where}: does not fit {type(net).__name__}: {found}: build the network with the options "
            "(architecture, width, channels, norm, dropout, upsampling) that the weights were trained with"
        )
    net.load_state_dict(state)


def _listed(keys: Iterable[str], most: int = 10) -> str:
    names = sorted(keys)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _reason(error: Exception) -> str:
    # torch hides a full disk behind an error of its zip writer.
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    # Of a refusal, it advises first to load without protection; the reason comes in a paragraph after that.
    paragraphs = [text.strip() for text in str(cause).split("\n\n") if text.strip()]
    telling = [text for text in paragraphs if not text.startswith("Weights only load failed")]
    text = (telling or paragraphs or ["no reason given"])[0].partition("WeightsUnpickler error: ")
    return f"{type(cause).__name__}: {(text[2] or text[0]).splitlines()[0].partition('. ')[0].rstrip('.')}"
