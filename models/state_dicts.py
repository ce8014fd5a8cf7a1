"""Weights and checkpoints on disk: written completely or not at all, and read without running code in them."""

import logging
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.commands import python_command
from data.errors import InputError, listed
from data.files import whole_file

log = logging.getLogger(__name__)

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# What DataParallel, torch.compile and AveragedModel put before the names of the network that they hold.
WRAPPERS = ("module.", "_orig_mod.")
_ZIP_START = b"PK\x03\x04"
# The pickled number that begins a file of torch before 1.6.
_OLD_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"


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


def load_checkpoint(path: str | Path, taken_over: bool = False) -> dict[str, Any]:
    """Read what `save_atomically` (or `torch.save`) wrote, with all tensors on the CPU.

    Every checksum in the file is verified first: torch itself reads damaged numbers without a word.

    Args:
        path: the file.
        taken_over: whether a file of torch before 1.6 is read too, which has no checksums; a warning says so.

    Raises:
        InputError: the file is missing, truncated, damaged, foreign, or holds objects beside tensors and plain values;
            nothing in it is run.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected weights or a checkpoint written by torch")
    try:
        _check_whole(path, taken_over)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # torch's readers raise errors of nearly any type on foreign bytes
        raise InputError(
            f"{path}: cannot be read: {_reason(error)}; expected a whole file written by torch that "
            "holds tensors and plain values only: fetch or write it again"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise InputError(f"{path}: holds a {type(checkpoint).__name__}; expected named tensors or a checkpoint")
    return dict(checkpoint)


def _check_whole(path: Path, taken_over: bool) -> None:
    """Verify the checksum of every part of a file of torch's."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start.startswith(_ZIP_START):
        if _OLD_MAGIC not in start:
            return  # no file of torch's: its reader says what is wrong
        if not taken_over:
            raise InputError(
                f"{path}: cannot be read: it is in the format of torch before 1.6, which has no checksums, so damage "
                f"would go unnoticed; import the weights with {python_command('-m', 'scripts.import_generator')} (a "
                f"generator) or {python_command('-m', 'ct_segmentation.import_extractor')} (a shape extractor)"
            )
        log.warning(
            "warning: %s: is in the format of torch before 1.6, which has no checksums: damage cannot be detected; "
            "compare its hash with that of its source", path,
        )  # fmt: skip
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged directory raises errors of many types
        raise InputError(
            f"{path}: cannot be read: it is truncated or damaged ({error}); fetch or write it again"
        ) from error
    if damaged:
        raise InputError(
            f"{path}: cannot be read: it is damaged: its part {damaged} has the wrong checksum; fetch or write it again"
        )


def save_network_weights(net: nn.Module, path: str | Path) -> None:
    """Write the parameters and buffers of `net`, on the CPU, as `save_atomically` does."""
    save_atomically({key: value.detach().cpu() for key, value in net.state_dict().items()}, path)


def load_network_weights(net: nn.Module, source: str | Path | Mapping[str, Tensor], taken_over: bool = False) -> None:
    """Copy parameters and buffers into `net`, from a file or from a state dict; all or none.

    Takes state dicts of wrapped networks (see `unwrapped`), and drops the normalisation statistics that the published
    code kept and `net` has not. `taken_over` as in `load_checkpoint`.

    Raises:
        InputError: the file cannot be read, or tensors are missing, unexpected, of another shape or not finite.
    """
    if isinstance(source, str | Path):
        where, state = str(source), load_checkpoint(source, taken_over)
    else:
        where, state = "state dict", dict(source)
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise InputError(f"{where}: holds more than named tensors; expected the weights of one network")
    own, state = net.state_dict(), unwrapped(state)
    state = {key: value for key, value in state.items() if key in own or not key.endswith(STATISTICS)}
    _check_fit(where, type(net).__name__, own, state)
    spoilt = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if spoilt:
        raise InputError(
            f"{where}: weights that are not finite (NaN or infinite): {_listed(spoilt)}; such a network makes NaN in "
            "any precision: use weights of an earlier epoch (--epoch), or fetch or train them again"
        )
    net.load_state_dict(state)


