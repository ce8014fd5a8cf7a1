"""The last line of a conversion: the command that scores its results runs as it is."""

import json
import logging
import shlex
from pathlib import Path

import numpy as np
import pytest

import test_adapt
import test_pipeline
from cohort.scoring import cohort_command, true_ct_beside
from data.errors import InputError
from data.volumes.volume import Volume, read_volume, write_volume
from evaluation.origin import result_told_by
from evaluation.report import score_case
from scripts import evaluate
from tests.cohort_data import NAME, patient_mr, write_dicom_patient, write_model
from tests.faults.commands import adapt, pipeline
from tests.test_sources import touch


def true_ct(mr: Volume) -> Volume:
    return mr.with_array(np.where(mr.array > 100, 40, -1000).astype(np.int16))


def write_nifti(root: Path, mr: str, ct: str) -> None:
    for k in range(2):
        volume = patient_mr(32.0 + 4 * k)
        write_volume(volume, root / mr.format(k))
        write_volume(true_ct(volume), root / ct.format(k))


def write_dicom(root: Path) -> None:
    hu = true_ct(patient_mr()).array

    def as_ct(k, header):
        header.Modality, header.RescaleIntercept, header.RescaleSlope = "CT", -1024, 1
        header.PixelData = (hu[k] + 1024).astype(np.uint16).tobytes()

    for k in range(2):
        write_dicom_patient(root / f"in/p{k}/MR_T1", uid=f"1.2.{k}.1")
        write_dicom_patient(root / f"in/p{k}/CT", uid=f"1.2.{k}.2", change=as_ct)


