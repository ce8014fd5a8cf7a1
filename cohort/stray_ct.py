"""CT among the MR of a searched folder: told by their names before a conversion, and by their values after it."""

import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from cohort.inputs import CohortCase, glob_below
from cohort.results import CaseRecord
from data.errors import listed
from data.prepared.case_names import below
from data.values.modality import SWAPPED
from data.volumes.paths import is_volume_or_series
from evaluation.patterns import kind_of, propose_glob

_LISTED = 3


def is_ct(record: CaseRecord) -> bool:
    """Tell whether a case failed because its values are those of a CT."""
    return record.status == "failed" and SWAPPED in record.reason


def warning_by_name(todo: Sequence[CohortCase], cases: Sequence[CohortCase], root: Path) -> str | None:
    """Return the warning of volume files to be converted whose names say CT, where others' do not; None for none."""
    called = [case for case in todo if case.series_uid is None and _kind(case, root) in ("ct", "sct")]
    if not called or all(_kind(case, root) in ("ct", "sct", "mask") for case in cases):
        return None
    names = listed([str(below(root, case.path)) for case in called], _LISTED)
    return (
        f"{len(called)} of {len(cases)} volumes look like CT by name, and will fail if their values confirm it: "
        f"{names}; {_way_out(called, cases, root)}"
    )


def failures(cases: Sequence[CohortCase], records: Mapping[str, CaseRecord], root: Path | None) -> str | None:
    """Return the account of the cases that failed because they are CT; None for none.

    `root`: the folder that they were searched for in; None of a table.
    """
    stray = [case for case in cases if case.name in records and is_ct(records[case.name])]
    if not stray:
        return None
    names = listed([case.name for case in stray], _LISTED)
    one = len(stray) == 1
    what = "1 failed case looks like CT, by its" if one else f"{len(stray)} failed cases look like CT, by their"
    way_out = _way_out(stray, cases, root) if root else f"leave {'it' if one else 'them'} out of the table"
    return f"{what} values: {names}; {way_out}"


def _kind(case: CohortCase, root: Path) -> str:
    return kind_of(below(root, case.path).as_posix())


def _way_out(stray: Collection[CohortCase], cases: Sequence[CohortCase], root: Path) -> str:
    """Return the pattern that takes the other cases alone, as it was tried; without one, what to do."""
    others = [case for case in cases if case not in stray and _kind(case, root) != "mask"]
    wanted = [case for case in others if _kind(case, root) not in ("ct", "sct")] or others
    if not wanted:
        return "give the folder of the MR, or choose them with --pattern"
    inputs = {below(root, case.path) for case in cases}
    mr = {below(root, case.path) for case in wanted}
    found = propose_glob(mr, inputs - mr, lambda pattern: glob_below(root, pattern))
    if found is None:
        return "choose the MR with --pattern"
    pattern, count = found
    rest = "the other volume" if len(mr) == 1 else f"the {len(mr)} others"
    taken = rest if count == len(mr) else f"{count} of {rest}"
    more = sum(is_volume_or_series(root / path) for path in set(glob_below(root, pattern)) - mr)
    beyond = f", and {more} more that you did not choose here" if more else " and nothing else"
    return f"--pattern {shlex.quote(pattern)} takes {taken}{beyond}"
