"""The unpaired MR to CT model: generators, discriminators and shape extractor, their losses and their step.

Generator `netG_A` maps the source domain A to the target domain B and `netG_B` maps back; `netD_A` judges images of B
(real_B against fake_B) and `netD_B` images of A. A is MR and B is CT, or the reverse with `--direction BtoA`. Images
are (N, C, H, W): CT has as many channels as a slab has slices, MR as many for each contrast (`data.loading.channels`).

The shape constraint acts on the synthetic CT, whichever of the two fakes that is: the frozen extractor `netE` draws its
body, which must agree with the mask of the MR that it was made from and look like such masks to `netD_S`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from data.loading.channels import with_channels
from models.averages import WarmedUpAverage
from models.finite_losses import FiniteLosses
from models.image_pool import ImagePool
from models.losses import correlation_loss, gan_loss, local_correlation_loss, shape_loss, shape_with_edges
from models.networks import build_discriminator, build_generator, initialise
from models.precision import DTYPES
from models.shape_extractor import ShapeExtractor, label_channels
from models.state_dicts import load_optimiser

WARM_STARTS = ("none", "simulated_mr")
# Between the seeds of one process's pools and the next one's.
_NEXT_RANK = 7919


@dataclass(frozen=True)
class CycleGANSettings:
    """Everything that the model and its step depend on; the names are those of the options."""

    netG: str = "resnet_9blocks"
    netD: str = "basic"
    ngf: int = 64
    ndf: int = 64
    n_layers_D: int = 3
    norm: str = "instance"
    use_dropout: bool = False
    upsample: str = "transposed"
    init_type: str = "normal"
    init_gain: float = 0.02
    gan_mode: str = "lsgan"
    lambda_gan: float = 1.0
    pool_size: int = 50
    lr: float = 2e-4
    beta1: float = 0.5
    lambda_A: float = 10.0
    lambda_B: float = 10.0
    lambda_identity: float = 0.5
    lambda_correlation_A: float = 2.0
    lambda_correlation_B: float = 2.0
    lcc_window: int = 0
    lambda_simulated: float = 0.0
    lambda_shape: float = 0.0
    shape_loss: str = "l1"
    lambda_shape_gan: float = 0.0
    direction: str = "AtoB"
    precision: str = "fp32"
    sync_batch_norm: bool = False
    ema: float = 0.0
    seed: int = 0

    @property
    def uses_shape(self) -> bool:
        """Whether the shape extractor and the masks of the MR are needed."""
        return self.lambda_shape > 0 or self.lambda_shape_gan > 0


class CycleGANModel:
    """Networks, pools and optimisers, and one training step over them."""

    def __init__(
        self,
        settings: CycleGANSettings,
        device: torch.device,
        extractor: ShapeExtractor | None = None,
        mask_labels: int = 1,
        rank: int = 0,
        processes: int = 1,
        compiled: bool = False,
        slab: int = 1,
        contrasts: int = 1,
    ) -> None:
        """Build and initialise the networks; the same seed gives the same weights.

        Args:
            settings: what to build.
            device: where to train.
            extractor: needed with a shape weight: frozen, and for CT under this run's intensity map.
            mask_labels: labels that the masks of the MR tell apart; classes of the extractor beyond them do not count.
            rank: this process's number among those that train together, each on its own part of every batch; their
                pools differ.
            processes: how many they are; with more than one, `torch.distributed` has been started, and gradients are
                averaged.
            compiled: whether the networks go through `torch.compile`.
            slab: slices of an image.
            contrasts: those of an MR.
        """
        if settings.uses_shape and extractor is None:
            raise ValueError("a shape weight is above 0: expected a shape extractor")
        self.settings, self.device = settings, device
        s = settings
        generator = torch.Generator().manual_seed(s.seed)

        def prepared(net: nn.Module) -> nn.Module:
            initialise(net, s.init_type, s.init_gain, generator)
            if s.sync_batch_norm:
                net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
            return net.to(device)

        options_G = {"ngf": s.ngf, "norm": s.norm, "use_dropout": s.use_dropout, "upsample": s.upsample}
        options_D = {"ndf": s.ndf, "n_layers": s.n_layers_D, "norm": s.norm}
        self.slab = slab
        self.channels = (
            {"A": contrasts * slab, "B": slab} if s.direction == "AtoB" else {"A": slab, "B": contrasts * slab}
        )
        a, b = self.channels.values()
        self.netG_A, self.netG_B = (prepared(build_generator(s.netG, *nc, **options_G)) for nc in ((a, b), (b, a)))
        self.netD_A, self.netD_B = (prepared(build_discriminator(s.netD, nc, **options_D)) for nc in (b, a))
        self.networks = {"G_A": self.netG_A, "G_B": self.netG_B, "D_A": self.netD_A, "D_B": self.netD_B}
        self.optimisers = {
            "G": self._adam(self.netG_A, self.netG_B),
            "D": self._adam(self.netD_A, self.netD_B),
        }
        if s.uses_shape:
            self.netE = extractor.to(device)
            self.shape_classes = min(extractor.settings.n_classes, mask_labels)
        if s.lambda_shape_gan > 0:
            self.netD_S = prepared(build_discriminator(s.netD, input_nc=2 * slab * self.shape_classes, **options_D))
            self.networks["D_S"] = self.netD_S
            self.optimisers["D_S"] = self._adam(self.netD_S)
        self.pools = {
            name: ImagePool(s.pool_size, torch.Generator().manual_seed(3 * (s.seed + _NEXT_RANK * rank) + k))
            for k, name in enumerate("ABS")
        }
        # Exponential moving averages, which are what is kept for use: steadier than the weights of one step.
        self.averages = {
            name: WarmedUpAverage(self.networks[name], s.ema) for name in (("G_A", "G_B") if s.ema > 0 else ())
        }
        self.visuals: dict[str, Tensor] = {}
        self.scaler = torch.amp.GradScaler(device.type, enabled=s.precision == "fp16")
        self.finite = FiniteLosses()
        self._compiled = {net: torch.compile(net, dynamic=False) for net in self._all_networks() if compiled}
        self._parallel = {
            net: DistributedDataParallel(
                self._compiled.get(net, net), [device] if device.type == "cuda" else None, broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
            for net in (self.networks.values() if processes > 1 else ())
        }  # fmt: skip

    def _all_networks(self) -> list[nn.Module]:
        return [*self.networks.values(), *([self.netE] if self.settings.uses_shape else [])]

    @property
    def kept_networks(self) -> dict[str, nn.Module]:
        """The networks whose weights are kept for use: the generators' averages, where there are any."""
        return self.networks | {name: average.module for name, average in self.averages.items()}

    def warm_step(self, batch: dict) -> dict[str, Tensor]:
        """Update the generators on simulated pairs alone.

        Args:
            batch: `simulated_A` and `simulated_B`, an MR and a CT on one grid, (N, S, H, W) in [-1, 1].

        Returns:
            As `step`, without discriminators.

        Raises:
            NonFiniteLossError: as `step`.
        """
        images, losses = self._simulated(batch, weight=1.0)
        total = self._update("G", losses, batch)
        self.scaler.update()
        self._average()
        self.visuals = {name: image.detach() for name, image in images.items()}
        return {name: loss.detach() for name, loss in ({"G": total} | losses).items()}

    def step(self, batch: dict) -> dict[str, Tensor]:
        """Update the generators, then the discriminators, on one batch.

        Args:
            batch: `A` and `B`, (N, C, H, W) in [-1, 1]; with a shape weight also `mask_A`, labels (N, S, H, W); with
                `lambda_simulated` also what `warm_step` takes.

        Returns:
            Scalars without history: the generators' total `G` and every weighted loss that it is the sum of, and the
            discriminators' D_A, D_B (and D_S).

        Raises:
            NonFiniteLossError: before any weight is changed by the loss that is not finite.
        """
        discriminators = [net for name, net in self.networks.items() if name.startswith("D_")]
        _require_gradients(discriminators, False)
        images = self._translate(batch)
        losses = self._generator_losses(images)
        if self.settings.uses_shape:
            losses |= self._shape_losses(images, batch["mask_A"].to(self.device, non_blocking=True))
        if self.settings.lambda_simulated > 0:
            simulated, losses_simulated = self._simulated(batch, self.settings.lambda_simulated)
            images, losses = images | simulated, losses | losses_simulated
        total = self._update("G", losses, batch)
        self._average()
        self.visuals = {name: image.detach() for name, image in images.items()}
        _require_gradients(discriminators, True)
        fake = {name: self.pools[name].query(images[f"fake_{name}"]) for name in "AB"}
        losses_D = {
            "D_A": self._discriminator_loss(self.netD_A, images["real_B"], fake["B"]),
            "D_B": self._discriminator_loss(self.netD_B, images["real_A"], fake["A"]),
        }
        self._update("D", losses_D, batch)
        if self.settings.lambda_shape_gan > 0:
            real_S, fake_S = (shape_with_edges(self.visuals[name]) for name in ("mask", "shape"))
            loss_S = {"D_S": self._discriminator_loss(self.netD_S, real_S, self.pools["S"].query(fake_S))}
            self._update("D_S", loss_S, batch)
            losses_D |= loss_S
        self.scaler.update()
        return {name: loss.detach() for name, loss in ({"G": total} | losses | losses_D).items()}

    def _translate(self, batch: dict) -> dict[str, Tensor]:
        """Return the real images and all that the generators make of them, with their history of gradients."""
        real_A, real_B = self._source_and_target(batch)
        images = {"real_A": real_A, "real_B": real_B}
        if self.settings.lambda_identity > 0:
            # Of several contrasts: each stands for itself where a CT is put in, and the first one must give all.
            as_A, as_B = with_channels(real_B, self.channels["A"]), with_channels(real_A, self.channels["B"])
            images["fake_B"], images["idt_A"] = self._run_together(self.netG_A, real_A, as_A)
            images["fake_A"], images["idt_B"] = self._run_together(self.netG_B, real_B, as_B)
        else:
            images |= {"fake_B": self._run(self.netG_A, real_A), "fake_A": self._run(self.netG_B, real_B)}
        images["rec_A"] = self._run(self.netG_B, images["fake_B"])
        images["rec_B"] = self._run(self.netG_A, images["fake_A"])
        return images

    def _source_and_target(self, batch: dict, prefix: str = "") -> tuple[Tensor, Tensor]:
        """Return a batch's images of the source and of the target domain, on the device."""
        domains = "AB" if self.settings.direction == "AtoB" else "BA"
        source, target = (batch[prefix + domain].to(self.device, non_blocking=True) for domain in domains)
        return source, target

    def _generator_losses(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted terms of L_G but for the shape's; keys with A belong to the cycle A -> B -> A."""
        s = self.settings
        real_A, fake_B, rec_A = (images[name] for name in ("real_A", "fake_B", "rec_A"))
        real_B, fake_A, rec_B = (images[name] for name in ("real_B", "fake_A", "rec_B"))
        losses = {
            # lambda_gan (gan(D_A(G_A(A)), real) + gan(D_B(G_B(B)), real))
            "gan_A": s.lambda_gan * gan_loss(self._run(self.netD_A, fake_B), True, s.gan_mode),
            "gan_B": s.lambda_gan * gan_loss(self._run(self.netD_B, fake_A), True, s.gan_mode),
            # lambda_A |G_B(G_A(A)) - A|_1 + lambda_B |G_A(G_B(B)) - B|_1
            "cycle_A": s.lambda_A * F.l1_loss(rec_A, real_A),
            "cycle_B": s.lambda_B * F.l1_loss(rec_B, real_B),
        }
        if s.lambda_identity > 0:
            # lambda_identity (lambda_B |G_A(B) - B|_1 + lambda_A |G_B(A) - A|_1)
            losses["idt_A"] = s.lambda_identity * s.lambda_B * F.l1_loss(images["idt_A"], real_B)
            losses["idt_B"] = s.lambda_identity * s.lambda_A * F.l1_loss(images["idt_B"], real_A)
        # lambda_correlation (1 - r(fake, real)^2), Ge et al., SPIE Medical Imaging 2019
        if s.lambda_correlation_A > 0:
            losses["correlation_A"] = s.lambda_correlation_A * self._correlation(fake_B, real_A)
        if s.lambda_correlation_B > 0:
            losses["correlation_B"] = s.lambda_correlation_B * self._correlation(fake_A, real_B)
        return losses

    def _correlation(self, fake: Tensor, real: Tensor) -> Tensor:
        window = self.settings.lcc_window
        return local_correlation_loss(fake, real, window) if window else correlation_loss(fake, real)

    def _simulated(self, batch: dict, weight: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return images and weighted losses of the simulated pairs: |G_A(a) - b|_1 and |G_B(b) - a|_1."""
        a, b = self._source_and_target(batch, "simulated_")
        images = {"simulated_A": a, "simulated_B": b}
        images |= {"from_simulated_A": self._run(self.netG_A, a), "from_simulated_B": self._run(self.netG_B, b)}
        losses = {
            "simulated_A": weight * F.l1_loss(images["from_simulated_A"], b),
            "simulated_B": weight * F.l1_loss(images["from_simulated_B"], a),
        }
        return images, losses

    def _average(self) -> None:
        for name, average in self.averages.items():
            average.update_parameters(self.networks[name])

    def _shape_losses(self, images: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Return the weighted shape terms of L_G, and add the MR's `mask` and the synthetic CT's `shape` to `images`.

        `labels`, (N, S, H, W), are those of the MR that the synthetic CT was made from. The extractor sees each slice
        by itself. `mask` and `shape` are (N, S K, H, W), a slice's K classes together, so that `netD_S` judges slabs.
        """
        s = self.settings
        fake = images["fake_B" if s.direction == "AtoB" else "fake_A"]
        logits = self._run(self.netE, fake.flatten(0, 1).unsqueeze(1))[:, : self.shape_classes]
        mask = label_channels(labels.flatten(0, 1).unsqueeze(1), self.shape_classes)
        for name, slices in (("mask", mask), ("shape", torch.sigmoid(logits))):
            images[name] = slices.unflatten(0, (-1, self.slab)).flatten(1, 2)
        losses = {}
        # lambda_shape |sigmoid(E(fake CT)) - mask|_1 + lambda_shape_gan gan(D_S(shape), real), Ge et al., ISBI 2019
        if s.lambda_shape > 0:
            losses["shape"] = s.lambda_shape * shape_loss(logits, mask, s.shape_loss)
        if s.lambda_shape_gan > 0:
            scores = self._run(self.netD_S, shape_with_edges(images["shape"]))
            losses["gan_S"] = s.lambda_shape_gan * gan_loss(scores, True, s.gan_mode)
        return losses

    def _discriminator_loss(self, net: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """Return (gan(D(real), real) + gan(D(fake), fake)) / 2."""
        mode = self.settings.gan_mode
        score_real, score_fake = self._run_together(net, real, fake)
        return (gan_loss(score_real, True, mode) + gan_loss(score_fake, False, mode)) / 2

    def _run_together(self, net: nn.Module, *images: Tensor) -> Iterable[Tensor]:
        """Run a network on several batches: in one pass, unless batch norm would mix them or their sizes differ."""
        if self.settings.norm == "batch" or len({image.shape[1:] for image in images}) > 1:
            return [self._run(net, image) for image in images]
        return self._run(net, torch.cat(images)).split([len(image) for image in images])

    def _run(self, net: nn.Module, images: Tensor) -> Tensor:
        """Run a network in the chosen precision; what comes out is float32, and so are all losses."""
        # A frozen network has no gradients to average.
        frozen = not any(parameter.requires_grad for parameter in net.parameters())
        run = self._compiled.get(net, net) if frozen else self._parallel.get(net, self._compiled.get(net, net))
        dtype = DTYPES[self.settings.precision]
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
            return run(images).float()

    def _update(self, name: str, losses: dict[str, Tensor], batch: dict) -> Tensor:
        total = torch.stack(list(losses.values())).sum()
        bad = self.finite.watch(losses, total, batch)
        if self._parallel and bad.is_cuda:  # its gradients reach every process
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        optimiser = self.optimisers[name]
        optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        if not self.scaler.is_enabled():  # the scaler finds what is not finite by itself
            optimiser.found_inf = bad
        self.scaler.step(optimiser)
        return total

    def _adam(self, *networks: nn.Module) -> torch.optim.Adam:
        parameters = list(chain.from_iterable(net.parameters() for net in networks))
        return torch.optim.Adam(parameters, lr=self.settings.lr, betas=(self.settings.beta1, 0.999), fused=True)

    def state_dict(self) -> dict[str, Any]:
        """Return all that later steps of every process depend on: weights, optimisers, averages, the loss's scale."""
        return {kind: {name: part.state_dict() for name, part in parts.items()} for kind, parts in self._parts()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            KeyError, RuntimeError, ValueError: something is missing, or of other networks.
        """
        for kind, parts in self._parts():
            for name, part in parts.items():
                if kind == "scalers" and name not in state[kind]:  # another precision was used
                    continue
                if kind == "optimisers":
                    load_optimiser(part, state[kind][name])
                else:
                    part.load_state_dict(state[kind][name])

    def pools_state(self) -> dict[str, Any]:
        """Return what later steps of this process alone depend on: its pools."""
        return {name: pool.state_dict() for name, pool in self.pools.items()}

    def load_pools_state(self, state: dict[str, Any]) -> None:
        """Go on where `pools_state` was taken."""
        for name, pool in self.pools.items():
            pool.load_state_dict(state[name])

    def _parts(self) -> Iterable[tuple[str, dict[str, Any]]]:
        yield "networks", self.networks
        yield "optimisers", self.optimisers
        yield "averages", self.averages
        yield "scalers", {"fp16": self.scaler} if self.scaler.is_enabled() else {}


def _require_gradients(networks: Iterable[nn.Module], needed: bool) -> None:
    for net in networks:
        net.requires_grad_(needed)
