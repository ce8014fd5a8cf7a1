"""Find the volumes of globs, and their cases, patients and masks."""

import glob
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.errors import InputError, did_you_mean, listed
from data.files import names_in
from data.prepared.case_names import clean, name_cases, name_without, searched_folder, words
from data.volumes.dicom import holds_dicom, is_slice, list_series
from data.volumes.paths import find_paths, is_folder, is_series, is_volume
from data.volumes.volume import WRITABLE_SUFFIXES, volume_stem, volume_suffix

log = logging.getLogger(__name__)

_LISTED = 5


@dataclass(frozen=True)
class Source:
    """A volume to prepare: case name, patient, file or DICOM folder, supplied body mask, series of the folder.

    An MR may have a `contrast`, its name, and `further` ones of the same case.
    """

    name: str
    patient: str
    path: Path
    mask: Path | None = None
    series_uid: str | None = None
    contrast: str | None = None
    further: tuple["Source", ...] = ()


def find_volumes(*patterns: str) -> list[Path]:
    """Return the volume files and DICOM folders that `patterns` (paths, or globs, `**` allowed) name, sorted.

    A plain folder whose files are volumes stands for those volumes, less hidden ones; one that holds DICOM slices is
    its series, and volume files beside the slices (a mask, a converted copy) are skipped with a warning, unless
    a pattern names them and not the folder. Of other folders a wildcard, or several patterns, take only those that
    hold DICOM files directly. Other files that a pattern names are skipped, in one line of the log. What cannot be
    looked at counts as a volume: whoever reads it says why it cannot be read.

    Raises:
        InputError: a pattern matches nothing, all together name no volume, or DICOM slices do without their folder.
    """
    found = {pattern: sorted(find_paths(pattern)) for pattern in patterns}
    for pattern, paths in found.items():
        if not paths:
            raise InputError(f"{pattern}: {_why_nothing(pattern, paths)}")
    matches = {match: pattern for pattern, paths in found.items() for match in paths}
    series = {match for match in matches if is_series(match)}
    volumes = []
    for match, pattern in sorted(matches.items()):
        by_name = len(patterns) == 1 and not glob.has_magic(pattern)
        try:
            volumes += _volumes_at(match, pattern, series, by_name)
        except OSError:  # its case says why it cannot be read, and fails alone
            if match.parent not in volumes:  # else its folder's does
                volumes.append(match)
    if not volumes:
        raise InputError(f"{_first(patterns)}: {_why_nothing(patterns[0], sorted(matches))}")
    if strangers := _strangers(sorted(matches), volumes, series):
        log.info("no volumes, and skipped: %s", listed(list(map(str, strangers)), _LISTED))
    return list(dict.fromkeys(volumes))


def _first(patterns: Sequence[str]) -> str:
    """Return patterns as messages call them: the shell may have made hundreds of one."""
    return listed(patterns, 2)


def _why_nothing(pattern: str, matches: list[Path]) -> str:
    """Return why a glob names no volume, and what is there instead."""
    if matches:
        count = "1 path" if len(matches) == 1 else f"{len(matches)} paths, such as"
        return (
            f"matches {count} {matches[0]}, but no volume file and no folder of DICOM slices; volumes end in "
            f"{' '.join(WRITABLE_SUFFIXES)}"
        )
    folder = searched_folder(pattern)
    braces = "; braces are no wildcards: use * and ?" if "{" in pattern else ""
    if missing := next((one for one in (*reversed(folder.parents), folder) if not is_folder(one)), None):
        quoted = "; in quotes, ~ and $NAME stay as they are: write the path out" if re.search(r"^~|\$", pattern) else ""
        near = "" if braces else did_you_mean(missing.name, names_in(missing.parent)) or quoted
        return f"no such folder: {missing}{near}{braces}"
    if not glob.has_magic(pattern):
        return f"no such file or folder{braces or did_you_mean(Path(pattern).name, names_in(folder))}"
    held = names_in(folder)
    return f"nothing in {folder} matches; it holds {listed(held, _LISTED) or 'nothing'}{_below(folder, held)}{braces}"


def _below(folder: Path, names: Sequence[str]) -> str:
    """Return which volume files the first of a folder's folders holds; "" where there are none."""
    for name in names[:_LISTED]:
        if volumes := [one for one in names_in(folder / name) if is_volume(folder / name / one)]:
            return f"; in {name}: {listed(volumes, _LISTED)}"
    return ""


