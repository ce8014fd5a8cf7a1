"""Tell from its values whether a volume is an MR, a CT in HU or neither, and what of a CT is padding.

All is told from the values. Large volumes are looked at through every second voxel, every third, ... along each axis.
"""

import numpy as np

from data.errors import InputError
from data.values.intensity import CT_WINDOW_HU
from data.volumes.volume import Volume, axial_order

# What a message says of values of the other modality.
SWAPPED = "check that MR and CT are not swapped"
# The lowest HU that scanners store; what lies below marks voxels outside their field of view.
LOWEST_HU = -1024
# Above the HU of any fat: what has nothing below it is no CT in HU, however it is cropped.
CT_FAT_HU = -50.0
# The lowest HU of fat.
_FAT_HU = -150.0
# Air of a scan lies below this, noise and offsets included.
_AIR_HU = -900.0
# CT is stored as int16: what lies above is metal, or HU below 0 without their sign.
_HIGHEST_HU = 32767
# Values as low as this are air in HU, or no intensities.
_LOW_MR = -500.0
# Splines undershoot by up to a seventh of the step that they interpolate; a CT's air lies as deep as its bone is high.
_UNDERSHOOT = 0.25
# Shares: of voxels that may be odd, of the voxels of a plateau, of the border that a padding takes.
_FEW, _PLATEAU, _BORDER = 0.001, 0.005, 0.05
# With fewer different whole values, an image was drawn, not measured: a phantom.
_DRAWN_VALUES = 64
# Soft tissue before the rescale to HU; of a CT in HU less than this share is bone of these values.
_STORED_SOFT, _STORED_SHARE = (850, 1200), 0.2
# Fat to soft tissue of a CT that 1000 or 1024 was added to. Of an MR that is not air less than this share lies so near
# to each other: 63 % at most in T1 MR of 26 limbs and 2 abdomens, in any units. Of such CT of limbs it is 76 to
# 94 %; lungs, contrast agent and the skull's bone leave less. With two modes asked for, 14 of 24 such CT are found.
_OFFSET_SOFT, _OFFSET_SHARE = (840, 1180), 0.75
# Whole values as few as this are labels, or an image that was drawn, with values beyond a byte; an MR has hundreds.
_MOST_LABELS, _HIGHEST_LABEL = 32, 255
# Of neighbours beside each other in a body, this share has one value where the values are labels, or were before they
# were resampled. Noise leaves less.
_LABELLED_SHARE = 0.8
_SAMPLE_VOXELS = 2_000_000


def check_mr(mr: Volume) -> None:
    """Refuse what is not an MR: a mask or label map, a CT in HU or plus 1000, an image padded below its intensities.

    A few low voxels are accepted, as are those that interpolation by splines leaves beside bright tissue.

    Raises:
        InputError: says what the values look like.
    """
    sample = _sample(mr.array)
    low, high = np.percentile(sample, (100 * _FEW, 99))
    if low > _LOW_MR or -low <= _UNDERSHOOT * high:
        if why := _labelled(mr.array, sample):
            raise _refused(
                "not an MR", mr, why, "expected a volume of intensities: give the image that the mask belongs to"
            )
        if why := _offset_ct(sample):
            raise _refused("not an MR", mr, why, SWAPPED)
        return
    seen = sample[sample >= LOWEST_HU - 100]
    if seen.size and np.percentile(seen, 100 * _FEW) <= _LOW_MR:
        why = "values as low as this look like CT in HU"
        raise _refused("not an MR", mr, why, SWAPPED)
    share = 100 * (1 - seen.size / sample.size)
    why = f"{share:.2g} % of the voxels lie below {LOWEST_HU - 100}, far below intensities: padding"
    raise _refused("not an MR", mr, why, "expected 0 or the background's value outside the field of view: replace it")


def kind_of(volume: Volume) -> str:
    """Return 'CT' of what has values as low as air in HU, 'labels' of a mask or label map, and 'MR' of all else."""
    sample = _sample(volume.array)
    if np.percentile(sample, 100 * _FEW) <= _LOW_MR:
        return "CT"
    return "labels" if _labelled(volume.array, sample) else "MR"


def _labelled(array: np.ndarray, sample: np.ndarray) -> str | None:
    """Return the reason if there are few different values, or if neighbours have the same one nearly everywhere."""
    values, counts = np.unique(sample, return_counts=True)
    background = values[counts.argmax()]
    if len(values) <= _MOST_LABELS:
        values = np.unique(array)  # others may hide between the voxels of the sample
    if len(values) <= _MOST_LABELS:
        whole = np.array_equal(values, np.rint(values)) and values.max() <= _HIGHEST_LABEL
        if len(values) == 2 or (whole and len(values) > 1):
            return f"only {len(values)} different values: this looks like a mask or a label map"
        return None
    step = _step(array)
    rows = array[::step, ::step]  # along a row no voxel is left out
    before, after = rows[..., :-1], rows[..., 1:]
    of_body = (before != background) | (after != background)
    same = np.count_nonzero((before == after) & of_body) / max(1, int(np.count_nonzero(of_body)))
    if same < _LABELLED_SHARE:
        return None
    share = 100 * same
    return f"{share:.0f} % of the neighbours have one value: this looks like a label map, or a mask that was resampled"


def _offset_ct(sample: np.ndarray) -> str | None:
    """Return the reason if nearly all that is not air has the values of fat to soft tissue, 1000 or 1024 above HU."""
    seen = sample[sample > np.percentile(sample, 99) / 10]
    share = np.mean((seen > _OFFSET_SOFT[0]) & (seen < _OFFSET_SOFT[1])) if seen.size else 0.0
    if share < _OFFSET_SHARE or _is_drawn(seen) or not any(_has_fat_and_muscle(seen - at) for at in (1000, 1024)):
        return None
    low, high = _OFFSET_SOFT
    return f"{100 * share:.0f} % of what is not air lies between {low} and {high}: this looks like CT plus 1000 or 1024"


