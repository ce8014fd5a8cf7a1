"""Random numbers and smooth random fields of a batch of slabs, on the training device."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F


class Draws:
    """Random numbers of one batch: from a generator, most often on its device, and from one on the host for sizes.

    A generator on the host gives the same numbers whatever the batch's device.
    """

    def __init__(
        self, batch: int, generator: torch.Generator, host: torch.Generator, *, device: torch.device | None = None
    ) -> None:
        """Draw for a batch of `batch` slabs on `device` (None: the generator's)."""
        self.batch, self.generator, self.host = batch, generator, host
        self.device = device or generator.device

    def share(self, *shape: int) -> Tensor:
        """Return numbers from 0 to below 1, (N, *shape)."""
        drawn = torch.rand(self.batch, *shape, generator=self.generator, device=self.generator.device)
        return drawn.to(self.device)

    def uniform(self, low: float, high: float) -> Tensor:
        """Return one number a slab, (N, 1, 1, 1)."""
        drawn = torch.empty(self.batch, 1, 1, 1, device=self.generator.device)
        return drawn.uniform_(low, high, generator=self.generator).to(self.device)

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers (N, *shape)."""
        drawn = torch.randn(self.batch, *shape, generator=self.generator, device=self.generator.device)
        return drawn.to(self.device)

    def integer(self, low: int, high: int) -> int:
        """Return one number for the whole batch, from `low` to `high`."""
        return int(torch.randint(low, high + 1, (), generator=self.host))

    def smooth_field(
        self,
        shape: tuple[int, ...],
        cell_mm: float,
        spacing: tuple[float, float],
        spread: Tensor | float = 1.0,
        mean: Tensor | float = 0.0,
    ) -> Tensor:
        """Return a smooth random field (N, S, H, W), normal at nodes `cell_mm` apart: cubic in a slice, linear across.

        `spacing`: mm between slices and between pixels. `spread`, `mean`: of the nodes, (N, 1, 1, 1) or a number.
        """
        slices, height, width = shape
        nodes_z, nodes_y, nodes_x = (
            max(2, round(extent * mm / cell_mm) + 2)
            for extent, mm in zip(shape, (spacing[0], spacing[1], spacing[1]), strict=True)
        )
        nodes = self.normal(nodes_z, nodes_x, nodes_y).mul_(spread).add_(mean).flatten(2)
        # A random part of the distance between two nodes along z: where a slab is thin, one cell holds it.
        span = min(nodes_z - 1.0, (slices - 1) * spacing[0] / cell_mm)
        start = self.share(1) * (nodes_z - 1.0 - span)
        position = start + torch.linspace(0, span, slices, device=self.device)[None]
        distance = position[:, :, None] - torch.arange(nodes_z, device=self.device)
        planes = torch.bmm((1 - distance.abs_()).clamp_(min=0), nodes).view(-1, slices, nodes_x, nodes_y)
        rows, columns = (_cubic(*sizes, self.device) for sizes in ((nodes_y, height), (nodes_x, width)))
        return (planes @ rows.T).transpose(2, 3).contiguous() @ columns.T


@lru_cache(maxsize=256)
def _cubic(nodes: int, pixels: int, device: torch.device) -> Tensor:
    """Return the matrix (pixels, nodes) that interpolates cubically between nodes, the first and last at the ends."""
    corners = torch.eye(nodes, device=device)[None, None]
    return F.interpolate(corners, (pixels, nodes), mode="bicubic", align_corners=True)[0, 0]
