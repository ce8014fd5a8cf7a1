"""Means over patients with intervals, and paired differences: `scripts.compare_scores`."""

import csv
import json
import math
import re

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from data.errors import InputError
from evaluation.comparison import mean_interval, read_scores, values_of
from evaluation.report import COLUMNS
from scripts import compare_scores
from tests.documented import ROOT
from tools import ablation_figure
from tools.ablation_figure import read_intervals


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
    assert found.mean == values.mean()
    assert found.low == pytest.approx(found.mean - half, abs=0.03)
    assert found.high == pytest.approx(found.mean + half, abs=0.03)


def test_the_interval_of_six_patients():
    """Exact: of 6^6 resamples, those of which the mean is below the lower bound are a fortieth at most."""
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    means = np.mean(np.stack(np.meshgrid(*[values] * 6)), axis=0)
    found = mean_interval(values)
    assert found.low == pytest.approx(np.quantile(means, 0.025), abs=0.35)
    assert found.high == pytest.approx(np.quantile(means, 0.975), abs=0.35)


@pytest.mark.parametrize("values", [[], [7.0], [1, 2, 3, 4, 5]])
def test_no_interval_of_few_values(values):
    found = mean_interval(np.array(values, float))
    assert math.isnan(found.low) and math.isnan(found.high)
    assert found.mean == pytest.approx(np.mean(values) if values else math.nan, nan_ok=True)


def test_both_kinds_of_files_hold_the_same_scores(tmp_path):
    rows = scores({"p1": 60.0, "p2": 70.0})
    as_csv = write_csv(tmp_path / "mine/summary.csv", [row | {"status": "done"} for row in rows])
    as_json = write_json(tmp_path / "mine.json", {"p1": 60.0, "p2": 70.0})
    assert read_scores(as_csv).scores == read_scores(as_json).scores
    assert read_scores(as_csv).scores["p2"]["mae"] == 70


def test_a_case_without_scores_is_left_out(tmp_path):
    rows = [*scores({"p1": 60.0}), {"case": "failed"} | dict.fromkeys(COLUMNS, "")]
    assert list(read_scores(write_csv(tmp_path / "summary.csv", rows)).scores) == ["p1"]


def test_a_score_counts_only_where_all_results_define_it(tmp_path):
    a = read_scores(write_json(tmp_path / "a.json", {"p1": 1.0, "p2": 2.0, "p3": None})).scores
    b = read_scores(write_json(tmp_path / "b.json", {"p3": 30.0, "p2": 20.0, "p1": 10.0})).scores
    values = values_of({"a": a, "b": b}, "mae")
    assert values["a"].tolist() == [1, 2] and values["b"].tolist() == [10, 20]
    assert len(values_of({"a": a, "b": b}, "ssim")["a"]) == 3


def test_what_is_printed(tmp_path, capsys):
    """Differences are taken patient by patient: 10 HU in each, though patients differ by 50 HU."""
    mae = {f"p{k}": 50.0 + 10 * k for k in range(6)}
    good = write_json(tmp_path / "good.json", mae, dice_bone=0.6)
    bad = write_csv(tmp_path / "bad/summary.csv", scores({case: x + 10 for case, x in mae.items()}, dice_bone=0.5))
    compare_scores.main([str(good), str(bad), "--against", "bad", "--scores", "mae", "dice_bone"])
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["mean of 6", "MAE [HU]", "Dice bone"]
    assert re.fullmatch(r"75\.0 \(6\d\.\d to 8\d\.\d\)", cells[2][1])
    assert cells[2][2] == "0.600 (0.600 to 0.600)" and cells[3][0] == "bad"
    assert cells[5] == ["difference from bad", "MAE [HU]", "Dice bone"]
    assert cells[7] == ["good", "-10.0 (-10.0 to -10.0)", "+0.100 (+0.100 to +0.100)"] and len(cells) == 8


def test_only_common_cases_are_compared(tmp_path, capsys, caplog):
    one = write_json(tmp_path / "one.json", {"p1": 50.0, "p2": 70.0, "p3": 90.0, "p4": 1000.0})
    two = write_json(tmp_path / "two.json", {"p1": 50.0, "p2": 70.0, "p3": None})
    compare_scores.main([str(one), str(two), "--scores", "mae"])
    out = capsys.readouterr().out
    assert "| one       |     60.0 |" in out
    assert "undefined in some of the 3 cases: MAE [HU] over 2" in out
    assert "not scored in all files, left out: p4" in caplog.text


def test_labels_and_paths(tmp_path):
    """A path may hold a `=`; a label is what stands before the first one."""
    for name in ("lr=1", "mine"):
        write_csv(tmp_path / name / "summary.csv", scores({"p1": 1.0}))
    paths = [tmp_path / "lr=1/summary.csv", tmp_path / "mine/summary.csv", tmp_path / "lr=1/summary.csv"]
    files = compare_scores.labelled([str(paths[0]), str(paths[1]), f"A={paths[2]}"])
    assert files == {"lr=1": paths[0], "mine": paths[1], "A": paths[2]}


