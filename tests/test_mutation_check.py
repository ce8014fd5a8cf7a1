"""The table of mutations fits the code, and the command tells the killed from the surviving."""

import ast
import json
from dataclasses import replace

import pytest

from data.errors import InputError
from tools import mutation_check
from tools.mutation_check import MUTATIONS, ROOT, Mutation, outcome_of


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.breaks)
def test_a_mutation_fits_the_code(mutation):
    mutated = mutation.apply(ROOT)  # refuses text that does not stand there once
    original = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(original))
    file, _, name = mutation.test.partition("[")[0].partition("::")
    functions = [node for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)]
    assert [function.name for function in functions].count(name) == 1
    assert mutation.breaks and "|" not in mutation.breaks


def test_there_are_enough_and_all_differ():
    assert len(MUTATIONS) >= 20
    assert len({(mutation.file, mutation.new, mutation.old) for mutation in MUTATIONS}) == len(MUTATIONS)
    assert len({mutation.file.partition("/")[0] for mutation in MUTATIONS}) >= 5


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of one function with one test, and a table with a mutation of it that the test kills."""
    root = tmp_path / "checkout"
    (root / "tests").mkdir(parents=True)
    (root / "area.py").write_text("def area(a, b):\n    return a * b\n")
    (root / "tests/test_area.py").write_text(
        "from area import area\n\n\ndef test_area():\n    assert area(2, 3) == 6\n"
    )
    (root / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    mutation = Mutation("area.py", "a * b", "a + b", "a sum for an area", "tests/test_area.py::test_area")
    monkeypatch.setattr(mutation_check, "ROOT", root)
    return root, mutation


def test_text_that_is_not_there_once_is_refused(project):
    root, mutation = project
    assert mutation.apply(root) == "def area(a, b):\n    return a + b\n"
    for old, count in (("a - b", 0), ("a", 4)):
        with pytest.raises(InputError, match=rf"area\.py: '{old}' stands in it {count} times, expected once"):
            replace(mutation, old=old).apply(root)
    with pytest.raises(InputError, match=r"volume\.py: no such file"):
        replace(mutation, file="volume.py").apply(root)


@pytest.mark.slow
def test_killed_survived_and_neither(project):
    root, mutation = project
    before = (root / "area.py").read_bytes()
    assert outcome_of(mutation, root) == "killed"
    assert outcome_of(replace(mutation, new="b * a"), root) == "survived"
    assert outcome_of(replace(mutation, new="a *"), root) == "pytest ended with 4"  # the test cannot be imported
    assert (root / "area.py").read_bytes() == before


def test_a_test_that_does_not_end_is_no_kill(project, monkeypatch):
    root, mutation = project
    before = (root / "area.py").read_bytes()
    monkeypatch.setattr(mutation_check, "SECONDS", 3)
    assert outcome_of(replace(mutation, new="__import__('time').sleep(60)"), root) == "no answer in 3 s"
    assert (root / "area.py").read_bytes() == before


@pytest.mark.slow
def test_the_command_counts_and_leaves_the_checkout_alone(project, monkeypatch, tmp_path, capsys):
    root, mutation = project
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    monkeypatch.setattr(mutation_check, "MUTATIONS", (mutation, replace(mutation, new="b * a", breaks="nothing")))
    assert mutation_check.main(["--only", "1"]) == 0
    assert mutation_check.main(["--json", str(tmp_path / "found.json")]) == 1
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["killed"] == 1
    assert [(one["number"], one["outcome"]) for one in found["mutations"]] == [("1", "killed"), ("2", "survived")]
    table = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in table[-1].split("|")[1:5]] == ["2", "survived", "area.py", "nothing"]
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    (root / "area.py").write_text("def area(a, b):\n    return 2 * (a * b)\n")
    with pytest.raises(InputError, match="the tests do not pass on the code as it is"):
        mutation_check.main([])


def test_numbers_beyond_the_table_are_refused(capsys):
    with pytest.raises(SystemExit):
        mutation_check.parse_arguments(["--only", str(len(MUTATIONS) + 1)])
    assert f"expected 1 to {len(MUTATIONS)}" in capsys.readouterr().err


@pytest.mark.slow
def test_one_real_mutation_is_killed(tmp_path):
    number = next(k for k, m in enumerate(MUTATIONS, start=1) if m.file == "data/values/intensity.py")
    assert mutation_check.main(["--only", str(number), "--json", str(tmp_path / "found.json")]) == 0
    (one,) = json.loads((tmp_path / "found.json").read_text())["mutations"]
    assert (one["outcome"], one["file"]) == ("killed", "data/values/intensity.py")
