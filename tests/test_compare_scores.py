"""Means over patients with intervals, and paired differences: `scripts.compare_scores`."""

import csv
import json
import math

import numpy as np
import pytest
from scipy import stats

from data.errors import InputError
from evaluation.comparison import mean_interval, read_scores, values_of
from evaluation.report import COLUMNS
from scripts import compare_scores


def scores(mae: dict[str, float | None], **others) -> list[dict]:
    return [{"case": case} | dict.fromkeys(COLUMNS, 0.5) | {"mae": value} | others for case, value in mae.items()]


def write_json(path, mae, **others):
    path.write_text(json.dumps({"cases": scores(mae, **others)}))
    return path


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=["case", "status", *COLUMNS])
        table.writeheader()
        table.writerows(rows)
    return path


def test_the_interval_of_many_patients_is_that_of_the_normal_distribution():
    """Closed form: mean -+ 1.96 standard deviations (divisor n) / sqrt(n)."""
    values = np.random.default_rng(3).normal(60, 10, 400)
    found = mean_interval(values)
    half = stats.norm.ppf(0.975) * values.std() / math.sqrt(400)
    assert found.mean == values.mean() and found.n == 400
    assert found.low == pytest.approx(found.mean - half, abs=0.03)
    assert found.high == pytest.approx(found.mean + half, abs=0.03)


def test_the_interval_of_three_patients_lies_between_the_smallest_and_the_largest():
    """One resample in 27 draws the smallest three times: more than 2.5 %, so that is the lower bound."""
    found = mean_interval(np.array([1.0, 5.0, 30.0]))
    assert (found.low, found.mean, found.high) == (1, 12, 30)


@pytest.mark.parametrize(("values", "mean"), [([], math.nan), ([1, 2], 1.5), ([1, 2, math.inf], math.inf)])
def test_no_interval_of_too_few_or_infinite_values(values, mean):
    found = mean_interval(np.array(values, float))
    assert found.mean == mean or (math.isnan(found.mean) and not values)
    assert math.isnan(found.low) and math.isnan(found.high)


def test_both_kinds_of_files_hold_the_same_scores(tmp_path):
    rows = scores({"p1": 60.0, "p2": 70.0})
    as_csv = write_csv(tmp_path / "mine/summary.csv", [row | {"status": "done"} for row in rows])
    as_json = write_json(tmp_path / "mine.json", {"p1": 60.0, "p2": 70.0})
    assert read_scores(as_csv) == read_scores(as_json)
    assert read_scores(as_csv)["p2"]["mae"] == 70


def test_a_case_without_scores_is_left_out(tmp_path):
    rows = [*scores({"p1": 60.0}), {"case": "failed"} | dict.fromkeys(COLUMNS, "")]
    assert list(read_scores(write_csv(tmp_path / "summary.csv", rows))) == ["p1"]


def test_a_score_counts_only_where_all_results_define_it(tmp_path):
    a = read_scores(write_json(tmp_path / "a.json", {"p1": 1.0, "p2": 2.0, "p3": None}))
    b = read_scores(write_json(tmp_path / "b.json", {"p3": 30.0, "p2": 20.0, "p1": 10.0}))
    values = values_of({"a": a, "b": b}, "mae")
    assert values["a"].tolist() == [1, 2] and values["b"].tolist() == [10, 20]
    assert len(values_of({"a": a, "b": b}, "ssim")["a"]) == 3


def test_what_is_printed(tmp_path, capsys):
    """Differences are taken patient by patient: 10 HU in each, though patients differ by 40 HU."""
    good = write_json(tmp_path / "good.json", {"p1": 50.0, "p2": 70.0, "p3": 90.0}, dice_bone=0.6)
    bad = write_csv(tmp_path / "bad/summary.csv", scores({"p1": 60.0, "p2": 80.0, "p3": 100.0}, dice_bone=0.5))
    compare_scores.main([str(good), str(bad), "--against", "bad", "--scores", "mae", "dice_bone"])
    assert capsys.readouterr().out == (
        "| mean of 3 |             MAE [HU] |              Dice bone |\n"
        "| --------- | -------------------: | ---------------------: |\n"
        "| good      |  70.0 (50.0 to 90.0) | 0.600 (0.600 to 0.600) |\n"
        "| bad       | 80.0 (60.0 to 100.0) | 0.500 (0.500 to 0.500) |\n"
        "\n"
        "| difference from bad |               MAE [HU] |                 Dice bone |\n"
        "| ------------------- | ---------------------: | ------------------------: |\n"
        "| good                | -10.0 (-10.0 to -10.0) | +0.100 (+0.100 to +0.100) |\n"
    )


def test_only_common_cases_are_compared(tmp_path, capsys, caplog):
    one = write_json(tmp_path / "one.json", {"p1": 50.0, "p2": 70.0, "p3": 90.0, "p4": 1000.0})
    two = write_json(tmp_path / "two.json", {"p1": 50.0, "p2": 70.0, "p3": None})
    compare_scores.main([str(one), str(two), "--scores", "mae"])
    out = capsys.readouterr().out
    assert "| one       |     60.0 |" in out
    assert "undefined in some of the 3 cases: MAE [HU] over 2" in out
    assert "not in all files, left out: p4" in caplog.text


def test_the_figure(tmp_path):
    from PIL import Image

    files = [str(write_json(tmp_path / f"{name}.json", {"p1": 1.0, "p2": 2.0, "p3": 4.0})) for name in "ab"]
    compare_scores.main([*files, "--figure", str(tmp_path / "chart.png")])
    first = Image.open(tmp_path / "chart.png").convert("RGB")
    blue = np.all(np.abs(np.asarray(first, int) - (31, 119, 180)) < 20, axis=2)
    assert blue.sum() > 100
    with pytest.raises(InputError, match=r"chart\.png"):
        compare_scores.main([*files, "--figure", str(tmp_path / "chart.png")])


def test_mistakes(tmp_path):
    good = write_json(tmp_path / "good.json", {"p1": 50.0})
    other = write_json(tmp_path / "other.json", {"q1": 50.0})
    unscored = write_csv(tmp_path / "summary.csv", [{"case": "p1"} | dict.fromkeys(COLUMNS, "")])
    strange = tmp_path / "strange.json"
    strange.write_text('{"cases": [{"case": "p1"}]}')
    odd = write_json(tmp_path / "odd.json", {"p1": "many"})
    twice = write_csv(tmp_path / "twice.csv", scores({"p1": 1.0}) * 2)
    for arguments, message in (
        ([good, other], "no case is in all files; expected scores of the same patients, found good: p1; other: q1"),
        ([good, good], "good is also the label of .*; give another: LABEL="),
        ([good, "--against", "god"], "--against god: no such label; expected one of good; did you mean good"),
        ([unscored], "no case has scores; give test_pipeline.py the true CT with --reference"),
        ([strange], "no scores of cases; expected the JSON of scripts.evaluate"),
        ([odd], "mae of case p1: expected a number, found 'many'"),
        ([twice], "case p1 is listed twice"),
        ([tmp_path / "none.json"], "none.json: no such file"),
        ([tmp_path / "none.csv"], "none.csv: cannot be read as a table"),
        ([good, "--figure", tmp_path / "chart.gif"], "expected a file ending in .png"),
    ):
        with pytest.raises(InputError, match=message):
            compare_scores.main(list(map(str, arguments)))
