"""The mutual-information loss: closed forms, other packages' values of one histogram, gradients, channels, tiles."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import normalized_mutual_information
from torch import Tensor

from data.errors import InputError
from models.cycle_gan_model import CycleGANModel, CycleGANSettings
from models.losses import correlation_loss, mutual_information_loss
from tests.test_cycle_gan_model import TINY, batch
from tests.test_losses import noise

# So narrow that each pixel is in the one bin that it lies in.
HARD = 1e-5


def information(loss: Tensor, bins: int) -> float:
    """Return the mutual information in nats that a loss says."""
    return (1 - loss.item()) * math.log(bins)


def hard_histogram(x: Tensor, y: Tensor, bins: int) -> np.ndarray:
    counts, *_ = np.histogram2d(x.numpy().ravel(), y.numpy().ravel(), bins=bins, range=[(-1, 1), (-1, 1)])
    return counts


def related(size: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return two images of which one is a function of the other and noise, both of the whole range."""
    x, y = noise(1, 1, size, size, seed=seed), noise(1, 1, size, size, seed=seed + 1)
    y = (torch.cos(4 * x) + 0.4 * y).clamp(-1, 1)
    for image in (x, y):
        image.view(-1)[:2] = torch.tensor([-1.0, 1.0], dtype=image.dtype)
    return x, y


@pytest.mark.parametrize("bins", [4, 7, 32])
def test_narrow_windows_give_the_plain_histograms_value(bins):
    x, y = related()
    p = hard_histogram(x, y, bins) / x.numel()
    independent = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    expected = np.sum(p[p > 0] * np.log(p[p > 0] / independent[p > 0]))
    found = information(mutual_information_loss(x, y, bins, parzen_width=HARD), bins)
    assert found == pytest.approx(expected, rel=1e-9)
    # scikit-image gives (H(x) + H(y)) / H(x, y).
    joint_entropy = -np.sum(p[p > 0] * np.log(p[p > 0]))
    theirs = (normalized_mutual_information(x.numpy(), y.numpy(), bins=bins) - 1) * joint_entropy
    assert found == pytest.approx(theirs, rel=1e-9)


def test_narrow_windows_give_scikit_learns_value():
    scores = pytest.importorskip("sklearn.metrics")
    x, y = related(seed=5)
    expected = scores.mutual_info_score(None, None, contingency=hard_histogram(x, y, 16))
    assert information(mutual_information_loss(x, y, 16, parzen_width=HARD), 16) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("levels", [2, 4, 8])
