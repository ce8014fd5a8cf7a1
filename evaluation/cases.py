"""Match predictions, references, MRs and masks by case name.

A path is either one volume (a file, or a folder with one DICOM series in it) or a folder of cases. In a
folder of cases the pattern tells where a case lies and how it is called: a path below the folder in which
``{case}`` stands for the case name, e.g. ``{case}.mha``, ``{case}/ct.nii.gz`` or ``{case}/{case}_CT.nii.gz``
(twice the same name). Without a pattern the volume files directly in the folder count, and the case name is
the file name less its volume suffix. Files and folders whose name starts with a dot are skipped.
"""

import glob
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from data.errors import InputError
from data.values.intensity import AIR_HU
from data.values.modality import check_ct, in_hu
from data.volumes.dicom import list_series
from data.volumes.resampling import resample
from data.volumes.volume import (
    WRITABLE_SUFFIXES,
    Volume,
    describe_grid,
    read_volume,
    resampling,
    same_grid,
    volume_stem,
    volume_suffix,
)

log = logging.getLogger(__name__)

_LISTED = 8


@dataclass(frozen=True)
class ScoredCase:
    """The files of one case to score. `mr` and `mask` are optional."""

    name: str
    pred: Path
    ref: Path
    mr: Path | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class CaseVolumes:
    """What one option names: a volume or a folder of cases, and the pattern of the latter."""

    option: str
    path: Path
    pattern: str | None = None


def read_reference(path: Path, like: Volume, resampled: bool = False, whose: str = "MR") -> Volume:
    """Read a true CT, its padding raised to -1024 HU.

    Args:
        path: the CT.
        like: on whose grid it is wanted.
        resampled: whether a CT on another grid is resampled, linearly, with air outside it; else it is an error.
        whose: what `like` is called in messages.

    Raises:
        InputError: it cannot be read, is no CT in HU, or does not lie on that grid, or, `resampled`, nowhere in it.
    """
    reference = read_volume(path)
    fits = same_grid(reference, like)
    if not fits and not resampled:
        found, expected = describe_grid(reference), describe_grid(like)
        raise InputError(
            f"{path}: not on the {whose}'s grid: {found}; the {whose} has {expected}; resample it: "
            f"--resample_reference, or {resampling(path, whose.upper())}"
        )
    try:
        check_ct(reference)
        if fits:
            return in_hu(reference)
        on_grid, outside = resample(in_hu(reference), like, "linear", AIR_HU)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    log.info("%s: resampled to the %s's grid; %.1f %% of that lies outside it and is air", path, whose, 100 * outside)
    return on_grid


def case_volumes(source: CaseVolumes) -> dict[str, Path] | None:
    """Return the volumes of a folder of cases by case name, sorted, or None if the source is a single volume.

    Raises:
        InputError: the path is missing, the folder holds no case, two files claim one case, or a pattern is
            unusable.
    """
    path, pattern = source.path, source.pattern
    if not path.exists():
        raise InputError(f"{source.option} {path}: no such file or folder")
    if path.is_file() or (pattern is None and list_series(path)):
        if pattern is not None:
            raise InputError(f"{source.option}_pattern {pattern}: {path} is a file; a pattern needs a folder of cases")
        return None
    found: dict[str, Path] = {}
    for name, file in _matches(source):
        if name in found:
            raise InputError(f"{source.option}: case {name} is both {found[name]} and {file}; keep one of them")
        found[name] = file
    if not found:
        wanted = pattern or f"file name ending in {' '.join(WRITABLE_SUFFIXES)} directly in it"
        raise InputError(
            f"{source.option} {path}: found nothing for {wanted}; show where the cases are, e.g. "
            f"{source.option}_pattern '{{case}}/ct.nii.gz'"
        )
    return dict(sorted(found.items()))


