"""The study of validation criteria: its figures in closed form, and the command itself, resumed."""

import json
from itertools import pairwise

import pytest

from data.errors import InputError
from tools import validation_study
from tools.validation_study import UNPAIRED, arms, correlate, format_figures, lost_by_the_last


def checkpoint(run: str, simulated: float, histogram: float, mae: float) -> dict:
    return {"run": run, "unpaired": {"simulated_mae": simulated, "histogram": histogram}, "truth": {"mae": mae}}


# By the simulated MAE the order of every run is right, but run b is rated better than it is; by the histogram the
# order of run a is turned round, that of run b right but for the best two.
ROWS = [
    checkpoint("a", 30, 1, 100), checkpoint("a", 20, 2, 90), checkpoint("a", 10, 3, 80),
    checkpoint("b", 9, 60, 130), checkpoint("b", 8, 40, 120), checkpoint("b", 7, 50, 110),
]  # fmt: skip


def test_figures_of_the_study_in_closed_form():
    figures = correlate(ROWS, ["simulated_mae", "histogram"])
    # Spearman: 1 - 6 sum d^2 / (n (n^2 - 1)).
    assert figures["simulated_mae"] == pytest.approx({
        "all": 1 - 6 * 54 / 210, "in_a_run": 1, "in_a_run_least": 1, "lost_hu": 0, "lost_most": 0,
    })  # fmt: skip
    assert figures["histogram"] == pytest.approx({
        "all": 1 - 6 * 10 / 210, "in_a_run": (-1 + 0.5) / 2, "in_a_run_least": -1, "lost_hu": 15, "lost_most": 20,
    })  # fmt: skip
    assert lost_by_the_last(ROWS) == 0 and lost_by_the_last(ROWS[::-1]) == 20
    constant = correlate([row | {"unpaired": {"body_dice": 0.0}} for row in ROWS], ["body_dice"])["body_dice"]
    assert constant == {"all": 0, "in_a_run": 0, "in_a_run_least": 0, "lost_hu": 20, "lost_most": 20}
    table = format_figures(figures).splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["`simulated_mae`", "`histogram`"]
    assert "15.0" in table[3] and "-1.00" in table[3]


@pytest.mark.parametrize("epochs", [2, 3, 6, 8])
def test_every_method_trains_for_as_many_epochs(epochs):
    for options in arms(epochs).values():
        lengths = {key: int(value) for key, value in pairwise(options) if "n_epochs" in key}
        assert sum(lengths.values()) == epochs


@pytest.mark.slow
def test_the_study_runs_and_resumes_where_it_was(tmp_path, capsys, monkeypatch):
    small = (
        "--seeds 1 --epochs 2 --steps 2 --ngf 2 --patients 2 --held_back 1 --test_patients 1 --matrix 32 --slices 16"
    )
    command = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out.json"), *small.split()]
    validation_study.main([*command, "--arms", "simulated"])
    first = json.loads((tmp_path / "out.json").read_text())
    assert [(row["run"], row["epoch"]) for row in first["checkpoints"]] == [("simulated_1", 1), ("simulated_1", 2)]
    assert set(first["figures"]) == set(UNPAIRED)
    assert "2 checkpoints of 1 runs" in capsys.readouterr().out
    monkeypatch.setattr(validation_study, "measure", lambda *_: pytest.fail("measured again"))
    validation_study.main([*command, "--arms", "simulated"])
    assert json.loads((tmp_path / "out.json").read_text()) == first
    with pytest.raises(InputError, match="choose another --work"):
        validation_study.main([*command, "--ngf", "4"])