def load_optimiser(optimiser: torch.optim.Adam, state: Mapping[str, Any]) -> None:
    """Continue from Adam's `state_dict`.

    Raises:
        KeyError, ValueError: it is of other parameters, or lacks moments; torch by itself would begin those anew, or
            fail at the next step.
    """
    for own, saved in zip(optimiser.param_groups, state["param_groups"], strict=True):
        if missing := own.keys() - saved.keys():
            raise ValueError(f"optimiser: no {_listed(missing)}")
    optimiser.load_state_dict(dict(state))
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    moments = [optimiser.state.get(parameter, {}) for parameter in parameters]
    if not any(moments):  # no step was taken
        return
    for k, (parameter, own) in enumerate(zip(parameters, moments, strict=True)):
        shapes = (own["step"].shape, own["exp_avg"].shape, own["exp_avg_sq"].shape)
        if shapes != ((), parameter.shape, parameter.shape):
            raise ValueError(f"optimiser: moments of another shape than parameter {k}")


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with the names of the network itself, which wrappers put `module.` or `_orig_mod.` before.

    Only what all names have in common is taken away; so is the count that torch's AveragedModel keeps beside them.
    """
    named = dict(state)
    while named:
        inner = {key: value for key, value in named.items() if key != "n_averaged"}
        prefix = next((p for p in WRAPPERS if inner and all(key.startswith(p) for key in inner)), None)
        if prefix is None:
            break
        named = {key.removeprefix(prefix): value for key, value in inner.items()}
    return named


def _check_fit(where: str, network: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Refuse a state dict that lacks what a network has, or has what it lacks."""
    reshaped = {
        key: (tuple(state[key].shape), tuple(own[key].shape))
        for key in own.keys() & state.keys()
        if state[key].shape != own[key].shape
    }
    problems = {
        "missing": own.keys() - state.keys(),
        "unexpected": state.keys() - own.keys(),
        "of another shape": [f"{key} {found} instead of {wanted}" for key, (found, wanted) in reshaped.items()],
    }
    if not any(problems.values()):
        return
    found = "; ".join(f"{what}: {_listed(keys)}" for what, keys in problems.items() if keys)
    way = (
        "build the network with the options (architecture, width, channels, norm, dropout, upsampling) that the "
        "weights were trained with"
    )
    if channels := next(filter(None, (_channels(*shapes) for shapes in reshaped.values())), None):
        what = "colour images, 3 channels" if channels == 3 else f"images of {channels} channels"
        way = (
            f"the weights are of a network for {what}, and slices have 1: train it again on slices (in "
            "pytorch-CycleGAN-and-pix2pix with --input_nc 1 --output_nc 1)"
        )
    raise InputError(f"{where}: does not fit {network}: {found}: {way}")


def _channels(found: tuple[int, ...], wanted: tuple[int, ...]) -> int | None:
    """Return how many channels one shape has where the other has 1; None if they differ otherwise."""
    differing = [pair for pair in zip(found, wanted, strict=False) if pair[0] != pair[1]]
    return differing[0][0] if len(found) == len(wanted) and [one for _, one in differing] == [1] else None


def _listed(keys: Iterable[str]) -> str:
    return listed(sorted(keys), 10)


def _reason(error: Exception) -> str:
    # torch hides a full disk behind an error of its zip writer.
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    # Of a refusal, it advises first to load without protection; the reason comes in a paragraph after that.
    paragraphs = [text.strip() for text in str(cause).split("\n\n") if text.strip()]
    telling = [text for text in paragraphs if not text.startswith("Weights only load failed")]
    text = (telling or paragraphs or ["no reason given"])[0].partition("WeightsUnpickler error: ")
    return f"{type(cause).__name__}: {(text[2] or text[0]).splitlines()[0].partition('. ')[0].rstrip('.')}"
