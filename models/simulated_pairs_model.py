"""Training a generator on pairs that are simulated from CT alone, on the training device: no MR is read.

    loss = |G_A(mr) - map(ct)|_1 + lambda_hu |map^-1(G_A(mr)) - ct|_1 / 1000 HU
           + lambda_reverse |G_B(map(ct)) - mr|_1

over slabs of neighbouring slices, where `mr` is simulated from `ct` (`data/simulation/simulated_mr.py`) and `map` takes
HU to the network's [-1, 1]. The first term weighs soft tissue as the map spreads it, the second weighs every HU alike;
both count bone `bone_weight` times. The third is for models that are to start a CycleGAN by `--init_from`, which needs
a way back.
"""

import logging
import math
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from data.errors import InputError
from data.loading.settings import DataSettings
from data.loading.threads import one_thread
from data.settings.declaration import Nature, Need, option, redeclare
from data.settings.values import nonnegative_float, share
from data.simulation.contrasts import parse_contrasts
from data.simulation.draws import Draws
from data.simulation.pasted_limbs import paste_limbs
from data.simulation.settings import SimulationSettings
from data.simulation.simulated_mr import field_of_view, simulate_mr
from data.simulation.simulation_set import SimulationSet, open_simulation_set
from data.simulation.slab_stock import SlabStock
from data.values.intensity import AIR_HU
from data.values.mr_rules import rules_in_order
from data.volumes.contrasts import ONLY_CONTRAST
from data.volumes.dicom_contrasts import DIXON_NAMES
from models.base_model import Place
from models.fixed_slices import real_mr_slab
from models.slab_model import PairLosses, SlabModel, SlabModelSettings

log = logging.getLogger(__name__)

# At most so many extra slices are simulated on each side of a slab, and cut off: thick MR slices mix neighbours.
_MOST_MARGIN = 3
_OUTSIDE = {"hu": AIR_HU, "depth": 0.0}
# On a CPU a batch is drawn in an even number of parts of about so many voxels, whose arrays stay in a core's cache. One
# thread draws each: operations on a part are too short to be shared.
_PART_VOXELS = 2**19


@dataclass(frozen=True, kw_only=True)
class SimulationOptions:
    """simulation."""

    limbs: str = option(
        "", nature=Nature.RESULT, metavar="TEXT",
        first=True, help="paste CT whose names contain TEXT (limbs) beside the other CT (trunks) as arms",
    )  # fmt: skip
    limbs_share: float = option(
        0.4, nature=Nature.RESULT, parse=share, help="with --limbs: fraction of each batch that shows limbs only",
        needs=Need("limbs"),
    )  # fmt: skip
    skin_mm: float = option(
        SimulationSettings.skin_mm, nature=Nature.RESULT, parse=nonnegative_float,
        help="largest mean thickness in mm of dark skin; 0: skin as bright as its HU suggest",
    )  # fmt: skip
    mr_slice_mm: float = option(
        SimulationSettings.mr_slice_mm, nature=Nature.RESULT, parse=nonnegative_float,
        help="largest slice thickness in mm of the simulated MR; a drawn thickness above the slice spacing of "
             "the data set is imitated by averaging and interpolating slices; limited to three slices of the data "
             "set; 0: off",
    )  # fmt: skip
    simulated_contrasts: tuple[str, ...] = option(
        (ONLY_CONTRAST,), nature=Nature.FIXED, nargs="+", metavar="NAME", convert=parse_contrasts,
        help=f"MR contrasts to simulate, the input of the model: some of {', '.join(DIXON_NAMES)}; {ONLY_CONTRAST}: a "
             "single T1-weighted MR",
    )  # fmt: skip
    other_sequences: float = option(
        0.0, nature=Nature.RESULT, parse=share,
        help="fraction of the simulated MR that are not T1-weighted: fat and muscle of any brightness",
    )  # fmt: skip
    leave_out: str = option(
        "", nature=Nature.RESULT, metavar="TEXT", help="do not train on CT whose names contain TEXT"
    )


