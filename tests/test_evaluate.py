import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cohort.inputs import glob_below
from data.errors import InputError, run_command
from data.volumes.volume import Volume, read_volume, write_volume
from evaluation import cases, metrics, patterns, report
from evaluation.case_folders import CaseVolumes
from evaluation.cases import ScoredCase, case_volumes, find_cases
from evaluation.origin import check_exchanged
from evaluation.patterns import volumes_below
from scripts import evaluate

ROOT = Path(__file__).parents[1]
SHAPE = (12, 40, 36)


def phantom(bone_hu: float = 900, offset: float = 0, radius: float = 14) -> Volume:
    """CT of a limb: a cylinder of muscle at 40 HU along z with a bone of radius 4 in it, in mm of 2 x 2 x 3."""
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    distance = np.hypot(y - 19.5, x - 17.5)
    section = np.where(distance <= radius, 40.0, -1000.0)
    section[distance <= 4] = bone_hu
    section[distance <= radius] += offset
    array = np.repeat(section[None], SHAPE[0], axis=0).astype(np.float32)
    return Volume(array, spacing=(2, 2, 3), origin=(-30, 5, 100))


def box(volume: Volume) -> Volume:
    """Return a mask of the middle of the body, with bone in it."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:10, 12:28, 10:26] = 1
    return volume.with_array(mask)


@pytest.fixture
def cohort(tmp_path) -> Path:
    """Three cases: predictions P/<case>.nii.gz, and D/<case>/<case>_{CT,MR,mask} in other formats."""
    for index, name in enumerate(["a_1", "b", "c.2"]):
        ref = phantom(bone_hu=900 if name != "b" else 40)
        write_volume(phantom(ref.array.max(), offset=10 * (index + 1)), tmp_path / "P" / f"{name}.nii.gz")
        write_volume(ref, tmp_path / "D" / name / f"{name}_CT.mha")
        write_volume(box(ref), tmp_path / "D" / name / f"{name}_mask.mha")
        seen = np.where(ref.array > -500, np.arange(ref.array.size).reshape(SHAPE) % 97 + 1, 0)
        write_volume(ref.with_array(seen.astype(np.float32)), tmp_path / "D" / name / f"{name}_MR.mha")
    return tmp_path


def command(folder: Path, *more: str) -> list[str]:
    return [
        f"--pred={folder / 'P'}",
        f"--ref={folder / 'D'}",
        "--ref_pattern={case}/{case}_CT.mha",
        f"--mask={folder / 'D'}",
        "--mask_pattern={case}/{case}_mask.mha",
        *more,
    ]


def test_score_case_in_closed_form():
    ref = phantom()
    pred = phantom(offset=20)
    scores = report.score_case(pred, ref, box(ref))
    assert list(scores) == list(report.COLUMNS)
    assert scores["mae"] == pytest.approx(20)
    assert scores["mae_bone"] == pytest.approx(20)
    assert scores["psnr"] == pytest.approx(20 * math.log10(4024 / 20))
    assert scores["dice_bone"] == 1
    assert scores["dice_body"] == 1
    assert 0.9 < scores["ssim"] < 1
    assert 0.9 < scores["ms_ssim"] < 1


def test_every_voxel_metric_is_reported():
    ref, pred = phantom(), phantom(bone_hu=600, offset=7)
    scores = report.score_case(pred, ref, box(ref))
    for name, metric in report.MASKED_METRICS.items():
        assert scores[name] == metric(pred.array, ref.array, box(ref).array), name


def test_mr_narrows_the_mask():
    ref = phantom()
    pred = ref.with_array(ref.array.copy())
    pred.array[:6] += 100
    mr = ref.with_array(np.zeros(SHAPE, np.int16))
    mr.array[5:] = 300
    assert report.score_case(pred, ref, box(ref))["mae"] == pytest.approx(50)
    assert report.score_case(pred, ref, box(ref), mr)["mae"] == pytest.approx(100 / 5)
    mr.array[:] = 0
    with pytest.raises(InputError, match="mask is empty"):
        report.score_case(pred, ref, box(ref), mr)


def test_a_few_voxels_below_zero_make_no_standardised_mr():
    """As splines do where they overshoot; a standardised MR has its background at its minimum."""
    ref = phantom()
    pred = ref.with_array(ref.array.copy())
    pred.array[:6] += 100
    mr = ref.with_array(np.zeros(SHAPE, np.float32))
    mr.array[5:] = 300
    clean = report.score_case(pred, ref, box(ref), mr)
    mr.array[0, 0, :5] = -40
    assert report.score_case(pred, ref, box(ref), mr) == clean
    standardised = mr.with_array((mr.array.clip(0) - 150) / 100)
    assert report.score_case(pred, ref, box(ref), standardised) == clean


def test_nothing_is_scored_where_the_true_ct_is_not_known():
    ref, covered = phantom(), np.zeros(SHAPE, bool)
    covered[6:] = True
    pred = ref.with_array(ref.array.copy())
    pred.array[:6] += 100
    known = report.score_case(pred, ref.with_array(np.where(covered, ref.array, -1000)), box(ref), covered=covered)
    assert (known["mae"], known["dice_body"], known["dice_bone"]) == (0, 1, 1)


def test_a_true_ct_of_a_part_is_scored_in_that_part(tmp_path):
    """The result is the true CT itself, of which half of the slices are given."""
    ct = phantom()
    half = Volume(ct.array[:6].copy(), ct.spacing, ct.origin, ct.direction)
    case = ScoredCase("a", write_volume(ct, tmp_path / "a.nii.gz"), write_volume(half, tmp_path / "half.nii.gz"))
    whole = replace(case, mask=write_volume(box(ct), tmp_path / "mask.nii.gz"))
    for row in report.score_cohort([case, whole], resample_reference=True)["cases"]:
        assert (row["mae"], row["dice_body"], row["dice_bone"]) == (0, 1, 1)


def test_what_is_no_mr_or_no_mask_is_refused(cohort):
    pred, ref, mr = cohort / "P" / "b.nii.gz", cohort / "D" / "b" / "b_CT.mha", cohort / "D" / "b" / "b_MR.mha"
    with pytest.raises(InputError, match=r"--mr .*b_CT\.mha: has the values of --ref"):
        evaluate.main([f"--pred={pred}", f"--ref={ref}", f"--mr={ref}"])
    image = read_volume(mr)
    image = image.with_array(np.where(image.array > 0, 1 + np.arange(image.array.size).reshape(SHAPE) % 997, 0))
    write_volume(image, cohort / "image.nii.gz")
    with pytest.raises(InputError, match=r"--mask .*image\.nii\.gz: looks like an image; expected a mask"):
        evaluate.main([f"--pred={pred}", f"--ref={ref}", f"--mask={cohort / 'image.nii.gz'}"])


def smoothly(mask: np.ndarray) -> np.ndarray:
    return mask * np.linspace(0.1, 1, mask.size).reshape(mask.shape)


@pytest.mark.parametrize("values", [lambda m: m + 1.0, lambda m: 0.37 * m, lambda m: 1001 * m, smoothly])
def test_masks_of_any_kind_are_taken(cohort, values, capsys):
    """All ones, shares, large labels, and a mask that was smoothed."""
    pred, ref = cohort / "P" / "b.nii.gz", cohort / "D" / "b" / "b_CT.mha"
    mask = box(read_volume(ref))
    write_volume(mask.with_array(values(mask.array.astype(float)).astype(np.float32)), cohort / "mask.nii.gz")
    assert evaluate.main([f"--pred={pred}", f"--ref={ref}", f"--mask={cohort / 'mask.nii.gz'}"]) == 0


def test_scores_do_not_go_to_a_folder(cohort):
    files = [f"--pred={cohort / 'P' / 'b.nii.gz'}", f"--ref={cohort / 'D' / 'b' / 'b_CT.mha'}"]
    with pytest.raises(InputError, match=r"--json .*: is a folder; expected a file"):
        evaluate.main([*files, f"--json={cohort}", "--overwrite"])


def test_body_of_the_reference_is_the_default_mask():
    ref = phantom(bone_hu=40)
    pred = phantom(bone_hu=40, offset=30)
    pred.array[pred.array == -1000] = -900  # air does not count
    assert report.score_case(pred, ref)["mae"] == pytest.approx(30)
    smaller = report.score_case(phantom(bone_hu=40, radius=7), ref)
    assert smaller["mae"] == pytest.approx(1040 * 0.75, rel=0.1)
    assert smaller["dice_body"] == pytest.approx(2 * 0.25 / 1.25, rel=0.1)
    assert math.isnan(smaller["dice_bone"])


def test_body_dice_is_taken_where_the_mr_sees():
    ref, pred = phantom(), phantom()
    pred.array[:6] = -1000
    mr = ref.with_array(np.zeros(SHAPE, np.int16))
    mr.array[6:] = 300
    assert report.score_case(pred, ref)["dice_body"] == pytest.approx(2 / 3, abs=0.01)
    assert report.score_case(pred, ref, mr=mr)["dice_body"] > 0.98


@pytest.mark.parametrize("hu", [-1000, 200])
def test_volumes_without_a_body(hu, caplog):
    ref = phantom()
    flat = ref.with_array(np.full(SHAPE, hu, np.float32))
    failed = report.score_case(flat, ref, box(ref))
    assert failed["dice_body"] == 0
    assert failed["mae"] > 100
    assert ("prediction: no body found" if hu < 0 else "prediction: not a CT in HU") in caplog.text
    if hu > 0:
        with pytest.raises(InputError, match="reference: not a CT in HU"):
            report.score_case(ref, flat, box(ref))
        return
    assert math.isnan(report.score_case(ref, flat, box(ref))["dice_body"])
    assert math.isnan(report.score_case(flat, flat, box(ref))["dice_body"])
    with pytest.raises(InputError, match="reference: no body found"):
        report.score_case(ref, flat)


@pytest.mark.parametrize(
    ("role", "change"),
    [
        ("reference", {"origin": (-30, 5, 101)}),
        ("reference", {"spacing": (2, 2, 2.9)}),
        ("mask", {"direction": (-1, 0, 0, 0, -1, 0, 0, 0, 1)}),
        ("MR", {"array": np.ones((11, 40, 36))}),
    ],
)
def test_other_grids_are_refused_and_shown(role, change):
    ref = phantom()
    volumes = {"reference": phantom(), "mask": box(ref), "MR": ref}
    volumes[role] = replace(volumes[role], **change)
    with pytest.raises(InputError, match=f"the {role} is not on the result's grid") as error:
        report.score_case(ref, volumes["reference"], volumes["mask"], volumes["MR"])
    (what,) = ("size" if name == "array" else name for name in change)
    assert f"grid: {what} " in str(error.value) and str(error.value).count(", expected ") == 1


def row(case: str, **scores: float) -> dict:
    return {"case": case, **dict.fromkeys(report.COLUMNS, 0.5), **scores}


def test_summary_leaves_undefined_scores_out():
    rows = [row("a", mae=10, dice_bone=math.nan), row("b", mae=20, psnr=math.inf), row("c", mae=60)]
    summary = report.summarise(rows)
    assert summary["mean"]["mae"] == 30
    assert summary["std"]["mae"] == pytest.approx(math.sqrt((400 + 100 + 900) / 2))
    assert (summary["mean"]["dice_bone"], summary["n"]["dice_bone"]) == (0.5, 2)
    assert summary["mean"]["psnr"] == math.inf
    assert math.isnan(summary["std"]["psnr"])
    single = report.summarise([row("a", mae_bone=math.nan)])
    assert (single["mean"]["mae"], single["n"]["mae_bone"]) == (0.5, 0)
    assert math.isnan(single["mean"]["mae_bone"])
    assert math.isnan(single["std"]["mae"])


@pytest.mark.parametrize(("count", "shown"), [(2, "-"), (3, "10.0")])
def test_two_cases_have_a_mean_and_no_standard_deviation(count, shown):
    rows = [row(f"p{k}", mae=30 + 10 * k) for k in range(count)]
    table = report.format_report({"cases": rows, **report.summarise(rows)}).splitlines()
    mean, std = ([cell.strip() for cell in line.strip("|").split("|")][:2] for line in table[-2:])
    assert (mean, std) == (["mean", f"{25 + 5 * count:.1f}"], ["std", shown])


def test_table_is_aligned_and_marks_what_is_undefined():
    rows = [row("short", mae=12.345, psnr=math.inf), row("a_longer_name", mae=1234.5, dice_bone=math.nan)]
    lines = report.format_report({"cases": rows, **report.summarise(rows)}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:6]]
    assert cells[0] == ["case", *(title for title, _ in report.COLUMNS.values())]
    assert cells[2][:3] == ["short", "12.3", "inf"]
    assert (cells[3][1], cells[3][6]) == ("1234.5", "-")
    assert [cells[4][0], cells[5][0]] == ["mean", "std"]
    assert cells[4][6] == "0.500"
    assert len({len(line) for line in lines[:6]}) == 1
    assert lines[6] == "undefined (-) in some cases: Dice bone over 1 of 2 cases"
    complete = report.format_report({"cases": rows[:1] * 2, **report.summarise(rows[:1] * 2)})
    assert "undefined" not in complete
    assert "mean" not in report.format_report({"cases": rows[:1], **report.summarise(rows[:1])})


def test_json_has_null_for_what_json_cannot_say(tmp_path):
    rows = [row("a", dice_bone=math.nan, psnr=math.inf, mae=np.float64(1.5))]
    path = report.write_report({"cases": rows, **report.summarise(rows)}, tmp_path / "new" / "scores.json")
    loaded = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert loaded["cases"][0]["dice_bone"] is None
    assert loaded["cases"][0]["psnr"] is None
    assert loaded["mean"] == {**dict.fromkeys(report.COLUMNS, 0.5), "mae": 1.5, "dice_bone": None, "psnr": None}
    assert loaded["n"]["dice_bone"] == 0


def test_json_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    path.write_text("earlier")

    def full_disk(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(InputError, match="no space left"):
            report.write_report({"cases": []}, path)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]
    report.write_report({"cases": []}, path)
    assert json.loads(path.read_text()) == {"cases": []}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("pattern", "file", "name"),
    [
        (None, "STS_002.nii.gz", "STS_002"),
        (None, "c.2.mha", "c.2"),
        ("{case}.mha", "x.mha", "x"),
        ("{case}_ct.nii.gz", "x_y_ct.nii.gz", "x_y"),
        ("{case}/ct.nii.gz", "x/ct.nii.gz", "x"),
        ("{case}/{case}_CT_on_MR_grid.nii.gz", "x/x_CT_on_MR_grid.nii.gz", "x"),
        ("deep/{case}/out [1]/ct.mha", "deep/x/out [1]/ct.mha", "x"),
    ],
)
def test_case_names(tmp_path, pattern, file, name):
    hidden = (".hidden.nii.gz", ".hidden.mha", ".hidden/ct.nii.gz")
    for decoy in ("notes.txt", "x/y_CT_on_MR_grid.nii.gz", "x/mr.nii.gz", *hidden, file):
        (tmp_path / decoy).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / decoy).touch()
    assert case_volumes(CaseVolumes("--ref", tmp_path, pattern)) == {name: tmp_path / file}


@pytest.mark.shared
def test_folder_with_dicom_is_one_volume(tmp_path):
    shared = ROOT.parent / "shared" / "data" / "sts" / "dicom" / "STS_024" / "CT"
    if not shared.is_dir():
        pytest.skip("development data is not beside the checkout")
    assert case_volumes(CaseVolumes("--ref", shared)) is None
    (tmp_path / "p.nii").touch()
    assert find_cases(CaseVolumes("--pred", tmp_path / "p.nii"), CaseVolumes("--ref", shared)) == [
        ScoredCase("p", tmp_path / "p.nii", shared)
    ]
    found = case_volumes(CaseVolumes("--ref", shared.parents[1], "{case}/CT"))
    assert found["STS_024"] == shared


@pytest.mark.parametrize("pattern", ["ct.nii.gz", "{case}/*.nii.gz", "/abs/{case}.mha", "../{case}.mha"])
def test_unusable_patterns_are_refused(tmp_path, pattern):
    (tmp_path / "a.mha").touch()
    with pytest.raises(InputError, match=r"--ref_pattern .*expected a path below"):
        case_volumes(CaseVolumes("--ref", tmp_path, pattern))


def test_matching_refuses_what_is_unclear(tmp_path):
    for file in ("a.nii.gz", "D/a.nii.gz", "D/a.mha", "E/sub/ct.mha"):
        (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / file).touch()
    with pytest.raises(InputError, match="case a is both"):
        case_volumes(CaseVolumes("--pred", tmp_path / "D"))
    with pytest.raises(InputError, match=r"no file ending in .*--ref_pattern"):
        case_volumes(CaseVolumes("--ref", tmp_path / "E"))
    with pytest.raises(InputError, match="no such file or folder"):
        case_volumes(CaseVolumes("--ref", tmp_path / "F"))
    with pytest.raises(InputError, match="is a file; a pattern needs a folder"):
        case_volumes(CaseVolumes("--ref", tmp_path / "a.nii.gz", "{case}.mha"))
    one, many = CaseVolumes("--pred", tmp_path / "a.nii.gz"), CaseVolumes("--ref", tmp_path / "E", "{case}/ct.mha")
    with pytest.raises(InputError, match=r"a\.nii\.gz is one volume, --ref .* is a folder of cases"):
        find_cases(one, many)
    with pytest.raises(InputError, match="names choose from folders"):
        find_cases(one, one, names=["a"])


def test_cases_missing_on_either_side_are_listed(cohort):
    (cohort / "P" / "b.nii.gz").unlink()
    (cohort / "D" / "c.2" / "c.2_CT.mha").unlink()
    (cohort / "D" / "a_1" / "a_1_mask.mha").unlink()
    pred = CaseVolumes("--pred", cohort / "P")
    ref = CaseVolumes("--ref", cohort / "D", "{case}/{case}_CT.mha")
    mask = CaseVolumes("--mask", cohort / "D", "{case}/{case}_mask.mha")
    with pytest.raises(InputError) as error:
        find_cases(pred, ref, mask=mask)
    for part in ("--ref", "D lacks 1 of 2 cases: c.2;", "--mask", "D lacks 1 of 2 cases: a_1. No case is complete"):
        assert part in str(error.value)
    assert "--mr" not in str(error.value)
    with pytest.raises(InputError, match=r"lacks 1 of 2 cases: c\.2\. Score the complete case with --skip_missing"):
        find_cases(pred, ref)
    assert [case.name for case in find_cases(pred, ref, names=["a_1"])] == ["a_1"]
    with pytest.raises(InputError, match=r"lacks 1 of 1 cases: z;"):
        find_cases(pred, ref, names=["z"])


def test_results_without_reference_are_named_and_left_out_where_that_is_asked_for(cohort, caplog):
    (cohort / "D" / "c.2" / "c.2_CT.mha").unlink()
    pred = CaseVolumes("--pred", cohort / "P")
    ref = CaseVolumes("--ref", cohort / "D", "{case}/{case}_CT.mha")
    assert [case.name for case in find_cases(pred, ref, skip_missing=True)] == ["a_1", "b"]
    assert "D lacks 1 of 3 cases: c.2; not scored" in caplog.text


def test_names_that_never_agree_are_shown(cohort):
    pred = CaseVolumes("--pred", cohort / "P")
    ref = CaseVolumes("--ref", cohort / "D", "{case}_1/a_1_CT.mha")
    with pytest.raises(
        InputError, match=r"No case is complete: --pred has a_1, b, c\.2; --ref has a\. Names must agree"
    ):
        find_cases(pred, ref, skip_missing=True)


def test_references_without_a_result_are_counted_in_one_line(cohort, caplog):
    caplog.set_level("INFO")
    (cohort / "P" / "b.nii.gz").unlink()
    pred = CaseVolumes("--pred", cohort / "P")
    ref = CaseVolumes("--ref", cohort / "D", "{case}/{case}_CT.mha")
    mr = CaseVolumes("--mr", cohort / "D", "{case}/{case}_MR.mha")
    assert [case.name for case in find_cases(pred, ref)] == ["a_1", "c.2"]
    assert "1 of 3 references have no result: b" in caplog.text
    assert [case.name for case in find_cases(pred, ref, mr)] == ["a_1", "c.2"]
    assert find_cases(pred, ref, mr)[0].mr == cohort / "D" / "a_1" / "a_1_MR.mha"


def test_command_scores_a_cohort(cohort, capsys):
    evaluate.main(command(cohort, f"--json={cohort / 'scores.json'}"))
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in printed[2:7]] == ["a_1", "b", "c.2", "mean", "std"]
    assert [line.split("|")[2].strip() for line in printed[2:7]] == ["10.0", "20.0", "30.0", "20.0", "10.0"]
    assert printed[7] == "undefined (-) in some cases: Dice bone over 2 of 3 cases, MAE bone [HU] over 2 of 3 cases"
    assert printed[8] == "scored in: given mask (non-zero)"
    loaded = json.loads((cohort / "scores.json").read_text())
    assert loaded["mask"] == "given mask (non-zero)"
    assert [case["case"] for case in loaded["cases"]] == ["a_1", "b", "c.2"]
    assert loaded["mean"]["mae"] == pytest.approx(20)
    assert (loaded["cases"][1]["mae_bone"], loaded["n"]["mae_bone"]) == (None, 2)


def test_rows_of_a_cohort_are_scores_of_cases(cohort):
    ref, pred = read_volume(cohort / "D" / "b" / "b_CT.mha"), read_volume(cohort / "P" / "b.nii.gz")
    intensities = np.arange(ref.array.size, dtype=np.int16).reshape(SHAPE) % 97 + 1
    mask, mr = ref.with_array(np.ones(SHAPE, np.uint8)), ref.with_array(intensities)
    mask.array[:, :18], mr.array[4:] = 0, 0
    paths = {"pred": cohort / "P" / "b.nii.gz", "ref": cohort / "D" / "b" / "b_CT.mha"}
    paths |= {"mask": write_volume(mask, cohort / "mask.nrrd"), "mr": write_volume(mr, cohort / "mr.nrrd")}
    expected = [
        report.score_case(pred, ref),
        report.score_case(pred, ref, mask),
        report.score_case(pred, ref, None, mr),
        report.score_case(pred, ref, mask, mr),
    ]
    given = [(), ("mask",), ("mr",), ("mask", "mr")]
    cases = [ScoredCase(str(names), **{name: paths[name] for name in ("pred", "ref", *names)}) for names in given]
    rows = report.score_cohort(cases)["cases"]
    np.testing.assert_equal(rows, [{"case": str(n), **e} for n, e in zip(given, expected, strict=True)])
    assert len({score["mae"] for score in expected}) > 1


def test_command_scores_one_pair_in_the_body_where_the_mr_sees(cohort, capsys):
    ref, mr = cohort / "D" / "b" / "b_CT.mha", cohort / "D" / "b" / "b_MR.mha"
    evaluate.main([f"--pred={cohort / 'P' / 'b.nii.gz'}", f"--ref={ref}", f"--mr={mr}"])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4
    assert printed[2].split()[1:4:2] == ["b", "20.0"]
    assert printed[3] == "scored in: body of the reference CT, where MR > 0"


def test_the_help_has_groups_that_say_what_their_options_have_in_common(capsys):
    with pytest.raises(SystemExit, match="0"):
        evaluate.parse_arguments(["--help"])
    said = capsys.readouterr().out
    assert said.startswith("usage: python -m scripts.evaluate --pred PATH --ref PATH [options]\n")
    groups = [line for line in said.splitlines() if re.fullmatch(r"[a-z ]+:", line)]
    assert groups == ["options:", "volumes:", "names of cases:", "what is scored:", "results:"]
    volumes, names = (said.split(f"{one}\n")[1].split("\n\n")[1] for one in ("\nvolumes:", "\nnames of cases:"))
    assert re.findall(r"^  (--\w+)", volumes, re.MULTILINE) == ["--pred", "--ref", "--mr", "--mask"]
    assert re.findall(r"^  (--\w+)", names, re.MULTILINE) == [
        f"--{one}_pattern" for one in ("pred", "ref", "mr", "mask")
    ]


def test_command_reports_bad_input_in_one_line(cohort, capsys):
    shifted = replace(read_volume(cohort / "P" / "b.nii.gz"), origin=(0, 0, 0))
    write_volume(shifted, cohort / "P" / "b.nii.gz")
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: evaluate.main(command(cohort, "--cases=b", f"--json={cohort / 'scores.json'}")))
    output = capsys.readouterr()
    assert stop.value.code == 2
    assert output.out == ""
    assert output.err.startswith(f"error: case b: {cohort}/D/b/b_CT.mha: not on the result's grid")
    assert "--resample_reference, or python -m scripts.resample" in output.err
    assert output.err.count("\n") == 1
    assert not (cohort / "scores.json").exists()


def mr_as_prediction(cohort: Path, *names: str) -> None:
    """Put an MR, 0 to 1200, in place of predictions."""
    for name in names:
        ct = read_volume(cohort / "P" / f"{name}.nii.gz")
        mr = ct.array + 1000
        mr[mr > 1060], mr[0, 0, 0] = 300, 1200
        write_volume(ct.with_array(mr), cohort / "P" / f"{name}.nii.gz")


def test_an_mr_is_no_prediction_and_costs_no_other_case(cohort, capsys, caplog):
    mr_as_prediction(cohort, "b")
    assert evaluate.main(command(cohort, f"--json={cohort / 'scores.json'}")) == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in printed[2:6]] == ["a_1", "c.2", "mean", "std"]
    assert printed[4].split("|")[2].strip() == "20.0"
    reason = (
        f"{cohort}/P/b.nii.gz: not a CT in HU (values 0 to 1200): no air or fat below -50 HU: this looks like MR, or "
        "CT before the rescale to HU; check that MR and CT are not swapped, and that the rescale is applied; --pred "
        "takes the synthetic CT (--any_values scores this all the same)"
    )
    assert [one.getMessage() for one in caplog.records if one.levelname == "ERROR"] == [
        f"failed: b: {reason}",
        "2 of 3 cases scored, 1 failed",
    ]
    loaded = json.loads((cohort / "scores.json").read_text())
    assert loaded["failed"] == [{"case": "b", "reason": reason}]
    assert (loaded["mean"]["mae"], loaded["n"]["mae"]) == (pytest.approx(20), 2)


def test_scores_are_renewed_for_the_same_results_and_not_replaced_by_those_of_others(cohort, caplog):
    scores = cohort / "scores.json"
    with caplog.at_level("INFO"):
        evaluate.main(command(cohort, f"--json={scores}"))
    assert f"scores: {scores}" in caplog.text
    first = json.loads(scores.read_text())
    assert (first["inputs"]["pred"], first["inputs"]["ref"]) == (str(cohort / "P"), str(cohort / "D"))
    scores.write_text(json.dumps(first | {"cases": []}))
    evaluate.main(command(cohort, f"--json={scores}"))
    assert json.loads(scores.read_text()) == first
    for other in (["--cases=b"], ["--mr", str(cohort / "D"), "--mr_pattern", "{case}/{case}_MR.mha"]):
        with pytest.raises(InputError, match=r"scores\.json: exists already, and was not made by this command"):
            evaluate.main([*command(cohort, *other), f"--json={scores}"])
    shutil.copytree(cohort / "P", cohort / "other")
    other = [word.replace(f"--pred={cohort / 'P'}", f"--pred={cohort / 'other'}") for word in command(cohort)]
    with pytest.raises(InputError, match=r"scores\.json: exists already, and was not made by this command"):
        evaluate.main([*other, f"--json={scores}"])
    evaluate.main([*other, f"--json={scores}", "--overwrite"])
    assert json.loads(scores.read_text())["inputs"]["pred"] == str(cohort / "other")
    scores.write_text("{}")
    with pytest.raises(InputError, match="exists already"):
        evaluate.main(command(cohort, f"--json={scores}"))


def test_mr_alone_as_predictions_are_an_error_that_names_the_file(cohort):
    mr_as_prediction(cohort, "a_1", "b", "c.2")
    with pytest.raises(InputError, match=r"^case a_1: .*/a_1\.nii\.gz: not a CT .*\(2 more cases cannot be"):
        evaluate.main(command(cohort, f"--json={cohort / 'scores.json'}"))
    assert not (cohort / "scores.json").exists()
    with pytest.raises(InputError, match=r"^case b: .*/P/b\.nii\.gz: not a CT in HU \(values 0 to 1200\)"):
        evaluate.main([f"--pred={cohort / 'P/b.nii.gz'}", f"--ref={cohort / 'D/b/b_CT.mha'}"])


def test_any_values_are_scored_where_that_is_asked_for(cohort, capsys, caplog):
    mr_as_prediction(cohort, "b")
    assert evaluate.main(command(cohort, "--cases=b", "--any_values")) == 0
    # In the box there is muscle alone: 40 + 20 HU, which became 1060.
    assert capsys.readouterr().out.splitlines()[2].split("|")[2].strip() == "1020.0"
    assert f"{cohort}/P/b.nii.gz: not a CT in HU" in caplog.text


def test_pattern_needs_its_folder(cohort, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(command(cohort, "--mr_pattern={case}.mha"))
    assert stop.value.code == 2
    assert "--mr_pattern needs --mr" in capsys.readouterr().err


def test_module_runs_as_a_command(tmp_path):
    arguments = [sys.executable, "-m", "scripts.evaluate", f"--pred={tmp_path / 'none.nii'}", f"--ref={tmp_path}"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: --pred {tmp_path / 'none.nii'}: no such file or folder\n"


def test_every_column_is_a_metric():
    assert set(report.COLUMNS) == {*report.MASKED_METRICS, "dice_body"}
    assert all(metric is getattr(metrics, name) for name, metric in report.MASKED_METRICS.items())


def touched(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def refusal(pred: CaseVolumes, ref: CaseVolumes, **more) -> str:
    with pytest.raises(InputError) as error:
        find_cases(pred, ref, **more)
    return str(error.value)


REF = "--ref_pattern '{case}/ct.nii.gz', which matches"
PROPOSALS = {
    "folders of patients": ("P0{}", "P0{}/ct.nii.gz", f"{REF} all 3 cases"),
    "files with a word": ("P0{}", "P0{}_CT_on_MR_grid.nii.gz",
                          "--ref_pattern '{case}_CT_on_MR_grid.nii.gz', which matches all 3 cases"),
    "results with a word": ("P0{}_MR_T1", "P0{0}/ct.nii.gz",
                            "--pred_pattern '{case}_MR_T1.nii.gz' --ref_pattern '{case}/ct.nii.gz', which match all 3 "
                            "cases"),
    "results with a folder": ("siteA__P0{}", "siteA/P0{}/ct.nii.gz",
                              "--pred_pattern 'siteA__{case}.nii.gz' --ref_pattern 'siteA/{case}/ct.nii.gz', which "
                              "match all 3 cases"),
    "twice the name": ("P0{}", "in/P0{0}/P0{0} CT.mha",
                       "--ref_pattern 'in/{case}/{case} CT.mha', which matches all 3 cases"),
}  # fmt: skip


@pytest.mark.parametrize("layout", PROPOSALS)
def test_the_pattern_that_matches_is_proposed(layout, tmp_path):
    """Also beside MR and masks, and what is proposed works."""
    result, true_ct, expected = PROPOSALS[layout]
    for k in range(3):
        place = Path(true_ct.format(k))
        touched(tmp_path, f"P/{result.format(k)}.nii.gz", f"D/{place}", f"D/{place.parent}/mr_{k}.nii.gz")
        touched(tmp_path, f"D/{place.with_name(f'ct_mask_{k}.nii.gz')}")
    pred, ref = CaseVolumes("--pred", tmp_path / "P", kind="sct"), CaseVolumes("--ref", tmp_path / "D", kind="ct")
    said = refusal(pred, ref)
    assert said.endswith(f"give {expected}")
    words = shlex.split(expected.rpartition(", which")[0])
    patterns = dict(zip(words[::2], words[1::2], strict=True))
    pred = replace(pred, pattern=patterns.get("--pred_pattern"))
    assert len(find_cases(pred, replace(ref, pattern=patterns["--ref_pattern"]))) == 3


def test_a_proposal_says_of_how_many_cases_it_is_true(tmp_path):
    touched(tmp_path, "P/a1.nii.gz", "P/a2.nii.gz", "P/b.nii.gz", "D/a1/ct.nii.gz", "D/a2/ct.nii.gz", "D/c/ct.nii.gz")
    pred = CaseVolumes("--pred", tmp_path / "P")
    said = refusal(pred, CaseVolumes("--ref", tmp_path / "D", "{case}/CT.mha"))
    assert said.endswith(f"D: found nothing for {{case}}/CT.mha; give {REF} 2 of 3 cases")
    # One that matches no more than what was given is none.
    given = CaseVolumes("--ref", tmp_path / "D", "{case}/ct.nii.gz")
    assert refusal(pred, given).endswith(
        "D lacks 1 of 3 cases: b. Score the 2 complete cases with --skip_missing, or give another folder, or another "
        "--ref_pattern: --ref holds a1/ct.nii.gz, a2/ct.nii.gz, c/ct.nii.gz"
    )
    touched(tmp_path, "other/x/ct.nii.gz")
    said = refusal(pred, CaseVolumes("--ref", tmp_path / "other"))
    assert "which match" not in said and said.endswith("e.g. --ref_pattern '{case}/ct.nii.gz'")
    results = CaseVolumes("--pred", touched(tmp_path / "results", "recommended/a1.nii.gz"))
    assert refusal(results, given).endswith("give --pred_pattern 'recommended/{case}.nii.gz', which matches the case")


def test_every_side_gets_its_proposal(tmp_path):
    touched(tmp_path, *(f"D/p{k}/{name}.nii.gz" for k in range(2) for name in ("ct", "mr", "mask")))
    touched(tmp_path, "P/p0.nii.gz", "P/p1.nii.gz")
    pred = CaseVolumes("--pred", tmp_path / "P")
    others = {
        name: CaseVolumes(f"--{name}", tmp_path / "D", kind=kind)
        for name, kind in (("ref", "ct"), ("mr", "mr"), ("mask", "mask"))
    }
    assert refusal(pred, **others).endswith(
        f"give {REF} all 2 cases, and --mr_pattern '{{case}}/mr.nii.gz', which matches all 2 cases, and --mask_pattern "
        "'{case}/mask.nii.gz', which matches all 2 cases"
    )


@pytest.mark.parametrize("name", ["sct", "synthetic", "syntheticCT", "synct_v2", "pseudo_ct", "sct/ct"])
def test_synthetic_ct_is_no_true_ct_that_could_be_proposed(name, tmp_path):
    touched(tmp_path, "P/p0.nii.gz", "P/p1.nii.gz", *(f"D/p{k}/{name}.nii.gz" for k in range(2)))
    pred, ref = CaseVolumes("--pred", tmp_path / "P", kind="sct"), CaseVolumes("--ref", tmp_path / "D", kind="ct")
    assert refusal(pred, ref).endswith("e.g. --ref_pattern '{case}/ct.nii.gz'")
    touched(tmp_path, *(f"D/p{k}/image.nii.gz" for k in range(2)))
    assert refusal(pred, ref).endswith("give --ref_pattern '{case}/image.nii.gz', which matches all 2 cases")
    both = CaseVolumes("--pred", tmp_path / "D", kind="sct")
    said = refusal(both, CaseVolumes("--ref", touched(tmp_path / "E", "p0.nii.gz", "p1.nii.gz"), kind="ct"))
    words = f"--pred_pattern '{{case}}/{name}.nii.gz' --ref_pattern '{{case}}.nii.gz', which match all 2 cases"
    assert said.endswith(f"give {words}")


def test_other_patterns_that_match_as_many_are_named(tmp_path):
    """Two models have results, or two folders true CT: one of them would be a guess."""
    touched(tmp_path, *(f"{folder}/p{k}.nii.gz" for folder in ("R/a", "R/bb", "D/x", "D/yy") for k in range(2)))
    results, models = CaseVolumes("--pred", tmp_path / "R/a"), CaseVolumes("--pred", tmp_path / "R")
    true, folders = CaseVolumes("--ref", tmp_path / "D/x", "{case}.nii.gz"), CaseVolumes("--ref", tmp_path / "D")
    assert refusal(models, true).endswith(
        "give --pred_pattern 'a/{case}.nii.gz', which matches all 2 cases (others that match as many: --pred_pattern "
        "'bb/{case}.nii.gz')"
    )
    assert refusal(results, folders).endswith(
        "give --ref_pattern 'x/{case}.nii.gz', which matches all 2 cases (others that match as many: --ref_pattern "
        "'yy/{case}.nii.gz')"
    )
    a, bb = (f"--pred_pattern '{name}/{{case}}.nii.gz'" for name in ("a", "bb"))
    x, yy = (f"--ref_pattern '{name}/{{case}}.nii.gz'" for name in ("x", "yy"))
    assert refusal(models, folders).endswith(
        f"give {a} {x}, which match all 2 cases (others that match as many: {bb} {x}; {a} {yy}; {bb} {yy})"
    )


def test_a_large_or_deep_folder_is_searched_on_top_only_and_once(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    touched(tmp_path, "a/b/c/at4.nii", "a/b/c/d/at5.nii", ".hidden/x.nii")
    assert volumes_below(tmp_path) == [Path("a/b/c/at4.nii")]
    assert not caplog.messages
    touched(tmp_path, "b.nii", "c.nii")
    monkeypatch.setattr(patterns, "_ENTRIES", 4)
    assert volumes_below(tmp_path) == [Path("b.nii"), Path("c.nii")]
    assert caplog.messages == [f"{tmp_path}: looked for patterns among 4 of its files and folders only"]
    looked = []
    monkeypatch.setattr(cases, "volumes_below", lambda folder: looked.append(folder) or volumes_below(folder))
    pred = CaseVolumes("--pred", touched(tmp_path / "P", "p0.nii.gz"))
    empty = touched(tmp_path / "E", "x/ct.nii")
    refusal(pred, CaseVolumes("--ref", empty, kind="ct"), mr=CaseVolumes("--mr", empty, kind="mr"))
    assert looked == [empty]


def test_an_example_is_of_the_option_s_kind(tmp_path):
    pred, ref = (CaseVolumes(f"--{name}", touched(tmp_path / name, "p0.nii.gz")) for name in ("pred", "ref"))
    (tmp_path / "empty").mkdir()
    mr = CaseVolumes("--mr", tmp_path / "empty", kind="mr")
    assert refusal(pred, ref, mr=mr).endswith("e.g. --mr_pattern '{case}/mr.nii.gz'")
    with pytest.raises(InputError, match=r"e\.g\. '{case}/mr.nii.gz'$"):
        case_volumes(replace(mr, pattern="*"))


ALONE = {
    "words": (
        ["A/A_MR", "B/B_MR", "A/A_CT", "B/B_CT"],
        "add --mr_pattern '{case}/{case}_MR.nii.gz', which finds 2 cases",
    ),
    "no word": (["A/vibe", "B/vibe", "A/CT"], "add --mr_pattern '{case}/vibe.nii.gz', which finds 2 cases"),
    "one": (["P7"], "add --mr_pattern '{case}.nii.gz', which finds 1 case"),
    "others": (["A/CT"], "give another folder, or another --mr_pattern: --mr holds A/CT.nii.gz"),
    "nothing": ([], "give another folder: no volume file or DICOM series lies below --mr"),
}


@pytest.mark.parametrize(("files", "way_out"), ALONE.values(), ids=ALONE)
def test_a_pattern_that_finds_nothing_in_a_folder_is_answered_by_one_that_does(tmp_path, files, way_out):
    touched(tmp_path, *(f"{file}.nii.gz" for file in files))
    mr = CaseVolumes("--mr", tmp_path, "{case}/mr.nii.gz", "mr")
    with pytest.raises(InputError) as error:
        case_volumes(mr)
    assert str(error.value) == f"--mr {tmp_path}: found nothing for {{case}}/mr.nii.gz; {way_out}"


def test_a_pattern_that_has_just_failed_is_not_proposed(tmp_path):
    """Nor is one that matches no more of its own folder than it did, where another option lacks cases, too."""
    touched(tmp_path, "P/a.nii.gz", "P/b.nii.gz", "D/x/ct.nii.gz", "empty/notes.txt", "M/a_mr.nii.gz", "M/b_mr.nii.gz")
    pred = CaseVolumes("--pred", tmp_path / "P", kind="sct")
    ref = CaseVolumes("--ref", tmp_path / "D", "{case}/ct.nii.gz", "ct")
    assert refusal(pred, ref).endswith("give another folder, or another --ref_pattern: --ref holds x/ct.nii.gz")
    said = refusal(pred, replace(ref, path=tmp_path / "empty"))
    assert said.endswith("; give another folder: no volume file or DICOM series lies below --ref")
    touched(tmp_path, "D/a/ct.nii.gz", "D/a_image.nii.gz")
    mr = CaseVolumes("--mr", tmp_path / "M", "{case}_MR.nii.gz", "mr")
    assert refusal(pred, ref, mr=mr, names=["a", "b"]).endswith(
        "; give --mr_pattern '{case}_mr.nii.gz', which matches all 2 cases"
    )


def test_a_mistyped_folder_is_answered_by_the_nearest(tmp_path):
    touched(tmp_path, "results/a.nii.gz", "patients/a/ct.nii.gz")
    pred, ref = CaseVolumes("--pred", tmp_path / "resutls"), CaseVolumes("--ref", tmp_path / "patients")
    assert refusal(pred, ref) == f"--pred {tmp_path}/resutls: no such file or folder; did you mean results?"
    wrong = tmp_path / "patient/a"
    said = f"--ref {wrong}: no such folder: {tmp_path}/patient; did you mean patients?"
    touched(tmp_path, "patient.txt")  # nearer, but no folder
    assert refusal(replace(pred, path=tmp_path / "results"), replace(ref, path=wrong)) == said


def test_a_link_to_nothing_is_called_so(tmp_path):
    (tmp_path / "results").symlink_to("gone")
    pred, ref = CaseVolumes("--pred", tmp_path / "results/leg"), CaseVolumes("--ref", tmp_path)
    link = f"{tmp_path}/results is a link to what is not there: gone"
    assert refusal(pred, ref) == f"--pred {tmp_path}/results/leg: {link}"
    assert refusal(replace(pred, path=tmp_path / "results"), ref) == f"--pred {tmp_path}/results: {link}"


def test_a_mistyped_case_is_answered_by_the_nearest(tmp_path):
    pred, ref = (CaseVolumes(f"--{name}", touched(tmp_path / name, "leg_1.nii.gz")) for name in ("pred", "ref"))
    said = f"--cases: --pred {tmp_path}/pred has no lag_1; did you mean leg_1?"
    assert refusal(pred, ref, names=["lag_1", "leg_1"]) == said


def test_names_are_cleaned_on_every_side(tmp_path):
    touched(tmp_path, "P/P_07.nii.gz", "D/P 07/ct.nii.gz")
    pred, ref = CaseVolumes("--pred", tmp_path / "P"), CaseVolumes("--ref", tmp_path / "D", "{case}/ct.nii.gz")
    (case,) = find_cases(pred, ref)
    assert (case.name, case.ref) == ("P_07", tmp_path / "D/P 07/ct.nii.gz")
    assert find_cases(pred, ref, names=["P 07"]) == [case]


@pytest.mark.parametrize("record", ["P/records/b.json", "P/b.json"])
@pytest.mark.parametrize("folders", [True, False])
def test_results_and_references_that_are_exchanged_are_noticed(record, folders, cohort, caplog):
    """By the record of a cohort, or the report of one patient."""
    told = cohort / record
    told.parent.mkdir(exist_ok=True)
    told.write_text(json.dumps({"case": "b", "input": "/in/b.nii", "made": ["b.nii.gz"]}))
    if folders:
        paths, pattern = (cohort / "D", cohort / "P"), ["--pred_pattern={case}/{case}_CT.mha"]
    else:
        paths, pattern = (cohort / "D/b/b_CT.mha", cohort / "P/b.nii.gz"), []
    expected = (
        f"--ref {paths[1]}: a synthetic CT according to {told}, but nothing marks --pred {paths[0]} as one. They seem "
        "to be swapped: --pred takes the synthetic CT, --ref the true CT"
    )
    with pytest.raises(InputError) as error:
        evaluate.main([f"--pred={paths[0]}", f"--ref={paths[1]}", *pattern])
    assert str(error.value) == expected
    if folders:  # the pattern belongs to the true CT, and is left where it was
        with pytest.raises(InputError) as error:
            evaluate.main([f"--pred={paths[0]}", f"--ref={paths[1]}", "--ref_pattern={case}/{case}_CT.mha"])
        assert str(error.value) == expected
    told.write_text(json.dumps({"case": "b", "mae": 3}))  # scores, of no result
    evaluate.main([f"--pred={paths[0]}", f"--ref={paths[1]}", *pattern])
    told.write_text(json.dumps({"case": "b", "input": "/in/b.nii", "made": ["b.nii.gz"]}))
    caplog.clear()
    evaluate.main([f"--pred={paths[1]}", f"--ref={paths[1]}"])  # of two results either may be the reference
    assert caplog.messages[0] == (
        f"warning: --ref {paths[1]}: synthetic CT, as {told} says. The scores tell how far two results agree, not how "
        "far they are from a true CT"
    )


@pytest.mark.parametrize("extra", ["dicom", "mu_maps", "uncertainty"])
def test_the_record_of_a_cohort_counts_for_its_extras_only(extra, cohort):
    """A true CT in another folder of the results is none of them."""
    told = cohort / "results/records/b.json"
    told.parent.mkdir(parents=True)
    told.write_text(json.dumps({"case": "b", "input": "/in/b.nii", "made": ["b.nii.gz"]}))
    volume = read_volume(cohort / "D/b/b_CT.mha")
    pred = CaseVolumes("--pred", cohort / "P")
    write_volume(volume, cohort / "results/true/b.nii.gz")
    check_exchanged(pred, CaseVolumes("--ref", cohort / "results/true"))
    write_volume(volume, cohort / "results" / extra / "b.nii.gz")
    with pytest.raises(InputError, match=r"a synthetic CT according to .*/results/records/b\.json, but"):
        check_exchanged(pred, CaseVolumes("--ref", cohort / "results" / extra))


GLOBS = {
    "folders of patients": (["P{}/mr.nii.gz"], ["P{}/ct.nii.gz"], "*/mr.nii.gz", 3),
    "a word in the name": (["P{}_MR_T1.nii.gz"], ["P{}_CT.nii.gz", "P{}_mask.nii.gz"], "*_T1.nii.gz", 3),
    "folders in folders": (["P{0}/P{0}_MR.mha"], ["P{0}/P{0}_CT.mha"], "*/*_MR.mha", 3),
    "at several depths": (["P{}/mr.nii", "x/P{}/mr.nii", "y/a/P{}/mr.nii"], ["P{}/ct.nii"], "**/mr.nii", 9),
    "brackets": (["[x]/P{}_MR.nii"], ["[x]/P{}_CT.nii"], "[[]x]/*_MR.nii", 3),
    "some that no pattern tells": (["P{}_MR.nii", "P{}.nii"], ["P{}_CT.nii"], "*_MR.nii", 3),
    "nothing": (["P{}.nii"], ["Q{}.nii"], None, 0),
}  # fmt: skip


@pytest.mark.parametrize(("wanted", "others", "pattern", "count"), GLOBS.values(), ids=GLOBS)
def test_globs_that_take_the_mr_alone_were_tried(tmp_path, wanted, others, pattern, count):
    wanted, others = ([name.format(f"0{k}") for name in names for k in range(3)] for names in (wanted, others))
    touched(tmp_path, *wanted, *others)
    found = patterns.propose_glob(set(map(Path, wanted)), set(map(Path, others)), lambda one: glob_below(tmp_path, one))
    assert found == (pattern and (pattern, count))
