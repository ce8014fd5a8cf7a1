"""What a benchmark measures: sizes, networks, device, and how often."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from data.settings.declaration import Nature, option
from data.settings.devices import torch_device
from data.settings.values import nonnegative_int, positive_int
from models.networks import GENERATORS
from models.precision import PRECISIONS


def upsampling(netG: str) -> str:
    """Return how a generator upsamples as published; `unet` knows one way alone."""
    return "resize" if netG == "unet" else "transposed"


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """measurement."""

    work: Path | None = option(
        None, nature=Nature.FREE, parse=Path, help="keep generated data in this folder (default: a temporary one)"
    )
    turns: int = option(5, nature=Nature.FREE, parse=positive_int, help="number of turns")
    size: int = option(256, nature=Nature.FREE, parse=positive_int, help="rows and columns of a slice")
    device: torch.device = option("auto", nature=Nature.FREE, parse=torch_device, help="as in train.py")
    precision: str = option("auto", nature=Nature.FREE, choices=PRECISIONS, help="precision of our networks")
    threads: int = option(
        torch.get_num_threads(), nature=Nature.FREE, parse=positive_int, help="threads of torch on a CPU"
    )


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """train, synthesis, startup."""

    netG: str = option("resnet_9blocks", nature=Nature.FREE, choices=tuple(GENERATORS), help="generator")
    ngf: int = option(64, nature=Nature.FREE, parse=positive_int, help="features of the generators")
    ndf: int = option(64, nature=Nature.FREE, parse=positive_int, help="features of the discriminators")
    extractor_width: int = option(64, nature=Nature.FREE, parse=positive_int, help="features of the shape extractor")
    batch_size: int = option(1, nature=Nature.FREE, parse=positive_int, help="slices per step, of each domain")
    steps: int | None = option(
        None, nature=Nature.FREE, parse=positive_int, help="train: steps per turn (default: 1 on a CPU, else 10)"
    )
    compile: bool = option(False, nature=Nature.FREE, help="train: compile our networks")
    slices: int = option(64, nature=Nature.FREE, parse=positive_int, help="synthesis: slices per turn")


@dataclass(frozen=True, kw_only=True)
class DataSetOptions:
    """prepare, loader, startup."""

    patients: int = option(4, nature=Nature.FREE, parse=positive_int, help="generated patients of each domain")
    volume_slices: int = option(100, nature=Nature.FREE, parse=positive_int, help="slices of a generated volume")
    workers: Sequence[int] = option(
        (1, 2), nature=Nature.FREE, parse=positive_int, nargs="+", help="prepare: numbers of processes"
    )
    num_threads: Sequence[int] = option(
        (0, 1, 2), nature=Nature.FREE, parse=nonnegative_int, nargs="+", help="loader: numbers of threads"
    )
    volumes: Sequence[int] = option(
        (20, 2000), nature=Nature.FREE, parse=positive_int, nargs="+", help="startup: volumes in a manifest"
    )
    case_slices: int = option(500, nature=Nature.FREE, parse=positive_int, help="startup: slices of a volume")


@dataclass(frozen=True, kw_only=True)
class SimulationOptions:
    """simulation."""

    simulation_size: int = option(128, nature=Nature.FREE, parse=positive_int, help="rows and columns of a slice")
    simulation_batch: int = option(16, nature=Nature.FREE, parse=positive_int, help="pairs of a batch")


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings(MachineOptions, NetworkOptions, DataSetOptions, SimulationOptions):
    """What is measured, and on what.

    Attributes:
        method: further settings of the CycleGAN that trains, by name (`CycleGANSettings`).
    """

    method: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where generated data is kept."""
        assert self.work is not None, "the command chooses one"
        return self.work

    @property
    def upsample(self) -> str:
        """How the generator upsamples."""
        return upsampling(self.netG)

    @property
    def steps_a_turn(self) -> int:
        """Steps that are timed together."""
        return self.steps or (1 if self.device.type == "cpu" else 10)
