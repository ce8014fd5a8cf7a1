"""Training a generator on true pairs: MR and CT of the same patients, registered, for those who have them.

    loss = |G_A(mr) - map(ct)|_1 + lambda_hu |map^-1(G_A(mr)) - ct|_1 / 1000 HU + lambda_reverse |G_B(map(ct)) - mr|_1

over slabs of neighbouring slices, where the MR sees the body. Of several contrasts each one's window varies by itself;
all lie under one bias field, as contrasts of one scan do. It is also the bound that unpaired training is held against:
the same network, the same budget.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from data.loading.channels import with_channels
from data.loading.paired import PairedSet, open_paired_set
from data.loading.settings import DataSettings
from data.simulation.draws import Draws
from data.simulation.simulated_mr import field_of_view
from data.simulation.slab_stock import SlabStock
from data.values.intensity import AIR_HU
from models.base_model import Place
from models.slab_model import SlabModel, SlabModelSettings

log = logging.getLogger(__name__)

_OUTSIDE = {"hu": AIR_HU, "counted": 1.0}
# The MR's window varies by this share, its bias field over this length, and this much noise is added.
_GAIN, _FIELD_MM, _NOISE = 0.15, 120.0, 0.01


@dataclass(frozen=True, kw_only=True)
class PairedSettings(SlabModelSettings):
    """pairs."""


class PairedModel(SlabModel):
    """True pairs: MR and CT of the same patients on one grid."""

    settings_type = PairedSettings
    pair = "paired"
    # The patients that validate have a true CT.
    defaults: ClassVar[Mapping[str, Any]] = {**SlabModel.defaults, "val_criterion": "mae"}
    settings: PairedSettings
    takes_contrasts = True
    fixed_facts = ("contrasts",)

    def __init__(self, settings: PairedSettings, data: DataSettings, pairs: PairedSet, place: Place) -> None:
        """Load the pairs onto the device and build the networks; the same seed gives the same weights."""
        super().__init__(settings, data, place, pairs.contrasts)
        self.spacing = (pairs.slice_mm, pairs.pixel_mm)
        self.batch_size = data.batch_size
        self.mr_maps = pairs.mr_maps
        outside = dict.fromkeys(self.mr_maps, -1.0) | _OUTSIDE
        self.stock = SlabStock([pairs.volumes[name] for name in sorted(pairs.volumes)], outside, "hu", self.device)

    @classmethod
    def open_data(cls, settings: PairedSettings, data: DataSettings, leave_out: Collection[str] = ()) -> PairedSet:
        """Open the pairs; see `open_paired_set`."""
        pairs = open_paired_set(data.dataroot, data.mr_window, data.ct_map, leave_out)
        cls.check_crop(data, pairs.manifest.size)
        return pairs

    @classmethod
    def from_data(cls, settings: PairedSettings, data: DataSettings, dataset: PairedSet, place: Place) -> Self:
        """Build the model for the pairs of `dataset`."""
        model = cls(settings, data, dataset, place)
        slices = sum(len(volume["hu"]) for volume in dataset.volumes.values())
        log.info("%d pairs of MR and CT, %d slices of %g mm", len(dataset.volumes), slices, dataset.slice_mm)
        return model

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the next batch; see `SlabModel.draw`. What the MR does not see of the body does not count."""
        draws = self.draws(self.batch_size)
        slab = self.stock.draw(self.crop, draws)
        shape = slab["hu"].shape[1:]
        gain = torch.exp(_GAIN * draws.normal(len(self.mr_maps), 1, 1)).repeat_interleave(shape[0], dim=1)
        field = torch.exp(draws.uniform(0, self.settings.bias) * draws.smooth_field(shape, _FIELD_MM, self.spacing))
        mr = torch.cat([slab[name] for name in self.mr_maps], dim=1)
        mr = (mr + 1) / 2 * gain * with_channels(field, mr.shape[1]) + _NOISE * draws.normal(*mr.shape[1:])
        mr = 2 * mr.clamp(0, 1) - 1
        seen = field_of_view((self.crop.size, self.crop.size), self.settings.field_of_view, draws)
        return torch.where(seen, mr, -1.0), torch.where(seen, slab["hu"], AIR_HU), (slab["counted"] > 0.5).float()

    def draw_whole(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return a pair of whole slices, as they are; see `SlabModel.draw_whole`."""
        slab = self._slab_with_bone(self.stock)
        return torch.cat([slab[name].float() for name in self.mr_maps], dim=1), slab["hu"].float()

    def facts(self, data: DataSettings, dataset: PairedSet) -> dict[str, str]:
        """Return the names of the MR whose pairs are trained on, and those of its contrasts where there are several."""
        several = {"contrasts": ", ".join(dataset.contrasts)} if len(dataset.contrasts) > 1 else {}
        return {"volumes": " ".join(sorted(dataset.volumes))} | several
