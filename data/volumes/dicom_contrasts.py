"""Which contrast a DICOM slice shows, told by ImageType or EchoTime, where several lie in one series or folder.

Dixon images say in ImageType what they are (Siemens, GE: IN_PHASE, OPP_PHASE or OUT_PHASE, WATER, FAT; Philips: IP,
OP, W, F). Where it does not say, and a series has several echo times, they are `echo1`, `echo2`, ... by time. With the
field strength known an echo is in_phase or opposed_phase too: protons of fat precess 3.4 ppm slower than those of
water, so that both meet again after 1 / (3.4e-6 * 42.577 MHz/T * B0), which is 4.6 ms at 1.5 T, and oppose each other
halfway.
"""

from collections.abc import Sequence
from pathlib import Path

import pydicom

from data.errors import InputError

# Files of one series with their headers.
Files = Sequence[tuple[Path, pydicom.Dataset]]

DIXON_NAMES = ("in_phase", "opposed_phase", "water", "fat")
_WORDS = {
    "IN_PHASE": "in_phase", "INPHASE": "in_phase", "IP": "in_phase",
    "OPP_PHASE": "opposed_phase", "OPPOSED_PHASE": "opposed_phase", "OUT_PHASE": "opposed_phase",
    "OUT_OF_PHASE": "opposed_phase", "OP": "opposed_phase",
    "WATER": "water", "W": "water", "FAT": "fat", "F": "fat",
}  # fmt: skip
_SHIFT_HZ_PER_T = 3.4 * 42.577
# How far from in or opposed phase an echo may lie, in periods.
_PHASE_TOLERANCE = 0.15


def pick_contrast(folder: Path, series: Sequence[Files], name: str) -> list[Files]:
    """Return of each series the files that show the contrast `name`, none of one that does not.

    Where nothing tells contrasts apart, or one that `DIXON_NAMES` lacks is asked for and there is one alone, the name
    is the user's, and all files are returned.

    Raises:
        InputError: the folder holds other contrasts, or several echoes that the name would fit.
    """
    told = [_contrasts(files) for files in series]
    known = sorted({contrast for labels in told for contrasts in labels for contrast in contrasts})
    if not known or (len(known) == 1 and name not in DIXON_NAMES):
        return list(series)
    if name not in known:
        raise InputError(f"{folder}: no {name} in it; its DICOM images are {', '.join(known)}")
    picked: list[Files] = []
    for files, labels in zip(series, told, strict=True):
        fitting = {contrasts for contrasts in labels if name in contrasts}
        if len(fitting) > 1:
            echoes = ", ".join(sorted(contrasts[0] for contrasts in fitting))
            raise InputError(f"{folder}: {name} may be {echoes}; call the contrast by one of these")
        picked.append([file for file, contrasts in zip(files, labels, strict=True) if name in contrasts])
    return picked


def _contrasts(files: Files) -> list[tuple[str, ...]]:
    """Return for each file of a series what it may be called, nothing where that cannot be told."""
    words = [_by_image_type(header) for _, header in files]
    if any(words):
        return words
    times = [_number(header, "EchoTime") for _, header in files]
    echoes = sorted({round(time, 2) for time in times if time})
    if len(echoes) < 2:
        return [()] * len(files)
    return [
        (f"echo{echoes.index(round(time, 2)) + 1}", *_by_phase(time, _number(header, "MagneticFieldStrength")))
        if time
        else ()
        for time, (_, header) in zip(times, files, strict=True)
    ]


def _by_image_type(header: pydicom.Dataset) -> tuple[str, ...]:
    values = header.get("ImageType") or ()
    values = [values] if isinstance(values, str) else values
    found = {_WORDS[str(value).strip().upper()] for value in values if str(value).strip().upper() in _WORDS}
    return tuple(found) if len(found) == 1 else ()


def _by_phase(echo_ms: float, tesla: float | None) -> tuple[str, ...]:
    if not tesla:
        return ()
    periods = echo_ms / 1000 * _SHIFT_HZ_PER_T * tesla % 1
    if min(periods, 1 - periods) < _PHASE_TOLERANCE:
        return ("in_phase",)
    return ("opposed_phase",) if abs(periods - 0.5) < _PHASE_TOLERANCE else ()


def _number(header: pydicom.Dataset, tag: str) -> float | None:
    try:
        value = header.get(tag)
        return None if value in (None, "") else float(value)
    except Exception:  # pydicom decodes a value when it is asked for, and can fail in any way
        return None
