"""Training a generator on pairs that are simulated from CT alone, on the training device: no MR is read.

    loss = |G(mr) - map(ct)|_1 + lambda_hu |map^-1(G(mr)) - ct|_1 / 1000 HU

over slabs of neighbouring slices, where `mr` is simulated from `ct` (`data/simulation/simulated_mr.py`) and `map` takes
HU to the network's [-1, 1]. The first term weighs soft tissue as the map spreads it, the second weighs every HU alike.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from data.simulation.pasted_limbs import paste_limbs
from data.simulation.simulated_mr import Draws, SimulationSettings, field_of_view, simulate_mr
from data.simulation.simulation_set import SimulationSet
from data.simulation.slab_stock import Crop, SlabStock
from data.values.intensity import AIR_HU, IntensityMap
from models.averages import WarmedUpAverage
from models.finite_losses import FiniteLosses
from models.networks import build_generator, initialise
from models.state_dicts import load_optimiser

# Slices that are simulated beyond a slab on each side, and cut off: thick MR slices mix neighbours.
_MARGIN = 1
# The rate rises over this share of the training, then falls by a cosine.
_WARM_UP = 0.05
_OUTSIDE = {"hu": AIR_HU, "depth": 0.0}


@dataclass(frozen=True)
class SimulatedPairsSettings:
    """Everything that the training depends on beside its CT; ranges and units as in `train_simulated --help`."""

    slab: int = 5
    crop_size: int = 160
    batch_size: int = 16
    ngf: int = 32
    lr: float = 1e-3
    lambda_hu: float = 1.0
    ema: float = 0.999
    rotate: float = 30.0
    zoom: float = 0.2
    flip: str = "xy"
    field_of_view: float = 0.8
    bias: float = 0.15
    limbs_share: float = 0.4
    precision: str = "fp32"
    seed: int = 0


class SimulatedPairsTraining:
    """Generator, its moving average, optimiser and random state, and one step over them."""

    def __init__(
        self, settings: SimulatedPairsSettings, ct: SimulationSet, limbs: list[str], ct_map: IntensityMap,
        device: torch.device,
    ) -> None:  # fmt: skip
        """Load the CT onto the device and build the networks; the same seed gives the same weights.

        Args:
            settings: of the training.
            ct: the volumes.
            limbs: names of volumes that are limbs, put beside the others as arms; none: nothing is pasted.
            ct_map: HU to [-1, 1].
            device: where everything runs.
        """
        self.settings, self.device, self.ct_map = settings, device, ct_map
        self.spacing = (ct.slice_mm, ct.pixel_mm)
        s = settings
        trunks = sorted(ct.volumes.keys() - set(limbs))
        groups = [trunks, sorted(limbs)] if limbs and trunks else [sorted(ct.volumes)]
        self.stocks = [SlabStock([ct.volumes[name] for name in group], _OUTSIDE, "hu", device) for group in groups]
        self.crop = Crop(s.slab, s.crop_size, s.rotate, s.zoom, "x" in s.flip, "y" in s.flip)
        self.simulation = SimulationSettings(field_of_view=s.field_of_view, bias=(0.0, s.bias))
        of_limbs = round(s.batch_size * s.limbs_share) if len(groups) == 2 else 0
        self.parts = [s.batch_size - of_limbs, of_limbs][: len(groups)]
        self.net = build_generator("unet", s.slab, s.slab, s.ngf, norm="batch", upsample="resize")
        initialise(self.net, "kaiming", generator=torch.Generator().manual_seed(s.seed))
        self.net.to(device, memory_format=torch.channels_last)
        self.average = WarmedUpAverage(self.net, s.ema)
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), s.lr, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
        )
        self.generators = {"device": torch.Generator(device), "host": torch.Generator()}
        for generator in self.generators.values():
            generator.manual_seed(s.seed)
        self.finite = FiniteLosses()
        self.steps = 0

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return the next batch: simulated MR in [-1, 1] and its CT in HU, both (N, S, H, W)."""
        slabs = []
        for stock, count in zip(self.stocks, self.parts, strict=True):
            draws = self._draws(count)
            slab = stock.draw(self.crop, draws, _MARGIN)
            if len(self.stocks) == 2 and stock is self.stocks[0]:
                paste_limbs(slab, self.stocks[1], self.crop, self.spacing[1], draws)
            slabs.append(slab)
        hu, depth, zoom = (torch.cat([slab[name] for slab in slabs]) for name in ("hu", "depth", "zoom"))
        draws = self._draws(len(hu))
        seen = field_of_view((self.crop.size, self.crop.size), self.settings.field_of_view, draws)
        mr = simulate_mr(hu, depth / 4 * zoom, self.spacing, draws, self.simulation)
        kept = slice(_MARGIN, _MARGIN + self.settings.slab)
        return torch.where(seen, mr[:, kept], -1.0), torch.where(seen, hu[:, kept], AIR_HU)

    def step(self, progress: float) -> dict[str, Tensor]:
        """Update the generator on the next batch; return the losses, scalars without history.

        Args:
            progress: share of the training that is done, in [0, 1): the learning rate follows it.

        Raises:
            NonFiniteLossError: a loss is not finite, before any weight is changed by it; on a GPU at the next step.
        """
        with torch.no_grad():
            mr, hu = self.draw()
            target = curve(hu, self.ct_map.knots)
        low_precision = self.settings.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low_precision):
            output = self.net(mr.contiguous(memory_format=torch.channels_last))
        output = output.float()
        inverse = tuple((y, x) for x, y in self.ct_map.knots)
        losses = {
            "simulated": (output - target).abs().mean(),
            "hu": self.settings.lambda_hu * (curve(output, inverse) - hu.clamp(*self.ct_map.range)).abs().mean() / 1000,
        }
        rate = min(1.0, 0.02 + progress / _WARM_UP) * (0.5 * (1 + math.cos(math.pi * progress)) + 0.003)
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * rate
        self.optimiser.zero_grad(set_to_none=True)
        total = sum(losses.values())
        self.optimiser.found_inf = self.finite.watch(losses, total, {})
        total.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0, foreach=True)
        self.optimiser.step()
        self.average.update_parameters(self.net)
        self.steps += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def _draws(self, count: int) -> Draws:
        return Draws(count, self.generators["device"], self.generators["host"])

    def state_dict(self) -> dict:
        """Return everything from which the training goes on exactly.

        Raises:
            NonFiniteLossError: the last loss was not finite.
        """
        self.finite.settle()
        return {
            "steps": self.steps,
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generators": {name: generator.get_state() for name, generator in self.generators.items()},
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from what `state_dict` returned."""
        self.steps = state["steps"]
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        load_optimiser(self.optimiser, state["optimiser"])
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name].cpu())


def curve(values: Tensor, knots: tuple[tuple[float, float], ...]) -> Tensor:
    """Return what `IntensityMap` with these knots makes of values, with gradients; clipped beyond the ends."""
    total = torch.full_like(values, knots[0][1])
    for (x1, y1), (x2, y2) in pairwise(knots):
        total = total + (values.clamp(x1, x2) - x1) * ((y2 - y1) / (x2 - x1))
    return total
