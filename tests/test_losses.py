"""Losses: closed forms, published values, gradients and precision."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from data.errors import InputError
from models import losses
from models.losses import GAN_MODES, correlation_loss, gan_loss, local_correlation_loss
from tests.test_networks import published_input

GOLDEN = json.loads((Path(__file__).parent / "golden" / "published_networks.json").read_text())["losses"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, dtype=torch.float64, generator=generator) * 2 - 1


def test_reproduces_the_published_values():
    a, b = (published_input([1, 1, 32, 32], k) for k in (0, 1))
    assert gan_loss(a, True).item() == pytest.approx(GOLDEN["lsgan_real"], rel=1e-9)
    assert gan_loss(a, False).item() == pytest.approx(GOLDEN["lsgan_fake"], rel=1e-9)
    assert correlation_loss(a, b).item() == pytest.approx(GOLDEN["correlation"], rel=1e-8)


def closed_form(mode: str, score: float, target: float) -> float:
    return {
        "lsgan": (score - target) ** 2,
        "vanilla": math.log1p(math.exp(-score if target else score)),
    }[mode]


@pytest.mark.parametrize("mode", GAN_MODES)
@pytest.mark.parametrize("real", [True, False])
def test_gan_loss_is_the_mean_of_its_closed_form(mode, real):
    scores = [-3.0, 0.0, 0.25, 4.0]
    expected = sum(closed_form(mode, score, float(real)) for score in scores) / 4
    assert gan_loss(torch.tensor(scores).reshape(2, 1, 1, 2), real, mode).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("mode", GAN_MODES)
def test_gan_loss_falls_toward_its_target(mode):
    scores = torch.zeros(1, 1, 3, 3, requires_grad=True)
    gan_loss(scores, True, mode).backward()
    assert (scores.grad < 0).all()
    scores.grad = None
    gan_loss(scores + 0.5, False, mode).backward()
    assert (scores.grad > 0).all()


def test_vanilla_stays_finite_for_confident_logits():
    scores = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = gan_loss(scores, True, "vanilla")
    loss.backward()
    assert loss.item() == pytest.approx(5e3)
    assert scores.grad.isfinite().all()


def test_unknown_gan_mode_is_an_error():
    with pytest.raises(InputError, match=r"'hinge'.*lsgan, vanilla"):
        gan_loss(torch.zeros(1), True, "hinge")


@pytest.mark.parametrize("slope", [0.3, -0.3, 1e-2, -5.0])
def test_correlation_is_blind_to_gain_offset_and_sign(slope):
    x = noise(2, 1, 16, 16)
    assert correlation_loss(slope * x + 0.4, x).item() == pytest.approx(0, abs=1e-5)
    assert correlation_loss(slope * x + 0.2 * noise(2, 1, 16, 16, seed=1), x).item() > 1e-3


def test_correlation_of_orthogonal_images_is_one():
    rows = torch.tensor([1.0, -1.0]).repeat(8)
    x, y = rows[:, None].expand(16, 16)[None, None], rows[None, :].expand(16, 16)[None, None]
    assert correlation_loss(x, y).item() == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_correlation_agrees_with_numpy(dtype):
    # A slice in air: mostly -1, a body of little contrast.
    x, y = torch.full((3, 1, 64, 64), -1.0, dtype=torch.float64), torch.full((3, 1, 64, 64), -1.0, dtype=torch.float64)
    body = noise(3, 1, 20, 24)
    x[..., 20:40, 20:44] = 0.1 * body
    y[..., 22:42, 20:44] = -0.3 * body + 0.2 * noise(3, 1, 20, 24, seed=1)
    r = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    assert correlation_loss(x.to(dtype), y.to(dtype)).item() == pytest.approx(1 - np.mean(np.square(r)), abs=1e-6)


def test_correlation_is_right_to_1e_6_down_to_the_stated_contrast():
    x, y = noise(1, 1, 64, 64), noise(1, 1, 64, 64, seed=1)
    x, y = 0.0151 * x / x.std(), 0.0151 * (x / x.std() + y / y.std()) / 2**0.5
    r = np.corrcoef(x.numpy().ravel(), y.numpy().ravel())[0, 1]
    assert correlation_loss(x, y).item() == pytest.approx(1 - r**2, abs=1e-6)


def test_correlation_is_taken_sample_by_sample():
    # Each pair is orthogonal (loss 1), but bright goes with bright: pooled over the batch, r^2 would be near 1.
    rows = 0.1 * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(4)
    x, y = rows[:, None].expand(8, 8), rows[None, :].expand(8, 8)
    fake = torch.stack([x - 0.5, x + 0.5])[:, None]
    real = torch.stack([y - 0.5, y + 0.5])[:, None]
    pooled = 1 - np.corrcoef(fake.numpy().ravel(), real.numpy().ravel())[0, 1] ** 2
    assert pooled < 0.08
    assert correlation_loss(fake, real).item() == pytest.approx(1, abs=1e-9)


def test_correlation_of_a_batch_is_the_mean_of_its_samples():
    x, y = noise(4, 1, 8, 8), noise(4, 1, 8, 8, seed=1) + noise(4, 1, 8, 8)
    single = [correlation_loss(x[i : i + 1], y[i : i + 1]).item() for i in range(4)]
    assert correlation_loss(x, y).item() == pytest.approx(sum(single) / 4, rel=1e-12)


@pytest.mark.parametrize("level", [-1.0, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_flat_slice_gives_finite_loss_and_gradient(level, dtype):
    flat = torch.full((2, 1, 256, 256), level, dtype=dtype)
    structure = noise(2, 1, 256, 256).to(dtype)
    for fake, real in ((flat, structure), (structure, flat), (flat, flat)):
        fake = fake.clone().requires_grad_()
        loss = correlation_loss(fake, real)
        loss.backward()
        assert loss.item() == pytest.approx(1, abs=1e-5)
        assert fake.grad.abs().max() < 1e-3


def test_gradient_stays_bounded_as_a_slice_becomes_flat():
    structure = noise(1, 1, 32, 32).float()
    for contrast in (1e-1, 1e-3, 1e-5, 1e-7, 1e-20):
        fake = (contrast * (structure + noise(1, 1, 32, 32, seed=1).float())).requires_grad_()
        correlation_loss(fake, structure).backward()
        # |d r^2 / d x_i| <= |y_i| / (N sd(y) sqrt(eps)), N = 1024
        assert fake.grad.abs().max() < 2 / 1024 / 1e-5


def test_gradients_agree_with_finite_differences():
    x, y = noise(2, 1, 4, 4).requires_grad_(), noise(2, 1, 4, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(correlation_loss, (x, y))
    for mode in GAN_MODES:
        for real in (True, False):
            assert torch.autograd.gradcheck(lambda d, real=real, mode=mode: gan_loss(d, real, mode), (3 * x,))


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(low):
    x, y = noise(2, 1, 64, 64).to(low), (noise(2, 1, 64, 64) + noise(2, 1, 64, 64, seed=1)).to(low)
    for value, exact in (
        (correlation_loss(x, y), correlation_loss(x.double(), y.double())),
        (gan_loss(x, True), gan_loss(x.double(), True)),
        (gan_loss(x, False, "vanilla"), gan_loss(x.double(), False, "vanilla")),
    ):
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    assert correlation_loss(x.double(), y).dtype == torch.float64


@pytest.mark.parametrize("enabled", [True, False])
def test_autocast_does_not_lower_the_precision(enabled):
    x, y = noise(2, 1, 64, 64).float(), noise(2, 1, 64, 64, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
        inside = correlation_loss(x, y), gan_loss(x, True)
    assert [value.dtype for value in inside] == [torch.float32, torch.float32]
    assert inside == (correlation_loss(x, y), gan_loss(x, True))


def test_autocast_is_off_inside(monkeypatch):
    inside = []

    def spy(*args):
        inside.append(torch.is_autocast_enabled("cpu"))
        return args[0]

    monkeypatch.setitem(GAN_MODES, "lsgan", spy)
    monkeypatch.setattr(losses, "_centred", spy)
    x = noise(1, 1, 4, 4)
    with torch.autocast("cpu"):
        gan_loss(x, True)
        correlation_loss(x, x)
        assert torch.is_autocast_enabled("cpu")
    assert inside == [False, False, False]


def test_correlation_of_different_shapes_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\) and \(1, 1, 4, 4\)"):
        correlation_loss(noise(2, 1, 4, 4), noise(1, 1, 4, 4))


def test_local_correlation_is_that_of_every_window_by_itself():
    a, b = noise(2, 1, 9, 8), noise(2, 1, 9, 8, seed=1)
    squares = []
    for i in range(2):
        for y in range(9 - 4):
            for x in range(8 - 4):
                window = np.s_[i, 0, y : y + 5, x : x + 5]
                squares.append(np.corrcoef(a[window].numpy().ravel(), b[window].numpy().ravel())[0, 1] ** 2)
    loss = local_correlation_loss(a, b, window=5, eps=1e-12)
    assert loss.item() == pytest.approx(1 - np.mean(squares), rel=1e-8)


def test_local_correlation_lets_contrast_differ_from_place_to_place():
    """The same structure in both, upright on the left and inverted on the right: whole slices hardly correlate."""
    real = noise(1, 1, 32, 32)
    fake = torch.cat([0.5 * real[..., :16], 0.3 - 0.5 * real[..., 16:]], dim=-1)
    assert correlation_loss(fake, real) > 0.8
    assert local_correlation_loss(fake, real, window=5) < 0.25  # windows across the seam


def test_local_correlation_of_flat_windows_is_finite_and_has_no_gradient():
    fake = torch.full((1, 1, 16, 16), 0.3, requires_grad=True)
    loss = local_correlation_loss(fake, noise(1, 1, 16, 16).float(), window=9)
    loss.backward()
    assert loss.item() == pytest.approx(1, abs=1e-5)
    assert fake.grad.abs().max() < 1e-4
    faint = (0.3 + 1e-6 * noise(1, 1, 16, 16, seed=1)).float()
    assert local_correlation_loss(faint, noise(1, 1, 16, 16, seed=1).float(), window=9) > 0.99


def test_local_correlation_refuses_windows_that_do_not_fit():
    with pytest.raises(InputError, match="--lcc_window 9: larger than the slices, 12 x 8"):
        local_correlation_loss(noise(1, 1, 8, 12), noise(1, 1, 8, 12), window=9)
    with pytest.raises(ValueError, match="expected one shape"):
        local_correlation_loss(noise(1, 1, 8, 12), noise(1, 1, 8, 8), window=3)


CORRELATIONS = {"whole": correlation_loss, "local": lambda fake, real: local_correlation_loss(fake, real, window=5)}


@pytest.mark.parametrize("correlation", CORRELATIONS.values(), ids=CORRELATIONS)
def test_several_contrasts_against_one_ct_are_the_mean_over_contrasts_and_slices(correlation):
    """Channels are contrast-major: contrast 0 of slices 0, 1, 2, then contrast 1 of slices 0, 1, 2."""
    mr, ct = noise(2, 6, 12, 10), noise(2, 3, 12, 10, seed=1)
    ct += 0.3 * mr[:, :3] - 0.2 * mr[:, 3:]
    pairs = [correlation(ct[:, k % 3 : k % 3 + 1], mr[:, k : k + 1]).item() for k in range(6)]
    assert np.std(pairs) > 1e-3
    assert correlation(ct, mr).item() == pytest.approx(np.mean(pairs), rel=1e-10)
    assert correlation(mr, ct).item() == pytest.approx(np.mean(pairs), rel=1e-10)


def test_correlation_of_channels_in_closed_form():
    """Of two contrasts one is the CT inverted (r^2 = 1), the other orthogonal to it (r^2 = 0); so in both slices."""
    rows = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(4)
    x, y = rows[:, None].expand(8, 8), rows[None, :].expand(8, 8)
    ct = torch.stack([x, y])[None]
    mr = torch.stack([-0.5 * x + 0.2, -0.1 * y, y, x])[None]
    assert correlation_loss(ct, mr).item() == pytest.approx(0.5, abs=1e-7)
    assert correlation_loss(ct, mr[:, :2]).item() == pytest.approx(0, abs=1e-7)
    assert correlation_loss(ct, mr[:, 2:]).item() == pytest.approx(1, abs=1e-7)


def test_channels_of_a_sample_do_not_pool():
    """Each slice is orthogonal to its own, but slices that are bright in both would pass for structure."""
    rows = 0.1 * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(4)
    x, y = rows[:, None].expand(8, 8), rows[None, :].expand(8, 8)
    fake, real = torch.stack([x - 0.5, x + 0.5])[None], torch.stack([y - 0.5, y + 0.5])[None]
    assert correlation_loss(fake, real).item() == pytest.approx(1, abs=1e-9)


def plain_correlation(fake: Tensor, real: Tensor) -> Tensor:
    """The loss of single channels, as it was written before there were several."""
    x, y = (z.flatten(start_dim=1) - z.flatten(start_dim=1).mean(dim=1, keepdim=True) for z in (fake, real))
    covariance = (x * y).mean(dim=1)
    variances = (x.square().mean(dim=1) + 1e-10) * (y.square().mean(dim=1) + 1e-10)
    return (1 - covariance.square() / variances).mean()


def test_one_channel_is_as_before_to_the_last_bit():
    fake, real = noise(3, 1, 33, 47).float().requires_grad_(), noise(3, 1, 33, 47, seed=1).float()
    values = [loss(fake, real) for loss in (correlation_loss, plain_correlation)]
    gradients = [torch.autograd.grad(value, fake)[0] for value in values]
    assert values[0].item() == values[1].item()
    assert torch.equal(*gradients)


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (2, 3, 8, 8), (1, 3, 8, 9)])
def test_channels_that_do_not_go_together_are_refused(shape):
    for loss in CORRELATIONS.values():
        with pytest.raises(ValueError, match="expected one shape, or channels of one contrast and of several"):
            loss(noise(1, 3, 8, 8), noise(*shape))
