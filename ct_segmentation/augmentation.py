"""Random changes of the slices that the shape extractor is trained on.

It will see what a half-trained generator makes: CT of low contrast, blurred, noisy, with checkerboards, of bodies of
other sizes in other places; and raw CT with a couch, which prepared CT has not. All changes are drawn from the
generator that is passed in. Images are float32 (1, H, W) in [-1, 1], masks uint8 (1, H, W).
"""

import numpy as np
import torch
from torch import Tensor

SCALES = (0.75, 1.25)
# Largest shift, as a share of the slice's side.
SHIFT = 0.12
COUCH_SHARE = 0.5
# Share of slices that each fault of a half-trained generator is put on.
FAULT_SHARE = 0.4


def augment(image: Tensor, mask: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return a slice scaled, shifted, perhaps on a couch, and degraded; its mask scaled and shifted alike."""
    image, mask = move(image, mask, rng)
    if rng.random() < COUCH_SHARE:
        image = add_couch(image, mask, rng)
    return degrade(image, rng), mask


def move(image: Tensor, mask: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Scale and shift a slice and its mask alike; what enters from outside is air."""
    from torchvision.transforms.v2 import InterpolationMode  # here, as in data/loading/augmentation.py
    from torchvision.transforms.v2 import functional as F

    height, width = image.shape[-2:]
    scale = float(np.exp(rng.uniform(*np.log(SCALES))))
    shift = [round(rng.uniform(-SHIFT, SHIFT) * extent) for extent in (width, height)]
    # Moved as 0 for air: torchvision blends another filling twice over along the edge and leaves a frame there.
    image = F.affine(image + 1, 0.0, shift, scale, [0.0, 0.0], InterpolationMode.BILINEAR) - 1
    mask = F.affine(mask, 0.0, shift, scale, [0.0, 0.0], InterpolationMode.NEAREST, fill=0)
    return image, mask


def add_couch(image: Tensor, mask: Tensor, rng: np.random.Generator) -> Tensor:
    """Paint a couch posterior of (below) the body, outside of it: a curved bar, a thin shell around something light."""
    height, width = image.shape[-2:]
    body = mask[0] > 0
    rows = torch.arange(height, dtype=torch.float32)[:, None]
    # Columns from the couch's centre, in halves of its width.
    offset = (torch.arange(width) - width * rng.uniform(0.4, 0.6)) / (width / 2 * rng.uniform(0.4, 1.0))
    bend = height * rng.uniform(-0.02, 0.15) * offset**2
    thickness = height * rng.uniform(0.01, 0.15)
    # Most of a body lies on the couch, a head or raised arms well above it.
    gap = height * (rng.uniform(0.06, 0.4) if rng.random() < 0.3 else rng.uniform(-0.02, 0.06))
    if body.any():
        posterior = torch.where(body, rows, -torch.inf).amax(dim=0)
        crest = float((posterior + bend).max()) + 1 + gap
    else:
        crest = height * rng.uniform(0.4, 0.95)
    upper = rows - (crest - bend)
    # The lower surface is parallel to the upper, or flat, or meets it at the sides.
    lower = crest - bend + thickness - rows + (0 * bend, bend, -thickness * offset**2)[rng.integers(3)]
    depth = torch.minimum(upper, lower)
    wall = rng.uniform(1.0, 1.0 + 0.02 * height)
    shell, filling = rng.uniform(-0.85, 0.4), rng.uniform(-1.0, -0.6)
    inside = (depth >= 0) & (offset.abs() < 1) & ~body
    return torch.where(inside, torch.where(depth < wall, shell, filling), image)


def degrade(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Change contrast and level, and put on blur, a periodic pattern and noise, each on some slices only."""
    from torchvision.transforms.v2 import functional as F

    height, width = image.shape[-2:]
    if rng.random() < FAULT_SHARE:
        image = (image + 1) * rng.uniform(0.5, 1.3) - 1 + rng.uniform(-0.05, 0.15)
    if rng.random() < FAULT_SHARE:
        image = F.gaussian_blur(image, [7, 7], [rng.uniform(0.3, 1.5)])
    if rng.random() < FAULT_SHARE:
        period = int(rng.choice([1, 2, 4]))
        cells = torch.arange(height)[:, None] // period + torch.arange(width) // period
        image = image + rng.uniform(0.02, 0.2) * (cells % 2 * 2 - 1)
    if rng.random() < FAULT_SHARE:
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        image = image + rng.uniform(0.01, 0.1) * torch.from_numpy(noise)
    return image.clamp(-1, 1)
