"""Find patients with several contrasts below a folder, by one pattern for each contrast, joined by case."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cohort.inputs import Cohort, CohortCase, find_cohort, glob_below
from data.errors import InputError
from data.files import check_is_folder
from data.prepared.case_names import name_cases, name_without
from data.volumes.contrasts import in_order, selector, split_name
from data.volumes.paths import is_volume_or_series


def find_contrast_cohort(
    root: Path,
    patterns: Sequence[str] | None,
    series_description: re.Pattern | None,
    without: Path | None,
    names: Sequence[str],
    modality: str = "MR",
    known_name: Callable[[CohortCase], str | None] = lambda case: None,
) -> Cohort:
    """Return the cases below `root` for a model of the contrasts `names`; arguments and errors as in `find_cohort`.

    With several contrasts each has a pattern, `NAME=GLOB`. A case is called by its path without the contrast's name.
    One that lacks a contrast, or has it twice, is reported and costs no other.
    """
    given = [split_name(pattern) for pattern in patterns or ()]
    if len(names) == 1 and all(name is None for name, _ in given):
        cohort = find_cohort(root, patterns, series_description, without, modality, known_name)
        return replace(cohort, cases=tuple(replace(case, contrast=selector(names[0])) for case in cohort.cases))
    if series_description:
        raise InputError("--series_description: contrasts are distinguished by name; leave it out, or use a --list")
    check_is_folder("--input_dir", root)
    hidden = without.resolve() if without else None
    found: dict[str, dict[str, list[Path]]] = {}
    for name, pattern in zip(names, in_order("--pattern", given, names), strict=True):
        matches = sorted(root / relative for relative in glob_below(root, pattern))
        paths = [path for path in matches if is_volume_or_series(path)]
        paths = [path for path in paths if not (hidden and path.resolve().is_relative_to(hidden))]
        for path, called in zip(paths, name_cases(paths, [root] * len(paths)), strict=True):
            case = name_without(called, name, path)
            found.setdefault(case, {}).setdefault(name, []).append(path)
    if not found:
        raise InputError(
            f"--input_dir {root}: no volume file or DICOM folder that matches {' or '.join(patterns or ())}"
        )
    return Cohort(tuple(_joined(case, by_name, names) for case, by_name in sorted(found.items())))


def _joined(name: str, by_contrast: dict[str, list[Path]], names: Sequence[str]) -> CohortCase:
    missing = [contrast for contrast in names if contrast not in by_contrast]
    twice = [
        f"{contrast} twice ({', '.join(map(str, paths))})" for contrast, paths in by_contrast.items() if len(paths) > 1
    ]
    paths = {contrast: by_contrast[contrast][0] for contrast in names if contrast in by_contrast}
    (first, path), *further = paths.items()
    wrong = [f"no {', no '.join(missing)}"] * bool(missing) + twice
    problem = f"{path}: the case {name} has {' and '.join(wrong)}; expected {', '.join(names)}, each once"
    return CohortCase(name, path, contrast=selector(first), further=tuple(further), problem=problem if wrong else None)
