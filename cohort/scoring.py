"""The command that scores results, complete: where results, MR and true CT lie, and how their cases are called."""

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from data.prepared.case_names import below, patient_part, words
from data.prepared.sources import is_folder, is_volume
from data.volumes.dicom import holds_dicom

_CASE = "{case}"
_NO_CT = "CT"  # what the command calls true CT that nobody has shown yet


class _Place(NamedTuple):
    """What stands for {case} in each name, and where results and MR lie."""

    keys: Mapping[str, str]
    pred_pattern: str
    mr_pattern: str


def single_command(result: Path, mr: Path) -> str:
    """Return when and by which command one result is scored, with the true CT beside the MR if there is one."""
    ct = true_ct_beside(mr)
    command = _command("--pred", result, "--ref", ct or f"{_NO_CT}.nii.gz", "--mr", mr, "--resample_reference")
    return f"{_when(ct is not None, f'{_NO_CT}.nii.gz')}: {command}"


def cohort_command(results: Path, paths: Mapping[str, Path], root: Path | None = None) -> str:
    """Return when and by which command a cohort's results are scored.

    Args:
        results: folder of the results, `<case>.nii.gz`.
        paths: the MR of each case by its name; not empty.
        root: the folder that they were searched for in; None: the one that they share.
    """
    if len(paths) == 1 and true_ct_beside(mr := next(iter(paths.values()))):
        return single_command(results / f"{next(iter(paths))}.nii.gz", mr)
    root = root or Path(os.path.commonpath([path.parent for path in paths.values()]))
    places = list(_places(paths, root))
    found = ((place, pattern) for place in places if (pattern := _reference_pattern(root, place, paths)))
    place, ref_pattern = next(found, (places[0] if places else None, None))
    if place is None:  # no pattern says where the MR lie
        command = _command("--pred", results, "--ref", _NO_CT, "--resample_reference")
        return f"{_when(False, f'{_NO_CT}/CASE.nii.gz')}: {command}"
    words_of = ["--pred", results]
    words_of += [] if place.pred_pattern == f"{_CASE}.nii.gz" else ["--pred_pattern", place.pred_pattern]
    words_of += ["--ref", root, "--ref_pattern", ref_pattern] if ref_pattern else ["--ref", _NO_CT]
    words_of += ["--mr", root, "--mr_pattern", place.mr_pattern, "--resample_reference"]
    if ref_pattern:
        scored = {f"{name}.nii.gz" for name, key in place.keys.items() if _has(root, ref_pattern, key)}
        words_of += ["--skip_missing"] if {path.name for path in results.glob("*.nii.gz")} - scored else []
    return f"{_when(ref_pattern is not None, f'{_NO_CT}/CASE.nii.gz')}: {_command(*words_of)}"


def true_ct_beside(mr: Path) -> Path | None:
    """Return the CT that lies beside an MR, by its name; None without one, or where there are several."""
    found = _ct_beside(mr)
    return found[0] if len(found) == 1 else None


def _ct_beside(mr: Path) -> list[Path]:
    """Return volume files or DICOM folders beside an MR whose names hold the word CT."""
    try:
        beside = sorted(path for path in mr.parent.iterdir() if path != mr and "ct" in words(path.name))
        return [path for path in beside if (holds_dicom(path) if is_folder(path) else is_volume(path))]
    except OSError:
        return []


def _command(*arguments: object) -> str:
    return shlex.join(["python", "-m", "scripts.evaluate", *map(str, arguments)])


def _when(known: bool, needed: str) -> str:
    return "next" if known else f"next, with the true CT as {needed}"


def _places(paths: Mapping[str, Path], root: Path) -> Iterator[_Place]:
    """Yield the patterns that hold for all cases: {case} is the name, the patient's part of it, or a folder's name."""
    relative = {name: below(root, path) for name, path in paths.items()}
    depth = max(len(path.parts) for path in relative.values())
    for k in range(depth + 1):
        keys = {name: _key(name, path, k) for name, path in relative.items()}
        if any(not key or key not in name for name, key in keys.items()) or len(set(keys.values())) < len(keys):
            continue
        pred = {f"{name}.nii.gz".replace(key, _CASE) for name, key in keys.items()}
        mr = {relative[name].as_posix().replace(key, _CASE) for name, key in keys.items()}
        if len(pred) == len(mr) == 1 and _CASE in min(mr):
            yield _Place(keys, pred.pop(), mr.pop())


def _key(name: str, path: Path, choice: int) -> str:
    choices = (name, patient_part(name), *path.parts[:-1])
    return choices[choice] if choice < len(choices) else ""


def _reference_pattern(root: Path, place: _Place, paths: Mapping[str, Path]) -> str | None:
    """Return the pattern of CT beside the MR that most cases have, None without any."""
    candidates = {
        below(root, ct).as_posix().replace(key, _CASE)
        for name, key in place.keys.items()
        for ct in _ct_beside(paths[name])
    }
    counts = {
        one: sum(_has(root, one, key) for key in place.keys.values()) for one in sorted(candidates) if _CASE in one
    }
    return max(counts, key=lambda one: counts[one], default=None)


def _has(root: Path, pattern: str, key: str) -> bool:
    return (root / pattern.replace(_CASE, key)).exists()
