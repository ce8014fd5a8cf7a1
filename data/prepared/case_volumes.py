"""The volumes of one case in preparation, a CT or the contrasts of an MR: read, checked, corrected and described."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.errors import InputError
from data.masks.body_mask import ct_body_mask, mr_body_mask, read_mask
from data.prepared.sources import Source
from data.values.bias_field import log_bias_field, without_field
from data.values.intensity import mr_percentiles
from data.values.modality import check_ct, check_mr
from data.values.mr_scale import check_starts_at_zero, fat_level
from data.volumes.contrasts import check_together
from data.volumes.volume import Volume, read_volume


def read_source_volumes(source: Source, log_notes: bool = True) -> list[Volume]:
    """Return a source's volume and those of its further contrasts; `log_notes` as in `read_volume`.

    Raises:
        InputError: one cannot be read, or is on another grid or the same as another; it names case and contrast.
    """
    sources = (source, *source.further)
    volumes = [read_volume(one.path, one.series_uid, log_notes, one.contrast) for one in sources]
    try:
        check_together({one.contrast or "": volume for one, volume in zip(sources, volumes, strict=True)})
    except InputError as error:
        raise InputError(f"{source.name} (patient {source.patient}): {error}") from error
    return volumes


def find_body(source: Source, domain: str, volumes: list[Volume], mask_path: Path | None) -> np.ndarray:
    """Return the body in the first of a case's volumes: found, or the supplied mask.

    Args:
        source: where the volumes are from; domain: 'A' (MR) or 'B' (CT).
        volumes: as `read_source_volumes` returns them.
        mask_path: the supplied mask, if any.

    Raises:
        InputError: a volume is not what it is given as.
    """
    is_mr = domain == "A"
    sources = (source, *source.further)
    for one, volume in zip(sources, volumes, strict=True):
        _said_of(one, check_mr if is_mr else check_ct, volume)
    if mask_path:
        body = read_mask(mask_path, volumes[0], source.path)
    else:
        body = _said_of(source, mr_body_mask if is_mr else ct_body_mask, volumes[0])
    for one, volume in zip(sources, volumes if is_mr else (), strict=is_mr):
        low, high = mr_percentiles(volume.array, body)
        if not low < high:
            raise InputError(
                f"{one.path}: the MR is constant in the body ({low:g}); expected an image with contrast: check the "
                "volume, and its mask where one is supplied"
            )
    return body


def _said_of[T](source: Source, look: Callable[[Volume], T], volume: Volume) -> T:
    """Return the result of examining a volume; an error names the source."""
    try:
        return look(volume)
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from error


def without_bias(source: Source, volumes: list[Volume], body: np.ndarray) -> list[Volume]:
    """Return the contrasts of an MR without their coils' shading, which is one: that of the first.

    Raises:
        InputError: it has no intensities that could be corrected.
    """
    try:
        check_starts_at_zero(volumes[0].array, body)
        field = log_bias_field(volumes[0], body)
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from error
    return [without_field(volume, field) for volume in volumes]


def describe_mr(mr: Volume, body: np.ndarray, corrected: bool = False) -> dict:
    """Return what is recorded of an MR's intensities inside the body, by the names of `Case`'s attributes.

    One that is `corrected` for its bias field is known to start at 0.
    """
    level, problem = None, None
    try:
        if not corrected:
            check_starts_at_zero(mr.array, body)
        level = fat_level(mr.array, body)
    except InputError as error:
        problem = str(error)
    return {
        "percentiles": mr_percentiles(mr.array, body),
        "mr_median": float(np.median(mr.array[body])),
        "fat_level": level,
        "fat_problem": problem,
    }
