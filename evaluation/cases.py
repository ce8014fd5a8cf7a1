"""Match predictions, references, MRs and masks by case name."""

import functools
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.errors import InputError, did_you_mean, listed
from data.prepared.case_names import clean
from data.values.intensity import AIR_HU
from data.values.modality import check_ct, in_hu
from data.volumes.resampling import resample
from data.volumes.volume import (
    Volume,
    describe_difference,
    read_volume,
    resampling,
    same_grid,
    volume_stem,
)
from evaluation.case_folders import CASE, CaseVolumes, nothing_found, search
from evaluation.patterns import propose, propose_alone, volumes_below

log = logging.getLogger(__name__)

_LISTED = 8
_FOREIGN = 0.5  # share of a grid outside its true CT, above which it is probably another's


@dataclass(frozen=True)
class ScoredCase:
    """The files of one case to score. `mr` and `mask` are optional."""

    name: str
    pred: Path
    ref: Path
    mr: Path | None = None
    mask: Path | None = None


class Reference(NamedTuple):
    """A true CT on the grid of a result, and which of the grid's voxels it covers, bool (z, y, x); None: all."""

    ct: Volume
    covered: np.ndarray | None = None


def read_reference(
    path: Path, like: Volume, resampled: bool = False, whose: str = "MR", at: Path | None = None
) -> Reference:
    """Read a true CT, its padding raised to -1024 HU.

    Args:
        path: the CT.
        like: on whose grid it is wanted.
        resampled: whether a CT on another grid is resampled, linearly, with air outside it; else it is an error.
        whose: what `like` is called in messages; at: where it lies, for them.

    Raises:
        InputError: it cannot be read, is no CT in HU, or does not lie on that grid, or, `resampled`, nowhere in it.
    """
    reference = read_volume(path)
    fits = same_grid(reference, like)
    if not fits and not resampled:
        raise InputError(
            f"{path}: not on the {whose}'s grid{f' ({at})' if at else ''}: {describe_difference(reference, like)}; "
            f"resample it: --resample_reference, or {resampling(path, at or whose.upper())}"
        )
    try:
        check_ct(reference)
        if fits:
            return Reference(in_hu(reference))
        on_grid, covered = resample(in_hu(reference), like, "linear", AIR_HU)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    outside = 1 - np.count_nonzero(covered) / covered.size
    account = "%s: resampled to the %s's grid"
    if outside:
        account += f"; {100 * outside:.1f} %% of that grid lies outside the CT, where nothing is scored"
    level = logging.INFO
    if outside > _FOREIGN:
        account = f"warning: {account}: probably the CT of another patient or position, or of a part of the body"
        level = logging.WARNING
    log.log(level, account, path, whose)
    return Reference(on_grid, covered)


def case_volumes(source: CaseVolumes) -> dict[str, Path] | None:
    """Return the volumes of a folder of cases by case name, sorted, or None if the source is a single volume.

    Raises:
        InputError: as `search` does, or the folder holds no case: it proposes a pattern.
    """
    found = search(source)
    if found != {}:
        return found
    if not source.takes_pattern:
        raise InputError(nothing_found(source))
    there = volumes_below(source.path)
    if (proposal := propose_alone(source, there)) is not None:
        pattern, count = proposal
        way_out = f"add {source.pattern_option} {shlex.quote(pattern)}, which finds {count} case{'s' * (count > 1)}"
    else:
        way_out = _another(source, there)
    raise InputError(f"{nothing_found(source)}; {way_out}")


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
    found = {key: search(source) for key, source in given.items()}
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
    if empty := [key for key in folders if not folders[key]]:
        raise InputError(f"{nothing_found(given[empty[0]])}; {_way_out(given, folders, empty)}")
    wanted = sorted(set(map(clean, names))) if names else sorted(folders["pred"])
    wanted = _complete(given, folders, wanted, skip_missing)
    unused = [] if names else sorted(folders["ref"].keys() - folders["pred"].keys())
    if unused:
        log.info("%d of %d references have no result: %s", len(unused), len(folders["ref"]), listed(unused, _LISTED))
    return [ScoredCase(name, **{key: volumes[name] for key, volumes in folders.items()}) for name in wanted]


def _complete(
    given: dict[str, CaseVolumes], found: dict[str, dict[str, Path]], wanted: list[str], skip_missing: bool
) -> list[str]:
    """Return the wanted cases, or with `skip_missing` those that no side lacks."""
    missing = {key: [name for name in wanted if name not in found[key]] for key in given}
    problems = "; ".join(
        f"{given[key].option} {given[key].path} lacks {len(names)} of {len(wanted)} cases: {listed(names, _LISTED)}"
        for key, names in missing.items()
        if names
    )
    if not problems:
        return wanted
    near = did_you_mean(missing["pred"][0], found["pred"]) if missing["pred"] else ""
    if near and not skip_missing:
        raise InputError(
            f"--cases: {given['pred'].option} {given['pred'].path} has no {listed(missing['pred'], _LISTED)}{near}"
        )
    complete = [name for name in wanted if all(name in volumes for volumes in found.values())]
    lacking = [key for key in given if missing[key]]
    if not complete:
        results, references = (listed(sorted(found[key]), _LISTED) for key in ("pred", "ref"))
        held = f"{given['pred'].option} has {results}; --ref has {references}"
        raise InputError(
            f"{problems}. No case is complete: {held}. Names must agree: {_way_out(given, found, lacking)}"
        )
    if not skip_missing:
        way = _way_out(given, found, lacking)
        count = "complete case" if len(complete) == 1 else f"{len(complete)} complete cases"
        raise InputError(f"{problems}. Score the {count} with --skip_missing, or {way}")
    way = _more_cases(given, found, lacking)
    log.warning("warning: %s; not scored%s", problems, f". To score more, {way}" if way else "")
    return complete


def _way_out(given: dict[str, CaseVolumes], found: dict[str, dict[str, Path]], lacking: list[str]) -> str:
    """Return the patterns to add by which more cases agree than were found; without any, how to write patterns."""
    if ways := _more_cases(given, found, lacking):
        return ways
    first = given[lacking[0]]
    if first.pattern is not None:  # what was given is no way out
        return _another(first, volumes_below(first.path))
    return f"show where the case name stands, e.g. {first.pattern_option} {first.example}"


def _more_cases(given: dict[str, CaseVolumes], found: dict[str, dict[str, Path]], lacking: list[str]) -> str:
    """Return the patterns to add by which more cases agree than were found, '' for none."""
    pred, ways, look = given["pred"], [], functools.cache(volumes_below)
    for key in [key for key in lacking if key != "pred"] or ["ref"]:
        proposal = propose(pred, given[key], look)
        if proposal and proposal.matched > len(found["pred"].keys() & found[key].keys()):
            if (proposal.pred, proposal.other) != (pred, given[key]):  # not that again which another source asked for
                ways.append(proposal.describe(pred, given[key]))
            pred = proposal.pred
    return f"give {', and '.join(ways)}" if ways else ""


def _another(source: CaseVolumes, there: Sequence[Path]) -> str:
    """Return what to give in place of a folder or its pattern, and what lies `there`, below the folder."""
    if not there:
        return f"give another folder: no volume file or DICOM series lies below {source.option}"
    pattern = source.pattern_option
    pattern = f"another {pattern}" if source.pattern else f"{pattern} with {CASE} for the case name"
    held = listed([str(path) for path in there], _LISTED)
    return f"give another folder, or {pattern}: {source.option} holds {held}"
