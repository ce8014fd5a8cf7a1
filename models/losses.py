"""Losses as pure functions of tensors. The absolute difference is torch's `torch.nn.functional.l1_loss`."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from data.errors import InputError

# From (prediction, target of the same shape) to a scalar.
GAN_MODES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "lsgan": F.mse_loss,
    "vanilla": F.binary_cross_entropy_with_logits,
}


def gan_loss(prediction: Tensor, target_is_real: bool, mode: str = "lsgan") -> Tensor:
    """Return how far a discriminator's scores are from 'all real' (t = 1) or 'all fake' (t = 0).

    'lsgan': mean((D - t)^2); Mao et al., "Least squares generative adversarial networks", ICCV 2017, eq. 2
    with a = 0, b = c = 1, without its factor 1/2.
    'vanilla': -mean(t log sigmoid(D) + (1 - t) log(1 - sigmoid(D))); Goodfellow et al., "Generative
    adversarial nets", NeurIPS 2014, eq. 1, the generator in its non-saturating form (section 3).

    Args:
        prediction: unbounded scores D of any shape, logits for 'vanilla'.
        target_is_real: whether the scores should say 'real'.
        mode: a key of `GAN_MODES`.

    Returns:
        Scalar, the mean over samples and patches; half precision is raised to float32.

    Raises:
        InputError: unknown `mode`.
    """
    if mode not in GAN_MODES:
        raise InputError(f"unknown GAN mode {mode!r}; expected one of {', '.join(GAN_MODES)}")
    with _no_autocast(prediction):
        scores = _at_least_float32(prediction)
        return GAN_MODES[mode](scores, torch.full_like(scores, float(target_is_real)))


def correlation_loss(fake: Tensor, real: Tensor, eps: float = 1e-10) -> Tensor:
    """Return the mean over samples of 1 - r^2, with Pearson's correlation r over the pixels of one sample.

        r^2 = cov(x, y)^2 / ((var(x) + eps) (var(y) + eps))

    The correlation-coefficient loss of Ge et al., "Unpaired whole-body MR to CT synthesis with correlation
    coefficient constrained adversarial learning", SPIE Medical Imaging 2019. The square makes it blind to
    contrast inversion. Every sample is correlated by itself: pooled over a batch, offsets between samples
    would pass for structure.

    Args:
        fake: (N, C, H, W) in [-1, 1]; the channels of a sample go together.
        real: as `fake`, of the same shape.
        eps: variance far below which a sample counts as flat. A flat sample has loss 1 and gradient 0; where
            both variances exceed 2e6 * eps (2e-4: a standard deviation of 0.015) r^2 is right to 1e-6.

    Returns:
        Scalar in [0, 1], in float32 (float64 for float64 input), whatever autocast says.

    Raises:
        ValueError: the shapes differ.
    """
    if fake.shape != real.shape:
        raise ValueError(f"correlation of shapes {tuple(fake.shape)} and {tuple(real.shape)}; expected one shape")
    with _no_autocast(fake):
        x = _centred(_at_least_float32(fake))
        y = _centred(_at_least_float32(real))
        covariance = (x * y).mean(dim=1)
        variances = (x.square().mean(dim=1) + eps) * (y.square().mean(dim=1) + eps)
        return (1 - covariance.square() / variances).mean()


def _centred(images: Tensor) -> Tensor:
    samples = images.flatten(start_dim=1)
    return samples - samples.mean(dim=1, keepdim=True)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _no_autocast(x: Tensor) -> torch.autocast:
    return torch.autocast(device_type=x.device.type, enabled=False)
