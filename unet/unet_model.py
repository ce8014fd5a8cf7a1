"""The U-Net of the shape extractor.

Ronneberger et al., "U-Net: convolutional networks for biomedical image segmentation", MICCAI 2015, in the form that
was common in PyTorch in 2019: batch norm, padded convolutions and bilinear upsampling. Parameters are named as they
were there (`inc down1..4 up1..4 outc`), so that weights trained with such a network load.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Builds the norm layer of a number of features.
Norm = Callable[[int], nn.Module]
# Four halvings.
MULTIPLE = 16


class DoubleConvolution(nn.Module):
    """Twice a 3x3 convolution, norm and ReLU: (N, in_nc, H, W) to (N, out_nc, H, W)."""

    def __init__(self, in_nc: int, out_nc: int, middle_nc: int, norm: Norm) -> None:
        """Build the block with `middle_nc` features between its convolutions."""
        super().__init__()
        layers: list[nn.Module] = []
        for source, target in ((in_nc, middle_nc), (middle_nc, out_nc)):
            layers += [nn.Conv2d(source, target, kernel_size=3, padding=1), norm(target)]
            layers += [nn.ReLU(inplace=True)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        return self.conv(x)


class Entry(nn.Module):
    """The first block, at full resolution."""

    def __init__(self, in_nc: int, out_nc: int, norm: Norm) -> None:
        """Build the block."""
        super().__init__()
        self.conv = DoubleConvolution(in_nc, out_nc, out_nc, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, out_nc, H, W)."""
        return self.conv(x)


class Down(nn.Module):
    """Halve the resolution, then convolve: (N, in_nc, H, W) to (N, out_nc, H / 2, W / 2)."""

    def __init__(self, in_nc: int, out_nc: int, norm: Norm) -> None:
        """Build the block."""
        super().__init__()
        self.mpconv = nn.Sequential(nn.MaxPool2d(2), DoubleConvolution(in_nc, out_nc, out_nc, norm))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        return self.mpconv(x)


class Up(nn.Module):
    """Double the resolution, join the skip, convolve: to (N, out_nc, H, W), the skip's height and width."""

    def __init__(self, in_nc: int, out_nc: int, middle_nc: int, norm: Norm) -> None:
        """Build the block; `in_nc`: the features of skip and deeper level together."""
        super().__init__()
        # Corners aligned, as the published networks were trained.
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.conv = DoubleConvolution(in_nc, out_nc, middle_nc, norm)

    def forward(self, deeper: Tensor, skip: Tensor) -> Tensor:
        """Return the features."""
        return self.conv(torch.cat([skip, self.up(deeper)], dim=1))


class Exit(nn.Module):
    """One logit a class and pixel, from the pixel's features."""

    def __init__(self, in_nc: int, out_nc: int) -> None:
        """Build the layer."""
        super().__init__()
        self.conv = nn.Conv2d(in_nc, out_nc, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, out_nc, H, W)."""
        return self.conv(x)


class UNet(nn.Module):
    """Four levels down and up; (N, n_channels, H, W) to logits (N, n_classes, H, W) for any H and W.

    With the default width the levels have 64, 128, 256, 512 and 512 features.
    """

    def __init__(
        self,
        n_channels: int = 1,
        n_classes: int = 1,
        width: int = 64,
        wide_up: bool = False,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        """Build the network.

        Args:
            n_channels: channels of the input.
            n_classes: channels of the output, one logit each.
            width: features at full resolution.
            wide_up: twice the features inside the upward blocks, as networks of 2020 and after have.
            norm: builds the norm of a number of features.
        """
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        self.inc = Entry(n_channels, widths[0], norm)
        self.down1, self.down2, self.down3, self.down4 = (Down(widths[k], widths[k + 1], norm) for k in range(4))
        outputs = [4 * width, 2 * width, width, width]
        inputs = [16 * width, 8 * width, 4 * width, 2 * width]
        middles = [in_nc // 2 if wide_up else out_nc for in_nc, out_nc in zip(inputs, outputs, strict=True)]
        self.up1, self.up2, self.up3, self.up4 = map(Up, inputs, outputs, middles, 4 * [norm])
        self.outc = Exit(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of the input's height and width."""
        height, width = x.shape[-2:]
        bottom, right = -height % MULTIPLE, -width % MULTIPLE
        if bottom or right:
            # The edge is continued outwards: a body that the image cuts through does not end in air.
            x = F.pad(x, (0, right, 0, bottom), mode="replicate")
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x4 = self.down3(x3)
        y = self.up1(self.down4(x4), x4)
        y = self.up2(y, x3)
        y = self.up3(y, x2)
        y = self.up4(y, x1)
        return self.outc(y)[..., :height, :width]
