"""Name the contrast of a DICOM slice by its header, if a series or folder holds several.

Dixon images say in ImageType what they are (Siemens, GE: IN_PHASE, OPP_PHASE or OUT_PHASE, WATER, FAT; Philips: IP,
OP, W, F). Where it does not say, and a series has several echo times, they are `echo1`, `echo2`, ... by time. With the
field strength known an echo is in_phase or opposed_phase too: protons of fat precess 3.4 ppm slower than those of
water, so that both meet again after 1 / (3.4e-6 * 42.577 MHz/T * B0), which is 4.6 ms at 1.5 T, and oppose each other
halfway.

Stacks are called by their plane (axial, sagittal, coronal) or `stack1`, ...; images of one place by what tells them
apart: magnitude, phase, real and imaginary, `b800`, `time1`, ... Several such names are joined: `echo1+phase`.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom

from data.errors import InputError

# Files of one series with their headers.
Files = Sequence[tuple[Path, pydicom.Dataset]]
# What an image is called for one reason, the first name standing for all; and for all reasons.
Names = tuple[str, ...]
Label = tuple[Names, ...]

DIXON_NAMES = ("in_phase", "opposed_phase", "water", "fat")
_WORDS = {
    "IN_PHASE": "in_phase", "INPHASE": "in_phase", "IP": "in_phase",
    "OPP_PHASE": "opposed_phase", "OPPOSED_PHASE": "opposed_phase", "OUT_PHASE": "opposed_phase",
    "OUT_OF_PHASE": "opposed_phase", "OP": "opposed_phase",
    "WATER": "water", "W": "water", "FAT": "fat", "F": "fat",
}  # fmt: skip
_COMPONENTS = {
    "M": "magnitude", "MAGNITUDE": "magnitude", "P": "phase", "PHASE": "phase", "R": "real", "REAL": "real",
    "I": "imaginary", "IMAGINARY": "imaginary",
}  # fmt: skip
# Attributes that tell images at one place apart, and what they are called by them.
_VALUES = (
    ("DiffusionBValue", "b{}"), ("TemporalPositionIdentifier", "time{number}"), ("TriggerTime", "trigger{number}"),
    ("InversionTime", "inversion{number}"), ("FlipAngle", "flip{number}"), ("AcquisitionNumber", "acquisition{number}"),
)  # fmt: skip
# What is read of a header, beside ImageType and EchoTime, to tell contrasts apart.
DISTINGUISHING = ("ComplexImageComponent", "StackID", *(keyword for keyword, _ in _VALUES))
_SHIFT_HZ_PER_T = 3.4 * 42.577
# Longer echo times, in ms, are of no T1-weighted sequence.
_T2_ECHO_MS = 50.0
# How far from in or opposed phase an echo may lie, in periods.
_PHASE_TOLERANCE = 0.15


def pick_contrast(folder: Path, series: Sequence[Files], name: str | None, chosen: Sequence[str] = ()) -> list[Files]:
    """Return of each series the files that show a contrast, none of one that does not.

    Args:
        folder: for messages.
        series: the files of each.
        name: a model's name of the contrast. Where nothing tells contrasts apart, or one that `DIXON_NAMES` lacks is
            asked for and there is one alone, the name is the user's, and does not matter.
        chosen: names that must hold, each one or several joined by `+`.

    Raises:
        InputError: the folder holds other contrasts, or several that the name would fit.
    """
    told = [_labels(files) for files in series]
    known = sorted({one for labels in told for label in labels for names in label for one in names})
    wanted = [one for names in chosen for one in names.split("+")]
    if name and known and (len(known) > 1 or name in DIXON_NAMES):
        wanted += name.split("+")
    if not wanted:
        return list(series)
    if unknown := [one for one in wanted if one not in known]:
        told_apart = ", ".join(known) or "of one contrast, as far as their headers say: leave the name out"
        raise InputError(f"{folder}: no {', no '.join(unknown)} in it; its DICOM images are {told_apart}")
    picked: list[Files] = []
    for files, labels in zip(series, told, strict=True):
        fits = [all(any(one in names for names in label) for one in wanted) for label in labels]
        fitting = sorted({_called(label) for label, fit in zip(labels, fits, strict=True) if fit})
        if len(fitting) > 1:
            asked = "+".join(wanted)
            raise InputError(f"{folder}: {asked} may be {', '.join(fitting)}; use one of these names")
        picked.append([file for file, fit in zip(files, fits, strict=True) if fit])
    return picked


def other_than_t1(header: pydicom.Dataset) -> str | None:
    """Return in words what a header says an image is, if that is no T1-weighted image in phase; else None."""
    name = next(iter(_by_image_type(header)), None)
    if name in ("water", "fat"):
        return f"a {name} image"
    echo_ms, tesla = (_number(header, keyword) for keyword in ("EchoTime", "MagneticFieldStrength"))
    sequence = f"{header.get('ScanningSequence') or ''} {header.get('EchoPulseSequence') or ''}"
    if name is None and echo_ms and "GR" in sequence:
        name = next(iter(_by_phase(echo_ms, tesla)), None)  # spin echoes are in phase at any echo time
        if name == "opposed_phase":
            return f"an opposed-phase image (echo time {echo_ms:g} ms at {tesla:g} T)"
    if name == "opposed_phase":
        return "an opposed-phase image"
    if echo_ms and echo_ms > _T2_ECHO_MS:
        return f"T2-weighted (echo time {echo_ms:g} ms)"
    return None


def check_one_volume(folder: Path, files: Files) -> None:
    """Refuse a series with several images at one place that differ in what they show.

    Raises:
        InputError: lists what can be chosen.
    """
    most = max(Counter(_place(header) for _, header in files).values(), default=0)
    if most > 1 and (choices := describe_choices(files)):
        raise InputError(f"{folder}: up to {most} images at one place: several volumes in one series{choices}")


def describe_choices(files: Files) -> str:
    """Return in words what the volumes of a series are called, nothing if there is one."""
    counts = Counter(_called(label) for label in _labels(files))
    if len(counts) < 2:
        return ""
    listed = ", ".join(f"{name or 'others'} ({count} slices)" for name, count in sorted(counts.items()))
    return f"; it holds {listed}: choose one with --contrast NAME, or several with NAME=PATH"


def _called(label: Label) -> str:
    """Return the one name that stands for a label."""
    return "+".join(names[0] for names in label)


def _labels(files: Files) -> list[Label]:
    """Return what each file of a series shows; nothing if that is unknown, or all are of one volume.

    Dixon words, stacks, and echoes where there are no words always count; anything else where it tells apart images at
    one place that what counts before it does not.
    """
    headers = [header for _, header in files]
    places = [_place(header) for header in headers]
    words, stacks, echoes = [_by_image_type(header) for header in headers], _by_stack(headers), _by_echo(headers)
    always = [words, stacks] if any(words) else [echoes, stacks]
    labels = _joined([()] * len(headers), [names for names in always if any(names)])
    for names in (
        echoes,
        [_by_component(header) for header in headers],
        *(_by_value(headers, *one) for one in _VALUES),
    ):
        if names not in always and _tells_apart(places, labels, names):
            labels = _joined(labels, [names])
    return labels


def _joined(labels: list[Label], more: Sequence[Sequence[Names]]) -> list[Label]:
    return [(*label, *(names for names in told if names)) for label, *told in zip(labels, *more, strict=True)]


def _tells_apart(places: Sequence[object], labels: Sequence[Label], names: Sequence[Names]) -> bool:
    found = defaultdict(set)
    for place, label, name in zip(places, labels, names, strict=True):
        found[place, label].add(name)
    return any(len(several) > 1 for several in found.values())


def _place(header: pydicom.Dataset) -> object:
    """Return the position of an image, to 0.01 mm; one without a position gets a place of its own."""
    try:
        position = np.asarray(header.ImagePositionPatient, float)
        return tuple(np.round(position, 2)), _orientation(header)
    except Exception:  # pydicom decodes a value when it is asked for, and can fail in any way
        return id(header)


def _orientation(header: pydicom.Dataset) -> tuple[float, ...] | None:
    try:
        return tuple(np.round(np.asarray(header.ImageOrientationPatient, float), 2))
    except Exception:  # as above
        return None


def _by_stack(headers: Sequence[pydicom.Dataset]) -> list[Names]:
    """Name stacks of slices by their plane; by number where two lie in one plane."""
    found = [(_orientation(header) or (), str(header.get("StackID") or "")) for header in headers]
    stacks = sorted(set(found))
    if len(stacks) < 2:
        return [()] * len(headers)
    planes = [_plane(orientation) for orientation, _ in stacks]
    numbers = [f"stack{number}" for number in range(1, len(stacks) + 1)]
    called = planes if len(set(planes)) == len(planes) else numbers
    return [(called[stacks.index(one)],) for one in found]


def _plane(orientation: tuple[float, ...]) -> str:
    if len(orientation) != 6:
        return "unknown"
    normal = np.cross(orientation[:3], orientation[3:])
    return ("sagittal", "coronal", "axial")[int(np.abs(normal).argmax())]


def _by_echo(headers: Sequence[pydicom.Dataset]) -> list[Names]:
    times = [_number(header, "EchoTime") for header in headers]
    echoes = sorted({round(time, 2) for time in times if time})
    if len(echoes) < 2:
        return [()] * len(headers)
    return [
        (f"echo{echoes.index(round(time, 2)) + 1}", *_by_phase(time, _number(header, "MagneticFieldStrength")))
        if time
        else ()
        for time, header in zip(times, headers, strict=True)
    ]


def _by_component(header: pydicom.Dataset) -> Names:
    """Name the component of a complex image: Siemens and Philips mark it by a letter in ImageType."""
    words = [str(header.get("ComplexImageComponent") or ""), *_image_type(header)]
    found = {_COMPONENTS[word] for word in words if word in _COMPONENTS}
    return tuple(found) if len(found) == 1 else ()


def _by_value(headers: Sequence[pydicom.Dataset], keyword: str, name: str) -> list[Names]:
    """Name images by the number of their value among all, in order; by the value itself where the name asks for it."""
    values = [_number(header, keyword) for header in headers]
    known = sorted({value for value in values if value is not None})
    return [() if value is None else (name.format(f"{value:g}", number=known.index(value) + 1),) for value in values]


def _by_image_type(header: pydicom.Dataset) -> Names:
    found = {_WORDS[word] for word in _image_type(header) if word in _WORDS}
    return tuple(found) if len(found) == 1 else ()


def _image_type(header: pydicom.Dataset) -> list[str]:
    values = header.get("ImageType") or ()
    return [str(value).strip().upper() for value in ([values] if isinstance(values, str) else values)]


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
