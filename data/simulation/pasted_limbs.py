"""Paste limbs beside trunks: MR is acquired with the arms down, CT with the arms up, so no CT shows both."""

import torch
from torch import Tensor
from torch.nn import functional as F

from data.masks.body_mask import CT_BODY_HU
from data.simulation.draws import Draws
from data.simulation.slab_stock import Crop, SlabStock

# A limb becomes an arm by this factor. It lies this far from the trunk's side, and this far behind its middle.
_SCALE = (0.35, 0.75)
_GAP_MM = (0.0, 15.0)
_BESIDE_MM = (-30.0, 50.0)
_SHARE = 0.6


def paste_limbs(trunk: dict[str, Tensor], limbs: SlabStock, crop: Crop, pixel_mm: float, draws: Draws) -> None:
    """Put a limb beside the left and the right side of slabs of trunks, in place, each in six of ten slabs.

    Args:
        trunk: maps `hu` and `depth` (N, S, H, W) and `zoom` (N, 1, 1, 1), as `SlabStock.draw` returns them.
        limbs: where the limbs are taken from.
        crop: as the trunks were cut.
        pixel_mm: spacing in the plane.
        draws: all that is random.
    """
    margin = (trunk["hu"].shape[1] - crop.slices) // 2
    turned = Crop(crop.slices, crop.size, rotate=180.0, flip_x=True, flip_y=True)
    left, right, middle = _sides((trunk["hu"] > CT_BODY_HU).any(1))
    for side in (-1, 1):
        pick = draws.share()
        centre = limbs.used[(pick * len(limbs.used)).long()]
        x0, x1, y0, y1 = limbs.boxes[centre].float().unbind(1)
        zoom = draws.uniform(*_SCALE)
        radius = torch.maximum(x1 - x0, y1 - y0) / 2 * zoom.view(-1)
        gap = draws.uniform(*_GAP_MM).view(-1) / pixel_mm + radius
        x = left - gap if side < 0 else right + gap
        y = middle + draws.uniform(*_BESIDE_MM).view(-1) / pixel_mm
        limb = limbs.cut(centre, ((x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2), zoom, turned, draws, margin)
        hu = _moved(limb["hu"] - limbs.outside["hu"], x, y) + limbs.outside["hu"]
        depth = _moved(limb["depth"], x, y) * zoom / trunk["zoom"]
        pasted = (draws.uniform(0, 1) < _SHARE) & (radius.view(-1, 1, 1, 1) < 0.3 * crop.size)
        over = pasted & (hu > trunk["hu"])
        trunk["hu"] = torch.where(over, hu, trunk["hu"])
        trunk["depth"] = torch.where(over, depth, trunk["depth"])


def _sides(body: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the leftmost and rightmost column and the middle row of bodies, bool (N, H, W); floats (N,)."""
    height, width = body.shape[1:]
    x, y = torch.arange(width, device=body.device), torch.arange(height, device=body.device)
    columns, rows = body.any(1), body.any(2)
    left, right = torch.where(columns, x, width).amin(1), torch.where(columns, x, -1).amax(1)
    top, bottom = torch.where(rows, y, height).amin(1), torch.where(rows, y, -1).amax(1)
    return left.float(), right.float(), (top + bottom).float() / 2


def _moved(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return maps (N, S, H, W) with what lay in their middle at pixel (x, y), (N,) each; zero comes in."""
    n, _, height, width = maps.shape
    theta = torch.zeros(n, 2, 3, device=maps.device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1
    theta[:, 0, 2] = -(x - (width - 1) / 2) * 2 / width
    theta[:, 1, 2] = -(y - (height - 1) / 2) * 2 / height
    return F.grid_sample(maps, F.affine_grid(theta, [n, 1, height, width], align_corners=False), align_corners=False)
