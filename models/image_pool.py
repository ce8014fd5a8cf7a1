"""History of generated images that the discriminators are trained on."""

from typing import Any

import torch
from torch import Tensor

from data.errors import InputError


class ImagePool:
    """Pool of earlier generated images (Shrivastava et al., "Learning from simulated and unsupervised images
    through adversarial training", CVPR 2017, section 2.3; one image at a time as in Zhu et al., ICCV 2017).

    Until the pool is full, images are stored and returned. Then each image is, with probability 1/2, swapped
    for a stored one, drawn uniformly, or else returned itself.
    """

    def __init__(self, size: int, generator: torch.Generator) -> None:
        """Make an empty pool.

        Args:
            size: images that it holds; 0 lets images pass.
            generator: source of randomness, on the CPU.

        Raises:
            InputError: `size` is negative.
        """
        if size < 0:
            raise InputError(f"image pool: size is {size}; expected 0 (no pool) or more")
        self.size = size
        self.generator = generator
        self.images: Tensor | None = None  # (stored, C, H, W), on the device that queries come from

    def query(self, images: Tensor) -> Tensor:
        """Return images for the discriminator, (N, C, H, W) as `images`, without history of gradients.

        Which ones is decided on the host; the images themselves move in a few operations, however many they are.
        """
        images = images.detach()
        if self.size == 0:
            return images
        # A restored pool is on the CPU, whatever device the training is on.
        stored = images[:0] if self.images is None else self.images.to(images)
        given, kept = self._exchange(len(stored), len(images))
        everything = torch.cat([stored, images])
        self.images = _select(everything, kept)
        return _select(everything, given)

    def _exchange(self, stored: int, new: int) -> tuple[list[int], list[int]]:
        """Return which images are given out and which are kept, place by place, of those stored and then the new."""
        kept = list(range(stored))
        given = []
        filling = min(new, self.size - stored)
        swaps = torch.rand(new - filling, generator=self.generator) < 0.5
        places = torch.randint(self.size, (new - filling,), generator=self.generator)
        for k in range(stored, stored + filling):
            given.append(k)
            kept.append(k)
        for k, swap, place in zip(range(stored + filling, stored + new), swaps.tolist(), places.tolist(), strict=True):
            given.append(kept[place] if swap else k)
            if swap:
                kept[place] = k
        return given, kept

    def state_dict(self) -> dict[str, Any]:
        """Return all that makes later answers: size, images (on the CPU) and the generator's state."""
        return {
            "size": self.size,
            "images": None if self.images is None else self.images.cpu(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises:
            InputError: the state is of a pool of another size.
            ValueError: its images are none.
        """
        if state["size"] != self.size:
            raise InputError(
                f"image pool: the stored one has size {state['size']}, this one {self.size}: "
                "resume with the pool size of the earlier run"
            )
        images = state["images"]
        if images is not None and not (torch.is_tensor(images) and images.ndim == 4 and len(images) <= self.size):
            raise ValueError(f"image pool: stored images are not a tensor of at most {self.size}")
        self.images = images
        self.generator.set_state(state["generator"])


def _select(images: Tensor, places: list[int]) -> Tensor:
    """Return the images at these places; the host does not wait for a GPU, as it would to index by a list."""
    index = torch.tensor(places, dtype=torch.int64)
    if images.is_cuda:
        index = index.pin_memory().to(images.device, non_blocking=True)
    return images.index_select(0, index)
