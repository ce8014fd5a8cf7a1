"""What a cohort meets in folders, tables and records: paths without permission or too deep, torn and foreign JSON."""

import csv
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cohort.inputs import find_cohort, read_list
from cohort.results import FORMAT_VERSION, CaseRecord, Results
from cohort.summary import write_summary
from data.errors import InputError
from data.files import read_json
from data.phantom.patients import PhantomSettings, write_dataset
from data.prepared.manifest import read_manifest
from data.prepared.sources import find_volumes

KEY = {"input_sha256": "1", "series_uid": None}
MODEL = {"name": "n", "folder": "f", "epoch": "latest", "for": None, "sha256": "0"}
NESTED = "[" * 200_000
TORN = {
    "torn": '{"case": "p1", "status": "do',
    "nested": NESTED,
    "nested object": '{"a":' * 200_000,
    "a list": "[1, 2]",
    "a number": "7",
    "a text": '"done"',
    "empty": "",
    "not text": "\ud800",
}


def record(case: str = "p1", **more) -> CaseRecord:
    return CaseRecord(case, "done", "/in/p1.nii.gz", KEY, "a", "2026-01-01T00:00:00+0000", **more)


def write_record(results: Results, name: str, text: str) -> Path:
    path = results.folder / "records" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, errors="surrogatepass")
    return path


@pytest.mark.parametrize("text", TORN.values(), ids=TORN.keys())
def test_a_record_that_is_none_counts_as_missing(tmp_path, text):
    results = Results(tmp_path / "out")
    results.write(record())
    assert results.read("p1") == record()
    write_record(results, "p1", text)
    write_record(results, "p2", text)
    assert results.read("p1") is None and results.read_all() == []
    assert write_summary(results, {"p1"}, MODEL, [], None) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"key": []}, {"key": "x"}, {"warnings": "none"}, {"warnings": [1]}, {"status": 5}, {"input": None},
        {"geometry": {"size": 3}}, {"geometry": {"spacing": ["a"]}}, {"geometry": []}, {"hu": {"mean": "high"}},
        {"scores": [1]}, {"seconds": {"total": [1]}}, {"output": 1}, {"made": {"a": 1}}, {"run": None}, {"reason": 3},
        {"checks": None}, {"case": 7}, {"unknown": 1}, {"unwritten": "x"},
        {"extras": []},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_of_wrong_types_counts_as_missing(tmp_path, changed):
    results = Results(tmp_path / "out")
    results.write(record())
    good = json.loads(results.record_path("p1").read_text())
    write_record(results, "p1", json.dumps(good | changed))
    assert results.read("p1") is None
    assert write_summary(results, {"p1"}, MODEL, [], None) == []
    assert set(results.made("p1")) == set(results.targets("p1"))  # what lies there is the case's all the same


@pytest.mark.parametrize("case", ["../victim", "/{root}/out/victim", "../../victim", "p1/../../victim", "other"])
def test_a_record_leads_nowhere_else(tmp_path, case):
    """Failed, its input gone: such a record is forgotten, and its file removed."""
    results = Results(tmp_path / "out")
    victims = [tmp_path / "victim.json", tmp_path / "out/victim.json", tmp_path / "out/records/other.json"]
    results.write(record())
    text = json.dumps({"format_version": FORMAT_VERSION, **vars(record()), "case": case.format(root=tmp_path)})
    write_record(results, "p1", text.replace('"done"', '"failed"'))
    for victim in victims:
        victim.write_text("{}")
    assert write_summary(results, set(), MODEL, [], None) == []
    assert all(victim.read_text() == "{}" for victim in victims)


@pytest.mark.parametrize("text", TORN.values(), ids=TORN.keys())
def test_a_torn_summary_does_not_keep_a_new_one_from_being_written(tmp_path, text):
    results = Results(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/summary.json").write_text(text, errors="surrogatepass")
    write_summary(results, set(), MODEL, [], None)
    assert json.loads((tmp_path / "out/summary.json").read_text())["last_run"] is None


@pytest.mark.parametrize("text", TORN.values(), ids=TORN.keys())
def test_torn_manifests_and_phantoms_are_refused(tmp_path, text):
    for name in ("manifest.json", "phantom.json"):
        (tmp_path / name).write_text(text, errors="surrogatepass")
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_manifest(tmp_path)
    with pytest.raises(InputError, match=r"phantom\.json"):
        write_dataset(tmp_path, PhantomSettings(), 0, 1, 1, workers=1)


def test_json_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(InputError, match="a named pipe; expected a file"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,path\na," + "x" * 200_000 + "\n", "field larger than field limit"),
        ('id,path\na,"p.nii.gz\n' + "b,q.nii.gz\n" * 20_000, "field larger than field limit"),
        ("id;path;mask\na;p.nii.gz;" + "y" * 140_000, "field larger than field limit"),
        ("id,path\n" + "x" * 200_000 + ",p.nii.gz\n", "field larger than field limit"),
        ("id,path\na,b,c\n", "more values than columns"),
    ],
    ids=["path", "open quote", "mask", "id", "values"],
)
def test_tables_that_are_none_are_refused(tmp_path, text, words):
    (tmp_path / "list.csv").write_text(text)
    limit = csv.field_size_limit()
    with pytest.raises(InputError, match=words):
        read_list(tmp_path / "list.csv")
    assert csv.field_size_limit() == limit


