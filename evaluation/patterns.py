"""Proposes patterns, from the files that are there: of one folder, or by which the cases of two folders agree."""

import glob
import logging
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from data.errors import InputError
from data.prepared.case_names import below, clean, names_somebody, patient_part, words
from data.volumes.paths import is_folder, is_volume_or_series
from data.volumes.volume import volume_stem
from evaluation.case_folders import CASE, CaseVolumes, search

log = logging.getLogger(__name__)

# Words of file names that tell what an image is.
MASK_WORDS = frozenset({"mask", "masks", "seg", "segmentation", "label", "labels"})
_MR_WORDS = frozenset({"mr", "mri", "t1", "t1w", "t2", "t2w"})
_SYNTHETIC = re.compile(r"(s|syn|synth|synthetic|pseudo|fake)ct|synth(etic)?|pseudo|fake|pred(icted|iction|ictions)?")
_COMPARED = 12  # patterns of each side, those of the most files
_LISTED = 3  # other proposals that are named
_DEPTH, _ENTRIES = 4, 20_000  # of a folder that is searched for volumes


class Proposal(NamedTuple):
    """Two sources whose cases agree, and how many of how many; rivals that match as many, of other volumes."""

    pred: CaseVolumes
    other: CaseVolumes
    matched: int
    total: int
    rivals: tuple["Proposal", ...] = ()

    def describe(self, pred: CaseVolumes, other: CaseVolumes) -> str:
        """Return in words the options to add to the two sources as they were given."""
        options, several = self._options(pred, other)
        count = f"all {self.total}" if self.matched == self.total else f"{self.matched} of {self.total}"
        cases = f"{count} cases" if self.total > 1 else "the case"
        named = [one._options(pred, other)[0] for one in self.rivals[:_LISTED]]
        named += [f"{len(self.rivals) - _LISTED} more"] if len(self.rivals) > _LISTED else []
        rivals = f" (others that match as many: {'; '.join(named)})" if named else ""
        return f"{options}, which {'match' if several else 'matches'} {cases}{rivals}"

    def _options(self, pred: CaseVolumes, other: CaseVolumes) -> tuple[str, bool]:
        changed = [new for new, old in ((self.pred, pred), (self.other, other)) if new != old]
        return " ".join(f"{one.pattern_option} {shlex.quote(one.pattern or '')}" for one in changed), len(changed) > 1


def with_case(text: str, key: str) -> str:
    """Return a text with {case} in place of a key where it stands as a whole word."""
    return re.sub(rf"(?<![^\W_]){re.escape(key)}(?![^\W_])", CASE, text) if key else text


def propose(pred: CaseVolumes, other: CaseVolumes, look: Callable[[Path], list[Path]]) -> Proposal | None:
    """Return patterns by which the most cases of `pred` are in `other`, None where no case would be.

    The pattern of `pred` is another one only if that matches more. `look` is `volumes_below`, or remembers what it
    returned.
    """
    found = search(pred) or {}
    proposals: list[tuple[tuple, Proposal, list[Path]]] = []
    for rank, _, first, second in _ranked(pred, other, found, look):
        if proposals and rank != proposals[0][0]:
            break
        one = pred if first == (pred.pattern or "") else replace(pred, pattern=first)
        another = replace(other, pattern=second)
        try:
            named, there = search(one) or {}, search(another) or {}
        except InputError:  # as where two files would be one case
            continue
        matched = sorted(
            name
            for name in named.keys() & there.keys()
            if _may_be(below(other.path, there[name]).as_posix(), other.kind)
        )
        volumes = [volumes[name] for name in matched for volumes in (named, there)]
        if matched and volumes not in [known for *_, known in proposals]:  # by other words, the same volumes
            proposals.append((rank, Proposal(one, another, len(matched), len(found) or len(named)), volumes))
    if not proposals:
        return None
    best, *rest = (proposal for _, proposal, _ in proposals)
    return best._replace(rivals=tuple(one for one in rest if one.matched == best.matched))