@pytest.mark.parametrize("turn", [lambda x: x, lambda x: -x, lambda x: x.roll(1)], ids=["same", "inverted", "permuted"])
def test_a_one_to_one_change_of_gray_values_leaves_the_entropy(levels, turn):
    """Each of n levels as often as the others: I = log n, whatever level becomes which."""
    bins = 8
    centres = (torch.arange(levels, dtype=torch.float64) * (bins // levels) + 0.5) * 2 / bins - 1
    order = torch.arange(64 * levels).remainder(levels)
    x, y = (values[order].reshape(1, 1, 8, -1) for values in (centres, turn(centres)))
    assert mutual_information_loss(x, y, bins, parzen_width=0.1).item() == pytest.approx(
        1 - math.log(levels) / math.log(bins), abs=1e-9
    )


def test_it_sees_what_no_correlation_sees():
    """A parabola: r = 0, and y follows from x."""
    x = torch.linspace(-1, 1, 64 * 64, dtype=torch.float64).reshape(1, 1, 64, 64)
    y = 2 * x.square() - 1
    assert correlation_loss(y, x).item() == pytest.approx(1, abs=1e-6)
    assert mutual_information_loss(y, x, bins=16) < 0.6


def test_independent_images_have_no_information():
    rows = torch.linspace(-1, 1, 32, dtype=torch.float64)
    x, y = rows[:, None].expand(32, 32)[None, None], rows[None, :].expand(32, 32)[None, None]
    for width in (HARD, 0.5, 2.0):
        assert mutual_information_loss(x, y, 16, parzen_width=width).item() == pytest.approx(1, abs=1e-9)


def test_correlated_noise_has_the_information_of_its_correlation():
    """Of two normal variables it is -log(1 - r^2) / 2; the histogram and its windows take some away."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1, 1, 400, 400, dtype=torch.float64, generator=generator)
    for r in (0.5, 0.9):
        x, y = 0.25 * a, 0.25 * (r * a + math.sqrt(1 - r**2) * b)
        exact = -math.log(1 - r**2) / 2
        assert information(mutual_information_loss(x, y, 64, parzen_width=HARD), 64) == pytest.approx(exact, abs=0.03)
        smooth = information(mutual_information_loss(x, y, 64), 64)
        assert 0.9 * exact < smooth < exact + 0.01


def test_it_falls_as_the_images_come_to_agree():
    x, other = noise(1, 1, 64, 64), noise(1, 1, 64, 64, seed=1)
    values = [mutual_information_loss(share * x + (1 - share) * other, x).item() for share in (0.0, 0.3, 0.6, 1.0)]
    assert values == sorted(values, reverse=True) and values[0] > 0.95 and values[-1] < 0.4


@pytest.mark.parametrize("window", [0, 4])
def test_gradients_agree_with_finite_differences(window):
    x, y = noise(2, 1, 6, 7).requires_grad_(), noise(2, 1, 6, 7, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: mutual_information_loss(a, b, bins=5, window=window), (x, y))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("level", [-1.0, 0.3, 1.0])
def test_a_flat_slice_has_loss_one_and_no_gradient(dtype, level):
    flat, structure = torch.full((2, 1, 64, 64), level, dtype=dtype), noise(2, 1, 64, 64).to(dtype)
    for fake, real in ((flat, structure), (structure, flat), (flat, flat)):
        fake = fake.clone().requires_grad_()
        loss = mutual_information_loss(fake, real)
        loss.backward()
        assert loss.item() == pytest.approx(1, abs=1e-5)
        assert fake.grad.isfinite().all() and fake.grad.abs().max() < 1e-4


def test_it_is_computed_in_float32_whatever_autocast_says():
    x, y = related()
    exact = mutual_information_loss(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single = mutual_information_loss(x.float(), y.float())
        half = mutual_information_loss(x.bfloat16(), y.bfloat16())
    assert (exact.dtype, single.dtype, half.dtype) == (torch.float64, torch.float32, torch.float32)
    assert single.item() == pytest.approx(exact.item(), abs=1e-6)
    assert half.item() == pytest.approx(
        mutual_information_loss(*(z.bfloat16().double() for z in (x, y))).item(), abs=1e-6
    )


@pytest.mark.parametrize("window", [0, 6])
def test_several_contrasts_against_one_ct_are_the_mean_over_contrasts_and_slices(window):
    mr, ct = noise(2, 6, 12, 10), noise(2, 3, 12, 10, seed=1)
    ct = 0.5 * (ct + 0.8 * mr[:, :3] - 0.2 * mr[:, 3:])

    def loss(a: Tensor, b: Tensor) -> float:
        return mutual_information_loss(a, b, bins=6, window=window).item()

    pairs = [loss(ct[i : i + 1, k % 3 : k % 3 + 1], mr[i : i + 1, k : k + 1]) for i in range(2) for k in range(6)]
    assert np.std(pairs) > 1e-3
    assert loss(ct, mr) == pytest.approx(np.mean(pairs), rel=1e-10)
    assert loss(mr, ct) == pytest.approx(np.mean(pairs), rel=1e-10)


def test_tiles_are_slices_of_their_own_and_cover_the_slice():
    """A side of 10 takes tiles of 4 at 0, 3 and 6, one of 8 at 0 and 4."""
    x, y = noise(1, 1, 10, 8), noise(1, 1, 10, 8, seed=1)
    y = 0.5 * (x + y)
    corners = [(row, column) for row in (0, 3, 6) for column in (0, 4)]
    alone = [
        mutual_information_loss(x[..., r : r + 4, c : c + 4], y[..., r : r + 4, c : c + 4], bins=5).item()
        for r, c in corners
    ]
    assert mutual_information_loss(x, y, bins=5, window=4).item() == pytest.approx(np.mean(alone), rel=1e-10)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(InputError, match="--mi_window 9: larger than the slices, 12 x 8"):
        mutual_information_loss(noise(1, 1, 8, 12), noise(1, 1, 8, 12), window=9)
    with pytest.raises(ValueError, match="expected one shape"):
        mutual_information_loss(noise(1, 3, 8, 8), noise(1, 2, 8, 8))


def test_a_training_step_has_it_with_its_weight():
    settings = CycleGANSettings(
        **TINY, lambda_mi_A=3, lambda_mi_B=0.5, mi_bins=12, mi_window=8, lambda_correlation_A=0, lambda_correlation_B=0
    )
    model = CycleGANModel(settings, torch.device("cpu"))
    data = batch()
    fake_b, fake_a = model.netG_A(data["A"]), model.netG_B(data["B"])
    expected = {
        "mi_A": 3 * mutual_information_loss(fake_b, data["A"], bins=12, window=8).item(),
        "mi_B": 0.5 * mutual_information_loss(fake_a, data["B"], bins=12, window=8).item(),
    }
    losses = model.step(data)
    assert {name: losses[name].item() for name in expected} == pytest.approx(expected, rel=1e-5)
    parts = [value for name, value in losses.items() if name != "G" and not name.startswith("D_")]
    assert losses["G"].item() == pytest.approx(sum(parts).item(), rel=1e-5)
    plain = CycleGANModel(CycleGANSettings(**TINY), torch.device("cpu")).step(data)
    assert "mi_A" not in plain and "mi_B" not in plain
