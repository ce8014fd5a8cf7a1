"""What the studies of small trainings on generated patients share."""

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import train
from data.errors import InputError
from data.files import read_json, write_json
from models.run_folder import weights_path


def train_run(
    options: argparse.Namespace, dataroot: Path, name: str, seed: int, epochs: int, words: Sequence[str]
) -> Path:
    """Train one run of a study, or what is left of it; return its folder.

    Args:
        options: the study's; its `work` and `ngf` are used.
        epochs: how many there are; the weights of the last tell that the run is done.
        words: further options of `train.py`.
    """
    checkpoints = options.work / "checkpoints"
    if weights_path(checkpoints / name, epochs, "G_A").exists():
        return checkpoints / name
    more = ["--continue_train"] if (checkpoints / name / "latest_state.pth").exists() else []
    code = train.main([
        "--dataroot", str(dataroot), "--checkpoints_dir", str(checkpoints), "--name", name, "--seed", str(seed),
        "--netG", "resnet_6blocks", "--ngf", str(options.ngf), "--netD", "n_layers", "--n_layers_D", "2", "--ndf", "16",
        "--upsample", "resize", "--lambda_shape", "0", "--lambda_shape_gan", "0", "--lr", "0.0005", "--device", "cpu",
        "--print_freq", str(options.steps), "--no_html", "--num_threads", "0", *words, *more,
    ])  # fmt: skip
    if code:
        sys.exit(code)
    return checkpoints / name


def described(options: argparse.Namespace) -> dict:
    """Return the options that a study's figures depend on, as JSON holds them."""
    return json.loads(json.dumps({key: value for key, value in vars(options).items() if key not in ("work", "out")}))


def claim(options: argparse.Namespace, free: Collection[str]) -> None:
    """Write what the study in the folder `work` is, or check that it is the one already there.

    Args:
        options: the study's.
        free: names of those that may differ: more of them may come.

    Raises:
        InputError: the folder holds a study with other options.
    """
    path = options.work / "study.json"
    record = {key: value for key, value in described(options).items() if key not in free}
    if path.exists() and (found := read_json(path)) != record:
        raise InputError(f"{path}: a study with {found}, asked for {record}; choose another --work")
    options.work.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
