"""Layers that generators and discriminators are made of: norms, padding, upsampling, and the checks of their names.

Source of the resizing: Odena et al., "Deconvolution and checkerboard artifacts", Distill 2016.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from data.errors import InputError


def pick[T](registry: Mapping[str, T], name: str, what: str) -> T:
    """Return a registry's entry. Raises `InputError` for an unknown name; `what` says of what."""
    if name not in registry:
        raise InputError(f"unknown {what} {name!r}; expected one of {', '.join(registry)}")
    return registry[name]


# Instance norm has neither affine parameters nor running statistics: it acts alike in training and in use.
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": partial(nn.InstanceNorm2d, affine=False, track_running_stats=False),
    "batch": nn.BatchNorm2d,
    "none": nn.Identity,
}


class ReflectionPad2d(nn.ReflectionPad2d):
    """As torch's, and repeatable on a GPU too: there torch has no deterministic gradient of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Pad (N, C, H, W) by reflection at its edges."""
        if not torch.are_deterministic_algorithms_enabled():
            return super().forward(x)
        left, right, top, bottom = self.padding
        return _reflected(_reflected(x, 3, left, right), 2, top, bottom)


def _reflected(x: Tensor, dim: int, before: int, after: int) -> Tensor:
    first = x.narrow(dim, 1, before).flip(dim)
    last = x.narrow(dim, x.shape[dim] - 1 - after, after).flip(dim)
    return torch.cat([first, x, last], dim)


def _transposed(in_nc: int, out_nc: int, kernel_size: int, bias: bool) -> nn.Module:
    return nn.ConvTranspose2d(
        in_nc, out_nc, kernel_size, stride=2, padding=1, output_padding=kernel_size % 2, bias=bias
    )


def _resize(in_nc: int, out_nc: int, kernel_size: int, bias: bool) -> nn.Module:
    # Always 3x3: an even kernel has no centre. One module, so that the layers after it keep their positions.
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        ReflectionPad2d(1),
        nn.Conv2d(in_nc, out_nc, kernel_size=3, bias=bias),
    )


# Layers that double height and width, from (in_nc, out_nc, kernel_size of a transposed convolution, bias).
UPSAMPLINGS: dict[str, Callable[[int, int, int, bool], nn.Module]] = {
    "transposed": _transposed,
    "resize": _resize,
}


def use_bias(norm: str) -> bool:
    """Tell whether convolutions have biases: in the published networks beside instance norm alone."""
    return norm == "instance"


def check_size(x: Tensor, network: str, multiple: int, minimum: int) -> None:
    """Refuse images that a network cannot process. Raises `InputError`; `network` names it."""
    height, width = x.shape[-2:]
    if height % multiple or width % multiple or min(height, width) < minimum:
        whole = f"multiples of {multiple} and " if multiple > 1 else ""
        raise InputError(
            f"{network}: input of {height} x {width} pixels; expected height and width to be {whole}"
            f"at least {minimum}: crop, pad or resize the slices, or choose another network"
        )