def _volumes_at(match: Path, pattern: str, series: set[Path], by_name: bool) -> list[Path]:
    """Return the volumes that a match of `find_volumes` stands for.

    `series`: those of its matches that are DICOM. `by_name`: the match is the only path, and was written out.
    """
    inside = _volumes_in(match) if match.is_dir() else []
    if match in series:
        if inside:
            names = ", ".join(file.name for file in inside)
            log.warning("warning: %s: the DICOM series is used; %s beside it is skipped", match, names)
        return [match]
    if inside:
        return inside
    if match.is_dir():
        return [match] if by_name or holds_dicom(match) else []
    if not match.is_file() or match.parent in series:
        return []
    if volume_suffix(match) in ("", ".dcm") and is_slice(match):
        folder = str(Path(pattern).parent)
        raise InputError(
            f"{pattern}: names DICOM slices ({match.name}, ...); name the folder that holds them, {folder}"
        )
    return [match] if is_volume(match) else []


def _strangers(matches: Iterable[Path], volumes: Sequence[Path], series: set[Path]) -> list[Path]:
    """Return the files among some matches that are no volume, nor called after one, as its voxels or its notes are."""
    names = {(path.parent, volume_stem(path)) for path in volumes}
    known = {*volumes, *series}
    files = (path for path in matches if known.isdisjoint((path, path.parent)) and path.is_file())
    return [
        path for path in files
        if not any((path.parent, path.name[: dot.start()]) in names for dot in re.finditer(r"\.", path.name))
    ]  # fmt: skip


def _volumes_in(folder: Path) -> list[Path]:
    """Return a folder's volume files; hidden ones, such as macOS's `._mr.nii.gz`, are none."""
    return sorted(file for file in folder.iterdir() if not file.name.startswith(".") and is_volume(file))


def find_sources(
    patterns: Sequence[str],
    mask_patterns: Sequence[str],
    patient_regex: str | None,
    series_uids: Sequence[str] = (),
    case_regex: str | None = None,
    contrast: str | None = None,
) -> list[Source]:
    """Return the volumes of `patterns` with their names, patients, masks and DICOM series.

    A case is called by the part of its path that `case_regex` finds, or (None) as in `case_names`. Where the volumes
    are of one `contrast` among others, its name is left out, and where nothing else is left the folder's is taken.
    A volume's mask is the only mask in its folder (`p1/mr.nii.gz`, `p1/mask.nii.gz`), or that of its name but for words
    such as mr and mask (`mr_p1.nii`, `mrmask_p1.nii`). Volumes without a mask are named in the log.
    Of a folder with several DICOM series the one in
    `series_uids` is taken.

    Raises:
        InputError: nothing found, a volume and a mask that match nothing, two series of one folder in `series_uids`, or
            a `patient_regex` or `case_regex` that is invalid, does not match, or gives two volumes one name.
    """
    paths = find_volumes(*patterns)
    names = _name(paths, patterns, case_regex)
    if contrast:
        names = [name_without(name, contrast, path) for name, path in zip(names, paths, strict=True)]
    masks: list[Path | None] = [None] * len(paths)
    if mask_patterns:
        masks = _match_masks(names, paths, mask_patterns, case_regex)
    return [
        Source(name, _patient(name, patient_regex), path, mask, _series_uid(path, series_uids), contrast)
        for name, path, mask in zip(names, paths, masks, strict=True)
    ]


def _name(paths: list[Path], patterns: Sequence[str], case_regex: str | None) -> list[str]:
    if case_regex is None:
        return name_cases(paths, _searched_folders(paths, patterns))
    named: dict[str, Path] = {}
    for path in paths:
        name = clean(_part("--case_regex", case_regex, "path", path.as_posix()))
        if name in named:
            raise InputError(f"--case_regex {case_regex!r}: {named[name]} and {path} would both be called {name}")
        named[name] = path
    return list(named)


