"""Find the true CT of a cohort's cases below the folder that was searched for their MR."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cohort.inputs import Cohort, CohortCase
from data.errors import InputError, listed
from data.prepared.case_names import below, clean, patient_part
from evaluation.case_folders import CaseVolumes
from evaluation.cases import case_volumes

log = logging.getLogger(__name__)

_WAY_OUT = "or name each true CT in the column reference of a --list"
_NAMED = 5  # so many of several names are said


def with_references(cohort: Cohort, folder: Path, pattern: str) -> Cohort:
    """Return the cohort with the true CT of each case that has one.

    Args:
        cohort: cases without references.
        folder: where they were searched for.
        pattern: where the CT of a case lies below it, with {case} for its name, alone or among other volumes, or for
            the patient's part of that: P07 of P07_MR_T1; or for a folder that its MR lies in.

    Raises:
        InputError: the pattern is unusable, or fits no case, or by their names one CT fits several.
    """
    source = CaseVolumes("--input_dir", folder, pattern, "ct", pattern_called="--reference_pattern")
    try:
        found = case_volumes(source) or {}
    except InputError as error:
        raise InputError(f"{error}; {_WAY_OUT}") from error
    named = {case.name: _by_name(found, case) for case in cohort.cases}
    used = Counter(name for name in named.values() if name)
    if shared := [found[name] for name, count in used.items() if count > 1]:
        raise InputError(f"--reference_pattern {pattern}: {shared[0]} fits several cases; {_WAY_OUT}")
    in_folder = {case.name: _by_folder(found, case, folder) for case in cohort.cases if not named[case.name]}
    used.update(name for name in in_folder.values() if name)
    alone = {case: name for case, name in in_folder.items() if name and used[name] == 1}
    if several := [case for case, name in in_folder.items() if name and case not in alone]:
        log.warning(
            "warning: %s share a true CT in their folder and are not scored; name each true CT in the column reference "
            "of a --list", listed(several, _NAMED),
        )  # fmt: skip
    chosen = {case: name for case, name in (named | alone).items() if name}
    cases = [
        replace(case, reference=found[chosen[case.name]]) if case.name in chosen else case for case in cohort.cases
    ]
    without = [case.name for case in cases if case.name not in chosen]
    if cases and len(without) == len(cases):
        ct, mr = (
            listed([f"{name} ({path})" for name, path in there], _NAMED)
            for there in (list(found.items()), [(case.name, case.path) for case in cases])
        )
        raise InputError(
            f"--reference_pattern {pattern}: no CT and MR share a name. CT found: {ct}; MR found: {mr}; change the "
            f"pattern ({{case}} is the name of a case or of a folder that its MR lies in), {_WAY_OUT}"
        )
    if without:
        log.warning("%d of %d cases have no true CT: %s", len(without), len(cases), listed(without, _NAMED))
    return replace(cohort, cases=tuple(cases))


def _by_name(found: Mapping[str, Path], case: CohortCase) -> str | None:
    """Return the name of the true CT that is called like a case, or like the patient's part of its name."""
    names = (case.name, *case.other_names)
    return next((name for name in (*names, *map(patient_part, names)) if name in found), None)


def _by_folder(found: Mapping[str, Path], case: CohortCase, root: Path) -> str | None:
    """Return the name of the true CT that is called like a folder which the MR lies in, the nearest one."""
    folders = (clean(part) for part in reversed(below(root, case.path).parts[:-1]))
    return next((name for name in folders if name in found), None)
