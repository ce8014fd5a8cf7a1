"""The training step written plainly, to compare the model's own with: in time, and in every number.

Float32 (or float64), contiguous, one image after another through one network after another, torch's Adam as it comes,
and an image pool that moves one image at a time. The formulas stand here once more on purpose: agreement then says
something.
"""

import copy
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.cycle_gan_model import CycleGANModel, CycleGANSettings
from models.image_pool import ImagePool
from models.losses import shape_with_edges
from models.shape_extractor import label_channels

# The generators' optimiser, the discriminators', and that of the shape discriminator.
OPTIMISED = {"G": ("G_A", "G_B"), "D": ("D_A", "D_B"), "D_S": ("D_S",)}
# Settings under which the method is the published one, but for its weights.
_PUBLISHED = {
    "gan_mode": "lsgan",
    "shape_loss": "l1",
    "lcc_window": 0,
    "lambda_simulated": 0.0,
    "ema": 0.0,
    "lambda_mi_A": 0.0,
    "lambda_mi_B": 0.0,
}


class PlainPool:
    """An image pool that moves one image at a time; it draws what an `ImagePool` in the same state would draw."""

    def __init__(self, pool: ImagePool) -> None:
        """Copy a pool's images and its source of randomness."""
        state = pool.state_dict()
        self.size = state["size"]
        self.images = [] if state["images"] is None else [image[None].clone() for image in state["images"]]
        self.generator = torch.Generator()
        self.generator.set_state(state["generator"])

    def query(self, images: Tensor) -> Tensor:
        """Return images for the discriminator, (N, C, H, W) as `images`."""
        if self.size == 0:
            return images.detach()
        chances = max(0, len(images) - max(0, self.size - len(self.images)))
        swaps = torch.rand(chances, generator=self.generator) < 0.5
        places = torch.randint(self.size, (chances,), generator=self.generator)
        chance = iter(zip(swaps, places, strict=True))
        given = []
        for image in images.detach().split(1):
            if len(self.images) < self.size:
                self.images.append(image.clone())
                given.append(image)
                continue
            swap, place = next(chance)
            if swap:
                given.append(self.images[place].to(image))
                self.images[place] = image.clone()
            else:
                given.append(image)
        return torch.cat(given)


