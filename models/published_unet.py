"""Import weights of U-Nets trained elsewhere, in earlier and later layouts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor

from data.errors import InputError
from models.state_dicts import load_checkpoint, load_network_weights, unwrapped
from unet.unet_model import UNet

# Names of late 2019 and after, in the order in which they are replaced by the ones used here.
LATER_NAMES = (("inc.double_conv.", "inc.conv.conv."), (".maxpool_conv.", ".mpconv."), (".double_conv.", ".conv."))


class UNetArguments(TypedDict):
    """What a `UNet` is built with."""

    n_channels: int
    n_classes: int
    width: int
    wide_up: bool


def published_state(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a U-Net's state dict, of an earlier or a later layout, under the names of `UNet`.

    Convolutions without bias, which later layouts have before a batch norm, get a bias of zero: it is the same.

    Raises:
        InputError: the file cannot be read or holds other things than a network's named tensors.
    """
    if isinstance(source, str | Path):
        where, state = str(source), load_checkpoint(source, taken_over=True)
    else:
        where, state = "state dict", dict(source)
    # The later training script kept the label values of its masks beside the weights.
    state.pop("mask_values", None)
    if not state or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise InputError(f"{where}: holds more than named tensors; expected the weights of one U-Net")
    named = {}
    for name, value in unwrapped(state).items():
        for later, ours in LATER_NAMES:
            name = name.replace(later, ours)
        named[name] = value
    if "inc.conv.conv.0.bias" not in named:
        for name in [name for name in named if name.endswith((".conv.0.weight", ".conv.3.weight"))]:
            named.setdefault(name.replace(".weight", ".bias"), named[name].new_zeros(len(named[name])))
    return named


def seeing_gray(net: UNet, arguments: UNetArguments) -> tuple[UNet, UNetArguments]:
    """Return the network of one channel that gives what `net` of several gives where all of them show one image.

    The first convolution is linear in each channel, so its kernel is summed over them.
    """
    state = net.state_dict()
    first = "inc.conv.conv.0.weight"
    state[first] = state[first].sum(dim=1, keepdim=True)
    arguments = UNetArguments(**(arguments | {"n_channels": 1}))
    gray = UNet(**arguments)
    gray.load_state_dict(state)
    return gray, arguments


def unet_from_state(source: str | Path | Mapping[str, Any]) -> tuple[UNet, UNetArguments]:
    """Return the U-Net whose weights `source` holds, and its arguments.

    Raises:
        InputError: the file cannot be read, or holds the weights of another network.
    """
    where = source if isinstance(source, str | Path) else "state dict"
    state = published_state(source)
    try:
        width, n_channels = state["inc.conv.conv.0.weight"].shape[:2]
        n_classes = len(state["outc.conv.weight"])
        wide_up = len(state["up1.conv.conv.0.weight"]) == 8 * width
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{where}: not the weights of a four-level U-Net ({error}); expected the names inc, down1..4, up1..4, outc"
        ) from error
    arguments = UNetArguments(n_channels=n_channels, n_classes=n_classes, width=width, wide_up=wide_up)
    net = UNet(**arguments)
    try:
        load_network_weights(net, state)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return net, arguments
