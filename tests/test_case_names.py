"""One rule names cases and results, whichever command asks."""

import re
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import test_adapt
from cohort.inputs import find_cohort
from cohort.pipeline import _known_name
from cohort.results import CaseRecord, Results
from data.prepared.case_names import case_name, name_cases, searched_folder
from data.prepared.sources import find_sources
from tests.test_sources import touch
from tests.test_volume import write_series


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("raw/STS_024/MR_T1", "STS_024"),
        ("raw/P07/mr.nii.gz", "P07"),
        ("raw/P07.nii.gz", "P07"),
        ("raw/P07/P07_MR_T1.nii.gz", "P07_MR_T1"),
        ("raw/P 7/T1.mha", "P_7"),
        ("raw/P07/DICOM/ST000001/SE000004", "P07"),
        ("raw/P07/1.2.840.113619.2.1/1.2.840.113619.2.2", "P07"),
        ("raw/sub-01/anat/sub-01_T1w.nii", "sub-01_T1w"),
        ("raw/mr.nii.gz", "mr"),
        ("raw/P7/MR/DICOM", "P7"),
    ],
)
def test_every_command_gives_a_volume_the_same_name(tmp_path, path, name):
    if Path(path).suffix in (".gz", ".nii", ".mha"):
        touch(tmp_path, path)
    else:
        write_series(tmp_path / path)
    assert test_adapt.case_of({"mr": tmp_path / path}) == name
    assert [case.name for case in find_cohort(tmp_path / "raw").cases] == [name]
    parts = Path(path).parts
    depth = "/".join("*" for _ in parts[1:-1])
    pattern = f"{tmp_path}/raw/{depth}{'/' if depth else ''}{parts[-1]}"
    assert [source.name for source in find_sources([pattern], (), None)] == [name]
    assert [source.name for source in find_sources([str(tmp_path / path)], (), None)] == [name]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("MR.nii.gz", "MR"),  # a folder that the user did not name is no patient's
        ("../mr.nii.gz", "mr"),
        ("downloads/mr.nii.gz", "mr"),
        ("/home/anna/mr.nii.gz", "mr"),
        ("/scans_of_the_second_half_of_2024/mr.nii.gz", "mr"),
        ("/mr.nii.gz", "mr"),
        ("P07/mr.nii.gz", "P07"),
        ("001.nii.gz", "001"),
        ("P07/scan1.nii.gz", "scan1"),
    ],
)
def test_a_volume_that_is_named_alone(path, name):
    assert case_name(Path(path)) == name


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["1BA001/mr.nii.gz", "1BA005/mr.nii.gz"], ["1BA001", "1BA005"]),  # SynthRAD
        (["STS_001_MR_T1.nii.gz", "STS_002_MR_T1.nii.gz"], ["STS_001_MR_T1", "STS_002_MR_T1"]),
        (["a/x.mha", "a/y.mha", "b/x.nrrd"], ["a__x", "a__y", "b__x"]),
        (["1/scan1.nii", "1/scan2.nii", "2/scan1.nii"], ["1__scan1", "1__scan2", "2__scan1"]),
        (["deep/er/a.nii", "b.nii"], ["deep__er__a", "b"]),
        (["p1/mr.nii", "p1/t2.nii", "p2/mr.nii"], ["p1__mr", "p1__t2", "p2"]),
    ],
)
def test_names_tell_cases_apart(tmp_path, files, names):
    assert name_cases(touch(tmp_path, *files), [tmp_path] * len(files)) == names


@pytest.mark.parametrize(
    ("pattern", "folder"), [("raw/*/mr.nii", "raw"), ("raw/p?/*", "raw"), ("raw/a/mr.nii", "raw/a"), ("*.nii", ".")]
)
def test_what_a_glob_searches(pattern, folder):
    assert searched_folder(pattern) == Path(folder)


PART = st.text(st.characters(categories=("L", "N"), include_characters=" _-.()"), min_size=1, max_size=40).filter(
    lambda text: not text.startswith(".")
)


@given(parts=st.lists(PART, min_size=1, max_size=8))
def test_a_name_is_one_short_plain_file_name(parts):
    root = Path("/data")
    name = case_name(root.joinpath(*parts[:-1], f"{parts[-1]}.nii.gz"), root)
    assert re.fullmatch(r"[\w.+-]+", name) and len(name.encode()) <= 200


def test_long_paths_that_differ_early_have_different_names(tmp_path):
    deep = ["patient." + "7" * 58] * 4
    first, second = (case_name(tmp_path.joinpath(start, *deep, "x.nii"), tmp_path) for start in ("first", "other"))
    assert first != second and first.partition("__")[2][-20:-10] == second.partition("__")[2][-20:-10]


@pytest.mark.parametrize("known", ["p1", "p1__mr"])
def test_a_case_keeps_the_name_that_it_was_converted_under(tmp_path, known):
    """Alone in its folder, beside another volume, or by a version that named it otherwise."""
    touch(tmp_path, "in/p1/mr.nii")
    results = Results(tmp_path / "out")
    key = {"series_uid": None}
    results.write(CaseRecord(known, "done", str(tmp_path / "in/p1/mr.nii"), key, "attempt", "now"))

    def found():
        return [case.name for case in find_cohort(tmp_path / "in", known_name=partial(_known_name, results)).cases]

    assert found() == [known]
    touch(tmp_path, "in/p1/t2.nii")
    assert found() == [known, "p1__t2"]


@pytest.mark.parametrize(
    ("first", "known", "second"),
    [("P 7/mr.nii", "P_7", "P_7/mr.nii"), ("p0/mr.nii", "p0", "p0.nii"), ("A_B/mr.nii", "A_B", "A B/mr.nii")],
)
def test_a_new_case_takes_no_name_of_one_that_was_converted(tmp_path, first, known, second):
    results = Results(tmp_path / "out")
    results.write(CaseRecord(known, "done", str(tmp_path / "in" / first), {"series_uid": None}, "attempt", "now"))
    for path in (first, second):
        touch(tmp_path, f"in/{path}")
    cohort = find_cohort(tmp_path / "in", known_name=partial(_known_name, results))
    cases = {case.path.relative_to(tmp_path / "in").as_posix(): case for case in cohort.cases}
    assert (cases[first].name, cases[first].problem) == (known, None)
    assert cases[second].name != known