def test_infinite_scores_count_as_undefined(tmp_path, capsys):
    """A JSON holds null for them, a CSV inf."""
    one = write_json(tmp_path / "one.json", {"p1": 1.0, "p2": 2.0}, psnr=None)
    two = write_csv(tmp_path / "two.csv", scores({"p1": 1.0, "p2": 2.0}, psnr=math.inf))
    assert read_scores(one).scores["p1"].keys() == read_scores(two).scores["p1"].keys()
    compare_scores.main([str(one), str(two), "--scores", "psnr", "--against", "one"])
    assert "| two                 |         - |" in capsys.readouterr().out


def test_scores_of_different_voxels_are_told(tmp_path, caplog):
    files = []
    for name, mask in (("one", "given mask (non-zero)"), ("two", "body of the reference CT")):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps({"mask": mask, "cases": scores({"p1": 1.0})}))
    compare_scores.main([str(files[0])])
    assert "voxels" not in caplog.text
    compare_scores.main(list(map(str, files)))
    assert "scored in different voxels: body of the reference CT; given mask (non-zero)" in caplog.text
    caplog.clear()
    table = write_csv(tmp_path / "summary.csv", [row | {"status": "done"} for row in scores({"p1": 1.0})])
    compare_scores.main([f"a={table}", str(files[1])])
    assert "body of the reference CT; body of the reference CT, where MR > 0" in caplog.text


def test_mistakes_of_the_command_line(tmp_path, capsys):
    good = str(write_json(tmp_path / "good.json", {"p1": 50.0}))
    for arguments, message in (
        ([good, "--against", "good"], "--against needs another file to compare with"),
        ([good, "--figure", "chart.gif"], "chart.gif: expected a file ending in .png"),
    ):
        with pytest.raises(SystemExit):
            compare_scores.main(arguments)
        assert message in capsys.readouterr().err


def test_the_figure_of_the_ablation_shows_what_the_page_says(tmp_path):
    """The table that it is drawn from repeats figures of the pages."""
    page = "".join((ROOT / "docs" / name).read_text() for name in ("results.md", "trials.md"))
    table = read_intervals(ROOT / "docs/ablation.csv")
    assert len(table) == 12
    for label, row in table.items():
        mae, dice = row["mae"], row["dice_bone"]
        if math.isnan(mae.low):
            assert re.search(rf"{mae.mean:.1f}\W+{dice.mean:.3f}".replace("0.", r"0?\."), page), label
        else:
            shown = [f"{x.mean:.{d}f} ({x.low:.{d}f} to {x.high:.{d}f})" for x, d in ((mae, 1), (dice, 3))]
            plain = page.replace("**", "")
            assert shown[0] in plain and shown[1].replace("0.", ".") in plain, label
    ablation_figure.main(["--table", str(ROOT / "docs/ablation.csv"), "--out", str(tmp_path / "chart.png")])
    drawn, shown = (
        np.asarray(Image.open(path), float) for path in (tmp_path / "chart.png", ROOT / "docs/ablation.png")
    )
    assert drawn.shape == shown.shape and np.abs(drawn - shown).mean() < 5  # fonts may differ
    for text in ("", "label,mae\n", "label,mae\nA,1\n", "label,mae,mae_low,mae_high\nA,x,,\n"):
        (tmp_path / "odd.csv").write_text(text)
        with pytest.raises(InputError, match="expected a row for each training"):
            read_intervals(tmp_path / "odd.csv")


def test_the_figure(tmp_path):
    files = [str(write_json(tmp_path / f"a${name}.json", {"p1": 1.0, "p2": 2.0, "p3": 4.0})) for name in ("b$", "\\c")]
    compare_scores.main([*files, "--figure", str(tmp_path / "chart.png")])
    first = Image.open(tmp_path / "chart.png").convert("RGB")
    blue = np.all(np.abs(np.asarray(first, int) - (0, 114, 178)) < 20, axis=2)
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
    true = write_json(tmp_path / "true.json", {"p1": True})
    huge = write_json(tmp_path / "huge.json", {"p1": 10**400})
    nameless = write_json(tmp_path / "nameless.json", {3: 1.0})
    nameless.write_text(nameless.read_text().replace('"case": "3"', '"case": 3'))
    twice = write_csv(tmp_path / "twice.csv", scores({"p1": 1.0}) * 2)
    for arguments, message in (
        (
            [good, other],
            "no case is scored in all files; expected scores of the same patients, found good: p1; other: q1",
        ),
        ([good, good], "good is also the label of .*; give another: LABEL="),
        (
            [good, f"B={good}", "--against", "god"],
            "--against god: no such label; expected one of good, B; did you mean good",
        ),
        ([unscored], "no case has scores; give test_pipeline.py the true CT with --reference"),
        ([strange], "no scores of cases; expected the JSON of scripts.evaluate"),
        ([odd], "mae of case p1: expected a number, found 'many'"),
        ([twice], "case p1 is listed twice"),
        ([tmp_path / "none.json"], "none.json: no such file"),
        ([tmp_path / "none.csv"], "none.csv: cannot be read as a table"),
        ([f"={good}"], r"expected a label without \| before the ="),
        ([f"a|b={good}"], r"expected a label without \| before the ="),
        ([nameless], "expected the name of a case, found 3"),
        ([true], "mae of case p1: expected a number, found True"),
        ([huge], "mae of case p1: expected a number, found 1000"),
    ):
        with pytest.raises(InputError, match=message):
            compare_scores.main(list(map(str, arguments)))
