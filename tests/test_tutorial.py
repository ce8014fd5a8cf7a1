"""docs/tutorial.ipynb: every cell is run, in order, on small generated patients, with fewer steps."""

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
# What the test makes smaller; all else is run as it stands.
SMALLER = {
    "--patients 4 --test": "--patients 2 --matrix 48 --slices 20 --spacing_mm 10.7 --slice_mm 60 --test",
    "--size 128 --workers 2": "--size 48 --workers 1",
    "--n_epochs 8 --steps_per_epoch 50": "--n_epochs 2 --steps_per_epoch 20",
    "--batch_size 8 --ngf 16 --slab 3 --crop_size 64": "--batch_size 4 --ngf 8 --slab 3 --crop_size 32",
    "--print_freq 50": "--print_freq 10",
    "--continue_train --name tutorial --n_epochs 12": "--continue_train --name tutorial --n_epochs 3",
}


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
    sources = [
        "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]
    for long, short in SMALLER.items():
        assert sum(long in source for source in sources) == 1, long
        sources = [source.replace(long, short) for source in sources]
    with contextlib.chdir(folder):
        names: dict = {}
        printed = [run(source, names) for source in sources]
    return folder, printed, names


def test_every_cell_runs_and_the_result_is_a_scored_ct(site):
    folder, printed, names = site
    ct = read_volume(folder / "results/tutorial/test000.nii.gz")
    assert same_grid(ct, read_volume(folder / "datasets/tutorial_raw/test/test000/mr.nii.gz"), tolerance=1e-6)
    assert ct.array.dtype == np.int16
    assert [record["epoch"] for record in names["records"]] == [1, 1, 2, 2]
    assert sum("MAE" in text for text in printed) >= 1
    assert all((folder / f"results/tutorial/{name}.png").stat().st_size > 1000 for name in ("an_mr", "a_ct", "test000"))
    losses = [json.loads(line) for line in (folder / "checkpoints/tutorial/losses.jsonl").read_text().splitlines()]
    assert losses[-1]["epoch"] == 3  # the run was continued by its name
    scores = json.loads((folder / "results/tutorial/test000.json").read_text())
    assert 0 < scores["mae"] < 1000


def test_the_notebook_is_stored_with_the_outputs_of_one_run_and_its_links_hold():
    notebook = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        assert "error" not in {output["output_type"] for output in cell["outputs"]}
        assert cell["outputs"] or "".join(cell["source"]).startswith(("%", "!python -m scripts.figure"))
    outputs = json.dumps([cell["outputs"] for cell in code])
    assert "Traceback" not in outputs and "error:" not in outputs
    for cell in notebook["cells"]:
        for link in re.findall(r"\]\(([^)#]+)\)", "".join(cell["source"])):
            assert (NOTEBOOK.parent / link).exists(), link
