"""Convolutions with a quarter of the multiplications, for generators that run in bfloat16 on a CPU.

CPUs multiply bfloat16 no more than twice as fast as float32, and most of a generator's work is 3 x 3 convolutions. By
minimal filtering, F(4 x 4, 3 x 3) (Winograd 1980; Lavin and Gray, CVPR 2016), a tile of 4 x 4 outputs takes 36
multiplications a pair of channels rather than 144: Y = A' [(G g G') * (B' d B)] A for a tile d of 6 x 6 inputs and the
kernel g, where ' transposes and * multiplies element by element. The price is rounding, which depends on the points at
which the transforms interpolate (Barabasz et al., ACM Trans Math Softw 2020).
"""

import math
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OUTPUTS, KERNEL = 4, 3
TILE = OUTPUTS + KERNEL - 1
# With infinity these are the TILE points. Of those tried they round the least: the usual 0, 1, -1, 2, -2 three times as
# much in a layer, and -1/2 for -2 once and a half.
POINTS = (0.0, math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2), -math.sqrt(2))


def transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Return B' (6, 6), G (6, 3) and A' (4, 6) of F(4, 3), float64, by the method of Toom and Cook."""
    return torch.linalg.inv(_powers(TILE)).T, _powers(KERNEL), _powers(OUTPUTS).T


def _powers(count: int) -> Tensor:
    """Return the points' powers 0 to `count` - 1, one row a point; of infinity the last alone is 1."""
    points = torch.tensor(POINTS, dtype=torch.float64)
    infinity = F.one_hot(torch.tensor(count - 1), count).double()
    return torch.cat([points[:, None] ** torch.arange(count), infinity[None]])


class WinogradConv2d(nn.Module):
    """What a 3 x 3 convolution of stride 1 without padding does; fastest where channels come last in memory."""

    weight: Tensor
    in_tile: Tensor
    out_tile: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype = torch.bfloat16) -> None:
        """Use the weights of a convolution for which `fits` holds; all is computed, and returned, in `dtype`."""
        super().__init__()
        in_tile, kernel, out_tile = transforms()
        weight = torch.einsum("ai,ocij,bj->abco", kernel, conv.weight.detach().double(), kernel)
        self.register_buffer("weight", weight.flatten(0, 1).to(dtype).contiguous())  # (36, channels in, out)
        # A transform of rows and columns is one of the whole tile.
        self.register_buffer("in_tile", torch.kron(in_tile, in_tile).to(dtype))
        self.register_buffer("out_tile", torch.kron(out_tile, out_tile).to(dtype))
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach().to(dtype))

    @staticmethod
    def fits(module: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Tell whether a module is a convolution of this kind."""
        return isinstance(module, nn.Conv2d) and (
            (module.kernel_size, module.stride, module.padding, module.dilation, module.groups)
            == ((KERNEL, KERNEL), (1, 1), (0, 0), (1, 1), 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels in, H, W) to (N, channels out, H - 2, W - 2)."""
        with torch.autocast(x.device.type, enabled=False):
            count, channels, *size = x.shape
            height, width = (extent - KERNEL + 1 for extent in size)
            rows, columns = (-(-extent // OUTPUTS) for extent in (height, width))
            x = F.pad(x, (0, columns * OUTPUTS - width, 0, rows * OUTPUTS - height))  # whole tiles
            x = x.permute(0, 2, 3, 1).to(self.weight.dtype)
            tiles = x.unfold(1, TILE, OUTPUTS).unfold(2, TILE, OUTPUTS).permute(4, 5, 0, 1, 2, 3)
            tiles = (self.in_tile @ tiles.reshape(TILE**2, -1)).view(TILE**2, -1, channels)
            products = torch.bmm(tiles, self.weight)
            y = (self.out_tile @ products.flatten(1)).view(OUTPUTS, OUTPUTS, count, rows, columns, -1)
            y = y.permute(2, 3, 0, 4, 1, 5).reshape(count, rows * OUTPUTS, columns * OUTPUTS, -1)
            y = y[:, :height, :width]
            return (y if self.bias is None else y + self.bias).permute(0, 3, 1, 2)


def speed_up(net: nn.Module) -> None:
    """Make a generator fast for bfloat16 on a CPU, in place: Winograd's convolutions, channels last throughout.

    Instance norms, which would copy to another layout and back, become what is the same: group norms of one channel.
    """
    for module in list(net.modules()):
        for name, child in module.named_children():
            if WinogradConv2d.fits(child):
                setattr(module, name, WinogradConv2d(child))
            elif isinstance(child, nn.InstanceNorm2d):
                channels = child.num_features
                setattr(module, name, nn.GroupNorm(channels, channels, eps=child.eps, affine=False))
    net.to(memory_format=torch.channels_last)
