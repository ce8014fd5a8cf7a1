"""Random transforms of training slices; a slice and its mask go through the very same one."""

from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from data.errors import InputError
from data.slices import Slice

PREPROCESS = ("none", "crop", "resize_and_crop")


@dataclass(frozen=True)
class Augmentation:
    """What to do to every slice.

    Attributes:
        preprocess: 'none' takes slices as prepared; 'crop' takes a random square of `crop_size`; 'resize_and_crop'
            first resizes the slice to `load_size` x `load_size`.
        flip: mirror left and right at random. It teaches that a body has no side: for limbs, not for whole bodies.
    """

    preprocess: str = "none"
    load_size: int = 286
    crop_size: int = 256
    flip: bool = False

    def __post_init__(self) -> None:
        """Refuse a crop larger than what it is taken from."""
        if self.preprocess == "resize_and_crop" and self.crop_size > self.load_size:
            raise InputError(f"--crop_size {self.crop_size} is larger than --load_size {self.load_size}")

    def __call__(self, item: Slice, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return image float32 (1, h, w) in [-1, 1] and mask uint8 (1, h, w) or None, after one random transform."""
        image = torch.from_numpy(np.ascontiguousarray(item.image))[None]
        mask = None if item.mask is None else torch.from_numpy(np.ascontiguousarray(item.mask))[None]
        if self.preprocess == "resize_and_crop":
            size = [self.load_size, self.load_size]
            image = F.resize(image, size, antialias=True)
            mask = None if mask is None else F.resize(mask, size, F.InterpolationMode.NEAREST_EXACT)
        if self.preprocess != "none":
            height, width = image.shape[-2:]
            if min(height, width) < self.crop_size:
                raise InputError(
                    f"{item.origin}: slice of {width} x {height} pixels, --crop_size {self.crop_size} is larger"
                )
            top, left = (int(rng.integers(extent - self.crop_size + 1)) for extent in (height, width))
            image, mask = (
                None if x is None else F.crop(x, top, left, self.crop_size, self.crop_size) for x in (image, mask)
            )
        if self.flip and rng.random() < 0.5:
            image, mask = (None if x is None else F.horizontal_flip(x) for x in (image, mask))
        return image, mask
