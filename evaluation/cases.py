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


def read_reference(path: Path, mr: Volume, resampled: bool | None = None) -> Volume:
    """Read a true CT, its padding raised to -1024 HU.

    Args:
        path: the CT.
        mr: on whose grid it is wanted.
        resampled: whether a CT on another grid is resampled, linearly, with air outside it; else it is an error. None:
            the command has no option for it.

    Raises:
        InputError: it cannot be read, is no CT in HU, or does not lie on the MR's grid, or, `resampled`, nowhere in it.
    """
    reference = read_volume(path)
    fits = same_grid(reference, mr)
    if not fits and not resampled:
        found, expected = describe_grid(reference), describe_grid(mr)
        way = ("" if resampled is None else "--resample_reference, or ") + resampling(path, "MR")
        raise InputError(f"{path}: not on the MR's grid: {found}; the MR has {expected}; resample it first: {way}")
    try:
        check_ct(reference)
        if fits:
            return in_hu(reference)
        on_grid, outside = resample(in_hu(reference), mr, "linear", AIR_HU)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    log.info("%s: resampled to the MR's grid; %.1f %% of that lies outside it and is air", path, 100 * outside)
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
) -> list[ScoredCase]:
    """Match volumes by case name. `pred` and `ref` hold the same cases; `mr` and `mask` hold at least these.

    Args:
        pred: synthetic CT.
        ref: true CT.
        mr: the MR that `pred` was made from.
        mask: where to score.
        names: score these cases only; None for all.

    Raises:
        InputError: a case is missing on a side (all missing ones are named), or files and folders are mixed.
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
    wanted = sorted(set(names)) if names else sorted(folders["pred"].keys() | folders["ref"].keys())
    _check_complete(given, folders, wanted)
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


def _check_complete(given: dict[str, CaseVolumes], found: dict[str, dict[str, Path]], wanted: list[str]) -> None:
    problems = []
    for key, source in given.items():
        missing = [name for name in wanted if name not in found[key]]
        if missing:
            more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
            shown = ", ".join(missing[:_LISTED])
            problems.append(f"{source.option} {source.path} lacks {len(missing)} of {len(wanted)} cases: {shown}{more}")
    if problems:
        raise InputError(
            f"{'; '.join(problems)}. Names must agree: show where the case name stands (--ref_pattern "
            "'{case}/ct.nii.gz'), or score some cases only (--cases)"
        )
