"""The contrasts of an MR: images of one patient on one grid, each with a name such as in_phase, water or fat."""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from data.errors import InputError
from data.volumes.volume import Volume, describe_difference, resampling, same_grid

# What an MR is called that is the only one.
ONLY_CONTRAST = "mr"
NAME_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def is_name(text: object) -> bool:
    """Tell whether a contrast can be called so: it is a folder's name, and what stands before `=` in options."""
    return isinstance(text, str) and NAME_PATTERN.fullmatch(text) is not None


def split_name(text: str) -> tuple[str | None, str]:
    """Return name and path (or glob) of `NAME=PATH`; None and the text where it has no name.

    A path that is there as it is has none, whatever it holds.
    """
    name, equals, path = text.partition("=")
    if not (equals and path and is_name(name)) or os.path.lexists(text) or glob.glob(text):
        return None, text
    return name, path


def selector(name: str) -> str | None:
    """Return what `read_volume` chooses in a folder that holds several contrasts; nothing for the name of none."""
    return None if name == ONLY_CONTRAST else name


def shown_name(names: Sequence[str]) -> str | None:
    """Return what pictures of an MR call it, which show its first contrast: nothing if it is the only one."""
    return names[0] if len(names) > 1 else None


def describe_paths(paths: Mapping[str, Path]) -> str:
    """Return contrasts' paths in one line; of one contrast its path alone."""
    return ", ".join(f"{name}={path}" for name, path in paths.items()) if len(paths) > 1 else str(*paths.values())


def without_name(case: str, contrast: str) -> str:
    """Return the name of a case without the contrast's name in it: `mr000_in_phase` is `mr000`."""
    return re.sub(rf"(^|[_.+-]+){re.escape(contrast)}(?=$|[_.+-])", "", case).lstrip("_.+-")


def in_order[T](option: str, given: Sequence[tuple[str | None, T]], names: Sequence[str]) -> list[T]:
    """Return what is given of each contrast in the order of `names`; the order of `given` does not matter.

    Args:
        option: that gave it, for messages.
        given: name and value; a name may be None if there is one contrast.
        names: all that there must be.

    Raises:
        InputError: a name that is missing, given twice, unknown, or not said where there are several.
    """
    expected = f"expected {', '.join(names)}, each once, as {option} NAME=..."
    if list(names) == [ONLY_CONTRAST]:
        expected = f"the model takes one image; give it without a name: {option} ..."
    if len(names) == 1:
        given = [(name or names[0], value) for name, value in given]
    found = [name for name, _ in given]
    if None in found:
        raise InputError(f"{option} {given[found.index(None)][1]}: does not say which contrast it is; {expected}")
    for name in found:
        if name not in names:
            raise InputError(f"{option} {name}=...: no such contrast; {expected}")
        if found.count(name) > 1:
            raise InputError(f"{option} {name}=...: given {found.count(name)} times; {expected}")
    if missing := [name for name in names if name not in found]:
        raise InputError(f"{option}: no {', no '.join(missing)}; {expected}")
    by_name = dict(given)
    return [by_name[name] for name in names]


def check_together(volumes: Mapping[str, Volume]) -> None:
    """Refuse contrasts on different grids, and one image under two names.

    Raises:
        InputError: names the contrast.
    """
    first = next(iter(volumes))
    for name, volume in volumes.items():
        if not same_grid(volumes[first], volume):
            raise InputError(
                f"contrast {name}: not on the grid of {first}: {describe_difference(volume, volumes[first])}; "
                f"resample it: {resampling(name, first)}"
            )
    for one, other in combinations(volumes, 2):
        if np.array_equal(volumes[one].array, volumes[other].array):
            raise InputError(
                f"contrasts {one} and {other}: the same image; expected two different ones: check which "
                "file belongs to each name"
            )
