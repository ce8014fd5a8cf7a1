"""Find the volumes of a cohort; their names are those of `data/prepared/case_names.py`.

Of several DICOM series in one folder each adds the hash of its UID. A volume that was converted under another name,
when it was alone in its folder, keeps that. Where two paths cannot but share a name, both are reported rather than one
chosen.
"""

import csv
import glob
import io
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pydicom

from data.errors import InputError
from data.files import check_is_folder, check_regular, hash_files
from data.prepared.case_names import below, case_name, full_name, is_clean, short_hash
from data.volumes.contrasts import ONLY_CONTRAST, selector
from data.volumes.dicom import DicomSeries, holds_dicom, list_series
from data.volumes.dicom_series import check_text
from data.volumes.paths import find_paths, hash_source, is_folder, is_series, is_volume, source_files
from evaluation.patterns import kind_of, propose_glob

# Beside the id, and the path or a column for each contrast.
_PATIENT_COLUMNS = {"patient_name": "PN", "patient_id": "LO"}
OPTIONAL_COLUMNS = ("reference", "mask", "series_uid", *_PATIENT_COLUMNS)


@dataclass(frozen=True)
class CohortCase:
    """One volume to convert.

    Attributes:
        name: unique in the cohort, and a file name.
        path: volume file, or the folder of a DICOM series.
        series_uid, files: the DICOM series and its files; None and empty for a volume file.
        alone: whether the path is enough to read it: no other series or contrast lies in its folder.
        other_names: what it is called among other volumes or alone: it may have been converted as that. The first
            tells it from every other volume of the cohort.
        reference: true CT on the MR's grid, to score against.
        mask: body mask on the MR's grid, in place of the computed one.
        contrast: which contrast the volume is, to choose it in a folder that holds several; None: the only one.
        patient_name, patient_id: for a DICOM series that is written of it.
        further: name and path of the MR's other contrasts, in the model's order.
        problem: why it cannot be converted, where that is known without reading it.
    """

    name: str
    path: Path
    series_uid: str | None = None
    files: tuple[Path, ...] = ()
    alone: bool = True
    other_names: tuple[str, ...] = ()
    reference: Path | None = None
    mask: Path | None = None
    problem: str | None = None
    contrast: str | None = None
    further: tuple[tuple[str, Path], ...] = ()
    patient_name: str | None = None
    patient_id: str | None = None

    def hash(self) -> str:
        """Return the SHA-256 of the volumes' files. Raises `InputError` if one cannot be read."""
        if self.further:
            return hash_files([file for path in self.paths.values() for file in source_files(path)])
        return hash_files(self.files) if self.files else hash_source(self.path)

    @property
    def paths(self) -> dict[str, Path]:
        """The path of each contrast by name."""
        return {self.contrast or ONLY_CONTRAST: self.path, **dict(self.further)}


class _Wanted(NamedTuple):
    """Which DICOM series are cases: those of a modality, and with a matching description if one is given."""

    modality: str
    description: re.Pattern | None


@dataclass(frozen=True)
class Cohort:
    """The cases, by name, and the DICOM series and volume files that were skipped, with the reason."""

    cases: tuple[CohortCase, ...]
    passed_over: tuple[str, ...] = ()


