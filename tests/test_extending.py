"""The worked examples of docs/extending.md: each is applied to a copy of the project, and trained with."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_simulated_pairs import dataroot  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = "data evaluation unet models visualization training ct_segmentation options".split()
TINY = "--ngf 2 --device cpu --no_html --print_freq 1 --num_threads 0".split()
CYCLE_GAN = "--netD pixel --ndf 2 --lambda_shape 0 --lambda_shape_gan 0 --n_epochs 1 --n_epochs_decay 0".split()
CYCLE_GAN += "--max_dataset_size 2 --mr_window 0 600".split()
# Trains as often as there are lists of options; the last line says of each run how it ended: 0, or its error.
RUNS = """import json, sys, train
from data.errors import InputError
def ended(words):
    try:
        return train.main(words)
    except (InputError, SystemExit) as error:
        return str(error)
print(json.dumps(list(map(ended, json.loads(sys.argv[1])))))"""
PAIRS = "--n_epochs 1 --steps_per_epoch 3 --slab 1 --crop_size 16 --batch_size 2 --netG unet".split()
# The runs in order: name, options of the example, and what keeps it small.
RUN_WITH = [
    ("loss", "--netG resnet_6blocks --lambda_tv 0.5", CYCLE_GAN),
    ("network", "--netG plain --kernel_size 7", CYCLE_GAN),
    ("network", "--netG plain --kernel_size 3 --continue_train", CYCLE_GAN),
    ("other", "--netG resnet_6blocks --kernel_size 7", CYCLE_GAN),
    ("method", "--model denoising", PAIRS),
    ("method", "--model denoising --continue_train", [*PAIRS, "--n_epochs", "2"]),
]


def examples() -> dict[str, str]:
    """Return the patches by the title that they stand below."""
    text = (ROOT / "docs/extending.md").read_text()
    return dict(re.findall(r"^## ([^\n]+)\n.*?^```diff\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


def files_of(patch: str) -> set[str]:
    return set(re.findall(r"^\+\+\+ b/(\S+)", patch, re.MULTILINE))


def test_the_examples_touch_as_few_files_as_is_said():
    touched = {title: files_of(patch) for title, patch in examples().items()}
    assert {title: len(files) for title, files in touched.items()} == {
        "A loss": 2, "A network with a parameter of its own": 1, "A method": 2,
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(dataroot, tmp_path_factory):  # noqa: F811
    """Apply all examples to a copy of the project, and train; return the models, and how the runs ended."""
    folder = tmp_path_factory.mktemp("extended")
    project, models = folder / "project", folder / "models"
    for package in PACKAGES:  # with __pycache__: compiling takes seconds
        shutil.copytree(ROOT / package, project / package)
    shutil.copy2(ROOT / "train.py", project)
    for patch in examples().values():
        git = ["git", "-c", "core.autocrlf=false", "apply", "-"]
        done = subprocess.run(git, cwd=project, input=patch, text=True, capture_output=True,
                              env=os.environ | {"GIT_CEILING_DIRECTORIES": str(folder)})  # fmt: skip
        assert done.returncode == 0, done.stderr
    runs = [[name, *words.split(), *options] for name, words, options in RUN_WITH]
    where = ["--dataroot", str(dataroot), "--checkpoints_dir", str(models), *TINY, "--name"]
    command = [sys.executable, "-c", RUNS, json.dumps([where + words for words in runs])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(project)}
    done = subprocess.run(command, cwd=project, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return models, json.loads(done.stdout.splitlines()[-1])


def losses(folder: Path) -> list[dict]:
    return [json.loads(line)["losses"] for line in (folder / "losses.jsonl").read_text().splitlines()]


def test_a_loss(trained):
    models, ended = trained
    assert ended[0] == 0
    for record in losses(models / "loss"):
        terms = [value for name, value in record.items() if name != "G" and not name.startswith("D_")]
        assert record["tv"] > 0
        assert record["G"] == pytest.approx(sum(terms), rel=1e-5)


def test_a_network_with_a_parameter(trained):
    models, ended = trained
    assert ended[1] == 0
    settings = json.loads((models / "network/inference.json").read_text())
    assert settings["generator"]["kernel_size"] == 7
    assert "kernel_size: was 7, now 3" in ended[2]
    assert "--kernel_size 7 does nothing to --netG resnet_6blocks" in ended[3]


def test_a_method(trained):
    models, ended = trained
    assert ended[4:] == [0, 0]
    assert [sorted(record) for record in losses(models / "method")] == [["G", "hu", "pairs"]] * 6
