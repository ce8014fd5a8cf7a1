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
RUNS = """import json, sys, train
from data.errors import run_command
run_command(lambda: next(filter(None, map(train.main, json.loads(sys.argv[1]))), 0))"""
PAIRS = "--n_epochs 1 --steps_per_epoch 3 --slab 1 --crop_size 16 --batch_size 2 --netG unet".split()


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


@pytest.fixture
def copy(tmp_path):
    """Apply an example to a copy of the project, and return how it trains there."""

    def apply(title: str):
        project = tmp_path / "project"
        for package in PACKAGES:
            shutil.copytree(ROOT / package, project / package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "train.py", project)
        patch = examples()[title]
        git = ["git", "-c", "core.autocrlf=false", "apply", "-"]
        done = subprocess.run(git, cwd=project, input=patch, text=True, capture_output=True,
                              env=os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path)})  # fmt: skip
        assert done.returncode == 0, done.stderr

        def train(dataroot, *runs):  # noqa: F811
            """Train as often as there are lists of options, in one new process, which ends at the first failure."""
            where = ["--dataroot", str(dataroot), "--checkpoints_dir", str(tmp_path / "models"), "--name", "x"]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(project)}
            command = [sys.executable, "-c", RUNS, json.dumps([[*where, *TINY, *words] for words in runs])]
            return subprocess.run(command, cwd=project, env=environment, text=True, capture_output=True)

        return train

    return apply


def losses(tmp_path) -> list[dict]:
    return [json.loads(line)["losses"] for line in (tmp_path / "models/x/losses.jsonl").read_text().splitlines()]


def test_a_loss(copy, dataroot, tmp_path):  # noqa: F811
    train = copy("A loss")
    done = train(dataroot, ["--netG", "resnet_6blocks", *CYCLE_GAN, "--lambda_tv", "0.5"])
    assert done.returncode == 0, done.stderr
    for record in losses(tmp_path):
        terms = [value for name, value in record.items() if name != "G" and not name.startswith("D_")]
        assert record["tv"] > 0
        assert record["G"] == pytest.approx(sum(terms), rel=1e-5)


@pytest.mark.slow
def test_a_network_with_a_parameter(copy, dataroot, tmp_path):  # noqa: F811
    train = copy("A network with a parameter of its own")
    done = train(dataroot, ["--netG", "plain", *CYCLE_GAN, "--kernel_size", "7"])
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "models/x/inference.json").read_text())
    assert settings["generator"]["kernel_size"] == 7
    resumed = train(dataroot, ["--netG", "plain", *CYCLE_GAN, "--kernel_size", "3", "--continue_train"])
    assert "kernel_size: was 7, now 3" in resumed.stderr
    other = train(dataroot, ["--netG", "resnet_6blocks", *CYCLE_GAN, "--kernel_size", "7"])
    assert "--kernel_size 7 does nothing to --netG resnet_6blocks" in other.stderr


def test_a_method(copy, dataroot, tmp_path):  # noqa: F811
    train = copy("A method")
    words = ["--model", "denoising", *PAIRS]
    done = train(dataroot, words, [*words, "--n_epochs", "2", "--continue_train"])
    assert done.returncode == 0, done.stderr
    assert [sorted(record) for record in losses(tmp_path)] == [["G", "hu", "pairs"]] * 6
