"""The contrasts of MR volumes, joined by case."""

from collections.abc import Sequence
from dataclasses import replace

from data.errors import InputError
from data.prepared.sources import Source, find_sources
from data.volumes.contrasts import in_order, split_name


def find_contrasts(
    option: str,
    patterns: Sequence[Sequence[str]],
    mask_patterns: Sequence[str],
    patient_regex: str | None,
    series_uids: Sequence[str] = (),
    case_regex: str | None = None,
    names: Sequence[str] = (),
) -> list[Source]:
    """Return the volumes of globs, or those of several `NAME=GLOB` joined by case.

    The first contrast gives a case its body, and its mask where there are any.

    Args:
        option: that gave the patterns, for messages.
        patterns: what each use of the option was given: once, globs and paths; or `NAME=GLOB` for each contrast.
        mask_patterns, patient_regex, series_uids, case_regex: as in `find_sources`.
        names: the contrasts that there must be, in their order; none: those of the patterns.

    Raises:
        InputError: as `find_sources`; a pattern without a name beside others, a name that is missing or given twice, a
            case that lacks a contrast or has it twice.
    """
    given = [split_name(pattern) for words in patterns for pattern in words]
    unnamed = [pattern for name, pattern in given if name is None]
    if len(unnamed) == len(given) and len(patterns) == 1 and not names:
        return find_sources(unnamed, mask_patterns, patient_regex, series_uids, case_regex)
    if unnamed and len(given) > 1:
        raise InputError(
            f"{option} {unnamed[0]}: has no name beside others; for several contrasts of each MR write {option} "
            f"NAME=GLOB for each; for more patients, give all globs after one {option}"
        )
    names = names or list(dict.fromkeys(name for name, _ in given if name))
    found: dict[str, dict[str, Source]] = {}
    for name, pattern in zip(names, in_order(option, given, names), strict=True):
        masks = () if found else mask_patterns
        found[name] = _by_case(option, find_sources([pattern], masks, patient_regex, series_uids, case_regex, name))
    cases = list(dict.fromkeys(case for of_contrast in found.values() for case in of_contrast))
    lacking = [f"{case} has no {name}" for case in cases for name in names if case not in found[name]]
    if lacking:
        raise InputError(
            f"{option}: {'; '.join(lacking[:5])}{' ...' if len(lacking) > 5 else ''}; expected every contrast of "
            "every case, in files whose names differ only in the contrast; --case_regex tells which part of a path "
            "is the case"
        )
    first, *others = names
    return [
        replace(source, further=tuple(found[name][case] for name in others)) for case, source in found[first].items()
    ]


def _by_case(option: str, sources: list[Source]) -> dict[str, Source]:
    by_case: dict[str, Source] = {}
    for source in sources:
        if source.name in by_case:
            raise InputError(
                f"{option} {source.contrast}=...: the case {source.name} has it twice, {by_case[source.name].path} "
                f"and {source.path}; leave one out, or tell with --case_regex which part of a path is the case"
            )
        by_case[source.name] = source
    return by_case
