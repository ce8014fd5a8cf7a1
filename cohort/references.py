"""Find the true CT of a cohort's cases below the folder that was searched for their MR."""

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

from cohort.inputs import Cohort
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
        InputError: the pattern is unusable, or fits no case, or one CT fits several.
    """
    source = CaseVolumes("--input_dir", folder, pattern, "ct", pattern_called="--reference_pattern")
    try:
        found = case_volumes(source) or {}
    except InputError as error:
        raise InputError(f"{error}; {_WAY_OUT}") from error
    cases, without = [], []
    for case in cohort.cases:
        called = (case.name, *case.other_names, *map(patient_part, (case.name, *case.other_names)))
        called += tuple(clean(part) for part in reversed(below(folder, case.path).parts[:-1]))
        names = [name for name in called if name in found]
        cases.append(replace(case, reference=found[names[0]]) if names else case)
        without += [] if names else [case.name]
    if cases and len(without) == len(cases):
        ct, mr = (
            listed([f"{name} ({path})" for name, path in there], _NAMED)
            for there in (list(found.items()), [(case.name, case.path) for case in cases])
        )
        raise InputError(
            f"--reference_pattern {pattern}: no CT and MR share a name. CT found: {ct}; MR found: {mr}; change the "
            f"pattern ({{case}} is the name of a case or of a folder that its MR lies in), {_WAY_OUT}"
        )
    used = Counter(case.reference for case in cases if case.reference)
    if shared := [path for path, count in used.items() if count > 1]:
        raise InputError(f"--reference_pattern {pattern}: {shared[0]} fits several cases; {_WAY_OUT}")
    if without:
        log.warning("%d of %d cases have no true CT: %s", len(without), len(cases), listed(without, _NAMED))
    return replace(cohort, cases=tuple(cases))