def find_cohort(
    root: Path,
    patterns: Sequence[str] | None = None,
    series_description: re.Pattern | None = None,
    without: Path | None = None,
    modality: str = "MR",
    known_name: Callable[[CohortCase], str | None] = lambda case: None,
) -> Cohort:
    """Find the volume files and the DICOM series of a modality below `root`.

    An empty folder is a case that cannot be converted: most often an export that failed. Hidden files, localisers,
    series of other modalities and volume files beside DICOM slices that are a case are skipped.

    Args:
        root: where to look.
        patterns: globs relative to `root` for files and for the folders of DICOM series; None takes all.
        series_description: only DICOM series whose description it matches.
        without: a folder below `root` to leave out: that of the results.
        modality: of the DICOM series, 'MR' or 'CT'.
        known_name: gives the name that a case was converted under; it keeps that, and new ones get others.

    Raises:
        InputError: `root` is no folder, or nothing is found.
    """
    check_is_folder("--input_dir", root)
    matches = {match for pattern in patterns or ["**"] for match in glob_below(root, pattern)}
    if not patterns:
        matches.add(Path())
    hidden = without.resolve() if without else None
    cases, passed_over = [], []
    series = set()  # folders whose series are cases; they come before what lies in them
    for relative in sorted(matches):
        path = root / relative
        if hidden and path.resolve().is_relative_to(hidden):
            continue
        if is_folder(path):
            wanted_series = _Wanted(modality, series_description)
            found, left = _cases_of_folder(path, root, wanted_series, empty=relative != Path())
            cases += found
            passed_over += left
            if found and is_series(path):
                series.add(relative)
        elif is_volume(path) and relative.parent in series:
            passed_over.append(
                f"{path}: beside DICOM slices; to convert it, name it with --pattern and leave out their folder"
            )
        elif is_volume(path):
            cases.append(_case(path, root))
    if not cases:
        wanted = f"that matches {' or '.join(patterns)}" if patterns else "in it or in a folder below it"
        raise InputError(
            f"--input_dir {root}: no volume file and no folder of DICOM {modality} images {wanted}"
            + (f" (passed over: {len(passed_over)} others)" if passed_over else "")
            + (_example(root, modality) if patterns else "")
        )
    return Cohort(tuple(_with_unique_names(cases, known_name)), tuple(passed_over))


def _example(root: Path, modality: str) -> str:
    """Return the end of an error: a pattern for the volume files that a folder does hold; "" for none.

    They are those of the modality by their names; without any, those whose names do not tell.
    """
    kinds = {path: kind_of(path.as_posix()) for path in sorted(glob_below(root, "**")) if is_volume(root / path)}
    for kind in (modality.lower(), ""):
        if wanted := [path for path, known in kinds.items() if known == kind]:
            break
    else:
        return ""
    found = propose_glob(wanted, kinds.keys() - set(wanted), lambda pattern: glob_below(root, pattern))
    if found is None or found[1] == 1:
        first = wanted[0]
        glob_of_first = str(Path(*["*"] * (len(first.parts) - 1), first.name))
        return f"; it holds {first}: --pattern {shlex.quote(glob_of_first)} would match that"
    pattern, count = found
    return f"; --pattern {shlex.quote(pattern)} would match {count} volume files"


def glob_below(root: Path, pattern: str) -> list[Path]:
    """Return what a glob names below `root`, relative to it, without `root` itself."""
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise InputError(f"--pattern {pattern}: expected a glob relative to --input_dir {root}")
    found = (below(root, path) for path in find_paths(f"{glob.escape(str(root))}/{pattern}"))
    return [path for path in found if path != Path()]


def _case(path: Path, root: Path) -> CohortCase:
    return CohortCase(case_name(path, root), path, other_names=(full_name(path, root),))


def _cases_of_folder(folder: Path, root: Path, wanted: _Wanted, empty: bool) -> tuple[list[CohortCase], list[str]]:
    """Return the cases of a folder and its skipped series; `empty`: whether an empty folder is a case."""
    case = _case(folder, root)
    try:
        children = [path for path in folder.iterdir() if not path.name.startswith(".")]
        if not children and empty:
            return [replace(case, problem=f"{folder}: the folder is empty; expected DICOM images")], []
        if not holds_dicom(folder):
            return [], []
        series = list_series(folder)
    except OSError as error:
        return [replace(case, problem=f"{folder}: cannot be read: {error}")], []
    if not series and not any(path.name.upper() == "DICOMDIR" for path in children):
        return [replace(case, problem=f"{folder}: DICOM files, but no image that can be read")], []
    try:
        reasons = {one.uid: _why_not(one, wanted) for one in series}
    except Exception as error:  # pydicom raises errors of many types on damaged headers
        return [replace(case, problem=f"{folder}: cannot be read: {error}")], []
    taken = [one for one in series if not reasons[one.uid]]
    cases = [_with_series(case, one, alone=len(series) == 1) for one in taken]
    if len(taken) > 1:
        cases = [_with_name_of_series(one) for one in cases]
    return cases, [f"{folder}: {one.describe()}: {reasons[one.uid]}" for one in series if reasons[one.uid]]


