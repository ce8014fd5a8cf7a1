"""Losses as pure functions of tensors, and a CycleGAN's options of them. See also torch's `l1_loss`."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from data.errors import InputError
from data.settings.declaration import Nature, Need, option
from data.settings.values import bin_count, nonnegative_float, nonnegative_int

# From (prediction, target of the same shape) to a scalar.
GAN_MODES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "lsgan": F.mse_loss,
    "vanilla": F.binary_cross_entropy_with_logits,
}


# Without discriminators options of theirs do nothing.
DISCRIMINATED = Need("lambda_gan", or_option="lambda_shape_gan")


@dataclass(frozen=True, kw_only=True)
class CycleGANLosses:
    """losses."""

    gan_mode: str = option(
        "lsgan", nature=Nature.RESULT, choices=tuple(GAN_MODES), help="adversarial loss", needs=DISCRIMINATED
    )
    lambda_gan: float = option(
        1.0, nature=Nature.SWITCH, parse=nonnegative_float,
        help="weight of the image discriminators' losses; 0: no image discriminators",
    )  # fmt: skip
    pool_size: int = option(
        50,
        nature=Nature.FIXED,
        parse=nonnegative_int,
        help="number of past synthetic images that are shown to the discriminators again",
        needs=DISCRIMINATED,
    )
    lambda_A: float = option(
        10.0, nature=Nature.RESULT, parse=nonnegative_float, help="weight of the cycle loss A -> B -> A"
    )
    lambda_B: float = option(
        10.0, nature=Nature.RESULT, parse=nonnegative_float, help="weight of the cycle loss B -> A -> B"
    )
    lambda_identity: float = option(
        0.5,
        nature=Nature.RESULT,
        parse=nonnegative_float,
        help="weight of the identity losses, relative to lambda_A and lambda_B",
    )
    lambda_correlation_A: float = option(
        2.0, nature=Nature.RESULT, parse=nonnegative_float, aliases=("--lambda_co_A",), first=True,
        help="weight of the correlation-coefficient loss 1 - r(fake_B, real_A)^2; 0: none",
    )  # fmt: skip
    lambda_correlation_B: float = option(
        2.0, nature=Nature.RESULT, parse=nonnegative_float, aliases=("--lambda_co_B",),
        help="weight of the correlation-coefficient loss 1 - r(fake_A, real_B)^2; 0: none",
    )  # fmt: skip
    lcc_window: int = option(
        0, nature=Nature.RESULT, parse=nonnegative_int,
        help="compute r in square windows of this side in pixels; 0: over the whole slice, as published",
        needs=Need("lambda_correlation_A", or_option="lambda_correlation_B"),
    )  # fmt: skip
    lambda_mi_A: float = option(
        0.0, nature=Nature.RESULT, parse=nonnegative_float,
        help="weight of the mutual-information loss 1 - I(fake_B, real_A) / log(bins); 0: none",
    )  # fmt: skip
    lambda_mi_B: float = option(
        0.0, nature=Nature.RESULT, parse=nonnegative_float,
        help="weight of the mutual-information loss 1 - I(fake_A, real_B) / log(bins); 0: none",
    )  # fmt: skip
    mi_window: int = option(
        0, nature=Nature.RESULT, parse=nonnegative_int,
        help="compute I in square tiles of this side in pixels; 0: over the whole slice",
        needs=Need("lambda_mi_A", or_option="lambda_mi_B"),
    )  # fmt: skip
    mi_bins: int = option(
        32, nature=Nature.RESULT, parse=bin_count, help="gray-value bins of each image in the histogram for I",
        needs=Need("lambda_mi_A", or_option="lambda_mi_B"),
    )  # fmt: skip


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
    """Return the mean over samples of 1 - r^2, with Pearson's correlation r over the pixels of one slice.

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
        ValueError: the shapes do not go together.
    """
    fake, real = _same_slices(fake, real)
    with _no_autocast(fake):
        x = _centred(_at_least_float32(fake))
        y = _centred(_at_least_float32(real))
        covariance = (x * y).mean(dim=1)
        variances = (x.square().mean(dim=1) + eps) * (y.square().mean(dim=1) + eps)
        return (1 - covariance.square() / variances).mean()


def local_correlation_loss(fake: Tensor, real: Tensor, window: int, eps: float = 1e-4) -> Tensor:
    """Return the mean over windows of 1 - r^2, with Pearson's correlation r over the pixels of one square window.

    As `correlation_loss`, but structure counts wherever it is, and one contrast need not hold over the slice: the
    squared local correlation of Avants et al., Medical Image Analysis 2008 (12: 26-41, section 2.3). Windows lie wholly
    inside the slice, one about every pixel that has room for it. Channels are paired as in `correlation_loss`.

    Args:
        fake: (N, K, H, W) in [-1, 1].
        real: as `fake`, with as many channels, or with C times as many or as few.
        window: side of a window in pixels, up to H and W.
        eps: variance below which a window counts as flat: its loss goes to 1 and its gradient to 0.

    Returns:
        Scalar in [0, 1], in float32 (float64 for float64 input), whatever autocast says.

    Raises:
        ValueError: the shapes do not go together.
        InputError: the window is larger than the slice.
    """
    fake, real = _same_slices(fake, real)
    if window > min(fake.shape[-2:]):
        raise InputError(f"--lcc_window {window}: larger than the slices, {fake.shape[-1]} x {fake.shape[-2]}")
    with _no_autocast(fake):
        x, y = _at_least_float32(fake), _at_least_float32(real)
        # Centred as a whole first: the variance of a window is then a difference of small numbers.
        x, y = (z - z.mean(dim=(2, 3), keepdim=True).detach() for z in (x, y))
        products = torch.cat([x, y, x * x, y * y, x * y], dim=1)
        mean_x, mean_y, xx, yy, xy = F.avg_pool2d(products, window, stride=1).unbind(dim=1)
        covariance = xy - mean_x * mean_y
        variances = ((xx - mean_x**2).clamp(min=0) + eps) * ((yy - mean_y**2).clamp(min=0) + eps)
        return (1 - covariance.square() / variances).mean()


def mutual_information_loss(
    fake: Tensor, real: Tensor, bins: int = 32, window: int = 0, parzen_width: float = 0.5
) -> Tensor:
    """Return the mean over slices of 1 - I / log(bins), with the mutual information I of two images of one slice.

        I = sum_ij p_ij log(p_ij / (p_i p_j)),  p_ij = mean over pixels of w_i(x) w_j(y),  p_i = sum_j p_ij

    The constraint of Ge et al., "Unpaired MR to CT synthesis with explicit structural constrained adversarial
    learning", ISBI 2019, beside the shape's; their code has none, so this form is ours. Of the greatest I that `bins`
    bins can hold, log(bins), it is the share that is missing: the negative of I but for scale and offset. It is blind
    to any one-to-one change of gray values, where the correlation is blind to a linear one.

    The histogram is estimated with Parzen windows, as by Viola and Wells, IJCV 1997 (24: 137-154), so that it has
    gradients: [-1, 1] is cut into bins of one width h with centres c_i, and a pixel belongs to all of them by shares
    w_i(x) = exp(-(x - c_i)^2 / (2 s^2)) / sum_k exp(-(x - c_k)^2 / (2 s^2)), s = parzen_width * h. The narrower, the
    more this is the plain histogram, and the less gradient there is.

    Args:
        fake: (N, K, H, W) in [-1, 1]. Channels are paired as in `correlation_loss`.
        real: as `fake`, with as many channels, or with C times as many or as few.
        bins: of each image.
        window: side of square tiles in pixels, each with a histogram of its own, up to H and W; they cover the slice,
            and overlap where they must for that. 0: one histogram a slice. A tile that is flat in one image has loss 1.
        parzen_width: standard deviation of the windows, in widths of a bin.

    Returns:
        Scalar in [0, 1], in float32 (float64 for float64 input), whatever autocast says. A flat slice has loss 1 and
        gradient 0.

    Raises:
        ValueError: the shapes do not go together.
        InputError: the tile is larger than the slice.
    """
    fake, real = _same_slices(fake, real)
    if window > min(fake.shape[-2:]):
        raise InputError(f"--mi_window {window}: larger than the slices, {fake.shape[-1]} x {fake.shape[-2]}")
    with _no_autocast(fake):
        x, y = (_bin_shares(_tiles(_at_least_float32(z), window), bins, parzen_width) for z in (fake, real))
        joint = x.transpose(1, 2) @ y / x.shape[1]
        information = _negative_entropy(joint) - _negative_entropy(joint.sum(1)) - _negative_entropy(joint.sum(2))
        return (1 - information / math.log(bins)).mean()


def _tiles(images: Tensor, window: int) -> Tensor:
    """Return the pixels of each tile, (M, P), of images (N, 1, H, W); of each image where `window` is 0."""
    if not window:
        return images.flatten(1)
    for axis in (2, 3):
        size = images.shape[axis]
        starts = torch.linspace(0, size - window, math.ceil(size / window)).round().long().tolist()
        images = torch.cat([images.narrow(axis, start, window) for start in starts])
    return images.flatten(1)


def _bin_shares(values: Tensor, bins: int, parzen_width: float) -> Tensor:
    """Return by what shares each of the values (M, P) in [-1, 1] belongs to each bin: (M, P, bins), sums of 1."""
    width = 2 / bins
    centres = torch.arange(bins, dtype=values.dtype, device=values.device) * width + (width / 2 - 1)
    return torch.softmax(-((values[..., None] - centres) / (parzen_width * width)).square() / 2, dim=-1)


def _negative_entropy(shares: Tensor) -> Tensor:
    """Return sum p log p, (M,), of shares (M, ...): 0 log 0 is 0, with a finite gradient."""
    return (shares * shares.clamp(min=torch.finfo(shares.dtype).tiny).log()).flatten(1).sum(dim=1)


def shape_loss(logits: Tensor, mask: Tensor, mode: str = "l1") -> Tensor:
    """Return how far the shape extracted from a synthetic CT is from the body mask of its MR.

    With p = sigmoid(logits) and m = mask:

    'l1': mean |p - m|, the shape consistency of Ge et al., "Unpaired MR to CT synthesis with explicit structural
    constrained adversarial learning", ISBI 2019. Where the extractor is sure, it has hardly a gradient.
    'bce': -mean(m log p + (1 - m) log(1 - p)); its gradient by the logits is p - m, however sure the extractor is.
    'dice': mean over samples and classes of 1 - (2 sum(p m) + 1) / (sum(p) + sum(m) + 1); Milletari et al., "V-Net",
    3DV 2016, without squares.

    Args:
        logits: (N, K, H, W), what the extractor says of K classes.
        mask: (N, K, H, W) in [0, 1].
        mode: a key of `SHAPE_LOSSES`.

    Returns:
        Scalar, in float32 at least.

    Raises:
        ValueError: the shapes differ.
        InputError: unknown `mode`.
    """
    if logits.shape != mask.shape:
        raise ValueError(f"shape loss of {tuple(logits.shape)} and {tuple(mask.shape)}; expected one shape")
    if mode not in SHAPE_LOSSES:
        raise InputError(f"unknown shape loss {mode!r}; expected one of {', '.join(SHAPE_LOSSES)}")
    with _no_autocast(logits):
        return SHAPE_LOSSES[mode](_at_least_float32(logits), _at_least_float32(mask))


def _shape_l1(logits: Tensor, mask: Tensor) -> Tensor:
    return F.l1_loss(torch.sigmoid(logits), mask)


def _shape_dice(logits: Tensor, mask: Tensor) -> Tensor:
    soft = torch.sigmoid(logits)
    overlap, total = (soft * mask).sum(dim=(2, 3)), (soft + mask).sum(dim=(2, 3))
    return (1 - (2 * overlap + 1) / (total + 1)).mean()


# From (logits, mask of the same shape) to a scalar.
SHAPE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": _shape_l1,
    "bce": F.binary_cross_entropy_with_logits,
    "dice": _shape_dice,
}


def shape_with_edges(mask: Tensor) -> Tensor:
    """Return a soft mask and its edge map side by side: (N, K, H, W) in [0, 1] to (N, 2 K, H, W) in [0, 1].

    The edge map is the morphological gradient, the difference of maximum and minimum over 3 x 3 pixels (Serra, Image
    Analysis and Mathematical Morphology, 1982): 1 along the outline of a sharp mask, and gradients flow through it.
    """
    edges = F.max_pool2d(mask, 3, stride=1, padding=1) + F.max_pool2d(-mask, 3, stride=1, padding=1)
    return torch.cat([mask, edges], dim=1)


def _same_slices(fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as (N C S, 1, H, W), so that images of the same slice stand at the same place.

    The one with fewer channels holds the S slices of one contrast; it is repeated for the C contrasts of the other.
    """
    slices, most = sorted((fake.shape[1], real.shape[1]))
    if fake[:, :1].shape != real[:, :1].shape or most % slices:
        raise ValueError(
            f"images of shapes {tuple(fake.shape)} and {tuple(real.shape)}; expected one shape, or channels of "
            "one contrast and of several"
        )
    contrasts = most // slices
    repeated = (x.unflatten(1, (-1, slices)).expand(-1, contrasts, -1, -1, -1) for x in (fake, real))
    x, y = (z.flatten(0, 2).unsqueeze(1) for z in repeated)
    return x, y


def _centred(images: Tensor) -> Tensor:
    samples = images.flatten(start_dim=1)
    return samples - samples.mean(dim=1, keepdim=True)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _no_autocast(x: Tensor) -> torch.autocast:
    return torch.autocast(device_type=x.device.type, enabled=False)