def _searched_folders(paths: list[Path], patterns: Sequence[str]) -> list[Path]:
    """Return for each path the folder that was searched for it.

    Of paths without wildcards, as a shell makes them of a glob without quotes, that is each one's own folder, as in
    `ct/*`; their common folder where two have one file name, as in `*/ct.nii`.
    """
    plain = [Path(pattern) for pattern in patterns if not glob.has_magic(pattern)]
    folders = {searched_folder(pattern) for pattern in patterns if glob.has_magic(pattern)}
    if len({path.name for path in plain}) == len(plain):
        folders |= {path.parent for path in plain}
    else:
        folders.add(Path(os.path.commonpath([path.parent for path in plain])))
    return [max((one for one in folders if path.is_relative_to(one)), key=lambda one: len(one.parts)) for path in paths]


def _patient(name: str, patient_regex: str | None) -> str:
    return name if patient_regex is None else _part("--patient_regex", patient_regex, "case name", name)


def _part(option: str, regex: str, what: str, text: str) -> str:
    """Return what an option's regular expression (its first group, where it has one) matches in a text."""
    try:
        match = re.search(regex, text)
    except re.error as error:
        raise InputError(f"{option} {regex!r}: not a regular expression: {error}") from error
    part = match and (match.group(1) if match.groups() else match.group(0))
    if not part:
        problem = "its group matches nothing in" if match else "does not match"
        raise InputError(f"{option} {regex!r}: {problem} the {what} {text!r}")
    return part


def _series_uid(path: Path, series_uids: Sequence[str]) -> str | None:
    """Return the one of `series_uids` that lies in a DICOM folder, None for a file or where none does."""
    if not series_uids or not is_series(path):
        return None
    found = [series.uid for series in list_series(path) if series.uid in series_uids]
    if len(found) > 1:
        raise InputError(f"{path}: --series_uid names {len(found)} series of this folder; expected one: {found}")
    return found[0] if found else None


def _match_masks(
    names: list[str], paths: list[Path], patterns: Sequence[str], case_regex: str | None
) -> list[Path | None]:
    """Return the mask of each volume, None for those without one, which is logged."""
    candidates, pattern = find_volumes(*patterns), _first(patterns)
    found = _masks_by_folder(paths, candidates) or _masks_by_name(names, paths, candidates, patterns, case_regex)
    lacking = [(name, path) for name, path, mask in zip(names, paths, found, strict=True) if mask is None]
    unused = [mask for mask in candidates if mask not in found]
    if lacking and unused:  # names that differ by mistake: nobody would notice
        name, path = lacking[0]
        raise InputError(
            f"{path}: no mask of {pattern} has the name of this case, {name!r}, and {unused[0]} has that of no volume; "
            "give the mask the name of its volume (words such as mr and mask do not count), or leave the mask out"
        )
    if lacking:
        log.info(
            "%s: masks for %d of %d volumes; computed for the others: %s", pattern, len(paths) - len(lacking),
            len(paths), ", ".join(name for name, _ in lacking),
        )  # fmt: skip
    return found


def _masks_by_folder(paths: list[Path], candidates: list[Path]) -> list[Path | None]:
    """Return the only mask in each volume's own folder; nothing if volumes or masks share folders, or none match."""
    by_folder = {path.parent: path for path in candidates}
    own_folders = len({path.parent for path in paths}) == len(paths) and len(by_folder) == len(candidates)
    found = [by_folder.get(path.parent) for path in paths]
    return found if own_folders and any(found) else []


def _masks_by_name(
    names: list[str], paths: list[Path], candidates: list[Path], patterns: Sequence[str], case_regex: str | None
) -> list[Path | None]:
    by_name = dict(zip(_name(candidates, patterns, case_regex), candidates, strict=True))
    found: list[Path | None] = []
    for name, path in zip(names, paths, strict=True):
        matches = [mask for other, mask in by_name.items() if name == other or _same_tokens(name, other)]
        if len(matches) > 1:
            raise InputError(
                f"{path}: {len(matches)} masks of {_first(patterns)} have the name of this case, {name!r}; expected one"
            )
        found.append(matches[0] if matches else None)
    return found


def _same_tokens(name: str, other: str) -> bool:
    """Tell whether two names are one but for words such as mr or mask: `mr_p01`, `mrmask_p01`, `p01_mask`."""
    kinds = {"mr", "ct", "t1", "t1w", "mask", "mrmask", "ctmask", "body", "image"}
    tokens = [[word for word in words(text) if word not in kinds] for text in (name, other)]
    return bool(tokens[0]) and tokens[0] == tokens[1]