@dataclass(frozen=True, kw_only=True)
class SimulatedPairsSettings(SimulationOptions, SlabModelSettings):
    """simulated pairs."""

    bone_weight: float = redeclare(PairLosses, "bone_weight", 2.0)


class SimulatedPairsModel(SlabModel):
    """Simulated pairs: MR made from CT; no MR is read."""

    settings_type = SimulatedPairsSettings
    pair = "simulated"
    takes_contrasts = True
    learns_from_mr = False
    settings: SimulatedPairsSettings

    def __init__(self, settings: SimulatedPairsSettings, data: DataSettings, ct: SimulationSet, place: Place) -> None:
        """Load the CT onto the device and build the networks; the same seed gives the same weights."""
        super().__init__(settings, data, place, settings.simulated_contrasts)
        s = settings
        limbs = _limbs(s, ct)
        trunks = sorted(ct.volumes.keys() - set(limbs))
        groups = [trunks, limbs] if limbs else [sorted(ct.volumes)]
        self.spacing = (ct.slice_mm, ct.pixel_mm)
        mr_slice_mm = min(s.mr_slice_mm, _MOST_MARGIN * ct.slice_mm)
        self.margin = min(_MOST_MARGIN, max(1, math.ceil(s.mr_slice_mm / ct.slice_mm))) if data.slab > 1 else 1
        self.stocks = [SlabStock([ct.volumes[name] for name in group], _OUTSIDE, "hu", self.device) for group in groups]
        self.simulation = SimulationSettings(
            field_of_view=s.field_of_view, bias=(0.0, s.bias), skin_mm=s.skin_mm, contrasts=s.simulated_contrasts,
            other_sequences=s.other_sequences, mr_slice_mm=mr_slice_mm,
        )  # fmt: skip
        of_limbs = round(data.batch_size * s.limbs_share) if len(groups) == 2 else 0
        self.parts = [data.batch_size - of_limbs, of_limbs][: len(groups)]
        self._real_mr = lambda: real_mr_slab(data.dataroot, SimulatedPairsModel.describe(self, data, ct))

    @classmethod
    def check(cls, settings: Any, data: DataSettings) -> None:
        """Refuse contrasts that the model could not take; see `SlabModel.check`."""
        super().check(settings, data)
        rules_in_order(data.mr_window, settings.simulated_contrasts)
        of_limbs = round(data.batch_size * settings.limbs_share)
        if settings.limbs and 0 < settings.limbs_share < 1 and of_limbs in (0, data.batch_size):
            never = "trunks" if of_limbs else "limbs alone"
            raise InputError(
                f"--limbs_share {settings.limbs_share:g}: a batch of {data.batch_size} would never show {never}; raise "
                "--batch_size, or choose another share (0: trunks with pasted limbs only, 1: limbs only)"
            )

    @classmethod
    def open_data(
        cls, settings: SimulatedPairsSettings, data: DataSettings, leave_out: Collection[str] = ()
    ) -> SimulationSet:
        """Open the CT, prepared for the simulation; see `open_simulation_set`."""
        ct = open_simulation_set(data.dataroot, max(data.num_threads, 1), leave_out, settings.leave_out)
        if settings.limbs and (view := ct.manifest.view) != "axial":
            raise InputError(f"--limbs: limbs stand beside trunks in axial slices; those of {data.dataroot} are {view}")
        limbs = _limbs(settings, ct)
        if settings.limbs and len(limbs) == len(ct.volumes):
            raise InputError(
                f"--limbs {settings.limbs}: every CT that is trained on has that in its name, so there is no trunk to "
                "paste limbs beside; choose another text, or leave it out"
            )
        if settings.limbs and not limbs:
            names = ", ".join(sorted(ct.volumes)[:5])
            raise InputError(f"--limbs {settings.limbs}: no CT has that in its name; they are called {names}, ...")
        cls.check_crop(data, ct.manifest.size)
        return ct

    @classmethod
    def from_data(
        cls, settings: SimulatedPairsSettings, data: DataSettings, dataset: SimulationSet, place: Place
    ) -> Self:
        """Build the model for the CT of `dataset`."""
        model = cls(settings, data, dataset, place)
        slices = sum(len(volume["hu"]) for volume in dataset.volumes.values())
        limbs = f" ({len(_limbs(settings, dataset))} of limbs)" if settings.limbs else ""
        volumes = f"{len(dataset.volumes)} CT volumes{limbs}"
        log.info("%s, %d slices of %g mm with body; no MR is trained on", volumes, slices, dataset.slice_mm)
        return model

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the next batch; see `SlabModel.draw`. Everything counts.

        What is drawn does not depend on the number of threads: each part of a batch has random numbers of its own.
        """
        if self.device.type != "cpu":
            mr, hu = self._draw(self.parts, self.draws)
            return mr, hu, torch.ones_like(hu)
        voxels = sum(self.parts) * (self.crop.slices + 2 * self.margin) * self.crop.size**2
        rounds = min(2 * max(1, round(voxels / (2 * _PART_VOXELS))), *(n for n in self.parts if n))
        shares = [[n * (k + 1) // rounds - n * k // rounds for n in self.parts] for k in range(rounds)]
        sources = [self._own_draws() for _ in shares]
        drawn = self._threads.map(self._draw_alone, shares, sources)
        mr, hu = (torch.cat(images) for images in zip(*drawn, strict=True))
        return mr, hu, torch.ones_like(hu)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(torch.get_num_threads(), "simulation")

    def _own_draws(self) -> Callable[[int], Draws]:
        """Return what `draws` does with generators of its own, whose seeds are drawn now."""
        seeds = torch.randint(2**62, (2,), generator=self.generators["host"]).tolist()
        own = [torch.Generator().manual_seed(seed) for seed in seeds]
        return lambda count: Draws(count, *own)

    def _draw_alone(self, counts: list[int], draws_of: Callable[[int], Draws]) -> tuple[Tensor, Tensor]:
        """Return what `_draw` does, computed by the calling thread alone."""
        with one_thread(), torch.no_grad():
            return self._draw(counts, draws_of)

    def _draw(self, counts: list[int], draws_of: Callable[[int], Draws]) -> tuple[Tensor, Tensor]:
        """Return MR in [-1, 1] and CT in HU of so many slabs of each group; `draws_of` gives their random numbers."""
        slabs = []
        for stock, count in zip(self.stocks, counts, strict=True):
            if not count:
                continue
            draws = draws_of(count)
            slab = stock.draw(self.crop, draws, self.margin)
            if len(self.stocks) == 2 and stock is self.stocks[0]:
                paste_limbs(slab, self.stocks[1], self.crop, self.spacing[1], draws)
            slabs.append(slab)
        hu, depth, zoom = (torch.cat([slab[name] for slab in slabs]) for name in ("hu", "depth", "zoom"))
        draws = draws_of(len(hu))
        seen = field_of_view((self.crop.size, self.crop.size), self.settings.field_of_view, draws)
        mr = simulate_mr(hu, depth.mul_(zoom / 4), self.spacing, draws, self.simulation, self.margin)
        kept = slice(self.margin, self.margin + self.crop.slices)
        return torch.where(seen, mr, -1.0), torch.where(seen, hu[:, kept], AIR_HU)

    def draw_whole(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return a simulated pair of whole slices; see `SlabModel.draw_whole`. The field of view is not cut."""
        slab = self._slab_with_bone(self.stocks[0], self.margin)
        hu, depth = slab["hu"].float(), slab["depth"].float()
        kept = slice(self.margin, self.margin + self.crop.slices)
        return simulate_mr(hu, depth / 4, self.spacing, draws, self.simulation, self.margin), hu[:, kept]

    def open_real_mr(self) -> Tensor | None:
        """Return real MR of the data set, which the training does not read; see `SlabModel.open_real_mr`."""
        return self._real_mr()

    def facts(self, data: DataSettings, dataset: SimulationSet) -> dict[str, str]:
        """Return the names of the CT that is trained on."""
        return {"volumes": " ".join(sorted(dataset.volumes))}


def _limbs(settings: SimulatedPairsSettings, ct: SimulationSet) -> list[str]:
    return sorted(name for name in ct.volumes if settings.limbs and settings.limbs in name)