def _has_fat_and_muscle(hu: np.ndarray) -> bool:
    """Tell whether the values have two modes with a valley between them where those of a CT lie."""
    density, _ = np.histogram(hu, np.arange(-150, 120, 15))
    fat, valley, muscle = density[:6].max(), density[6:10].min(), density[10:].max()  # from -150, -60 and 0 HU
    return bool(valley < 0.7 * min(fat, muscle))


def check_ct(ct: Volume, synthetic: bool = False) -> None:
    """Refuse what is not a CT in HU: an MR, values before the rescale to HU, clipped to a window, or padded with tissue
    values.

    Args:
        ct: what is given as a CT.
        synthetic: made by a network, which may fill a window to its ends and draw what it likes.

    Raises:
        InputError: says what the values look like.
    """
    sample = _sample(ct.array)
    seen = sample[sample >= LOWEST_HU]
    if not seen.size or sample.min() > CT_FAT_HU:
        why = f"no air or fat below {CT_FAT_HU:g} HU: this looks like MR, or CT before the rescale to HU"
        raise _refused("not a CT in HU", ct, why, f"{SWAPPED}, and that the rescale is applied")
    if synthetic:
        return
    fault = _beyond_storage(sample) or _not_rescaled(sample) or _clipped(sample) or _padded(ct)
    if fault:
        raise _refused("not a CT in HU", ct, fault, "expected HU, with air at -1000 and padding at -1024 or below")


def in_hu(ct: Volume) -> Volume:
    """Return a CT with what lies below -1024 HU, which is padding or noise, at -1024 HU."""
    if ct.array.min() >= LOWEST_HU:
        return ct
    return ct.with_array(np.maximum(ct.array, ct.array.dtype.type(LOWEST_HU)))


def _beyond_storage(sample: np.ndarray) -> str | None:
    if np.mean(sample > _HIGHEST_HU) < _FEW:  # metal, which is clipped
        return None
    return f"values above {_HIGHEST_HU}, which are not HU: padding, or negative HU stored without their sign"


def _not_rescaled(sample: np.ndarray) -> str | None:
    """Return the reason if nothing but padding lies below fat: stored values are HU plus 1000 or 1024."""
    lowest = sample.min()
    rest = sample[sample >= LOWEST_HU] if lowest < LOWEST_HU else sample[sample > lowest]
    padding = 1 - rest.size / sample.size
    if padding < _PLATEAU or not rest.size or np.mean(rest < CT_FAT_HU) >= _PLATEAU:
        return None
    if _is_drawn(rest) and np.mean((rest > _STORED_SOFT[0]) & (rest < _STORED_SOFT[1])) < _STORED_SHARE:
        return None  # a phantom without fat
    return (
        f"{100 * padding:.2g} % of the voxels lie at {lowest:g} and hardly any between that and {CT_FAT_HU:g} HU, as "
        "fat and skin do: this looks like CT before the rescale to HU, with a padding"
    )


def _clipped(sample: np.ndarray) -> str | None:
    """Return the reason if many voxels have the lowest value and it is not air, or the highest and bone is denser."""
    seen = sample[sample >= LOWEST_HU]
    low, high, drawn = seen.min(), seen.max(), _is_drawn(seen)
    at_low = np.mean(seen == low)
    tissue_alone = drawn and seen.size < sample.size and low >= _FAT_HU  # a phantom that its field of view cuts
    if low > _AIR_HU and at_low >= _PLATEAU and not tissue_alone:
        return (
            f"{100 * at_low:.2g} % of the voxels lie at the lowest value, {low:g}: clipped to a window, or air replaced"
        )
    if high >= CT_WINDOW_HU[1] or drawn:
        return None
    at_high = np.count_nonzero(seen == high)
    below = np.count_nonzero((seen >= high - 20) & (seen < high)) / 20
    if at_high < max(20, _FEW * np.count_nonzero(seen > CT_FAT_HU) / 2) or at_high < 4 * below:
        return None
    return f"{at_high / seen.size:.2%} of the voxels lie at the highest value, {high:g}: clipped to a window"


def _padded(ct: Volume) -> str | None:
    """Return the reason if much of the slices' border has one single value that is not air."""
    order, _ = axial_order(ct.direction)
    array = ct.array.transpose(order)
    faces = (array[:, 0], array[:, -1], array[:, :, 0], array[:, :, -1])
    border = np.concatenate([face.ravel() for face in faces])
    values, counts = np.unique(border, return_counts=True)
    value, count = values[counts.argmax()], counts.max()
    near = np.mean([np.count_nonzero(border == value + step) for step in (-3, -2, -1, 1, 2, 3)])
    if value <= _AIR_HU or count < _BORDER * border.size or count < 4 * near:
        return None
    return (
        f"{100 * count / border.size:.2g} % of the slices' border lies at {value:g}: padding that would be taken for "
        "tissue"
    )


def _is_drawn(values: np.ndarray) -> bool:
    return len(np.unique(np.rint(values[:: max(1, values.size // 100_000)]))) < _DRAWN_VALUES


def _sample(array: np.ndarray) -> np.ndarray:
    step = _step(array)
    return array[::step, ::step, ::step]


def _step(array: np.ndarray) -> int:
    return max(1, int(np.ceil((array.size / _SAMPLE_VOXELS) ** (1 / 3))))


def _refused(what: str, volume: Volume, why: str, way_out: str) -> InputError:
    return InputError(f"{what} (values {volume.array.min():g} to {volume.array.max():g}): {why}; {way_out}")
