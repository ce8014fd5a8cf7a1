"""docs/tutorial.ipynb: every cell is run, in order, on the generated patients that it makes itself."""

import contextlib
import importlib
import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from data.volumes.volume import read_volume, same_grid

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs/tutorial.ipynb"


def command(line: str) -> None:
    """Run a command of the notebook in this process: what is tested is the tutorial, not the start of Python."""
    python, *words = shlex.split(line.removeprefix("!"))
    assert python == "python"
    module, arguments = (words[1], words[2:]) if words[0] == "-m" else (words[0].removesuffix(".py"), words[1:])
    assert importlib.import_module(module).main(arguments) in (None, 0), line


def run(source: str, names: dict) -> str:
    """Run a code cell; return what it prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        if source.startswith("!"):
            for line in source.replace("\\\n", " ").splitlines():
                command(line)
        elif not source.startswith("%cd"):
            exec(compile(source, "cell", "exec"), names)
    return output.getvalue()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tutorial")
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    with contextlib.chdir(folder):
        names: dict = {}
        printed = [run("".join(cell["source"]), names) for cell in cells if cell["cell_type"] == "code"]
    return folder, printed, names


@pytest.mark.slow
def test_every_cell_runs_and_the_result_is_a_scored_ct(site):
    folder, printed, names = site
    ct = read_volume(folder / "results/tutorial/test000.nii.gz")
    assert same_grid(ct, read_volume(folder / "datasets/tutorial_raw/test/test000/mr.nii.gz"), tolerance=1e-6)
    assert ct.array.dtype == np.int16
    assert [record["epoch"] for record in names["records"]] == [1, 1, 2, 2]
    assert sum("MAE" in text for text in printed) >= 1
    assert names["picture"].width > 4 * 192 - 1
    losses = [json.loads(line) for line in (folder / "checkpoints/tutorial/losses.jsonl").read_text().splitlines()]
    assert losses[-1]["epoch"] == 3  # the run was continued by its name
    scores = json.loads((folder / "results/tutorial/test000.json").read_text())
    assert 0 < scores["mae"] < 1000


def test_the_notebook_is_stored_without_outputs_and_its_links_hold():
    notebook = json.loads(NOTEBOOK.read_text())
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
        for link in re.findall(r"\]\(([^)#]+)\)", "".join(cell["source"])):
            assert (NOTEBOOK.parent / link).exists(), link
