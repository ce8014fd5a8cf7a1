"""Base of the methods that learn from pairs of slabs, which the model draws on its device."""

import logging
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from data.errors import InputError
from data.loading.batches import DrawnBatches
from data.loading.channels import middle_channel, with_channels
from data.loading.settings import DataSettings
from data.loading.whole_slices import centred
from data.masks.body_mask import CT_BODY_HU
from data.settings.declaration import Nature, option, redeclare
from data.settings.values import nonnegative_float, positive_float, positive_int, share
from data.simulation.draws import Draws
from data.simulation.settings import SimulationSettings
from data.simulation.slab_stock import Crop, SlabStock
from data.values.curve import curve, inverse
from data.values.intensity import AIR_HU
from data.volumes.contrasts import ONLY_CONTRAST
from models.base_model import BaseModel, MethodSettings, OptimiserSettings, Place, process_seed
from models.inference_settings import InferenceSettings
from models.initialisation import InitialisationSettings, initialise
from models.networks import Architecture, GeneratorSettings, build_generator
from models.run_description import describe_prepared

log = logging.getLogger(__name__)

# Where `bone_weight` counts: bone is few pixels, and the last that is learnt; absolute errors are least for a median.
_BONE_HU = 150.0
# Random slices from which that of the pictures is taken.
_CANDIDATES = 8
# Adam's second moment, its weight decay (Loshchilov and Hutter, ICLR 2019), and the norm that gradients are cut to.
_BETA2, _WEIGHT_DECAY, _CLIP = 0.99, 1e-3, 1.0


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """augmentation of MR."""

    field_of_view: float = option(
        SimulationSettings.field_of_view,
        nature=Nature.RESULT,
        parse=share,
        help="crop the field of view at random: each side is cut with half this probability",
    )
    bias: float = option(
        SimulationSettings.bias[1],
        nature=Nature.RESULT,
        parse=nonnegative_float,
        help="largest standard deviation of the logarithm of a random bias field",
    )


@dataclass(frozen=True, kw_only=True)
class PairLosses:
    """losses."""

    lambda_hu: float = option(
        1.0,
        nature=Nature.RESULT,
        parse=nonnegative_float,
        help="weight of the L1 error in HU / 1000, beside the L1 error in the network's units",
    )
    bone_weight: float = option(
        1.0, nature=Nature.RESULT, parse=positive_float,
        first=True, help="weight of pixels above 150 HU in both errors; 3 to 4 finds bone in short trainings",
    )  # fmt: skip
    lambda_reverse: float = option(
        0.0, nature=Nature.FIXED, parse=nonnegative_float,
        help="weight of the L1 loss of a second generator, CT to MR; above 0, it is trained too, and a CycleGAN can "
             "start from both with --init_from",
    )  # fmt: skip
    steps_per_epoch: int = option(
        250, nature=Nature.FIXED, parse=positive_int, first=True, help="number of steps per epoch"
    )


@dataclass(frozen=True, kw_only=True)
class SlabModelSettings(GeneratorSettings, InitialisationSettings, ScanOptions, PairLosses, MethodSettings):
    """pairs of slabs."""

    netG: str = redeclare(GeneratorSettings, "netG", "unet")
    ngf: int = redeclare(GeneratorSettings, "ngf", 32)
    norm: str = redeclare(GeneratorSettings, "norm", "batch")
    upsample: str = redeclare(GeneratorSettings, "upsample", "resize")
    init_type: str = redeclare(InitialisationSettings, "init_type", "kaiming")
    lr: float = redeclare(OptimiserSettings, "lr", 1e-3)
    beta1: float = redeclare(OptimiserSettings, "beta1", 0.9)
    ema: float = redeclare(OptimiserSettings, "ema", 0.999)

    @property
    def uses_batch_norm(self) -> bool:
        """Whether batch norm is used."""
        return self.norm == "batch"