def _with_series(case: CohortCase, series: DicomSeries, alone: bool) -> CohortCase:
    files = tuple(dict.fromkeys(file for file, _ in series.files))
    return replace(case, series_uid=series.uid, files=files, alone=alone)


def _with_name_of_series(case: CohortCase) -> CohortCase:
    alone = (case.name, *case.other_names)
    name, *others = (f"{one}__{short_hash(case.series_uid or '')}" for one in alone)
    return replace(case, name=name, other_names=(*others, *alone))


def _why_not(series: DicomSeries, wanted: _Wanted) -> str | None:
    """Return why a DICOM series is not a case, or None."""
    file, header = series.files[0]
    modality, description = wanted
    if header.get("Modality") != modality:
        return f"not {modality}"
    if description and not description.search(str(header.get("SeriesDescription", ""))):
        return f"description without {description.pattern!r}"
    image_type = pydicom.dcmread(file, specific_tags=["ImageType"], stop_before_pixels=True, force=True)
    if "LOCALIZER" in [str(value).upper() for value in image_type.get("ImageType") or []]:
        return "a localiser"
    return None


def _with_unique_names(
    cases: Iterable[CohortCase], known_name: Callable[[CohortCase], str | None]
) -> Iterator[CohortCase]:
    found = [(case, known_name(case)) for case in cases]
    settled = [renamed(case, name) for case, name in found if name]
    new = [case for case, name in found if not name]
    kept = {id(case) for case in settled}
    shared = Counter(one for case, name in found for one in {case.name, name or case.name})
    new = [case if shared[case.name] == 1 else renamed(case, case.other_names[0]) for case in new]
    cases = sorted((*settled, *new), key=lambda case: (case.name, str(case.path)))
    counts = Counter(case.name for case in cases)
    for case in cases:
        if counts[case.name] == 1 or id(case) in kept:
            yield case
            continue
        others = ", ".join(str(other.path) for other in cases if other.name == case.name and other is not case)
        problem = (
            f"{case.path}: its result would be called {case.name} like that of {others}; rename one, or use a --list"
        )
        yield replace(case, name=f"{case.name}__{short_hash(str(case.path))}", problem=problem)


def renamed(case: CohortCase, name: str) -> CohortCase:
    """Return a case under one of its other names."""
    others = tuple(one for one in (case.name, *case.other_names) if one != name)
    return replace(case, name=name, other_names=others)


def read_list(path: Path, contrasts: Sequence[str] = (ONLY_CONTRAST,), modality: str = "MR") -> Cohort:
    """Read a table of cases: columns `id` and `path`, and optionally those of `OPTIONAL_COLUMNS`.

    For a model of several contrasts there is a column for each, called like it, in place of `path`. `modality`, 'MR' or
    'CT', is that of the DICOM series.

    Columns stand in any order, parted by commas, semicolons or tabs; relative paths start at the table's folder.

    Raises:
        InputError: the table cannot be read, lacks a column, or an id is missing, repeated or no file name.
    """
    try:
        check_regular(path)
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--list {path}: cannot be read as UTF-8 text: {error}") from error
    except OSError as error:
        raise InputError(f"--list {path}: cannot be read: {error.strerror or error}") from error
    try:
        return _cohort_of_table(path, text, contrasts, modality)
    except csv.Error as error:  # among others, a value of more than 131,072 characters: most often a quote that is open
        raise InputError(
            f"--list {path}: not a table: {error}; expected one line for each case and paired quotes"
        ) from error


