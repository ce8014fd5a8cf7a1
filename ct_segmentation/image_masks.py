"""Compute the body masks of a folder of CT images that has none, and write them to be looked at."""

import logging
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from data.errors import InputError
from data.files import whole_folder
from data.loading.slices import ImageFolderSlices
from data.masks.body_mask import ct_body_mask
from data.values.intensity import IntensityMap
from data.volumes.volume import Volume

log = logging.getLogger(__name__)

# The usual field of view of a CT of the body. Bodies are found as well where it is two thirds of it, or half more.
FIELD_MM = 500.0


def write_masks(images: Path, masks: Path, ct_map: IntensityMap) -> None:
    """Write the body mask of every CT image below a folder, 0 and 255, under its name below another.

    A body is found as in a CT volume (`ct_body_mask`), in each image by itself. An image without one has an empty mask.

    Args:
        images: folder of the images, whose full range is the window of `ct_map`.
        masks: folder that is made; it appears whole or not at all.
        ct_map: HU to [-1, 1].

    Raises:
        InputError: an image cannot be read, or the folder not be written.
    """
    slices = ImageFolderSlices(images, images, with_masks=False)
    targets = [Path(name).with_suffix(".png") for name in slices.names]
    if twice := [str(target) for target, count in Counter(targets).items() if count > 1]:
        raise InputError(f"{images}: the masks of several images would be called {', '.join(twice[:5])}; rename one")
    log.info("%s: missing; body masks of %d images are computed", masks, len(slices))
    empty = 0
    with whole_folder(masks) as scratch:
        for index, target in enumerate(targets):
            body = image_body(ct_map.to_physical(slices.read(index, with_mask=False).image))
            empty += not body.any()
            (scratch / target).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 * body.astype(np.uint8)).save(scratch / target)
    log.info("%s: written, %d without a body; look at them, and correct or replace them", masks, empty)


def image_body(hu: np.ndarray) -> np.ndarray:
    """Return the body, bool (H, W), in a CT image, (1, H, W) in HU, that is taken as `FIELD_MM` wide."""
    mm = FIELD_MM / hu.shape[-1]
    try:
        return ct_body_mask(Volume(hu, (mm, mm, mm)), synthetic=True)[0]
    except InputError:  # nothing in it is a body
        return np.zeros(hu.shape[1:], bool)
