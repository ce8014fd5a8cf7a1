"""The channels of an image (C, H, W): contrasts x neighbouring slices, in this one order everywhere.

All S slices of the first contrast come first, from the most inferior one up, then all of the second, and so on:

    channel = contrast * S + slice

A CT has one contrast. Networks, losses, masks (one label map a slice) and pictures go by this order.
"""

from torch import Tensor


def middle_channel(slab: int) -> int:
    """Return the channel of a slab's middle slice in the first contrast."""
    return slab // 2


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Return images (N, K, H, W) as (N, channels, H, W), where both hold the same slices.

    A single contrast is repeated for each that there should be; of several the first is taken.
    """
    have = images.shape[1]
    return images[:, :channels] if channels <= have else images.repeat(1, channels // have, 1, 1)
