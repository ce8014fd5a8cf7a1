"""Initial weights of a network."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.errors import InputError
from data.settings.declaration import Nature, Need, option
from data.settings.values import positive_float


def _normal(weight: Tensor, gain: float, generator: torch.Generator | None) -> None:
    nn.init.normal_(weight, 0.0, gain, generator=generator)


def _xavier(weight: Tensor, gain: float, generator: torch.Generator | None) -> None:
    nn.init.xavier_normal_(weight, gain, generator=generator)


def _kaiming(weight: Tensor, gain: float, generator: torch.Generator | None) -> None:
    nn.init.kaiming_normal_(weight, generator=generator)


def _orthogonal(weight: Tensor, gain: float, generator: torch.Generator | None) -> None:
    nn.init.orthogonal_(weight, gain, generator=generator)


INITIALISATIONS: dict[str, Callable[[Tensor, float, torch.Generator | None], None]] = {
    "normal": _normal,
    "xavier": _xavier,
    "kaiming": _kaiming,
    "orthogonal": _orthogonal,
}


@dataclass(frozen=True, kw_only=True)
class InitialisationSettings:
    """initialisation."""

    init_type: str = option(
        "normal",
        nature=Nature.FREE,
        choices=tuple(INITIALISATIONS),
        help="distribution that initial weights are drawn from",
    )
    init_gain: float = option(
        0.02, nature=Nature.FREE, parse=positive_float, help="scale of the initial weights",
        needs=Need("init_type", ("normal", "xavier", "orthogonal")),
    )  # fmt: skip


def initialise(
    net: nn.Module,
    kind: str = InitialisationSettings.init_type,
    gain: float = InitialisationSettings.init_gain,
    generator: torch.Generator | None = None,
) -> None:
    """Draw new weights for all convolutions of `net`, in place; biases become 0.

    Scales and shifts of batch norm become N(1, 0.02) and 0 (Radford et al., DCGAN, ICLR 2016).

    Args:
        net: the network.
        kind: 'normal': N(0, gain); 'xavier': Glorot and Bengio 2010, standard deviation
            gain * sqrt(2 / (fan_in + fan_out)); 'kaiming': He et al. 2015, sqrt(2 / fan_in), whatever `gain`;
            'orthogonal': Saxe et al. 2014, orthonormal rows or columns times `gain`.
        gain: scale of the weights.
        generator: source of randomness, on the device of `net`; None for torch's global one.

    Raises:
        InputError: unknown `kind`.
    """
    if kind not in INITIALISATIONS:
        raise InputError(f"unknown initialisation {kind!r}; expected one of {', '.join(INITIALISATIONS)}")
    draw = INITIALISATIONS[kind]
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            draw(module.weight, gain, generator)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02, generator=generator)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