LAYOUTS = {
    "one folder": ("in/p{}.nii.gz", "CT/p{}.nii.gz", None),
    "one folder with CT": ("in/p{}_MR.nii.gz", "in/p{}_CT.nii.gz", "*_MR*"),
    "a folder a patient": ("in/p{}/mr.nii.gz", "in/p{}/ct.nii.gz", "*/mr.nii.gz"),
    "names with the patient": ("in/p{0}/p{0}_MR_T1.mha", "in/p{0}/p{0}_CT_on_MR_grid.nii.gz", "*/*MR_T1*"),
    "everything is taken": ("in/p{}/mr.nii.gz", "in/p{}/ct.nii.gz", None),
    "dicom": None,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_command_that_a_cohort_prints_scores_it(layout, tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    write_model(tmp_path)
    command = ["--name", NAME, "--device", "cpu", "--precision", "fp32", "--input_dir", "in", "--no_html"]
    if LAYOUTS[layout] is None:
        write_dicom(tmp_path)
        pairs = [(tmp_path / f"in/p{k}/MR_T1", tmp_path / f"in/p{k}/CT") for k in range(2)]
    else:
        mr, ct, pattern = LAYOUTS[layout]
        write_nifti(tmp_path, mr, ct)
        pairs = [(tmp_path / mr.format(k), tmp_path / ct.format(k)) for k in range(2)]
        command += ["--pattern", pattern] if pattern else []
    assert test_pipeline.main(command) == (layout == "everything is taken")  # a CT given as MR fails
    (line,) = [text for text in caplog.text.splitlines() if "scripts.evaluate" in text]
    assert ("with the true CT as CT/p0.nii.gz and so on: " in line) == (layout == "one folder")
    words = shlex.split(line[line.index("python -m") :])
    capsys.readouterr()
    evaluate.main([*words[3:], "--json", "scores.json"])
    scores = [row.split("|")[2].strip() for row in capsys.readouterr().out.splitlines()[2:4]]
    results = sorted((tmp_path / "results" / NAME).glob("*.nii.gz"))
    expected = [
        score_case(read_volume(result), read_volume(ct), mr=read_volume(mr))["mae"]
        for result, (mr, ct) in zip(results, pairs, strict=True)
    ]
    assert scores == [f"{mae:.1f}" for mae in expected]
    sides = (("pred", "ref"), ("ref", "pred"))
    exchanged = {f"--{one}{end}": f"--{other}{end}" for one, other in sides for end in ("", "_pattern")}
    with pytest.raises(
        InputError, match=f"a synthetic CT according to .*{NAME}/records/p0.*json, .* seem to be swapped"
    ):
        evaluate.main([exchanged.get(word, word) for word in words[3:]])


@pytest.mark.parametrize("what", ["nii.gz", "mha", "nrrd", "a DICOM series"])
def test_a_result_away_from_its_record_is_known_by_its_header(what, tmp_path, caplog):
    """As a reference it is warned of, and refused where it seems to be exchanged."""
    write_model(tmp_path)
    mr = write_volume(patient_mr(), tmp_path / "in/p.nii.gz")
    is_series = what == "a DICOM series"
    made = tmp_path / ("results/p" if is_series else f"results/p.{what}")
    arguments = adapt(tmp_path, mr)
    output = f"{made.parent}/" if is_series else str(made)  # the series gets a folder of its own
    test_adapt.main([*arguments, "--output", output, "--volume_only"])
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    copy = made.rename(alone / made.name)
    true = write_volume(true_ct(read_volume(mr)), tmp_path / "true.nii.gz")
    assert result_told_by(copy) == "its header" and result_told_by(true) is None and result_told_by(mr) is None
    with pytest.raises(InputError, match=r"--ref .*: a synthetic CT according to its header, but nothing"):
        evaluate.main(["--pred", str(true), "--ref", str(copy)])
    said = f"{copy}: synthetic CT, as its header says. The scores tell how far two results agree, not how far they are "
    evaluate.main(["--pred", str(copy), "--ref", str(copy)])
    assert f"warning: --ref {said}from a true CT" in caplog.messages
    caplog.clear()
    test_adapt.main([*arguments, "--output", str(tmp_path / "again.nii.gz"), "--reference", str(copy)])
    assert f"warning: --reference {said}from a true CT" in caplog.messages
    test_adapt.main([*arguments, "--output", str(tmp_path / "third.nii.gz"), "--reference", str(true)])
    assert caplog.text.count("synthetic CT, as") == 1
    warnings = json.loads((tmp_path / "again.json").read_text())["warnings"]
    assert [text for text in warnings if "synthetic CT, as" in text] == [f"--reference {said}from a true CT"]


def test_a_cohort_warns_of_a_result_as_true_ct_until_it_gets_another(tmp_path):
    write_model(tmp_path)
    mr = write_volume(patient_mr(), tmp_path / "in/p.nii.gz")
    test_adapt.main([*adapt(tmp_path, mr), "--output", str(tmp_path / "made.nii.gz"), "--volume_only"])
    true = write_volume(true_ct(read_volume(mr)), tmp_path / "true.nii.gz")
    record = tmp_path / "out" / NAME / "records/p.json"
    for ct, expected in ((tmp_path / "made.nii.gz", 1), (true, 0)):
        (tmp_path / "cases.csv").write_text(f"id,path,reference\np,{mr},{ct}\n")
        words = [word for word in pipeline(tmp_path, mr) if word not in ("--input_dir", str(mr))]
        assert test_pipeline.main([*words, "--list", str(tmp_path / "cases.csv")]) == 0
        warnings = json.loads(record.read_text())["warnings"]
        assert (
            sum(text.startswith(f"--reference {ct}: synthetic CT, as its header says") for text in warnings) == expected
        )
        assert sum("synthetic CT, as" in text for text in warnings) == expected


@pytest.mark.parametrize("shifted", [False, True])
def test_the_command_that_one_patient_prints_scores_it(shifted, tmp_path, monkeypatch, caplog, capsys):
    """Also where the true CT lies on another grid."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    write_model(tmp_path)
    mr = patient_mr()
    write_volume(mr, tmp_path / "p1/mr.nii.gz")
    ct = true_ct(mr)
    if shifted:  # by whole voxels, so that interpolation changes none
        step = mr.spacing[0]
        ct = Volume(ct.array[:, :, 1:], ct.spacing, (ct.origin[0] + step, *ct.origin[1:]), ct.direction)
    write_volume(ct, tmp_path / "p1/ct.nii.gz")
    arguments = ["--name", NAME, "--device", "cpu", "--precision", "fp32", "--input", "p1/mr.nii.gz", "--volume_only"]
    assert test_adapt.main(arguments) == 0
    (line,) = [text for text in caplog.text.splitlines() if "scripts.evaluate" in text]
    evaluate.main(shlex.split(line[line.index("python -m") :])[3:])
    expected = score_case(read_volume(f"results/{NAME}/p1.nii.gz"), true_ct(mr), mr=mr)["mae"]
    assert capsys.readouterr().out.splitlines()[2].split("|")[2].strip() == f"{expected:.1f}"


def test_results_without_a_true_ct_are_left_out_of_the_command_s_scores(tmp_path):
    paths = {f"p{k}": tmp_path / f"in/p{k}/mr.nii" for k in range(2)}
    touch(tmp_path, "in/p0/mr.nii", "in/p1/mr.nii", "in/p1/ct.nii", "out/p0.nii.gz", "out/p1.nii.gz")
    command = cohort_command(tmp_path / "out", paths, tmp_path / "in")
    assert command.startswith("next: ") and command.endswith("--skip_missing")
    touch(tmp_path, "in/p0/ct.nii")
    assert "--skip_missing" not in cohort_command(tmp_path / "out", paths, tmp_path / "in")
    touch(tmp_path, "in/p2/other.nii", "in/p2/other_ct.nii")
    mixed = cohort_command(tmp_path / "out", {**paths, "p2__other": tmp_path / "in/p2/other.nii"}, tmp_path / "in")
    assert mixed.startswith("next, for 2 of 3 cases: ") and "--ref_pattern '{case}/ct.nii'" in mixed
    touch(tmp_path, "in/p0/ct_mask.nii")
    assert "ct_mask" not in cohort_command(tmp_path / "out", {"p0": tmp_path / "in/p0/mr.nii"}, tmp_path / "in")
    alone = {"a__p0": tmp_path / "in/x/b.nii"}
    assert "--mr" not in cohort_command(tmp_path / "out", alone, tmp_path / "in")  # no pattern can say it


def test_a_short_name_stands_for_no_letters_of_other_words(tmp_path):
    paths = {name: tmp_path / f"in/{name}/mr_t1.nii" for name in ("m", "1", "t")}
    command = cohort_command(tmp_path / "out", paths, tmp_path / "in")
    assert "--mr_pattern '{case}/mr_t1.nii'" in command and " of 3 cases" not in command


def test_a_list_may_mix_relative_and_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = {"p1": Path("in/p1/mr.nii"), "p2": tmp_path / "other/../in/p2/mr.nii"}
    command = cohort_command(tmp_path / "out", paths)
    assert f"--mr {tmp_path}/in --mr_pattern '{{case}}/mr.nii'" in command


def scored_by(line: str, capsys) -> list[str]:
    """Return the cases that the command in a line scores, and run it as it stands."""
    capsys.readouterr()
    evaluate.main(shlex.split(line[line.index("python -m") :])[3:])
    rows = [row.split("|")[1].strip() for row in capsys.readouterr().out.splitlines()[2:] if row.startswith("|")]
    return [row for row in rows if row not in ("mean", "std")]


CLEANED = {
    "folders": ("in/P (0{})/mr.nii.gz", "in/P (0{})/ct.nii.gz", "**/mr*", ["P_00_", "P_01_"]),
    "files": ("in/P 0{} MR.nii.gz", "in/P 0{} CT.nii.gz", "*MR*", ["P_00", "P_01"]),
    "files in folders": ("in/an å/P 0{}.nii.gz", "CT/P 0{}.nii.gz", None, ["P_00", "P_01"]),
}


@pytest.mark.parametrize("layout", CLEANED)
def test_cases_whose_names_were_cleaned_are_scored(layout, tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    write_model(tmp_path)
    mr, ct, pattern, names = CLEANED[layout]
    write_nifti(tmp_path, mr, ct)
    command = ["--name", NAME, "--device", "cpu", "--precision", "fp32", "--input_dir", "in", "--no_html"]
    assert test_pipeline.main([*command, *(["--pattern", pattern] if pattern else [])]) == 0
    (line,) = [text for text in caplog.text.splitlines() if "scripts.evaluate" in text]
    assert "--mr in" in line and " of 2 cases" not in line
    assert scored_by(line, capsys) == names


@pytest.mark.parametrize("single", [False, True])
def test_an_mr_beside_other_series_is_left_out_of_the_command(single, tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    write_model(tmp_path)
    write_dicom(tmp_path)
    for k in range(2):
        write_dicom_patient(tmp_path / f"in/p{k}/MR_T1", uid=f"1.2.{k}.9", description="T2")
    more = ["--series_description", "T1", "--device", "cpu", "--precision", "fp32", "--name", NAME]
    if single:
        assert test_adapt.main([*more, "--input", "in/p0/MR_T1", "--volume_only"]) == 0
    else:
        assert test_pipeline.main([*more, "--input_dir", "in", "--no_html"]) == 0
    (line,) = [text for text in caplog.text.splitlines() if "scripts.evaluate" in text]
    assert "--mr" not in line
    assert scored_by(line, capsys) == (["p0"] if single else ["p0", "p1"])


@pytest.mark.parametrize(
    ("mr", "others", "found"),
    [
        ("P01_MR", ["P02_MR", "P02_CT"], None),
        ("P01_MR", ["P02_CT"], None),
        ("P01_MR", ["P02_MR", "P01_CT"], "P01_CT"),
        ("smith_MR", ["jones_MR", "jones_CT"], None),
        ("smith_MR", ["jones_MR", "smith_CT"], "smith_CT"),
        ("STS_024_MR_T1", ["STS_024_CT_on_MR_grid"], "STS_024_CT_on_MR_grid"),
        ("mr", ["ct", "mr_mask"], "ct"),
        ("T1", ["T2", "ct"], "ct"),
        ("mr", ["planning_ct"], "planning_ct"),
        ("mr", ["ct", "ct_2"], None),
        ("P01_20200101_MR", ["P01_20200103_CT"], "P01_20200103_CT"),
        ("P01_MR_2mm", ["P01_CT_1mm", "P02_MR_2mm", "P02_CT_1mm"], "P01_CT_1mm"),
        ("john_smith_MR", ["john_doe_MR", "john_doe_CT"], None),
        ("T1", ["T2", "planning_ct"], "planning_ct"),
        ("mr", ["pet", "ct_120kV"], "ct_120kV"),
    ],
)
def test_another_patients_ct_is_no_true_ct(mr, others, found, tmp_path):
    for name in (mr, *others):
        touch(tmp_path, f"{name}.nii.gz")
    beside = true_ct_beside(tmp_path / f"{mr}.nii.gz")
    assert (beside and beside.name) == (found and f"{found}.nii.gz")


@pytest.mark.parametrize("folder", ["P07", "P07/anat"])
def test_the_patients_number_may_be_that_of_a_folder(tmp_path, folder):
    for name in ("mr", "P07_ct", "P08_ct"):
        touch(tmp_path, f"{folder}/{name}.nii.gz")
    assert true_ct_beside(tmp_path / folder / "mr.nii.gz") == tmp_path / folder / "P07_ct.nii.gz"
