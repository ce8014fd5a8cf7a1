"""Training a generator on simulated pairs whose MR is made more like real MR, of other patients than the CT.

A refiner R changes single slices of simulated MR; a discriminator D judges them beside slices of real MR:

    L_D = (E[(D(real) - 1)^2] + E[D(R(mr))^2]) / 2
    L_R = E[(D(R(mr)) - 1)^2] + lambda_keep |R(mr) - mr|_1
    L_G = the losses of `simulated_pairs`, where a share of each batch shows R(mr), without gradients to R

The CT of a refined MR is known, as that of a simulated one is. Since G_A's losses do not reach R, nothing can be hidden
in a refined MR for G_A to find. The second term of L_R keeps the anatomy where it is.

Source: Shrivastava et al., "Learning from simulated and unsupervised images through adversarial training", CVPR 2017,
eq. 1, 2 and 4, with the least-squares loss of Mao et al., ICCV 2017, for their cross entropy.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from data.errors import InputError
from data.loading.settings import DataSettings
from data.loading.slices import prepared_windows
from data.prepared.arrays import read_case
from data.prepared.manifest import read_manifest
from data.prepared.trainable import check_has_mr
from data.settings.declaration import Nature, Need, option, redeclare
from data.settings.values import nonnegative_float, share
from data.simulation.contrasts import shown_alike
from data.simulation.simulated_mr import field_of_view
from data.simulation.simulation_set import SimulationSet
from data.simulation.slab_stock import SlabStock
from models.base_model import Place
from models.inference_settings import InferenceSettings
from models.initialisation import initialise
from models.losses import gan_loss
from models.networks import Architecture, DiscriminatorSettings, build_discriminator, build_generator
from models.simulated_pairs_model import SimulatedPairsModel, SimulatedPairsSettings

log = logging.getLogger(__name__)

# The refiner's features at full resolution: it changes contrast and texture, which takes few.
_WIDTH = 16
# Learning rate of R and D in shares of the generator's, and Adam's momentum, which adversarial training wants low.
_RATE, _BETAS = 0.2, (0.5, 0.999)
# The scale of a real MR varies by this share, since that of simulated ones varies.
_GAIN = 0.15
_OUTSIDE = {"mr": -1.0, "body": -1000.0}


@dataclass(frozen=True, kw_only=True)
class RefinerOptions:
    """refined MR."""

    refined_share: float = option(
        0.5, nature=Nature.RESULT, parse=share, help="fraction of each batch whose simulated MR is refined"
    )
    lambda_keep: float = option(
        5.0, nature=Nature.RESULT, parse=nonnegative_float,
        help="weight of the L1 difference between a refined and its simulated MR",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RefinedPairsSettings(RefinerOptions, DiscriminatorSettings, SimulatedPairsSettings):
    """refined pairs."""

    netD: str = redeclare(DiscriminatorSettings, "netD", "n_layers")
    ndf: int = redeclare(DiscriminatorSettings, "ndf", 32)
    n_layers_D: int = redeclare(DiscriminatorSettings, "n_layers_D", 2, needs=Need("netD", ("n_layers",)))


@dataclass(frozen=True)
class RefinementSet:
    """CT to simulate from, and real MR of other patients.

    Attributes:
        ct: the CT.
        mr: by case name the maps `mr`, float16 (n, H, W) in [-1, 1], and `body`, int16, 0 in the body, else -1000.
    """

    ct: SimulationSet
    mr: dict[str, dict[str, np.ndarray]]


class RefinedPairsModel(SimulatedPairsModel):
    """Simulated pairs, a share of them with the MR refined by what real MR of other patients looks like."""

    settings_type = RefinedPairsSettings
    learns_from_mr = True
    settings: RefinedPairsSettings

    def __init__(
        self, settings: RefinedPairsSettings, data: DataSettings, dataset: RefinementSet, place: Place
    ) -> None:
        """Load CT and MR onto the device and build the networks; the same seed gives the same weights."""
        s = settings
        super().__init__(s, data, dataset.ct, place)
        self.real = SlabStock([dataset.mr[name] for name in sorted(dataset.mr)], _OUTSIDE, "body", self.device)
        self.real_crop = replace(self.crop, slices=1)
        self.refined = round(data.batch_size * s.refined_share)

    def _add_networks(self) -> None:
        s = self.settings
        weights = torch.Generator().manual_seed(s.seed)
        refiner = build_generator(Architecture(netG="unet", ngf=_WIDTH, norm="batch", upsample="resize"))
        initialise(refiner, s.init_type, s.init_gain, weights)
        # It begins by changing nothing.
        last = [module for module in refiner.modules() if isinstance(module, nn.Conv2d)][-1]
        nn.init.zeros_(last.weight)
        layers = {"n_layers": s.n_layers_D} if s.netD == "n_layers" else {}
        judge = build_discriminator(s.netD, 1, s.ndf, norm=s.norm, **layers)
        initialise(judge, s.init_type, s.init_gain, weights)
        for name, net in (("R", refiner), ("D_R", judge)):
            if s.sync_batch_norm:
                net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
            self.networks[name] = net.to(self.device).to(memory_format=self.layout)
            group: dict[str, Any] = {"params": list(net.parameters()), "rate": _RATE}
            self.optimisers[name] = torch.optim.Adam([group], s.lr * _RATE, betas=_BETAS, fused=True)

    @classmethod
    def check(cls, settings: RefinedPairsSettings, data: DataSettings) -> None:
        """Refuse what the method cannot follow; see `SlabModel.check`."""
        super().check(settings, data)
        if len(settings.simulated_contrasts) > 1:
            raise InputError("--simulated_contrasts: one contrast is refined; use --model simulated_pairs for several")
        if not round(data.batch_size * settings.refined_share):
            raise InputError(
                f"--refined_share {settings.refined_share:g}: no MR of a batch of {data.batch_size} would be refined; "
                "raise it, or use --model simulated_pairs"
            )

    @classmethod
    def open_data(  # type: ignore[override]  # more than CT
        cls, settings: RefinedPairsSettings, data: DataSettings, leave_out: Collection[str] = ()
    ) -> RefinementSet:
        """Open the CT, prepared for the simulation, and the MR."""
        ct = SimulatedPairsModel.open_data(settings, data, leave_out)
        return RefinementSet(ct, _real_mr(data, settings.simulated_contrasts, leave_out))

    @classmethod
    def from_data(  # type: ignore[override]
        cls, settings: RefinedPairsSettings, data: DataSettings, dataset: RefinementSet, place: Place
    ) -> Self:
        """Build the model for the CT and MR of `dataset`."""
        model = cls(settings, data, dataset, place)
        log.info(
            "%d CT volumes, %d slices; %d real MR volumes, %d slices", len(dataset.ct.volumes),
            sum(len(volume["hu"]) for volume in dataset.ct.volumes.values()), len(dataset.mr),
            sum(len(volume["mr"]) for volume in dataset.mr.values()),
        )  # fmt: skip
        return model

    def step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Update R, D and the generators on the next batch, which is drawn here; see `BaseModel.step`."""
        with torch.no_grad():
            mr, hu, counted = self.draw()
            real = self.draw_real()
        # Of several groups of CT, each has its part of what is refined.
        order = torch.linspace(0, len(mr) - 1, self.refined, device=self.device).round().long()
        refined, losses = self._refine(mr[order], real)
        mr = mr.index_copy(0, order, refined)
        return self.learn(mr, hu, counted) | losses

    def draw_real(self) -> Tensor:
        """Return slices of real MR, (N, 1, H, W) in [-1, 1], as many as are refined, cut as the simulated ones are."""
        draws = self.draws(self.refined)
        mr = self.real.draw(self.real_crop, draws)["mr"]
        mr = ((mr + 1) * torch.exp(_GAIN * draws.normal(1, 1, 1)) - 1).clamp_(-1, 1)
        seen = field_of_view((self.crop.size, self.crop.size), self.settings.field_of_view, draws)
        return torch.where(seen, mr, -1.0)

    def refine(self, mr: Tensor) -> Tensor:
        """Return slices of MR, (N, 1, H, W) in [-1, 1], as R changes them."""
        return (mr + self._run(self.networks["R"], mr.contiguous(memory_format=self.layout))).clamp(-1, 1)

    def _refine(self, mr: Tensor, real: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Update D and R by the middle slices of slabs; return the slabs refined, without gradients, and the losses."""
        judge, middle = self.networks["D_R"], mr.shape[1] // 2
        simulated = mr[:, middle : middle + 1]
        fake = self.refine(simulated)
        losses_d = {
            "D_R_real": 0.5 * gan_loss(self._run(judge, real), True),
            "D_R_refined": 0.5 * gan_loss(self._run(judge, fake.detach()), False),
        }
        self._update("D_R", losses_d, {})
        judge.requires_grad_(False)
        losses_r = {
            "gan_R": gan_loss(self._run(judge, fake), True),
            "keep_R": self.settings.lambda_keep * (fake - simulated).abs().mean(),
        }
        self._update("R", losses_r, {})
        judge.requires_grad_(True)
        with torch.no_grad():
            refined = self.refine(mr.flatten(0, 1)[:, None]).view_as(mr)
        return refined, {name: loss.detach() for name, loss in (losses_d | losses_r).items()}

    def describe(self, data: DataSettings, dataset: RefinementSet) -> InferenceSettings:
        """Return what the use of `G_A` must know."""
        return super().describe(data, dataset.ct)

    def facts(self, data: DataSettings, dataset: RefinementSet) -> dict[str, str]:  # type: ignore[override]
        """Return the names of the CT and MR that are trained on."""
        return {"volumes": " ".join(sorted([*dataset.ct.volumes, *dataset.mr]))}


def _real_mr(
    data: DataSettings, simulated: tuple[str, ...], leave_out: Collection[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Return the training MR of a prepared data set, as in `RefinementSet`; `simulated`: what they refine.

    Raises:
        InputError: there are none, a damaged file, several contrasts, or another one than is simulated.
    """
    dataroot = data.dataroot
    manifest = read_manifest(dataroot)
    check_has_mr(dataroot, manifest, "--model refined_pairs")
    manifest = manifest.without(leave_out)
    if len(manifest.contrasts) > 1:
        raise InputError(
            f"{dataroot}: MR of one contrast are simulated; the data set has {', '.join(manifest.contrasts)}: prepare "
            "it with one of them, or train with --model cycle_gan"
        )
    if not shown_alike(manifest.contrasts, simulated):
        raise InputError(
            f"--simulated_contrasts {simulated[0]}: is refined by real MR of the same contrast; those of {dataroot} "
            f"are {manifest.contrasts[0]}"
        )
    cases = [case for case in manifest.select("train", "A") if case.has_body]
    if not cases:
        raise InputError(f"{dataroot}: no MR to refine with: none shows enough body, or all validate; look at bodies/")
    volumes = {}
    for case, (window,) in zip(cases, prepared_windows(cases, data.mr_window, data.ct_map), strict=True):
        mr, body = (array[slice(*case.body_slices)] for array in read_case(dataroot, case))
        volumes[case.name] = {
            "mr": window.to_network(mr).astype(np.float16),
            "body": np.where(body > 0, 0, -1000).astype(np.int16),
        }
    return volumes