def _ranked(
    pred: CaseVolumes, other: CaseVolumes, found: dict[str, Path], look: Callable[[Path], list[Path]]
) -> list[tuple[tuple, int, str, str]]:
    """Return pairs of patterns that have cases in common, the best first, each with its rank."""
    results = [below(pred.path, path) for path in found.values()] or look(pred.path)
    mine = _patterns(results)
    if pred.kind == "ct":  # results may be called after their MR, CT that are given are not
        mine = {pattern: keys for pattern, keys in mine.items() if _may_be(pattern, "ct")}
    theirs = {pattern: keys for pattern, keys in _patterns(look(other.path)).items() if _may_be(pattern, other.kind)}
    kept = pred.pattern or ""
    if found:
        mine[kept] = set(found)
    pairs = []
    for first, keys in _most_matched(mine, kept):
        for second, others in _most_matched(theirs):
            if keys & others:
                kinds = (kind_of(first) != pred.kind, kind_of(second) != other.kind)
                rank = (-len(keys & others), first != kept, *kinds)
                pairs.append((rank, len(second), first, second))
    return sorted(pairs)


def propose_alone(source: CaseVolumes, there: Sequence[Path]) -> tuple[str, int] | None:
    """Return the pattern by which a folder has the most cases of the source's kind, and how many.

    Args:
        source: a folder of cases whose own pattern finds none.
        there: what lies below it, as `volumes_below` returns it.

    Returns:
        None where no pattern finds any, or names say that all are of other kinds.
    """
    theirs = {pattern: keys for pattern, keys in _patterns(there).items() if _may_be(pattern, source.kind)}
    tried = []
    for pattern, _ in _most_matched(theirs):
        try:
            found = (search(replace(source, pattern=pattern)) or {}).values()
        except InputError:  # as where two files would be one case
            continue
        if all(_may_be(below(source.path, path).as_posix(), source.kind) for path in found):
            tried.append((kind_of(pattern) != source.kind, -len(found), len(pattern), pattern))
    return (min(tried)[-1], -min(tried)[1]) if tried else None


def propose_glob(
    wanted: Collection[Path], others: Collection[Path], look: Callable[[str], Collection[Path]]
) -> tuple[str, int] | None:
    """Return a glob that names the most of the wanted paths and none of the others, and how many of them.

    Args:
        wanted, others: MR, and what is none, relative to the folder that is searched.
        look: returns the paths that a glob names there: each is tried.

    Returns:
        None where no glob tells them apart.
    """
    tried = []
    for pattern, _ in _most_matched(_patterns(sorted(wanted))):
        name = "*".join(map(glob.escape, pattern.split(CASE)))
        for one in dict.fromkeys((name, f"**/{Path(name).name}")):
            found = set(look(one))
            if found.isdisjoint(others) and (count := len(found.intersection(wanted))):
                tried.append((-count, "**" in one, kind_of(one) != "mr", len(one), one))
    return (min(tried)[-1], -min(tried)[0]) if tried else None


def volumes_below(folder: Path) -> list[Path]:
    """Return the volume files and DICOM folders below a folder, relative to it: of a large one those on top.

    Hidden ones are left out.
    """
    found, looked_at, folders = [], 0, [folder]
    for _ in range(_DEPTH):
        entries = list(islice((path for one in folders for path in _entries(one)), _ENTRIES - looked_at))
        looked_at += len(entries)
        folders = [path for path in entries if is_folder(path)]
        found += [below(folder, path) for path in entries if is_volume_or_series(path)]
        if looked_at == _ENTRIES:
            log.info("%s: looked for patterns among %d of its files and folders only", folder, looked_at)
            break
    return sorted(found)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(islice((path for path in folder.iterdir() if path.name[0] != "."), _ENTRIES))
    except OSError:
        return []


def _patterns(paths: Sequence[Path]) -> dict[str, set[str]]:
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


def _may_be(pattern: str, kind: str) -> bool:
    return not kind or kind_of(pattern) in ("", kind)


def kind_of(pattern: str) -> str:
    """Return what the words of a pattern or path say that an image is: mask, sct (synthetic CT), ct, mr or nothing."""
    found = words(pattern)
    if MASK_WORDS.intersection(found):
        return "mask"
    if any(map(_SYNTHETIC.fullmatch, found)):
        return "sct"
    return "ct" if "ct" in found else "mr" if _MR_WORDS.intersection(found) else ""
