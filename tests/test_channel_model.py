"""The model's step on slabs and several contrasts: what each network sees, and that every loss counts all slices."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from data.loading.channels import with_channels
from models.cycle_gan_model import CycleGANModel, CycleGANSettings
from models.losses import SHAPE_LOSSES, gan_loss, shape_loss, shape_with_edges
from models.shape_extractor import label_channels
from tests.test_cycle_gan_model import CPU, TINY, assert_losses_of_the_method, equal, weights
from tests.test_shape_constraint import SHAPE, extractor

SLAB = 3


def batch(contrasts=2, samples=1, seed=0, labels=1) -> dict:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(samples, k * SLAB, 32, 32, generator=generator) * 2 - 1 for k in (contrasts, 1))
    mask = torch.zeros(samples, SLAB, 32, 32, dtype=torch.uint8)
    for z in range(SLAB):
        mask[:, z, 4 + 3 * z : 20 + 3 * z, 6:22] = 1
        mask[:, z, 8 + 3 * z : 12 + 3 * z, 8:12] = labels
    return {"A": a, "B": b, "mask_A": mask, "origin_A": ["m:1"] * samples, "origin_B": ["c:2"] * samples}


def build(contrasts=2, shape=False, n_classes=1, mask_labels=1, **changes) -> CycleGANModel:
    settings = CycleGANSettings(**(TINY | (SHAPE if shape else {}) | changes))
    net = extractor(n_classes) if shape else None
    return CycleGANModel(settings, CPU, net, mask_labels, slab=SLAB, contrasts=contrasts)


def test_one_contrast_is_repeated_and_of_several_the_first_is_taken():
    ct, mr = torch.arange(3.0)[None, :, None, None], torch.arange(6.0)[None, :, None, None]
    assert with_channels(ct, 6).flatten().tolist() == [0, 1, 2, 0, 1, 2]
    assert with_channels(mr, 3).flatten().tolist() == [0, 1, 2]
    assert torch.equal(with_channels(mr, 6), mr)


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
@pytest.mark.parametrize("contrasts", [1, 2])
def test_the_losses_are_those_of_the_method(direction, contrasts):
    assert_losses_of_the_method(build(contrasts, direction=direction), batch(contrasts, samples=2))


def test_every_channel_counts_in_every_loss():
    """Gradients reach each slice of each contrast through the generator's losses."""
    model = build(lambda_mi_A=1.0, lambda_mi_B=1.0)
    data = batch()
    real_A, real_B = data["A"].requires_grad_(), data["B"].requires_grad_()
    losses = model._generator_losses(model._translate({"A": real_A, "B": real_B}))
    reached = {
        "gan_A": real_A, "gan_B": real_B, "cycle_A": real_A, "cycle_B": real_B, "idt_A": real_B, "idt_B": real_A,
        "correlation_A": real_A, "correlation_B": real_B,
        "mi_A": real_A, "mi_B": real_B,
    }  # fmt: skip
    assert losses.keys() == reached.keys()
    for name, images in reached.items():
        (gradient,) = torch.autograd.grad(losses[name], images, retain_graph=True)
        assert (gradient.abs().amax(dim=(0, 2, 3)) > 0).all(), name


def slices(images: Tensor) -> Tensor:
    return images.flatten(0, 1).unsqueeze(1)


@pytest.mark.parametrize("mode", SHAPE_LOSSES)
@pytest.mark.parametrize("classes", [1, 2])
def test_the_shape_terms_are_the_mean_over_slices_and_their_discriminator_sees_the_slab(mode, classes):
    model = build(shape=True, n_classes=classes, mask_labels=classes, shape_loss=mode)
    nets, data = copy.deepcopy(model.networks), batch(samples=2, labels=classes)
    losses = model.step(data)
    fake = nets["G_A"](data["A"])
    logits = model.netE(slices(fake))
    masks = label_channels(slices(data["mask_A"]), classes)
    each = [shape_loss(logits[k : k + 1], masks[k : k + 1], mode) for k in range(2 * SLAB)]
    torch.testing.assert_close(losses["shape"], 10 * torch.stack(each).mean().detach(), rtol=1e-4, atol=1e-6)
    assert model.visuals["mask"].shape == model.visuals["shape"].shape == (2, SLAB * classes, 32, 32)
    # Of slice z and class k the channel is z * classes + k.
    for z in range(SLAB):
        assert torch.equal(model.visuals["mask"][1, z * classes : (z + 1) * classes], masks[SLAB + z])
    drawn = shape_with_edges(torch.sigmoid(logits).view(2, -1, 32, 32))
    torch.testing.assert_close(losses["gan_S"], 0.5 * gan_loss(nets["D_S"](drawn), True).detach(), rtol=1e-5, atol=1e-6)


def test_a_slab_of_one_slice_and_one_contrast_is_the_model_of_before():
    """The same seed gives the same weights, and a step the same losses and weights, to the last bit."""
    settings = CycleGANSettings(**(TINY | SHAPE))
    data = batch(contrasts=1)
    data = {key: value[:, :1] if isinstance(value, Tensor) else value for key, value in data.items()}
    models = [CycleGANModel(settings, CPU, extractor(), **more) for more in ({}, {"slab": 1, "contrasts": 1})]
    losses = [model.step(data) for model in models]
    assert losses[0] == losses[1]
    names = tuple(models[0].networks)
    assert equal(weights(models[0], *names), weights(models[1], *names))


def test_simulated_pairs_are_slabs_too():
    model = build(contrasts=1, lambda_simulated=2.0)
    nets, data = copy.deepcopy(model.networks), batch(contrasts=1)
    data |= {"simulated_A": data["A"].flip(-1), "simulated_B": data["B"].flip(-2)}
    losses = model.step(data)
    expected = 2 * F.l1_loss(nets["G_A"](data["simulated_A"]), data["simulated_B"])
    torch.testing.assert_close(losses["simulated_A"], expected.detach(), rtol=1e-5, atol=1e-6)