def find_cases(
    pred: CaseVolumes,
    ref: CaseVolumes,
    mr: CaseVolumes | None = None,
    mask: CaseVolumes | None = None,
    names: list[str] | None = None,
    skip_missing: bool = False,
) -> list[ScoredCase]:
    """Match volumes by case name. The cases are those of `pred`; the others hold at least these.

    Args:
        pred: synthetic CT.
        ref: true CT.
        mr: the MR that `pred` was made from.
        mask: where to score.
        names: score these cases only; None for all.
        skip_missing: leave cases out, with a warning, that `ref`, `mr` or `mask` lack.

    Raises:
        InputError: a case is missing on a side (all missing ones are named), none is left, or files and folders are
            mixed.
    """
    sources = {"pred": pred, "ref": ref, "mr": mr, "mask": mask}
    given = {key: source for key, source in sources.items() if source is not None}
    found = {key: case_volumes(source) for key, source in given.items()}
    folders = {key: volumes for key, volumes in found.items() if volumes is not None}
    single = [source for key, source in given.items() if key not in folders]
    if not folders:
        if names:
            raise InputError(f"cases {' '.join(names)}: names choose from folders of cases, {pred.path} is one volume")
        return [ScoredCase(volume_stem(pred.path), **{key: source.path for key, source in given.items()})]
    if single:
        folder = given[next(iter(folders))]
        raise InputError(
            f"{single[0].option} {single[0].path} is one volume, {folder.option} {folder.path} is "
            "a folder of cases; expected only volumes or only folders"
        )
    wanted = sorted(set(names)) if names else sorted(folders["pred"])
    wanted = _complete(given, folders, wanted, skip_missing)
    unused = [] if names else sorted(folders["ref"].keys() - folders["pred"].keys())
    if unused:
        log.info("%d of %d references have no result: %s", len(unused), len(folders["ref"]), _listed(unused))
    return [ScoredCase(name, **{key: volumes[name] for key, volumes in folders.items()}) for name in wanted]


def _matches(source: CaseVolumes) -> list[tuple[str, Path]]:
    """Return (case name, path) for all that matches the source's pattern, or its volume files without one."""
    if source.pattern is None:
        files = [file for file in sorted(source.path.iterdir()) if volume_suffix(file) in WRITABLE_SUFFIXES]
        return [(volume_stem(file), file) for file in files if file.is_file() and file.name[0] != "."]
    head, *tail = re.split(r"\{case\}", source.pattern)
    place = Path(source.pattern)
    if not tail or place.is_absolute() or ".." in place.parts or "*" in source.pattern:
        raise InputError(
            f"{source.option}_pattern {source.pattern}: expected a path below {source.path} with {{case}} "
            "for the case name and no *, e.g. '{case}/ct.nii.gz'"
        )
    regex = re.escape(head) + r"(?P<case>[^/.][^/]*)" + r"(?P=case)".join(map(re.escape, tail))
    matches = []
    for path in sorted(source.path.glob("*".join(glob.escape(part) for part in (head, *tail)))):
        match = re.fullmatch(regex, path.relative_to(source.path).as_posix())
        if match:
            matches.append((match["case"], path))
    return matches


def _complete(
    given: dict[str, CaseVolumes], found: dict[str, dict[str, Path]], wanted: list[str], skip_missing: bool
) -> list[str]:
    """Return the wanted cases, or with `skip_missing` those that no side lacks."""
    problems = []
    for key, source in given.items():
        missing = [name for name in wanted if name not in found[key]]
        if missing:
            problems.append(
                f"{source.option} {source.path} lacks {len(missing)} of {len(wanted)} cases: {_listed(missing)}"
            )
    complete = [name for name in wanted if all(name in volumes for volumes in found.values())]
    if not problems:
        return wanted
    if not complete:
        held = f"{given['pred'].option} has {_listed(sorted(found['pred']))}; --ref has {_listed(sorted(found['ref']))}"
        raise InputError(
            f"{'; '.join(problems)}. No case is complete: {held}. Names must agree: show where the case name stands, "
            "e.g. --pred_pattern '{case}_mr.nii.gz' or --ref_pattern '{case}/ct.nii.gz'"
        )
    if not skip_missing:
        raise InputError(
            f"{'; '.join(problems)}. Score the {len(complete)} complete cases with --skip_missing, or show where the "
            "case name stands (--ref_pattern '{case}/ct.nii.gz')"
        )
    log.warning("warning: %s; not scored", "; ".join(problems))
    return complete


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
