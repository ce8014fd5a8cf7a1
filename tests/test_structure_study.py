"""The study of structure losses and views: what it trains, whose weights it fuses, and its table."""

import json
from pathlib import Path

import pytest

from data.errors import InputError
from data.volumes.slice_frame import VIEWS
from options import train_options
from tools import structure_study

SCORE = {"mae": 100.0, "dice_body": 0.9, "dice_bone": 0.5, "mae_bone": 200.0, "ssim": 0.7}


def run(tmp_path, monkeypatch, *more):
    """Run the study without trainings; return what is trained (data set, options) and fused, by name."""
    trained, fused = {}, []

    def train_run(options, dataroot: Path, name: str, arm: str, seed: int) -> Path:
        trained[name] = (dataroot.name, arm, seed)
        return Path(name)

    def score(raw, folders, fusion="mean"):
        fused.append(([str(folder) for folder in folders], fusion))
        return [SCORE | {"mae": 100.0 * len(fused)}, SCORE | {"mae": 100.0 * len(fused) + 2}]

    monkeypatch.setattr(structure_study, "train_run", train_run)
    monkeypatch.setattr(structure_study, "score", score)
    monkeypatch.setattr(structure_study, "make_data", lambda options: {view: tmp_path / view for view in VIEWS})
    structure_study.main(["--work", str(tmp_path / "w"), "--out", str(tmp_path / "o.json"), *more])
    return trained, fused


def test_every_arm_has_the_same_budget_and_three_views_are_fused(tmp_path, monkeypatch, capsys):
    trained, fused = run(tmp_path, monkeypatch, "--seeds", "1")
    assert trained["mutual_information_1"] == ("axial", "mutual information", 1)
    assert trained["coronal_1"] == ("coronal", "correlation", 1)
    assert len(trained) == 7  # the axial model of three views is the arm's own
    three = ["correlation_1", "coronal_1", "sagittal_1"]
    assert fused[-2:] == [(three, "mean"), (three, "median")]
    said = capsys.readouterr().out
    assert "501.0 (501.0 to 501.0)" in said.split("local mutual information")[1]
    cases = json.loads((tmp_path / "o.json").read_text())["cases"]
    assert len(cases) == 18 and {case["seed"] for case in cases} == {1}


def test_the_arms_are_options_of_the_training():
    losses = {}
    for arm, words in structure_study.ARMS.items():
        s = train_options.parse(["--dataroot", "d", "--name", "n", *words]).model
        losses[arm] = (s.lambda_correlation_A, s.lcc_window, s.lambda_mi_A, s.mi_window)
    assert losses == {
        "none": (0, 0, 0, 0), "correlation": (2, 0, 0, 0), "local correlation": (2, 15, 0, 0),
        "mutual information": (0, 0, 2, 0), "local mutual information": (0, 0, 2, 16),
    }  # fmt: skip


def test_a_folder_of_another_study_is_refused_and_more_seeds_may_come(tmp_path, monkeypatch, capsys):
    run(tmp_path, monkeypatch, "--seeds", "1")
    with pytest.raises(InputError, match="choose another --work"):
        run(tmp_path, monkeypatch, "--steps", "9")
    capsys.readouterr()
    trained, _ = run(tmp_path, monkeypatch, "--seeds", "2")
    assert len(trained) == 14
    assert "151.0 (101.0 to 201.0)" not in (said := capsys.readouterr().out)
    assert "351.0 (101.0 to 601.0)" in said  # the mean of the seeds' means, and their range
