"""The shell scripts: each answers --help, and starts nothing then."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").iterdir() if path.suffix in (".sh", ".sbatch"))
RECIPES = ["train_recommended.sh", "train_pure_cyclegan.sh", "train_cycle_lcc.sh", "train_self_lcc.sh"]


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["datasets/x", "--flip", "--help"]])
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_how_a_script_is_called_and_starts_nothing(tmp_path, script, words):
    """Whatever a script would start is replaced by a command that leaves a trace."""
    for name in ("python", "srun", "npm", "sbatch", "scontrol", "realpath"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PYTHON": str(tmp_path / "python"), "PATH": path}
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / script), *words], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    head = (ROOT / "scripts" / script).read_text().splitlines()[1].removeprefix("# ")
    assert done.stdout.splitlines()[0] == head and "set -e" not in done.stdout and "SBATCH" not in done.stdout
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("script", RECIPES)
def test_without_an_interpreter_a_recipe_says_how_to_get_one(tmp_path, script):
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / script), str(tmp_path)], capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHON": str(tmp_path / "none")},
    )  # fmt: skip
    said = f"error: {tmp_path / 'none'}: no such program; run first: bash scripts/setup.sh\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


@pytest.mark.parametrize("script", RECIPES)
@pytest.mark.parametrize("folder", ["set", "wrong/set", "/wrong/set"])
def test_a_recipe_leaves_it_to_the_training_to_report_a_missing_data_set(tmp_path, script, folder):
    """Its path is that of the folder in which the recipe was started."""
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "<%s>" "$@"\nexit 2\n')
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / script), folder], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHON": str(tmp_path / "python")},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "")
    assert f"<--dataroot><{tmp_path / folder}><--name>" in done.stdout and done.stdout.count("<train.py>") == 1


@pytest.mark.parametrize("script", RECIPES)
@pytest.mark.parametrize("words", [["--config", "my run.yaml"], ["--config=my run.yaml"]])
def test_a_config_file_lies_where_the_recipe_was_started(tmp_path, script, words):
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "<%s>" "$@"\nexit 2\n')
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "my run.yaml").touch()
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / script), "set", *words, "--ngf", "8"], cwd=tmp_path, capture_output=True,
        text=True, timeout=60, env=os.environ | {"PYTHON": str(tmp_path / "python")},
    )  # fmt: skip
    file = tmp_path / "my run.yaml"
    expected = f"<--config><{file}><--ngf><8>" if len(words) == 2 else f"<--config={file}><--ngf><8>"
    assert (done.returncode, done.stderr) == (2, "") and expected in done.stdout


def test_there_are_scripts():
    assert {"train_recommended.sh", "train_self_lcc.sh", "reproduce_sts.sh", "slurm_train.sbatch"} <= set(SCRIPTS)
