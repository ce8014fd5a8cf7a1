"""Volumes held in the training device's memory, from which random slabs are cut there: rotated, scaled, mirrored.

A slab is S neighbouring slices, (N, S, H, W). The ends of a volume repeat their last slice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data.errors import InputError
from data.masks.body_mask import CT_BODY_HU
from data.prepared.training_statistics import MIN_BODY_SHARE
from data.simulation.draws import Draws

# So many pixels of body make a slice worth a slab.
_LEAST_PIXELS = 100


@dataclass(frozen=True)
class Crop:
    """How slabs are cut: `size` pixels a side, turned by up to `rotate` degrees, scaled by up to `zoom` either way.

    `flip_x`, `flip_y`: whether slices are mirrored left to right, front to back, half of the time each.
    """

    slices: int
    size: int
    rotate: float = 0.0
    zoom: float = 0.0
    flip_x: bool = False
    flip_y: bool = False


class SlabStock:
    """Slices of several volumes of one frame, (M, H, W), with one or more maps for each, on one device."""

    def __init__(
        self, volumes: Sequence[dict[str, np.ndarray]], outside: dict[str, float], body: str, device: torch.device
    ) -> None:
        """Load volumes.

        Args:
            volumes: for each its maps, (n, H, W) of any numeric type.
            outside: for each map the value beyond its slices.
            body: the map in which what is above -500 is body; slabs are cut around bodies.
            device: where the voxels are kept.

        Raises:
            InputError: no slice holds enough body.
        """
        self.outside = outside
        self.maps = {
            name: torch.cat([torch.from_numpy(np.ascontiguousarray(volume[name])) for volume in volumes]).to(device)
            for name in outside
        }
        counts = [len(volume[body]) for volume in volumes]
        first = np.repeat(np.cumsum([0, *counts[:-1]]), counts)
        self.first = torch.from_numpy(first).to(device)
        self.last = torch.from_numpy(first + np.repeat(counts, counts) - 1).to(device)
        # Where all slices are small, those count whose body covers the share that preparation asks for.
        for least in (_LEAST_PIXELS, MIN_BODY_SHARE * volumes[0][body][0].size):
            boxes = np.concatenate([_boxes(volume[body], least) for volume in volumes])
            self.boxes = torch.from_numpy(boxes).to(device)
            self.used = torch.nonzero(self.boxes[:, 1] > self.boxes[:, 0])[:, 0]
            if len(self.used):
                break
        else:
            raise InputError(
                f"the body covers {MIN_BODY_SHARE:.1%} of no slice of the {len(volumes)} volumes that slabs are cut "
                "from: prepare the data set with finer pixels (--spacing_mm)"
            )
        self.device = device

    def slabs(self, centre: Tensor, slices: int) -> dict[str, Tensor]:
        """Return the slabs around slices `centre` (N,), (N, S, H, W), for each map."""
        offsets = torch.arange(slices, device=self.device) - slices // 2
        index = centre[:, None] + offsets[None]
        index = torch.minimum(torch.maximum(index, self.first[centre][:, None]), self.last[centre][:, None])
        return {name: voxels[index] for name, voxels in self.maps.items()}

    def draw(self, crop: Crop, draws: Draws, margin: int = 0) -> dict[str, Tensor]:
        """Return random slabs around bodies, (N, S + 2 margin, size, size), for each map; `zoom` is (N, 1, 1, 1)."""
        pick = draws.share()
        centre = self.used[(pick * len(self.used)).long()]
        left, right, top, bottom = self.boxes[centre].float().unbind(1)
        at_x, at_y = (
            low + (high - low) * draws.uniform(0.15, 0.85).view(-1) for low, high in ((left, right), (top, bottom))
        )
        zoom = torch.exp(draws.uniform(-1, 1) * math.log1p(crop.zoom))
        cut = self.cut(centre, (at_x, at_y), zoom, crop, draws, margin)
        return cut | {"zoom": zoom}

    def cut(
        self, centre: Tensor, at: tuple[Tensor, Tensor], zoom: Tensor, crop: Crop, draws: Draws, margin: int = 0
    ) -> dict[str, Tensor]:
        """Return the slabs around the pixels `at` (x, y) of slices `centre`, enlarged by `zoom`, randomly turned."""
        slabs = self.slabs(centre, crop.slices + 2 * margin)
        height, width = next(iter(slabs.values())).shape[2:]
        angle = draws.uniform(-crop.rotate, crop.rotate).view(-1) * math.pi / 180
        scale = 1 / zoom.view(-1)
        mirror_x, mirror_y = (
            torch.where(draws.uniform(0, 1).view(-1) < 0.5 * flip, -1.0, 1.0) for flip in (crop.flip_x, crop.flip_y)
        )
        cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
        # Output pixel (u, v) from the crop's centre, in pixels, to source pixel, in grid_sample's [-1, 1].
        theta = torch.stack(
            [
                torch.stack([cos * mirror_x, -sin * mirror_y, at[0] + 0.5 - width / 2], 1) * 2 / width,
                torch.stack([sin * mirror_x, cos * mirror_y, at[1] + 0.5 - height / 2], 1) * 2 / height,
            ],
            1,
        )
        theta = theta * torch.tensor([crop.size / 2, crop.size / 2, 1.0], device=self.device)
        # All maps at once: where a pixel comes from is worked out once.
        names, slices = list(slabs), crop.slices + 2 * margin
        stacked = torch.empty(len(centre), len(names) * slices, height, width, device=self.device)
        for name, part in zip(names, stacked.split(slices, 1), strict=True):
            torch.sub(slabs[name], self.outside[name], out=part)
        parts = F.grid_sample(stacked, _grid(theta, crop.size), align_corners=False).split(slices, 1)
        return {name: part.add_(self.outside[name]) for name, part in zip(names, parts, strict=True)}


def _grid(theta: Tensor, size: int) -> Tensor:
    """Return what `F.affine_grid` does, (N, size, size, 2), from sums of rows and columns: a fifth of the time."""
    steps = ((torch.arange(size, device=theta.device) + 0.5) * (2 / size) - 1)[None, :, None]
    columns, rows, middle = (theta[:, None, :, k] for k in range(3))
    return (steps * columns)[:, None] + (steps * rows + middle)[:, :, None]


def _boxes(volume: np.ndarray, least: float) -> np.ndarray:
    """Return the body's box of every slice, int64 (n, 4): left, right, top, bottom, ends not included; 0 for none.

    `least`: pixels of body that a slice needs.
    """
    body = volume > CT_BODY_HU
    boxes = np.zeros((len(volume), 4), np.int64)
    for k, plane in enumerate(body):
        rows, columns = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
        if plane.sum() >= least:
            boxes[k] = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    return boxes
