"""The arrays of a prepared data set: a volume's slices and their labels."""

from pathlib import Path

import numpy as np

from data.errors import InputError
from data.prepared.manifest import Case


def read_case(root: Path, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return a prepared volume, MR float32 or CT int16 HU, and its labels, uint8, (slices, size, size), as memory maps.

    Of an MR of several contrasts it is the first.

    Raises:
        InputError: a file is missing or damaged, or they do not belong together.
    """
    images, mask = read_contrasts(root, case)
    return images[0], mask


def read_contrasts(root: Path, case: Case) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the images of all contrasts of a prepared volume, and its labels; otherwise as `read_case`."""
    arrays = []
    for path in (root / file for file in (*case.image_files, case.mask_file)):
        try:
            arrays.append(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: cannot be read ({error}); prepare the data set again") from error
    *images, mask = arrays
    for image in images:
        if image.shape != mask.shape:
            raise InputError(f"{case.name}: image {image.shape} and mask {mask.shape}; prepare the data set again")
    return images, mask