class ReferenceStep:
    """A model's step once more, from copies of its weights, optimisers and pools as they are now."""

    def __init__(
        self, model: CycleGANModel, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        """Copy a model of one process that keeps to the published losses.

        Args:
            model: what to copy.
            device: where to compute; None: where the model does.
            dtype: of all numbers; float64 says what is right.

        Raises:
            ValueError: its losses are others.
        """
        s = self.settings = model.settings
        if other := {key for key, value in _PUBLISHED.items() if getattr(s, key) != value}:
            raise ValueError(f"the reference step knows the published losses alone; set otherwise: {sorted(other)}")
        self.device, self.dtype = device or model.device, dtype
        self.networks = {name: self._plain(net).requires_grad_(True) for name, net in model.networks.items()}
        self.pools = {name: PlainPool(pool) for name, pool in model.pools.items()}
        self.optimisers = {name: self._plain_adam(name, adam) for name, adam in model.optimisers.items()}
        if s.uses_shape:
            self.extractor = self._plain(model.netE)
            self.shape_classes = model.shape_classes

    def _plain(self, net: nn.Module) -> nn.Module:
        return copy.deepcopy(net).to(self.device, self.dtype, memory_format=torch.contiguous_format)

    def _plain_adam(self, name: str, adam: torch.optim.Adam) -> torch.optim.Adam:
        networks = [self.networks[network] for network in OPTIMISED[name]]
        plain = torch.optim.Adam(list(chain.from_iterable(net.parameters() for net in networks)))
        state = copy.deepcopy(adam.state_dict())
        for group in state["param_groups"]:
            group["fused"] = group["foreach"] = None
        for moments in state["state"].values():
            moments["step"] = moments["step"].cpu()
        plain.load_state_dict(state)
        return plain

    def step(self, batch: dict) -> dict[str, Tensor]:
        """Update all networks on one batch as `CycleGANModel.step` does; return the same losses by the same names."""
        domains = "AB" if self.settings.direction == "AtoB" else "BA"
        a, b = (batch[domain].to(self.device, self.dtype) for domain in domains)
        G_A, G_B, D_A, D_B = (self.networks[name] for name in ("G_A", "G_B", "D_A", "D_B"))
        discriminators = [net for name, net in self.networks.items() if name.startswith("D_")]
        for net in discriminators:
            net.requires_grad_(False)
        fake_b, fake_a = G_A(a), G_B(b)
        losses = self._generator_losses(a, b, fake_a, fake_b)
        shapes = {}
        if self.settings.uses_shape:
            fake_ct = fake_b if self.settings.direction == "AtoB" else fake_a
            shapes = self._shapes(fake_ct, batch["mask_A"].to(self.device))
            losses |= self._shape_losses(shapes)
        total = self._update("G", list(losses.values()))
        for net in discriminators:
            net.requires_grad_(True)
        fake_b, fake_a = self.pools["B"].query(fake_b), self.pools["A"].query(fake_a)
        judged = {"D_A": self._judge(D_A, b, fake_b), "D_B": self._judge(D_B, a, fake_a)}
        self._update("D", list(judged.values()))
        if self.settings.lambda_shape_gan > 0:
            real_s, fake_s = (shape_with_edges(shapes[name].detach()) for name in ("mask", "shape"))
            judged["D_S"] = self._judge(self.networks["D_S"], real_s, self.pools["S"].query(fake_s))
            self._update("D_S", [judged["D_S"]])
        return {name: loss.detach() for name, loss in ({"G": total} | losses | judged).items()}

    def _generator_losses(self, a: Tensor, b: Tensor, fake_a: Tensor, fake_b: Tensor) -> dict[str, Tensor]:
        s: CycleGANSettings = self.settings
        G_A, G_B, D_A, D_B = (self.networks[name] for name in ("G_A", "G_B", "D_A", "D_B"))
        losses = {
            "gan_A": s.lambda_gan * (D_A(fake_b) - 1).square().mean(),
            "gan_B": s.lambda_gan * (D_B(fake_a) - 1).square().mean(),
            "cycle_A": s.lambda_A * (G_B(fake_b) - a).abs().mean(),
            "cycle_B": s.lambda_B * (G_A(fake_a) - b).abs().mean(),
        }
        if s.lambda_identity > 0:
            losses["idt_A"] = s.lambda_identity * s.lambda_B * (G_A(b) - b).abs().mean()
            losses["idt_B"] = s.lambda_identity * s.lambda_A * (G_B(a) - a).abs().mean()
        if s.lambda_correlation_A > 0:
            losses["correlation_A"] = s.lambda_correlation_A * _uncorrelated(fake_b, a)
        if s.lambda_correlation_B > 0:
            losses["correlation_B"] = s.lambda_correlation_B * _uncorrelated(fake_a, b)
        return losses

    def _shapes(self, fake_ct: Tensor, labels: Tensor) -> dict[str, Tensor]:
        shape = torch.sigmoid(self.extractor(fake_ct)[:, : self.shape_classes])
        return {"shape": shape, "mask": label_channels(labels, self.shape_classes).to(self.dtype)}

    def _shape_losses(self, shapes: dict[str, Tensor]) -> dict[str, Tensor]:
        s, losses = self.settings, {}
        if s.lambda_shape > 0:
            losses["shape"] = s.lambda_shape * (shapes["shape"] - shapes["mask"]).abs().mean()
        if s.lambda_shape_gan > 0:
            scores = self.networks["D_S"](shape_with_edges(shapes["shape"]))
            losses["gan_S"] = s.lambda_shape_gan * (scores - 1).square().mean()
        return losses

    def _judge(self, net: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        return ((net(real) - 1).square().mean() + net(fake).square().mean()) / 2

    def _update(self, name: str, losses: list[Tensor]) -> Tensor:
        total = sum(losses)
        self.optimisers[name].zero_grad()
        total.backward()
        self.optimisers[name].step()
        return total


def _uncorrelated(fake: Tensor, real: Tensor) -> Tensor:
    """Return the mean over samples of 1 - r^2, r being Pearson's correlation over a sample's pixels."""
    terms = []
    for x, y in zip(fake.flatten(1), real.flatten(1), strict=True):
        r = F.cosine_similarity(x - x.mean(), y - y.mean(), dim=0)
        terms.append(1 - r.square())
    return torch.stack(terms).mean()