def test_a_table_is_not_waited_for_and_a_line_break_in_quotes_stays(tmp_path):
    os.mkfifo(tmp_path / "list.csv")
    with pytest.raises(InputError, match="a named pipe; expected a file"):
        read_list(tmp_path / "list.csv")
    (tmp_path / "other.csv").write_text('id,path\na,"one\ntwo.nii.gz"\n')
    (tmp_path / "one\ntwo.nii.gz").write_bytes(b"")
    (case,) = read_list(tmp_path / "other.csv").cases
    assert case.path == tmp_path / "one\ntwo.nii.gz" and case.problem is None


def test_a_listed_path_that_cannot_be_looked_at_costs_its_case_alone(tmp_path):
    (tmp_path / "good.nii.gz").write_bytes(b"")
    long = "x" * 300
    deep = "/".join(["d" * 200] * 30)
    rows = [
        "id,path,mask,reference",
        "a,good.nii.gz,,",
        f"b,{long}.nii.gz,,",
        f"c,{deep},,",
        f"d,good.nii.gz,{long},{long}",
    ]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    cases = {case.name: case for case in read_list(tmp_path / "list.csv").cases}
    assert cases["a"].problem is None and cases["d"].problem is None  # its mask is missed when it is read
    assert all("no such file or folder" in cases[name].problem for name in "bc")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter, removed whatever is in it."""
    folder = Path(tempfile.mkdtemp(prefix="places-"))
    folder.chmod(0o755)
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)  # shutil's recursion ends at 1,000 folders


def dig(folder: Path, name: str, depth: int) -> None:
    """Make folders in folders with a volume at the bottom, and one at the top."""
    (folder / "good.nii.gz").write_bytes(b"")
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(folder)
        for _ in range(depth):
            Path(name).mkdir()
            os.chdir(name)
        Path("deep.nii.gz").write_bytes(b"")
    finally:
        os.chdir(here)
        os.close(here)


def test_folders_deeper_than_python_recurses_are_searched(open_folder):
    dig(open_folder, "d", 1100)
    assert sorted(path.name for path in find_volumes(f"{open_folder}/**/*.nii.gz")) == ["deep.nii.gz", "good.nii.gz"]


def test_folders_to_which_no_path_leads_are_reported(open_folder):
    dig(open_folder, "d" * 200, 40)
    for patterns in (None, ["**"]):
        cases = find_cohort(open_folder, patterns).cases
        assert [case.problem for case in cases if case.path.name == "good.nii.gz"] == [None]
        assert any("File name too long" in (case.problem or "") for case in cases)
    assert [path.name for path in find_volumes(f"{open_folder}/**/*.nii.gz")] == ["good.nii.gz"]


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Be nobody: permissions do not bind root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_paths_without_permission_are_reported_and_the_others_found(open_folder, request):
    for name in ("closed", "listed", "good"):
        (open_folder / name).mkdir()
        (open_folder / name / "mr.nii.gz").write_bytes(b"")
    (open_folder / "good/unreadable.nii.gz").write_bytes(b"")
    (open_folder / "list.csv").write_text(
        "id,path,reference\na,closed/mr.nii.gz,listed/x\nb,good/mr.nii.gz,closed/mr.nii.gz\n"
    )
    modes = {"closed": 0, "listed": 0o444, "good/unreadable.nii.gz": 0}
    for name, mode in modes.items():
        (open_folder / name).chmod(mode)
    request.getfixturevalue("as_nobody")
    cases = {case.path.relative_to(open_folder).as_posix(): case for case in find_cohort(open_folder).cases}
    assert "Permission denied" in cases["closed"].problem
    assert cases["good/mr.nii.gz"].problem is None and cases["good/unreadable.nii.gz"].problem is None
    assert "listed" in cases or "listed/mr.nii.gz" in cases
    listed = {case.name: case.problem for case in read_list(open_folder / "list.csv").cases}
    assert "no such file or folder" in listed["a"] and listed["b"] is None
