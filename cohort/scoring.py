"""The command that scores results, complete: where results, MR and true CT lie, and how their cases are called."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from data.commands import python_command
from data.prepared.case_names import below, clean, patient_part, telling_words, words
from data.volumes.paths import is_volume_or_series
from data.volumes.volume import volume_stem
from evaluation.case_folders import CASE
from evaluation.patterns import MASK_WORDS, with_case

_FOLDERS_ABOVE = 3  # whose names may be the patient's
_NO_CT = "CT"  # what the command calls true CT that nobody has shown yet


# What lies in a folder, the telling words of its name, and whether that holds CT.
_Named = tuple[Path, set[str], bool]


class _Place(NamedTuple):
    """What stands for {case} in each name, and where results and MR lie."""

    keys: Mapping[str, str]
    pred_pattern: str
    mr_pattern: str


def single_command(result: Path, mr: Path, mr_alone: bool = True) -> str:
    """Return when and by which command one result is scored, with the true CT beside the MR if there is one.

    `mr_alone`: whether the path is enough to read the MR; a folder of several series or contrasts is not.
    """
    ct = true_ct_beside(mr)
    with_mr = ["--mr", mr] if mr_alone else []
    command = _command("--pred", result, "--ref", ct or f"{_NO_CT}.nii.gz", *with_mr, "--resample_reference")
    return f"{_when(ct is not None, f'{_NO_CT}.nii.gz')}: {command}"


def cohort_command(results: Path, paths: Mapping[str, Path], root: Path | None = None, mr_alone: bool = True) -> str:
    """Return when and by which command a cohort's results are scored.

    Args:
        results: folder of the results, `<case>.nii.gz`.
        paths: the MR of each case by its name; not empty.
        root: the folder that they were searched for in; None: the one that they share.
        mr_alone: as in `single_command`, of every case.
    """
    if len(paths) == 1 and true_ct_beside(mr := next(iter(paths.values()))):
        return single_command(results / f"{next(iter(paths))}.nii.gz", mr, mr_alone)
    if root is None:
        paths = {name: path.resolve() for name, path in paths.items()}
        root = Path(os.path.commonpath([path.parent for path in paths.values()]))
    found = [(place, _reference_pattern(root, place, paths)) for place in _places(paths, root)]
    if not found:  # no pattern says where the MR lie
        command = _command("--pred", results, "--ref", _NO_CT, "--resample_reference")
        return f"{_when(False, _examples(list(paths)))}: {command}"
    place, ref_pattern = max(found, key=lambda one: (one[1] is not None, len(one[0].keys)))
    arguments = ["--pred", results]
    arguments += [] if place.pred_pattern == f"{CASE}.nii.gz" else ["--pred_pattern", place.pred_pattern]
    arguments += ["--ref", root, "--ref_pattern", ref_pattern] if ref_pattern else ["--ref", _NO_CT]
    arguments += ["--mr", root, "--mr_pattern", place.mr_pattern] if mr_alone else []
    arguments.append("--resample_reference")
    if _without_reference(results, place, root, ref_pattern):
        arguments.append("--skip_missing")
    which = "" if len(place.keys) == len(paths) else f", for {len(place.keys)} of {len(paths)} cases"
    return f"{_when(ref_pattern is not None, _examples(list(place.keys.values())))}{which}: {_command(*arguments)}"


def true_ct_beside(mr: Path) -> Path | None:
    """Return the CT that lies beside an MR, by its name; None without one, or where there are several."""
    found = _ct_beside(mr, _named_in)
    return found[0] if len(found) == 1 else None


def _ct_beside(mr: Path, look: Callable[[Path], list[_Named]]) -> list[Path]:
    """Return volume files or DICOM folders beside an MR whose names hold the word CT: those whose names are nearest.

    Not those whose names are nearer to another MR of the folder, or have another number in the same place. `look` is
    `_named_in`, or remembers what it returned.
    """
    own = telling_words(volume_stem(mr))
    above = set().union(*map(telling_words, mr.parts[-_FOLDERS_ABOVE - 1 : -1]))
    there = look(mr.parent)
    candidates = [(path, named, len(named & (own | above))) for path, named, is_ct in there if is_ct and path != mr]
    nearest = max((shared for *_, shared in candidates), default=0)
    found = []
    for path, named, shared in candidates:
        if shared < nearest or not (shared or not _shapes(named) & _shapes(own)) or not is_volume_or_series(path):
            continue
        rivals = (len(named & other) for rival, other, is_ct in there if not is_ct and rival != mr)
        if all(rival <= len(named & own) for rival in rivals):
            found.append(path)
    return found


def _named_in(folder: Path) -> list[_Named]:
    """Return what lies in a folder but masks, by name: each with its telling words, and whether it is called CT."""
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return []
    named = [(path, set(words(path.name))) for path in paths]
    return [(path, telling_words(volume_stem(path)), "ct" in found) for path, found in named if not MASK_WORDS & found]


def _shapes(named: set[str]) -> set[str]:
    """Return words that hold digits, with a sign for each digit: P01 and P02 are of one shape."""
    return {re.sub(r"\d", "#", word) for word in named if re.search(r"\d", word)}


def _command(*arguments: object) -> str:
    return python_command("-m", "scripts.evaluate", *arguments)


def _examples(cases: list[str]) -> str:
    return f"{_NO_CT}/{cases[0]}.nii.gz" + (" and so on" if len(cases) > 1 else "")


def _when(known: bool, needed: str) -> str:
    return "next" if known else f"next, with the true CT as {needed}"


def _places(paths: Mapping[str, Path], root: Path) -> Iterator[_Place]:
    """Yield patterns, each for as many cases as it holds for.

    {case} is the name, the file's or a folder's name, or the patient's part of one; in results' names it is cleaned.
    """
    relative = {name: below(root, path) for name, path in paths.items()}
    for choice in range(3 + max(len(path.parts) for path in relative.values())):
        groups: dict[tuple[str, str], dict[str, str]] = {}
        for name, path in relative.items():
            key = _key(name, path, choice)
            patterns = (with_case(f"{name}.nii.gz", clean(key)), with_case(path.as_posix(), key))
            if all(CASE in pattern for pattern in patterns):
                groups.setdefault(patterns, {})[name] = key
        if groups:
            (pred, mr), keys = max(groups.items(), key=lambda group: len(group[1]))
            yield _Place(keys, pred, mr)


def _key(name: str, path: Path, choice: int) -> str:
    stem = volume_stem(path)
    choices = (name, patient_part(name), stem, patient_part(stem), *path.parts[:-1])
    return choices[choice] if choice < len(choices) else ""


def _reference_pattern(root: Path, place: _Place, paths: Mapping[str, Path]) -> str | None:
    """Return the pattern of CT beside the MR that most cases have, None without any."""
    look = cache(_named_in)  # of a flat folder every MR asks
    candidates = {
        with_case(below(root, ct).as_posix(), key)
        for name, key in place.keys.items()
        for ct in _ct_beside(paths[name], look)
    }
    counts = {
        one: sum(_has(root, one, key) for key in place.keys.values()) for one in sorted(candidates) if CASE in one
    }
    return max(counts, key=lambda one: counts[one], default=None)


def _without_reference(results: Path, place: _Place, root: Path, ref_pattern: str | None) -> bool:
    """Tell whether results that the pattern names have no CT; of CT that nobody has shown yet it is not known."""
    named = results.glob(place.pred_pattern.replace(CASE, "*"))
    scored = {f"{name}.nii.gz" for name, key in place.keys.items() if ref_pattern and _has(root, ref_pattern, key)}
    return bool(scored) and not {path.name for path in named} <= scored


def _has(root: Path, pattern: str, key: str) -> bool:
    return (root / pattern.replace(CASE, key)).exists()