def _cohort_of_table(path: Path, text: str, contrasts: Sequence[str], modality: str) -> Cohort:
    header = text.partition("\n")[0]
    lines = io.StringIO(text, newline="")
    rows = csv.DictReader(lines, delimiter=max(",;\t", key=header.count), skipinitialspace=True)
    columns = [column.strip() for column in rows.fieldnames or []]
    images = {name: "path" for name in contrasts} if len(contrasts) == 1 else {name: name for name in contrasts}
    needed = ["id", *images.values()]
    unknown = set(columns) - {*needed, *OPTIONAL_COLUMNS}
    if not set(needed) <= set(columns) or unknown or len(set(columns)) < len(columns):
        raise InputError(
            f"--list {path}: columns {', '.join(columns) or 'none'}; expected {', '.join(needed)} and optionally "
            f"{', '.join(OPTIONAL_COLUMNS)}, each once"
        )
    rows.fieldnames = columns
    cases = []
    for row in rows:
        where = f"--list {path}, line {rows.line_num}"
        if None in row:
            raise InputError(f"{where}: more values than columns; put a value that holds the delimiter in quotes")
        values = {key: (value or "").strip() for key, value in row.items()}
        if any(values.values()):
            case = _listed_case(path.parent, values, where, images, modality)
            cases.append(_with_patient(case, values, where))
    twice = sorted(name for name, count in Counter(case.name.lower() for case in cases).items() if count > 1)
    if twice or not cases:
        raise InputError(f"--list {path}: " + (f"ids more than once: {', '.join(twice[:5])}" if twice else "no case"))
    return Cohort(tuple(cases))


def _listed_case(folder: Path, row: dict[str, str], where: str, images: dict[str, str], modality: str) -> CohortCase:
    """Return the case of a row; `images`: the column of each contrast."""
    name = row["id"]
    if not is_clean(name):
        raise InputError(f"{where}: id {name!r}; expected letters, digits and _ . + -")
    paths = {contrast: folder / row[column] for contrast, column in images.items() if row.get(column)}
    if not paths:
        raise InputError(f"{where}: no {', no '.join(images.values())}")
    (first, path), *further = paths.items()
    reference, mask = (folder / row[key] if row.get(key) else None for key in ("reference", "mask"))
    case = CohortCase(
        name, path, row.get("series_uid") or None, reference=reference, mask=mask, contrast=selector(first),
        further=tuple(further),
    )  # fmt: skip
    if missing := [contrast for contrast in images if contrast not in paths]:
        return replace(case, problem=f"{where}: no {', no '.join(missing)} of {name}")
    for contrast, one in paths.items():
        if not exists(one):
            which = f" ({contrast} of {name})" if further else ""
            return replace(case, problem=f"{one}: no such file or folder{which}")
    return _listed_series(case, modality) if path.is_dir() and not case.contrast else case


def _with_patient(case: CohortCase, row: dict[str, str], where: str) -> CohortCase:
    texts = []
    for column, vr in _PATIENT_COLUMNS.items():
        try:
            texts.append(check_text(vr, row[column]) if row.get(column) else None)
        except InputError as error:
            return replace(case, problem=f"{where}: {column}: {error}")
    name, patient_id = texts
    return replace(case, patient_name=name, patient_id=patient_id)


def exists(path: Path) -> bool:
    """Tell whether a file or folder exists; one that cannot be accessed, by its rights or length, does not.

    A cohort continues after it.
    """
    try:
        return path.exists()
    except OSError:
        return False


def _listed_series(case: CohortCase, modality: str) -> CohortCase:
    """Return a listed DICOM folder with its series, or with the problem."""
    try:
        found = list_series(case.path)
    except OSError as error:
        return replace(case, problem=f"{case.path}: cannot be read: {error}")
    wanted = [one for one in found if case.series_uid in (None, one.uid)]
    wanted = [one for one in wanted if one.files[0][1].get("Modality") == modality] if len(wanted) > 1 else wanted
    if len(wanted) == 1:
        return _with_series(case, wanted[0], alone=len(found) == 1)
    held = "; ".join(one.describe() for one in found) or "no DICOM image"
    return replace(case, problem=f"{case.path}: expected one DICOM {modality} series, or its series_uid; holds {held}")
