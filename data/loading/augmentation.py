"""Random transforms of training slices; all channels of an image and its masks go through the same one."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from data.errors import InputError
from data.loading.slices import Slice

PREPROCESS = ("none", "crop", "body_crop", "resize_and_crop")
FLIPS = ("x", "y", "xy")


def resized(array: np.ndarray, size: tuple[int, int], labels: bool = False) -> np.ndarray:
    """Return an array (C, H, W) at `size`, (h, w): linear, without aliasing; of `labels` those of the nearest pixel."""
    from torchvision.transforms.v2 import functional as F  # see `Augmentation.__call__`

    how = F.InterpolationMode.NEAREST_EXACT if labels else F.InterpolationMode.BILINEAR
    return F.resize(torch.from_numpy(np.ascontiguousarray(array)), list(size), how, antialias=not labels).numpy()


@dataclass(frozen=True)
class Augmentation:
    """What to do to every slice.

    Attributes:
        preprocess: 'none' takes slices as prepared; 'crop' takes a random square of `crop_size`; 'resize_and_crop'
            first resizes the slice to `load_size` x `load_size`; 'body_crop' takes a square about a random point of the
            body, so that crops show body wherever it is.
        flip: mirror at random, half of the time: 'x' left and right, 'y' front and back, 'xy' both, each by itself. It
            teaches that a body has no such side.
        rotate_deg: turn about the slice's centre by a random angle up to this, either way; -1 (air) comes in.
        zoom: enlarge or shrink at random by up to this share: 0.2 is a factor of 1 / 1.2 to 1.2.
    """

    preprocess: str = "none"
    load_size: int = 286
    crop_size: int = 256
    flip: str = ""
    rotate_deg: float = 0.0
    zoom: float = 0.0

    @property
    def needs_mask(self) -> bool:
        """Whether a slice must come with its mask."""
        return self.preprocess == "body_crop"

    def __post_init__(self) -> None:
        """Refuse a crop larger than what it is taken from."""
        if self.preprocess == "resize_and_crop" and self.crop_size > self.load_size:
            raise InputError(f"--crop_size {self.crop_size} is larger than --load_size {self.load_size}")

    def at_load_size(self, item: Slice) -> Slice:
        """Return a slice at `load_size`, if all are resized to that, else as it is."""
        if self.preprocess != "resize_and_crop":
            return item
        size = (self.load_size, self.load_size)
        mask = None if item.mask is None else resized(item.mask, size, labels=True)
        return replace(item, image=resized(item.image, size), mask=mask)

    def __call__(self, item: Slice, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return image float32 (C, h, w) in [-1, 1] and mask uint8 (S, h, w) or None, after one random transform."""
        # Here, since torchvision takes as long to import as torch, and commands that train nothing need none of it.
        from torchvision.transforms.v2 import functional as F

        item = self.at_load_size(item)
        image = torch.from_numpy(np.ascontiguousarray(item.image))
        mask = None if item.mask is None else torch.from_numpy(np.ascontiguousarray(item.mask))
        if self.rotate_deg or self.zoom:
            angle = rng.uniform(-self.rotate_deg, self.rotate_deg)
            scale = (1 + self.zoom) ** rng.uniform(-1, 1)
            affine = {"angle": angle, "translate": [0, 0], "scale": scale, "shear": [0, 0]}
            # Air is 0 meanwhile: beyond the edge comes what a fill would mix wrongly into the outermost pixels.
            image = F.affine(image + 1, **affine, interpolation=F.InterpolationMode.BILINEAR) - 1
            mask = None if mask is None else F.affine(mask, **affine)
        if self.preprocess != "none":
            height, width = image.shape[-2:]
            if min(height, width) < self.crop_size:
                raise InputError(
                    f"{item.origin}: slice of {width} x {height} pixels, --crop_size {self.crop_size} is larger"
                )
            top, left = self._corner(mask, height, width, rng)
            box = (top, left, self.crop_size, self.crop_size)
            image, mask = F.crop(image, *box), None if mask is None else F.crop(mask, *box)
        for axis, mirror in (("x", F.horizontal_flip), ("y", F.vertical_flip)):
            if axis in self.flip and rng.random() < 0.5:
                image, mask = mirror(image), None if mask is None else mirror(mask)
        return image, mask

    def _corner(self, mask: torch.Tensor | None, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        """Return the first row and column of the crop."""
        body = np.empty(0, int)
        if self.preprocess == "body_crop":
            assert mask is not None, "see `needs_mask`"
            body = np.flatnonzero(mask[len(mask) // 2].numpy())
        if not len(body):
            return int(rng.integers(height - self.crop_size + 1)), int(rng.integers(width - self.crop_size + 1))
        row, column = divmod(int(body[rng.integers(len(body))]), width)
        half = self.crop_size // 2
        return (
            min(max(row - half, 0), height - self.crop_size),
            min(max(column - half, 0), width - self.crop_size),
        )
