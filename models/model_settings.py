"""Options of all commands that use a model: its name and the device."""

from dataclasses import dataclass
from pathlib import Path

import torch

from data.settings.declaration import Nature, option
from data.settings.devices import torch_device
from data.settings.values import epoch_name, run_name


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """run."""

    name: str = option(
        nature=Nature.FREE,
        parse=run_name,
        first=True,
        help="name of the run and its model, a folder in --checkpoints_dir",
    )
    checkpoints_dir: Path = option(
        Path("checkpoints"), nature=Nature.FREE, parse=Path, help="folder that holds all models"
    )
    epoch: str = option(
        "latest", nature=Nature.FREE, parse=epoch_name, aliases=("--which_epoch",),
        help="latest, best, or a saved epoch",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelSettings(ModelChoice):
    """run."""

    device: torch.device = option(
        "auto", nature=Nature.FREE, parse=torch_device, first=True, help="auto, cpu, cuda, cuda:1, ... or mps"
    )
