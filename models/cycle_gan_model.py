"""The unpaired MR to CT model: two generators, two discriminators, their losses and their optimisation step.

Generator `netG_A` maps the source domain A to the target domain B and `netG_B` maps back; `netD_A` judges images of B
(real_B against fake_B) and `netD_B` images of A. A is MR and B is CT, or the reverse with `--direction BtoA`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.image_pool import ImagePool
from models.losses import correlation_loss, gan_loss
from models.networks import build_discriminator, build_generator, initialise

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


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
    pool_size: int = 50
    lr: float = 2e-4
    beta1: float = 0.5
    lambda_A: float = 10.0
    lambda_B: float = 10.0
    lambda_identity: float = 0.5
    lambda_correlation_A: float = 2.0
    lambda_correlation_B: float = 2.0
    direction: str = "AtoB"
    precision: str = "fp32"
    seed: int = 0


class NonFiniteLossError(RuntimeError):
    """A loss is NaN or infinite; nothing was updated by the step that met it."""


class CycleGANModel:
    """Networks, pools and optimisers, and one training step over them."""

    def __init__(self, settings: CycleGANSettings, device: torch.device) -> None:
        """Build and initialise the networks on `device`; the same seed gives the same weights."""
        self.settings, self.device = settings, device
        s = settings
        generator = torch.Generator().manual_seed(s.seed)

        def prepared(net: nn.Module) -> nn.Module:
            initialise(net, s.init_type, s.init_gain, generator)
            return net.to(device)

        options_G = {"ngf": s.ngf, "norm": s.norm, "use_dropout": s.use_dropout, "upsample": s.upsample}
        options_D = {"ndf": s.ndf, "n_layers": s.n_layers_D, "norm": s.norm}
        self.netG_A, self.netG_B = (prepared(build_generator(s.netG, **options_G)) for _ in "AB")
        self.netD_A, self.netD_B = (prepared(build_discriminator(s.netD, **options_D)) for _ in "AB")
        self.networks = {"G_A": self.netG_A, "G_B": self.netG_B, "D_A": self.netD_A, "D_B": self.netD_B}
        self.pools = {
            name: ImagePool(s.pool_size, torch.Generator().manual_seed(2 * s.seed + k)) for k, name in enumerate("AB")
        }
        self.optimisers = {
            "G": self._adam(self.netG_A, self.netG_B),
            "D": self._adam(self.netD_A, self.netD_B),
        }
        self.visuals: dict[str, Tensor] = {}

    def step(self, batch: dict) -> dict[str, Tensor]:
        """Update the generators, then the discriminators, on one batch.

        Args:
            batch: `A` and `B`, (N, 1, H, W) in [-1, 1].

        Returns:
            Scalars without history: the generators' total `G` and every weighted loss that it is the sum of, and the
            discriminators' D_A and D_B.

        Raises:
            NonFiniteLossError: before any weight is changed by the loss that is not finite.
        """
        source, target = ("A", "B") if self.settings.direction == "AtoB" else ("B", "A")
        real_A, real_B = (batch[domain].to(self.device, non_blocking=True) for domain in (source, target))
        _require_gradients((self.netD_A, self.netD_B), False)
        losses_G = self._generator_losses(real_A, real_B)
        total_G = self._update("G", losses_G, batch)
        _require_gradients((self.netD_A, self.netD_B), True)
        losses_D = {
            "D_A": self._discriminator_loss(self.netD_A, real_B, self.pools["B"].query(self.visuals["fake_B"])),
            "D_B": self._discriminator_loss(self.netD_B, real_A, self.pools["A"].query(self.visuals["fake_A"])),
        }
        self._update("D", losses_D, batch)
        return {name: loss.detach() for name, loss in ({"G": total_G} | losses_G | losses_D).items()}

    def _generator_losses(self, real_A: Tensor, real_B: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms of L_G; the keys with A belong to the cycle A -> B -> A."""
        s = self.settings
        fake_B, fake_A = self._run(self.netG_A, real_A), self._run(self.netG_B, real_B)
        rec_A, rec_B = self._run(self.netG_B, fake_B), self._run(self.netG_A, fake_A)
        visuals = {"real_A": real_A, "fake_B": fake_B, "rec_A": rec_A}
        visuals |= {"real_B": real_B, "fake_A": fake_A, "rec_B": rec_B}
        losses = {
            # gan(D_A(G_A(A)), real) + gan(D_B(G_B(B)), real)
            "gan_A": gan_loss(self._run(self.netD_A, fake_B), True, s.gan_mode),
            "gan_B": gan_loss(self._run(self.netD_B, fake_A), True, s.gan_mode),
            # lambda_A |G_B(G_A(A)) - A|_1 + lambda_B |G_A(G_B(B)) - B|_1
            "cycle_A": s.lambda_A * F.l1_loss(rec_A, real_A),
            "cycle_B": s.lambda_B * F.l1_loss(rec_B, real_B),
        }
        if s.lambda_identity > 0:
            # lambda_identity (lambda_B |G_A(B) - B|_1 + lambda_A |G_B(A) - A|_1)
            idt_A, idt_B = self._run(self.netG_A, real_B), self._run(self.netG_B, real_A)
            visuals |= {"idt_A": idt_A, "idt_B": idt_B}
            losses["idt_A"] = s.lambda_identity * s.lambda_B * F.l1_loss(idt_A, real_B)
            losses["idt_B"] = s.lambda_identity * s.lambda_A * F.l1_loss(idt_B, real_A)
        # lambda_correlation (1 - r(fake, real)^2), Ge et al., SPIE Medical Imaging 2019
        if s.lambda_correlation_A > 0:
            losses["correlation_A"] = s.lambda_correlation_A * correlation_loss(fake_B, real_A)
        if s.lambda_correlation_B > 0:
            losses["correlation_B"] = s.lambda_correlation_B * correlation_loss(fake_A, real_B)
        self.visuals = {name: image.detach() for name, image in visuals.items()}
        return losses

    def _discriminator_loss(self, net: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """Return (gan(D(real), real) + gan(D(fake), fake)) / 2."""
        mode = self.settings.gan_mode
        return (gan_loss(self._run(net, real), True, mode) + gan_loss(self._run(net, fake), False, mode)) / 2

    def _run(self, net: nn.Module, images: Tensor) -> Tensor:
        """Run a network in the chosen precision; what comes out is float32, and so are all losses."""
        dtype = PRECISIONS[self.settings.precision]
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
            return net(images).float()

    def _update(self, name: str, losses: dict[str, Tensor], batch: dict) -> Tensor:
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            bad = {key: loss.item() for key, loss in losses.items() if not torch.isfinite(loss)}
            origins = [*batch.get("origin_A", []), *batch.get("origin_B", [])]
            raise NonFiniteLossError(
                f"loss not finite: {bad} on slices {', '.join(origins)}; no weight was changed by it"
            )
        self.optimisers[name].zero_grad(set_to_none=True)
        total.backward()
        self.optimisers[name].step()
        return total

    def _adam(self, *networks: nn.Module) -> torch.optim.Adam:
        parameters = list(chain.from_iterable(net.parameters() for net in networks))
        return torch.optim.Adam(parameters, lr=self.settings.lr, betas=(self.settings.beta1, 0.999))

    def state_dict(self) -> dict[str, Any]:
        """Return all that later steps depend on: weights, optimisers and pools."""
        return {
            kind: {name: part.state_dict() for name, part in parts.items()}
            for kind, parts in (("networks", self.networks), ("optimisers", self.optimisers), ("pools", self.pools))
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        for kind, parts in (("networks", self.networks), ("optimisers", self.optimisers), ("pools", self.pools)):
            for name, part in parts.items():
                part.load_state_dict(state[kind][name])


def _require_gradients(networks: Iterable[nn.Module], needed: bool) -> None:
    for net in networks:
        net.requires_grad_(needed)