class SlabModel(BaseModel):
    """A generator, its optimiser and random state, and a step on the pairs that a subclass draws.

    Class attributes:
        takes_contrasts: whether its MR may have several contrasts.
        pair: what the pairs are called in `visuals`: 'simulated' or 'paired'.
    """

    settings: SlabModelSettings
    pair: ClassVar[str]
    takes_contrasts: ClassVar[bool] = False
    memory_options = "--crop_size, --slab or --ngf"
    defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 16, "slab": 5, "preprocess": "body_crop", "crop_size": 160, "flip": "xy", "rotate": 30.0,
        "zoom": 0.2, "mr_window": "tissue", "ct_transfer": "soft_tissue", "lr_policy": "warmup_cosine",
        "n_epochs": 24, "n_epochs_decay": 0,
    }  # fmt: skip

    def __init__(
        self,
        settings: SlabModelSettings,
        data: DataSettings,
        place: Place,
        contrasts: tuple[str, ...] = (ONLY_CONTRAST,),
    ) -> None:
        """Build the networks; the same seed gives the same weights. `contrasts`: names of those of an MR."""
        super().__init__(settings, place.device, place.processes)
        s = settings
        self.ct_map, self.contrasts = data.ct_map, contrasts
        self.crop = Crop(
            data.slab, data.augmentation.crop_size, data.rotate, data.zoom, "x" in data.flip, "y" in data.flip
        )
        mr, ct = len(contrasts) * data.slab, data.slab
        self.architecture = Architecture.of(s, mr, ct)
        self.check_multiple(data, self.architecture)
        # A GPU's convolutions are faster with the channels last; a CPU's are not.
        self.layout = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
        weights = torch.Generator().manual_seed(s.seed)
        made = {"G_A": self.architecture} | ({"G_B": Architecture.of(s, ct, mr)} if s.lambda_reverse > 0 else {})
        for name, architecture in made.items():
            net = build_generator(architecture)
            initialise(net, s.init_type, s.init_gain, weights)
            if s.sync_batch_norm:
                net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
            self.networks[name] = net.to(self.device).to(memory_format=self.layout)
        parameters = [parameter for net in self.networks.values() for parameter in net.parameters()]
        self.optimisers["G"] = torch.optim.AdamW(
            parameters, s.lr, betas=(s.beta1, _BETA2), weight_decay=_WEIGHT_DECAY, fused=True
        )
        generators = tuple(self.networks)
        self._add_networks()
        self._wrap_networks(averaged=generators)
        self.generators = {"device": torch.Generator(self.device), "host": torch.Generator()}
        for k, generator in enumerate(self.generators.values()):
            generator.manual_seed(process_seed(s.seed, place.rank, stream=k))

    def _add_networks(self) -> None:
        """Build what a method trains beside generators, with its optimisers; most methods need nothing."""

    @classmethod
    def batches(cls, settings: SlabModelSettings, data: DataSettings, dataset: Any, place: Place) -> DrawnBatches:
        """Return an epoch of `steps_per_epoch` batches, which the model draws."""
        return DrawnBatches(settings.steps_per_epoch)

    @classmethod
    def check(cls, settings: Any, data: DataSettings) -> None:
        """Refuse what slabs that are drawn on the device cannot follow.

        Raises:
            InputError: another way to crop, or a limit on an epoch's samples.
        """
        if data.preprocess != "body_crop":
            raise InputError(f"--preprocess {data.preprocess}: this method crops around bodies itself; leave it out")
        if isinstance(data.mr_window, Mapping) and not cls.takes_contrasts:
            raise InputError("--mr_window NAME=...: this method learns from one MR contrast; expected one rule")
        if data.max_dataset_size:
            raise InputError("--max_dataset_size does nothing here: an epoch has --steps_per_epoch steps")

    @classmethod
    def check_crop(cls, data: DataSettings, size: int) -> None:
        """Refuse crops larger than the slices.

        Raises:
            InputError: `crop_size` is above `size` pixels.
        """
        crop = data.augmentation.crop_size
        if crop > size:
            raise InputError(f"--crop_size {crop}: the slices of {data.dataroot} have {size} pixels; crop at most that")

    @classmethod
    def check_multiple(cls, data: DataSettings, architecture: Architecture) -> None:
        """Refuse crops that the generator cannot halve as often as it does.

        Raises:
            InputError: `crop_size` is no multiple of the generator's.
        """
        size, multiple = data.augmentation.crop_size, architecture.multiple
        if size % multiple:
            raise InputError(f"--crop_size {size}: expected a multiple of {multiple} for this --netG")

    @abstractmethod
    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the next batch: MR in [-1, 1], its CT in HU, and 1 where they count, else 0.

        MR is (N, C S, H, W) of C contrasts, 1 but for methods that take several; the others are (N, S, H, W).
        """

    @abstractmethod
    def draw_whole(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return MR in [-1, 1] and CT in HU of a pair of whole slices, for pictures; shapes as those of `draw`."""

    def step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Update the generators on the next batch, which is drawn here; see `BaseModel.step`."""
        with torch.no_grad():
            mr, hu, counted = self.draw()
        return self.learn(mr, hu, counted)

    def learn(self, mr: Tensor, hu: Tensor, counted: Tensor) -> dict[str, Tensor]:
        """Update the generators on pairs as `draw` returns them; return the losses as `step` does."""
        s = self.settings
        with torch.no_grad():
            target = curve(hu, self.ct_map.knots)
            weight = torch.where(hu > _BONE_HU, s.bone_weight, 1.0) * counted
        mr = mr.contiguous(memory_format=self.layout)
        output = self._run(self.networks["G_A"], mr)
        in_hu = curve(output, inverse(self.ct_map.knots))
        losses = {
            "pairs": ((output - target).abs() * weight).mean(),
            "hu": s.lambda_hu * ((in_hu - hu.clamp(*self.ct_map.range)).abs() * weight).mean() / 1000,
        }
        images = {f"{self.pair}_A": mr, f"{self.pair}_B": target, f"from_{self.pair}_A": output}
        if s.lambda_reverse > 0:
            back = self._run(self.networks["G_B"], target.contiguous(memory_format=self.layout))
            losses["reverse"] = s.lambda_reverse * ((back - mr).abs() * with_channels(counted, mr.shape[1])).mean()
            images[f"from_{self.pair}_B"] = back
        total = self._update("G", losses, {}, clip=_CLIP)
        self.scaler.update()
        self._average()
        self.visuals = {name: image.detach() for name, image in images.items()}
        return {name: loss.detach() for name, loss in ({"G": total} | losses).items()}

    def fixed_visuals(self) -> dict[str, Tensor]:
        """Return whole slices of a pair, what the generators make of them, and real MR with its CT, if there is any."""
        images = dict(self._fixed_slices)
        for source, made, network in (
            (f"{self.pair}_A", f"from_{self.pair}_A", "G_A"),
            (f"{self.pair}_B", f"from_{self.pair}_B", "G_B"),
            ("real_A", "fake_B", "G_A"),
        ):
            if source in images and network in self.networks:
                images[made] = self._run_in_use(network, images[source])
        return images

    @cached_property
    def _fixed_slices(self) -> dict[str, Tensor]:
        seed = process_seed(self.settings.seed, rank=0, stream=2)
        hosts = (torch.Generator().manual_seed(seed + k) for k in (0, 1))  # the same numbers on every device
        draws = Draws(1, *hosts, device=self.device)
        mr, hu = self.draw_whole(draws)
        body = hu[0, middle_channel(hu.shape[1])] > CT_BODY_HU
        multiple = self.architecture.multiple
        images = {
            f"{self.pair}_A": centred(mr, body, multiple, outside=-1.0),
            f"{self.pair}_B": curve(centred(hu, body, multiple, outside=AIR_HU), self.ct_map.knots),
        }
        real = self.open_real_mr()
        return images if real is None else {"real_A": real.to(self.device)} | images

    def open_real_mr(self) -> Tensor | None:
        """Return real MR for the pictures, (1, C S, H, W) in [-1, 1]; None if there is none, or pairs are real."""
        return None

    def _slab_with_bone(self, stock: SlabStock, margin: int = 0) -> dict[str, Tensor]:
        """Return of each map the slab, (1, S + 2 margin, H, W), with most bone of a few that the seed chooses."""
        chooser = torch.Generator().manual_seed(process_seed(self.settings.seed, rank=0, stream=2))
        candidates = stock.used[torch.randint(len(stock.used), (_CANDIDATES,), generator=chooser).to(self.device)]
        bone = (stock.maps["hu"][candidates] > _BONE_HU).sum(dim=(1, 2))
        return stock.slabs(candidates[bone.argmax()][None], self.crop.slices + 2 * margin)

    def describe(self, data: DataSettings, dataset: Any) -> InferenceSettings:
        """Return what the use of `G_A` must know; `dataset` has `manifest` and `slice_mm`."""
        slice_mm = dataset.slice_mm if data.slab > 1 else None
        return describe_prepared(data, self.architecture, dataset.manifest, self.contrasts, slice_mm)

    def draws(self, count: int) -> Draws:
        """Return the source of randomness of `count` slabs."""
        return Draws(count, self.generators["device"], self.generators["host"])

    def process_state(self) -> dict[str, Any]:
        """Return the state of what is drawn from, and on which kind of device."""
        states = {name: generator.get_state() for name, generator in self.generators.items()}
        return {"kind": self.device.type} | states

    def load_process_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a `process_state`.

        Where that was on another kind of device, whose random numbers this one cannot continue, those of the device
        start anew from a seed that the host draws.
        """
        self.generators["host"].set_state(state["host"].cpu())
        if state["kind"] == self.device.type:
            self.generators["device"].set_state(state["device"].cpu())
            return
        log.warning(
            "warning: the run was saved on %s and continues on %s, with other random numbers", state["kind"],
            self.device.type,
        )  # fmt: skip
        self.generators["device"].manual_seed(int(torch.randint(2**62, (), generator=self.generators["host"])))
