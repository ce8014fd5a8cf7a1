"""Proposes the patterns by which the cases of two folders agree, from the files that are there."""

import glob
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from data.errors import InputError
from data.prepared.case_names import below, clean, names_somebody, patient_part, words
from data.prepared.sources import find_paths, is_folder, is_volume
from data.volumes.dicom import holds_dicom
from data.volumes.volume import volume_stem
from evaluation.case_folders import CASE, CaseVolumes, search

# Words of file names that tell what an image is.
MASK_WORDS = frozenset({"mask", "masks", "seg", "segmentation", "label", "labels"})
_MR_WORDS = frozenset({"mr", "mri", "t1", "t1w", "t2", "t2w"})
_COMPARED = 12  # patterns of each side, those of the most files


class Proposal(NamedTuple):
    """Two sources whose cases agree, and how many of how many."""

    pred: CaseVolumes
    other: CaseVolumes
    matched: int
    total: int

    def describe(self, pred: CaseVolumes, other: CaseVolumes) -> str:
        """Return in words the options to add to the two sources as they were given."""
        changed = [new for new, old in ((self.pred, pred), (self.other, other)) if new != old]
        options = [f"{one.option}_pattern {shlex.quote(one.pattern or '')}" for one in changed]
        count = f"all {self.total}" if self.matched == self.total else f"{self.matched} of {self.total}"
        cases = f"{count} cases" if self.total > 1 else "the case"
        return f"{' '.join(options)}, which {'match' if len(changed) > 1 else 'matches'} {cases}"


def with_case(text: str, key: str) -> str:
    """Return a text with {case} in place of a key where it stands as a whole word."""
    return re.sub(rf"(?<![^\W_]){re.escape(key)}(?![^\W_])", CASE, text) if key else text


def propose(pred: CaseVolumes, other: CaseVolumes) -> Proposal | None:
    """Return patterns by which the most cases of `pred` are in `other`, None where no case would be.

    The pattern of `pred` is another one only if that matches more.
    """
    found = search(pred) or {}
    results = [below(pred.path, path) for path in found.values()] or _volumes_below(pred.path)
    mine, theirs = (_patterns(paths) for paths in (results, _volumes_below(other.path)))
    kept = pred.pattern or ""
    if found:
        mine[kept] = set(found)
    pairs = []
    for first, keys in _most_matched(mine, kept):
        for second, others in _most_matched(theirs):
            if keys & others and (not other.kind or _kind_of(second) in ("", other.kind)):
                order = (len(keys & others), first == kept, _kind_of(second) == other.kind, -len(second))
                pairs.append((order, first, second))
    for _, first, second in sorted(pairs, reverse=True):
        one = pred if first == kept else replace(pred, pattern=first)
        another = replace(other, pattern=second)
        try:
            named, there = search(one) or {}, search(another) or {}
        except InputError:  # as where two files would be one case
            continue
        if matched := len(named.keys() & there.keys()):
            return Proposal(one, another, matched, len(found) or len(named))
    return None


def _volumes_below(folder: Path) -> list[Path]:
    """Return the volume files and DICOM folders below a folder, relative to it."""
    paths = find_paths(f"{glob.escape(str(folder))}/**")
    return sorted(below(folder, path) for path in paths if path != folder and _is_one(path))


def _is_one(path: Path) -> bool:
    try:
        return holds_dicom(path) if is_folder(path) else is_volume(path)
    except OSError:
        return False


def _patterns(paths: list[Path]) -> dict[str, set[str]]:
    """Return the patterns that name any of the paths, and the case names that each finds."""
    found = defaultdict(set)
    for path in paths:
        text = path.as_posix()
        for key in set(_keys(path)):
            if CASE in (pattern := with_case(text, key)) and "*" not in pattern:
                found[pattern].add(clean(key))
    return found


def _keys(path: Path) -> Iterator[str]:
    """Yield what may be the name of a path's case: folders, the file, and the beginnings and parts of their names."""
    for part in (*path.parts[:-1], volume_stem(path)):
        ends = [match.start() for match in re.finditer(r"[\W_]+", part)]
        for key in (part, patient_part(part), *part.split("__"), *(part[:end] for end in ends)):
            if key and names_somebody(key):
                yield key


def _most_matched(patterns: dict[str, set[str]], kept: str | None = None) -> list[tuple[str, set[str]]]:
    """Return the patterns of the most cases, and the one that is `kept`."""
    ordered = sorted(patterns.items(), key=lambda item: (item[0] == kept, len(item[1])), reverse=True)
    return ordered[:_COMPARED]


def _kind_of(pattern: str) -> str:
    """Return what a pattern's words say that an image is: mask, ct, mr or nothing."""
    found = set(words(pattern))
    if found & MASK_WORDS:
        return "mask"
    return "ct" if "ct" in found else "mr" if found & _MR_WORDS else ""
