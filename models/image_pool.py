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
        self.images: list[Tensor] = []

    def query(self, images: Tensor) -> Tensor:
        """Return images for the discriminator, (N, C, H, W) as `images`, without history of gradients."""
        images = images.detach()
        if self.size == 0:
            return images
        return torch.stack([self._exchange(image) for image in images])

    def _exchange(self, image: Tensor) -> Tensor:
        if len(self.images) < self.size:
            self.images.append(image.clone())
            return image
        if torch.rand((), generator=self.generator) >= 0.5:
            return image
        index = int(torch.randint(self.size, (), generator=self.generator))
        stored, self.images[index] = self.images[index], image.clone()
        # A restored pool is on the CPU, whatever device training goes on.
        return stored.to(image)

    def state_dict(self) -> dict[str, Any]:
        """Return all that makes later answers: size, images (on the CPU) and the generator's state."""
        return {
            "size": self.size,
            "images": [image.cpu() for image in self.images],
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            InputError: the state is of a pool of another size.
        """
        if state["size"] != self.size:
            raise InputError(
                f"image pool: the stored one has size {state['size']}, this one {self.size}: "
                "resume with the pool size of the earlier run"
            )
        self.images = list(state["images"])
        self.generator.set_state(state["generator"])
