"""`test_pipeline.py`: what a cohort leaves behind, what a second run does, and that nothing stops the others."""

import csv
import json
import os
import re
import signal
import threading
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import test_adapt
import test_pipeline
from cohort import conversion, making, pipeline, stray_ct, summary
from cohort.inputs import find_cohort
from cohort.results import CaseRecord, Results
from data.errors import InputError
from data.prepared.training_statistics import HU_EDGES, TrainingStatistics
from data.settings.declaration import options_of
from data.values.modality import SWAPPED
from data.volumes.volume import Volume, read_volume, same_grid, write_volume
from evaluation.report import score_case
from models.synthesis import load_synthesiser, synthesize_volume
from options import pipeline_options, test_options
from tests import processes
from tests.cohort_data import (
    BROKEN,
    NAME,
    SETTINGS,
    patient_mr,
    write_broken,
    write_dicom_patient,
    write_model,
    write_patients,
)
from tests.test_preparation import ct_volume

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared/data/sts"


def command(root: Path, *arguments, source=("--input_dir", "in"), results="out") -> list[str]:
    option, value = source
    where = [
        option,
        str(root / value),
        "--results_dir",
        str(root / results),
        "--checkpoints_dir",
        f"{root}/checkpoints",
    ]
    return ["--name", NAME, *where, "--device", "cpu", "--precision", "fp32", *arguments]


def run(root: Path, *arguments, **where) -> tuple[int, dict[str, dict]]:
    """Run the command; return its exit code and the cases of summary.json by name."""
    code = test_pipeline.main(command(root, *arguments, **where))
    summary = json.loads((root / where.get("results", "out") / NAME / "summary.json").read_text())
    return code, {case["case"]: case for case in summary["cases"]}


def true_ct() -> Volume:
    """A CT on the grid of the first patient's MR: 40 HU where that has signal."""
    mr = patient_mr(32.0)
    return mr.with_array(np.where(mr.array > 100, 40, -1000).astype(np.int16))


def expected_ct(root: Path, path: Path):
    synthesiser = load_synthesiser(root / "checkpoints" / NAME, "latest", torch.device("cpu"))
    return synthesize_volume(read_volume(path), synthesiser)


@pytest.fixture
def site(tmp_path) -> Path:
    """Three patients, and a model."""
    write_model(tmp_path)
    write_patients(tmp_path / "in")
    return tmp_path


def test_a_result_of_one_patient_is_taken_over_by_the_cohort(site):
    """`test_adapt.py` made it, from the same input with the same model; that of another input stays."""
    of_one = command(site, source=("--input", "in/p1/mr.nii.gz"))
    assert test_adapt.main(of_one) == 0
    volume = site / "out" / NAME / "p1.nii.gz"
    before = volume.stat().st_mtime_ns
    code, cases = run(site)
    assert code == 0 and {case["status"] for case in cases.values()} == {"done"}
    assert volume.stat().st_mtime_ns > before
    assert test_adapt.main(of_one) == 0
    code, cases = run(site, source=("--input_dir", "in"), results="out")
    assert code == 0
    write_patients(site / "elsewhere")
    assert test_adapt.main(command(site, source=("--input", "elsewhere/p1/mr.nii.gz"), results="new")) == 0
    code, cases = run(site, results="new")
    assert code == 1 and cases["p1"]["reason"].endswith(
        "p1.nii.gz: exists already, and was not made by this command from this input; choose another --results_dir, or "
        "replace it with --overwrite"
    )


def test_good_ones_are_done_broken_ones_reported_and_a_second_run_does_nothing(site):
    write_dicom_patient(site / "in/dicom/T1")
    write_dicom_patient(site / "in/dicom/CT", change=lambda k, header: setattr(header, "Modality", "CT"))
    write_broken(site / "in")
    (site / "in/notes.txt").write_text("not an input")
    code, cases = run(site)
    assert code == 1
    done = {"p0", "p1", "p2", "dicom__T1"}
    reasons = {name.partition(".")[0]: reason for name, reason in BROKEN.items()}
    assert {name: case["status"] for name, case in cases.items()} == dict.fromkeys(done, "done") | dict.fromkeys(
        reasons, "failed"
    )
    for name, reason in reasons.items():
        assert reason in cases[name]["reason"]
    volumes = {path.name: path.stat() for path in (site / "out" / NAME).glob("*.nii.gz")}
    assert volumes.keys() == {f"{name}.nii.gz" for name in done}
    for k in range(3):
        path = site / f"in/p{k}/mr.nii.gz"
        result, expected = read_volume(site / "out" / NAME / f"p{k}.nii.gz"), expected_ct(site, path)
        assert same_grid(result, read_volume(path), tolerance=1e-6) and result.array.dtype == np.int16
        np.testing.assert_array_equal(result.array, expected.array)
    assert not list((site / "out").rglob(".writing-*"))
    passed_over = json.loads((site / "out" / NAME / "summary.json").read_text())["passed_over"]
    assert len(passed_over) == 1 and "CT" in passed_over[0] and "not MR" in passed_over[0]

    code, again = run(site)
    assert code == 1
    assert {name: again[name]["attempt"] for name in done} == {name: cases[name]["attempt"] for name in done}
    for path in (site / "out" / NAME).glob("*.nii.gz"):
        assert path.stat().st_mtime_ns == volumes[path.name].st_mtime_ns


def test_the_summary_is_a_table_with_figures_in_their_units(site):
    code, cases = run(site)
    assert code == 0
    with (site / "out" / NAME / "summary.csv").open(newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert rows.keys() == cases.keys() == {"p0", "p1", "p2"}
    row, mr = rows["p1"], read_volume(site / "in/p1/mr.nii.gz")
    ct = read_volume(site / "out" / NAME / row["output"])
    assert (row["status"], row["size"], row["spacing_mm"]) == ("done", "60x60x6", "2x2x4")
    assert cases["p1"]["geometry"]["origin"] == list(mr.origin)
    assert float(row["in_plane_mm"]) == 2.0 and float(row["through_mm"]) == 4.0
    assert float(row["seconds_total"]) >= float(row["seconds_device"]) > 0
    y, x = np.indices((60, 60)) - 29.5
    inside = np.broadcast_to(np.hypot(y, x) * 2 < 30, ct.array.shape)  # the body has a radius of 34 mm
    assert float(row["hu_mean"]) == pytest.approx(ct.array[inside].mean(), abs=60)
    assert float(row["hu_p01"]) <= float(row["hu_p25"]) <= float(row["hu_p50"]) <= float(row["hu_p99"])
    assert len({rows[name]["input_sha256"] for name in rows}) == 3
    assert len({rows[name]["model_sha256"] for name in rows}) == 1
    summary = json.loads((site / "out" / NAME / "summary.json").read_text())
    assert summary["counts"]["done"] == 3 and summary["counts"]["failed"] == 0
    assert 0 < summary["last_run"]["device_busy_share"] <= 1
    assert "training set" in row["unchecked"]


def attempts(cases: dict) -> dict[str, str]:
    return {name: case["attempt"] for name, case in cases.items()}


def redone(before: dict, after: dict) -> set[str]:
    return {name for name in after if after[name]["attempt"] != before.get(name, {}).get("attempt")}


def test_only_what_is_missing_or_changed_is_done_again(site):
    _, first = run(site)
    folder = site / "out" / NAME
    write_volume(patient_mr(48.0), site / "in/p0/mr.nii.gz")
    _, changed = run(site)
    assert redone(first, changed) == {"p0"}
    np.testing.assert_array_equal(
        read_volume(folder / "p0.nii.gz").array, expected_ct(site, site / "in/p0/mr.nii.gz").array
    )
    (folder / "p1.nii.gz").unlink()
    whole = (folder / "p2.nii.gz").read_bytes()
    (folder / "p2.nii.gz").write_bytes(whole[:-1])
    _, mended = run(site)
    assert redone(changed, mended) == {"p1", "p2"}
    assert (folder / "p2.nii.gz").read_bytes() == whole
    _, more = run(site, "--overwrite", "--num_test", "2")
    assert redone(mended, more) == {"p0", "p1"}
    write_model(site, seed=1)
    _, other = run(site)
    assert redone(more, other) == {"p0", "p1", "p2"}
    _, still = run(site)
    assert redone(other, still) == set()
    (site / "in/p9").mkdir()
    write_volume(patient_mr(), site / "in/p9/mr.nii.gz")
    _, added = run(site, "--how_many", "99")
    assert redone(still, added) == {"p9"} and added.keys() == {*still, "p9"}


@pytest.mark.parametrize("change", ["input", "model", "mask"])
def test_extras_and_pages_of_another_volume_do_not_stay_beside_the_new_one(site, change, caplog):
    """A mu-map or DICOM series of an older CT must not be taken for that of the new one."""
    caplog.set_level("INFO")
    folder = site / "out" / NAME
    run(site, "--mu_map", "--dicom")
    made = [folder / name for name in ("mu_maps/p0.nii.gz", "dicom/p0", "pages/p0")]
    assert all(path.exists() for path in made)
    if change == "input":
        write_volume(patient_mr(48.0), site / "in/p0/mr.nii.gz")
    elif change == "model":
        write_model(site, seed=1)
    else:
        mask = patient_mr().with_array((patient_mr().array > 100).astype(np.uint8))
        write_volume(mask, site / "p0_mask.nii.gz")
        rows = [
            f"{case},{site}/in/{case}/mr.nii.gz,{site / 'p0_mask.nii.gz' if case == 'p0' else ''}"
            for case in ("p0", "p1", "p2")
        ]
        (site / "list.csv").write_text("\n".join(["id,path,mask", *rows]))
    source = ("--list", "list.csv") if change == "mask" else ("--input_dir", "in")
    code, cases = run(site, "--no_html", source=source)
    assert code == 0 and cases["p0"]["extras"] == {}
    assert not any(path.exists() for path in made)
    assert (folder / "p0.png").exists()
    others = [folder / "mu_maps/p1.nii.gz", folder / "dicom/p1", folder / "pages/p1"]
    assert all(path.exists() == (change != "model") for path in others)
    assert "p0.nii.gz was made of an earlier volume and is removed" in caplog.text


def test_extras_are_judged_by_the_volume_that_they_are_of_whatever_failed_since(site, monkeypatch):
    folder, mu = site / "out" / NAME, site / "out" / NAME / "mu_maps/p0.nii.gz"
    run(site, "--mu_map")
    kept, source = mu.read_bytes(), (site / "in/p0/mr.nii.gz").read_bytes()
    (site / "in/p0/mr.nii.gz").write_bytes(source[:100])
    assert run(site, "--mu_map")[0] == 1
    (site / "in/p0/mr.nii.gz").write_bytes(source)
    assert run(site)[0] == 0 and mu.read_bytes() == kept  # the same input and model as before
    write_model(site, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "mu_map", lambda *_: (_ for _ in ()).throw(InputError("disk full")))
        assert run(site, "--mu_map")[0] == 1
    assert run(site)[0] == 0
    assert not mu.exists() and (folder / "p0.nii.gz").exists()


def test_files_of_others_in_the_folder_of_an_outdated_series_or_page_stay(site):
    folder = site / "out" / NAME
    run(site, "--dicom")
    (folder / "dicom/p0/RTSTRUCT.dcm").write_text("somebody's contours")
    (folder / "pages/p1/note.txt").write_text("mine")
    write_model(site, seed=1)
    code, cases = run(site, "--no_html")
    assert code == 1 and "holds RTSTRUCT.dcm" in cases["p0"]["reason"]
    assert (folder / "dicom/p0/RTSTRUCT.dcm").exists()
    assert [path.name for path in (folder / "pages/p1").iterdir()] == ["note.txt"]
    (folder / "dicom/p0/RTSTRUCT.dcm").unlink()
    assert run(site, "--no_html")[0] == 0 and not (folder / "dicom/p0").exists()


def test_nothing_of_another_patient_stays_where_his_result_is_overwritten(site):
    folder = site / "out" / NAME
    run(site, "--mu_map")
    assert (folder / "mu_maps/p0.nii.gz").exists() and (folder / "pages/p0").exists()
    write_volume(patient_mr(44.0), site / "other.nii.gz")
    (site / "list.csv").write_text("id,path\np0,other.nii.gz\n")
    code, _ = run(site, "--overwrite", "--no_html", source=("--list", "list.csv"))
    assert code == 0
    assert not (folder / "mu_maps/p0.nii.gz").exists() and not (folder / "pages/p0").exists()


def test_what_is_made_beside_a_volume_stays_where_further_extras_are_asked_for(site):
    folder = site / "out" / NAME
    run(site, "--mu_map")
    before = (folder / "mu_maps/p0.nii.gz").read_bytes()
    run(site, "--dicom")
    assert (folder / "mu_maps/p0.nii.gz").read_bytes() == before and (folder / "dicom/p0").exists()


def test_training_statistics_and_versions_do_not_make_results_outdated(site):
    _, first = run(site)
    histogram = (3,) * (len(HU_EDGES) - 1)
    training = TrainingStatistics(histogram, (2.0, 3.0), (9.0, 9.0), (0.5, 0.5), (2.0, 2.0), (4.0, 4.0))
    write_model(site, settings=replace(SETTINGS, versions={"torch": "other"}, training=training))
    _, second = run(site)
    assert attempts(first) == attempts(second)


def test_a_failure_is_tried_again_and_forgotten_when_its_input_is_gone(site):
    write_broken(site / "in")
    code, cases = run(site)
    assert code == 1 and len(cases) == 7
    write_volume(patient_mr(), site / "in/nan.nii.gz")
    for name in ("truncated.nii.gz", "flat.nii.gz"):
        (site / "in" / name).unlink()
    (site / "in/empty").rmdir()
    code, cases = run(site)
    assert code == 0 and cases.keys() == {"p0", "p1", "p2", "nan"}
    assert cases["nan"]["status"] == "done"


def test_ct_beside_the_mr_are_named_before_and_after_with_the_pattern_that_leaves_them_out(site, caplog):
    for k in range(3):
        write_volume(ct_volume(32.0), site / f"in/p{k}/ct_on_mr_grid.nii.gz")
    code, cases = run(site)
    assert code == 1 and [case["status"] for case in cases.values()].count("failed") == 3
    way_out = "--pattern '*/mr.nii.gz' takes the 3 others and nothing else"
    said = [one.getMessage() for one in caplog.records]
    before = next(k for k, text in enumerate(said) if "look like CT by name" in text)
    assert said[before] == (
        "warning: 3 of 6 volumes look like CT by name, and will fail if their values confirm it: "
        f"p0/ct_on_mr_grid.nii.gz, p1/ct_on_mr_grid.nii.gz, p2/ct_on_mr_grid.nii.gz; {way_out}"
    )
    assert before < min(k for k, text in enumerate(said) if ": failed: " in text)
    after = "3 failed cases look like CT, by their values: p0__ct_on_mr_grid, p1__ct_on_mr_grid, p2__ct_on_mr_grid; "
    assert f"{after}{way_out}" in said
    caplog.clear()
    run(site, "--num_test", "4", results="few")  # of p0 and p1
    assert "takes the 2 others, and 1 more that you did not choose here" in caplog.text
    caplog.clear()
    code, cases = run(site, "--pattern", "*/mr.nii.gz")
    assert code == 0 and {case["status"] for case in cases.values()} == {"done"}
    assert "CT" not in "".join(one.getMessage() for one in caplog.records if one.levelname in ("WARNING", "ERROR"))


def test_a_proposed_pattern_takes_no_ct_that_was_not_looked_at_yet(site, caplog):
    """As after Ctrl-C: the name of the second CT says what it is."""
    for k in range(2):
        write_volume(ct_volume(32.0), site / f"in/p{k}/true ct.nii.gz")
    cases = find_cohort(site / "in").cases
    failed = next(case for case in cases if case.path.name == "true ct.nii.gz")
    record = CaseRecord(failed.name, "failed", str(failed.path), {}, "1", "", reason=f"p0: {SWAPPED}")
    said = stray_ct.failures(cases, {failed.name: record}, site / "in")
    assert said.endswith("--pattern '*/mr.nii.gz' takes the 3 others and nothing else")


def test_ct_that_no_name_tells_are_named_by_their_values(site, caplog):
    write_volume(ct_volume(32.0), site / "in/p0/b.nii.gz")
    assert run(site)[0] == 1
    assert "by name" not in caplog.text
    told = (
        "1 failed case looks like CT, by its values: p0__b; --pattern '*/mr.nii.gz' takes the 3 others and nothing else"
    )
    assert told in caplog.text
    (site / "list.csv").write_text("id,path\na,in/p0/b.nii.gz\n")
    caplog.clear()
    assert run(site, source=("--list", "list.csv"), results="listed")[0] == 1
    assert "1 failed case looks like CT, by its values: a; leave it out of the table" in caplog.text


def test_a_folder_of_ct_alone_is_no_folder_of_mr(site, caplog):
    write_volume(ct_volume(32.0), site / "cts/p0_CT.nii.gz")
    assert run(site, source=("--input_dir", "cts"))[0] == 1
    assert "by their names" not in caplog.text
    assert "like CT, by its values: p0_CT; give the folder of the MR, or choose them with --pattern" in caplog.text


def test_an_input_that_breaks_later_says_that_the_volume_is_old(site):
    run(site)
    (site / "in/p1/mr.nii.gz").write_bytes(b"broken")
    code, cases = run(site)
    assert code == 1 and cases["p1"]["status"] == "failed"
    assert "p1.nii.gz was made from an earlier input or by an earlier model" in cases["p1"]["reason"]


def test_an_unexpected_error_ends_its_case_alone(site, monkeypatch):
    restore = making.restore_volume

    def sometimes(translated, plan, watch):
        if np.count_nonzero(plan.body[0]) > 2000:
            raise ZeroDivisionError("our own bug")
        return restore(translated, plan, watch)

    monkeypatch.setattr(making, "restore_volume", sometimes)
    write_volume(patient_mr(56.0), site / "in/p1/mr.nii.gz")
    code, cases = run(site)
    assert code == 1
    assert {name for name, case in cases.items() if case["status"] == "done"} == {"p0", "p2"}
    assert cases["p1"]["reason"] == "unexpected ZeroDivisionError: our own bug"
    assert "Traceback" in cases["p1"]["details"]


@pytest.mark.parametrize("stage", ["prepare_volume", "write_case_page"])
def test_errors_of_every_stage_are_isolated(site, monkeypatch, stage):
    def fail(*args, **kwargs):
        raise RuntimeError("no luck")

    monkeypatch.setattr(making if stage == "prepare_volume" else conversion, stage, fail)
    code, cases = run(site)
    if stage == "write_case_page":  # a picture is not worth a patient
        assert code == 0 and all("no picture: no luck" in case["warnings"] for case in cases.values())
    else:
        assert code == 1 and all("no luck" in case["reason"] for case in cases.values())


def test_device_errors_are_isolated(site, monkeypatch):
    from models.test_model import TestModel

    calls = []
    translate = TestModel.translate

    def fail_once(self, *args):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("device-side assert")
        return translate(self, *args)

    monkeypatch.setattr(TestModel, "translate", fail_once)
    code, cases = run(site)
    assert code == 1 and sorted(case["status"] for case in cases.values()) == ["done", "done", "failed"]


KILL = """
import os, signal, sys
sys.path.insert(0, {root!r})
import torch; torch.set_num_threads(1)
from cohort.results import Results
write, written = Results.write, []
def write_and_die(self, record):
    if record.status == "begun":
        return write(self, record)
    if written:  # the second volume is there, its record is not
        (self.folder / ".writing-x").mkdir()
        (self.folder / ".writing-x" / f"{{record.case}}.nii.gz").write_bytes(b"half")
        page = self.page_path(record.case).parent / ".writing-y/ct.js"
        page.parent.mkdir()
        page.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(record)
    write(self, record)
Results.write = write_and_die
import test_pipeline
test_pipeline.main({arguments!r})
"""


def test_a_killed_run_resumes(site):
    code = KILL.format(root=str(ROOT), arguments=command(site))
    process = processes.run("-c", code)
    assert process.returncode == -signal.SIGKILL, process.stderr
    folder = site / "out" / NAME
    records = {path.stem: json.loads(path.read_text()) for path in (folder / "records").glob("*.json")}
    before = {name: record for name, record in records.items() if record["status"] == "done"}
    assert len(before) == 1 and len(records) == 2 and not (folder / "summary.csv").exists()
    code, after = run(site)
    assert code == 0 and after.keys() == {"p0", "p1", "p2"}
    assert redone(before, after) == after.keys() - before.keys()
    assert not list(folder.rglob(".writing-*"))
    for k in range(3):
        path = site / f"in/p{k}/mr.nii.gz"
        np.testing.assert_array_equal(read_volume(folder / f"p{k}.nii.gz").array, expected_ct(site, path).array)


def test_two_pipelines_at_once_convert_every_patient_once(site, monkeypatch):
    write_patients(site / "in", 5)
    written, lock, codes = [], threading.Lock(), []
    write = conversion.write_volume

    def count(volume, path, description):
        with lock:
            written.append(Path(path).name)
        return write(volume, path, description)

    monkeypatch.setattr(conversion, "write_volume", count)
    monkeypatch.setattr(pipeline, "RETRY_SECONDS", 0.02)
    threads = [threading.Thread(target=lambda: codes.append(test_pipeline.main(command(site)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0]
    assert sorted(written) == [f"p{k}.nii.gz" for k in range(5)]


def test_a_case_that_another_process_leaves_undone_is_taken_over(site, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(pipeline, "RETRY_SECONDS", 0.02)
    claim = Results(site / "out" / NAME).claim("p1")
    timer = threading.Timer(1.0, claim.release)
    timer.start()
    code, cases = run(site)
    timer.join()
    assert code == 0 and cases.keys() == {"p0", "p1", "p2"}
    assert "waiting for 1 case that another process is converting" in caplog.text


def test_another_patient_s_result_is_not_replaced(site, tmp_path):
    _, first = run(site)
    write_volume(patient_mr(50.0), site / "elsewhere/p1/mr.nii.gz")
    code, cases = run(site, source=("--input_dir", "elsewhere"))
    (refused,) = (case for case in cases.values() if case["status"] == "failed")
    assert code == 1 and "is the result of" in refused["reason"] and str(site / "in/p1") in refused["reason"]
    assert refused["reason"].endswith("; use another --results_dir, or --overwrite")
    assert cases["p1"]["attempt"] == first["p1"]["attempt"]
    (site / "in").rename(site / "moved")  # the same patients in another place are the same patients
    code, moved = run(site, source=("--input_dir", "moved"))
    assert code == 0 and {name: moved[name]["attempt"] for name in first} == attempts(first)
    code, replaced = run(site, "--overwrite", source=("--input_dir", "elsewhere"))
    assert code == 0 and "elsewhere" in replaced["p1"]["input"]


def test_the_page_shows_the_cases_of_the_last_run_and_names_the_older_ones_below(site):
    write_volume(patient_mr(36.0), site / "in/p0/second.nii.gz")
    _, first = run(site)
    (site / "list.csv").write_text("id,path\nnew,in/p0/second.nii.gz\n")
    run(site, source=("--list", "list.csv"))
    folder = site / "out" / NAME
    shown, older = (folder / "index.html").read_text().split("<details")
    assert 'href="pages/new/index.html"' in shown and 'href="pages/p1/index.html"' not in shown
    assert ">1 case, 1 with warnings<" in shown and older.count('href="pages/p1/index.html"') == 1
    assert "4 older results lie in this folder, from cases that were not part of the last run" in older
    with (folder / "summary.csv").open() as table:
        assert [row["case"] for row in csv.DictReader(table)] == sorted([*first, "new"])


def test_a_true_ct_given_in_place_of_its_mr_is_told_where_it_goes(site):
    run(site)
    ct = write_volume(true_ct(), site / "in/p1/ct.nii.gz")
    code, cases = run(site, "--pattern", "*/ct.nii.gz")
    (refused,) = (case for case in cases.values() if case["status"] == "failed")
    assert code == 1 and refused["reason"] == (
        f"{ct}: would be converted as p1, which is the result of {site}/in/p1/mr.nii.gz; if it is the true CT of that, "
        "leave it out here and give it by --reference_pattern or a --list"
    )


def test_references_are_scored_and_bad_ones_are_warnings(site, caplog):
    caplog.set_level("INFO")
    mr, reference = patient_mr(32.0), true_ct()
    write_volume(reference, site / "ct.nii.gz")
    write_volume(ct_volume(), site / "other_grid.nii.gz")
    (site / "list.csv").write_text(
        "id;reference;path\na;ct.nii.gz;in/p0/mr.nii.gz\nb;other_grid.nii.gz;in/p1/mr.nii.gz\nc;gone.nii;in/p2/mr.nii.gz\n"
    )
    code, cases = run(site, source=("--list", "list.csv"))
    assert code == 1  # something that was asked for is missing
    assert "not scored, although a true CT was given: 2 of 3 cases, b, c; the warnings of each say why" in caplog.text
    scores = score_case(read_volume(site / "out" / NAME / "a.nii.gz"), reference, mr=mr)
    for name, value in cases["a"]["scores"].items():
        assert value == pytest.approx(scores[name], rel=1e-5) or (value is None and not np.isfinite(scores[name]))
    assert f"scored 1: on average MAE {scores['mae']:.1f} HU, bone Dice {scores['dice_bone']:.3f}" in caplog.text
    assert (
        cases["b"]["scores"] == {}
        and f"other_grid.nii.gz: not on the MR's grid ({site}/in/p1/mr.nii.gz)" in cases["b"]["warnings"][-1]
    )
    assert "not scored" in cases["c"]["warnings"][-1] and "no such file" in cases["c"]["warnings"][-1]
    write_volume(mr.with_array(reference.array + np.int16(10)), site / "ct.nii.gz")
    _, again = run(site, source=("--list", "list.csv"))
    assert redone(cases, again) == {"a"}


def test_true_ct_beside_the_mr_is_found_by_a_pattern_and_scored(site, caplog):
    caplog.set_level("INFO")
    reference = true_ct()
    write_volume(reference, site / "in/p0/ct.nii.gz")
    choice = ("--pattern", "*/mr.nii.gz", "--reference_pattern", "{case}/ct.nii.gz")
    code, cases = run(site, *choice)
    assert code == 0 and len(cases) > 1
    scores = score_case(read_volume(site / "out" / NAME / "p0.nii.gz"), reference, mr=patient_mr(32.0))
    assert cases["p0"]["scores"]["mae"] == pytest.approx(scores["mae"], rel=1e-5)
    assert {name for name, case in cases.items() if case["scores"]} == {"p0"}
    without = ", ".join(sorted(set(cases) - {"p0"}))
    assert f"{len(cases) - 1} of {len(cases)} cases have no true CT: {without}" in caplog.text
    assert "scored 1: on average MAE" in caplog.text


def test_a_true_ct_that_comes_later_is_scored_without_another_conversion(site, monkeypatch, caplog):
    caplog.set_level("INFO")
    _, before = run(site, "--pattern", "*/mr.nii.gz")
    volumes = {name: (site / "out" / NAME / f"{name}.nii.gz").stat().st_mtime_ns for name in before}
    write_volume(true_ct(), site / "in/p0/ct.nii.gz")
    write_volume(ct_volume(), site / "in/p1/ct.nii.gz")  # on another grid

    def refuse(self, work):
        raise AssertionError("converted again")

    translate = conversion.Conversion.translate
    monkeypatch.setattr(conversion.Conversion, "translate", refuse)
    references = ("--pattern", "*/mr.nii.gz", "--reference_pattern", "{case}/ct.nii.gz")
    code, after = run(site, *references)
    assert code == 1 and redone(before, after) == {"p0", "p1"}
    scores = score_case(read_volume(site / "out" / NAME / "p0.nii.gz"), true_ct(), mr=patient_mr(32.0))
    assert after["p0"]["scores"]["mae"] == pytest.approx(scores["mae"], rel=1e-5)
    kept = ("hu", "checks", "geometry", "output_sha256", "notes", "warnings")
    assert {name: after["p0"][name] for name in kept} == {name: before["p0"][name] for name in kept}
    page = (site / "out" / NAME / "pages/p0/index.html").read_text()
    assert "MAE" in page and "in/p0/ct.nii.gz" in page and "body of the reference CT, where MR &gt; 0" in page
    assert after["p1"]["scores"] == {} and after["p1"]["warnings"][-1].startswith("not scored: ")
    # Resampled it is scored, what is right stays as it is, and the warning goes.
    code, resampled = run(site, *references, "--resample_reference")
    assert code == 0 and resampled["p1"]["scores"]["mae"] > 0
    assert not any(text.startswith("not scored") for text in resampled["p1"]["warnings"])
    assert "nothing converted again" in caplog.text.rsplit("cases:", 1)[1]
    # A run without true CT keeps the scores,
    scores = {name: case["scores"] for name, case in resampled.items()}
    code, without = run(site, "--pattern", "*/mr.nii.gz")
    assert code == 0 and redone(resampled, without) == set()
    assert {name: case["scores"] for name, case in without.items()} == scores
    assert volumes == {name: (site / "out" / NAME / f"{name}.nii.gz").stat().st_mtime_ns for name in before}
    # also one that converts again, for an extra.
    monkeypatch.setattr(conversion.Conversion, "translate", translate)
    caplog.clear()
    code, again = run(site, "--pattern", "*/mr.nii.gz", "--mu_map")
    assert code == 0 and redone(without, again) == set(again)
    assert {name: case["scores"] for name, case in again.items()} == scores
    assert "scored 2, 2 of them in an earlier run: on average MAE" in caplog.text


def test_what_was_not_scored_is_no_warning_of_a_run_without_true_ct(site):
    write_volume(ct_volume(), site / "in/p0/ct.nii.gz")  # on another grid
    mr = ("--pattern", "*/mr.nii.gz")
    code, cases = run(site, *mr, "--reference_pattern", "{case}/ct.nii.gz")
    assert code == 1 and any(text.startswith("not scored: ") for text in cases["p0"]["warnings"])
    code, cases = run(site, *mr)
    assert code == 0 and not any(text.startswith("not scored") for text in cases["p0"]["warnings"])


def test_a_true_ct_that_cannot_be_reached_costs_no_scores(site, caplog):
    caplog.set_level("INFO")
    write_volume(true_ct(), site / "share/ct.nii.gz")
    (site / "list.csv").write_text("id,path,reference\na,in/p0/mr.nii.gz,share/ct.nii.gz\n")
    code, cases = run(site, source=("--list", "list.csv"))
    assert code == 0 and cases["a"]["scores"]["mae"] > 0
    (site / "share").rename(site / "elsewhere")
    code, without = run(site, source=("--list", "list.csv"))
    assert code == 1 and without["a"]["scores"] == cases["a"]["scores"]
    assert "not scored, although a true CT was given: 1 of 1 case, a; " in caplog.text
    (site / "elsewhere").rename(site / "share")
    code, back = run(site, source=("--list", "list.csv"))
    assert code == 0 and back["a"]["scores"] == cases["a"]["scores"] and back["a"]["warnings"] == cases["a"]["warnings"]


def test_true_ct_is_found_by_the_patient_s_part_of_a_name(site):
    for k in range(3):
        (site / f"in/p{k}/mr.nii.gz").rename(site / f"in/p{k}_mr.nii.gz")
    reference = true_ct()
    write_volume(reference, site / "in/p0_ct.nii.gz")
    choice = ("--pattern", "*_mr.nii.gz", "--reference_pattern", "{case}_ct.nii.gz")
    code, cases = run(site, *choice)
    assert code == 0 and [name for name, case in sorted(cases.items()) if case["scores"]] == ["p0_mr"]


def test_true_ct_is_found_in_the_folder_of_an_mr_whose_name_says_more(site, caplog):
    for k in range(3):
        (site / f"in/p{k}/mr.nii.gz").rename(site / f"in/p{k}/T1_tse.nii.gz")
    write_volume(true_ct(), site / "in/p0/ct.nii.gz")
    code, cases = run(site, "--pattern", "*/T1_tse.nii.gz", "--reference_pattern", "{case}/ct.nii.gz")
    assert code == 0 and [name for name, case in sorted(cases.items()) if case["scores"]] == ["p0__T1_tse"]
    write_volume(true_ct(), site / "in/p1/ct.nii.gz")
    write_volume(patient_mr(44.0), site / "in/p0/T1_again.nii.gz")
    code, cases = run(site, "--pattern", "*/T1_*.nii.gz", "--reference_pattern", "{case}/ct.nii.gz", results="two")
    assert code == 0 and [name for name, case in sorted(cases.items()) if case["scores"]] == ["p1__T1_tse"]
    assert "p0__T1_again, p0__T1_tse share a true CT in their folder and are not scored" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--pattern", "*/mr.nii.gz", "--reference_pattern", "{case}/gone.nii.gz"],
            "found nothing .* column reference",
        ),
        (["--pattern", "*/mr.nii.gz", "--reference_pattern", "*/ct.nii.gz"], "--reference_pattern .* with {case}"),
        (
            ["--pattern", "*/mr.nii.gz", "--reference_pattern", "other/{case}.nii.gz"],
            r"CT found: x \(.*/in/other/x\.nii\.gz\); MR found: p0 \(.*/in/p0/mr\.nii\.gz\), p1 \(",
        ),
    ],
)
def test_a_pattern_of_true_ct_that_fits_nothing_is_an_error(site, options, message):
    (site / "in/other").mkdir()
    write_volume(ct_volume(), site / "in/other/x.nii.gz")
    with pytest.raises(InputError, match=message):
        test_pipeline.main(command(site, *options))


def test_a_supplied_mask_is_used_and_a_listed_file_that_is_missing_is_reported(site):
    mask = np.zeros((6, 60, 60), np.uint8)
    mask[2:4, 20:40, 20:40] = 1
    write_volume(patient_mr().with_array(mask), site / "mask.nii.gz")
    (site / "list.csv").write_text("id,path,mask\na,in/p0/mr.nii.gz,mask.nii.gz\nb,in/p7/mr.nii.gz,\n")
    code, cases = run(site, source=("--list", "list.csv"))
    assert code == 1 and cases["b"]["reason"].endswith("p7/mr.nii.gz: no such file or folder")
    result = read_volume(site / "out" / NAME / "a.nii.gz")
    assert np.all(result.array[[0, 1, 4, 5]] == -1000) and np.any(result.array[2:4] != -1000)


def test_results_among_the_inputs_are_no_inputs(site):
    _, first = run(site, results="in/results")
    assert len(first) == 3
    _, second = run(site, results="in/results")
    assert attempts(first) == attempts(second)
    with pytest.raises(InputError, match="holds the results"):
        test_pipeline.main(command(site, results="in"))


def test_log_files_are_clean_and_estimate_what_is_left(site, caplog, capfd):
    caplog.set_level("INFO")
    write_patients(site / "in", 4)
    (site / "in/broken.nii").write_bytes(b"x" * 400)
    run(site)
    lines = [text for text in caplog.messages if text.startswith("[")]
    assert [line[:5] for line in lines] == [f"[{k}/5]" for k in range(1, 6)]
    assert sum("left" in line for line in lines) == 4 - ("left" not in lines[-1] and "failed" not in lines[-1])
    # A failure is told once, when it happens; at the end stand their number and where the list is.
    assert [text for text in caplog.messages if "broken.nii" in text] == [
        text for text in lines if ": failed: " in text
    ]
    assert f"4 done (4 with warnings), 1 failed: {site}/out/{NAME}/summary.csv" in caplog.messages
    assert "\r" not in caplog.text and "\r" not in "".join(capfd.readouterr())


def test_bad_calls_end_before_anything_is_done(site, tmp_path, capsys):
    cases = [
        (["--input_dir", str(tmp_path / "none")], "no such folder"),
        (["--input_dir", str(tmp_path / "in"), "--pattern", "*.mha"], r"no volume file .* that matches \*\.mha"),
        (["--input_dir", str(tmp_path / "in"), "--pattern", "../*"], "expected a glob relative to"),
        (["--list", str(tmp_path / "none.csv")], "none.csv: cannot be read: No such file"),
    ]
    for source, message in cases:
        with pytest.raises(InputError, match=message):
            test_pipeline.main(["--name", NAME, "--checkpoints_dir", f"{site}/checkpoints", *source])
    with pytest.raises(InputError, match=r"checkpoints/x: no such model\. Models in .*: tiny"):
        test_pipeline.main(["--name", "x", "--checkpoints_dir", f"{site}/checkpoints", "--input_dir", str(tmp_path)])
    for bad in (
        ["--name", NAME],
        ["--name", NAME, "--input_dir", "a", "--list", "b"],
        ["--name", NAME, "--list", "b", "--pattern", "*"],
        ["--name", NAME, "--input_dir", "a", "--series_description", "("],
        ["--name", NAME, "--input_dir", "a", "--batch_size", "0"],
    ):
        with pytest.raises(SystemExit) as stop:
            test_pipeline.main(bad)
        assert stop.value.code == 2
    assert "not a regular expression" in capsys.readouterr().err
    assert not (site / "out").exists()


def test_results_that_cannot_be_written_stop_the_run(site):
    (site / "out").write_text("a file")
    with pytest.raises(InputError, match=r"out/tiny: cannot be written: .*Not a dir.*; choose another --results_dir"):
        test_pipeline.main(command(site))


def test_a_claim_that_fails_costs_its_case_alone(site, monkeypatch, caplog):
    """As on a disk that fills up in mid-run: the others are converted, and the account is written."""
    claim = Results.claim

    def full(self, case):
        if case == "p1":
            raise InputError("p1: cannot be locked: no space left")
        return claim(self, case)

    monkeypatch.setattr(Results, "claim", full)
    code, cases = run(site)
    assert code == 1 and cases.keys() == {"p0", "p2"}
    assert caplog.text.count("p1: cannot be locked: no space left") == 1
    assert "failed: p1: not recorded; see above" in caplog.messages


def test_a_volume_whose_record_fails_is_not_called_old(site, monkeypatch):
    """Written anew, then the disk is full: the reason says that it was written, and the next run converts it again."""
    _, first = run(site)
    write_volume(patient_mr(56.0), site / "in/p1/mr.nii.gz")
    write, refused = Results.write, []

    def full_once(self, record):
        if not refused:
            refused.append(record)
            raise InputError("disk full")
        write(self, record)

    monkeypatch.setattr(Results, "write", full_once)
    code, cases = run(site)
    assert code == 1 and refused[0].status == "done"
    assert "disk full (p1.nii.gz was written, without a record" in cases["p1"]["reason"]
    code, cases = run(site)
    assert code == 0 and cases["p1"]["status"] == "done"
    assert redone(first, cases) == {"p1"}


OPTIONS_OF_BOTH = (
    "name checkpoints_dir epoch device precision results_dir batch_size direction spacing_mm "
    "series_description contrast echo dicom anonymous mu_map kvp pet_fwhm_mm overwrite "
    "uncertainty fusion resample_reference air_outside"
).split()
OPTIONS = {
    test_options: "input series_uid mask reference output no_mirrored "
    "volume_only no_solid_body patient_name patient_id".split(),
    pipeline_options: "input_dir list pattern reference_pattern num_test num_threads no_html".split(),
}
WHAT = {test_options: ["--input", "mr.nii"], pipeline_options: ["--input_dir", "d"]}


@pytest.mark.parametrize("module", OPTIONS, ids=lambda module: module.__name__)
def test_the_options_are_these(module):
    """An option is added, renamed or removed on purpose only; each is a field of the settings, and nothing else is."""
    settings = module.parse(["--name", "n", *WHAT[module]])
    assert sorted(field.name for field, _ in options_of(type(settings))) == sorted(OPTIONS_OF_BOTH + OPTIONS[module])
    assert vars(settings).keys() == {field.name for field, _ in options_of(type(settings))}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--input_dir d --reference_pattern {case}/ct.nii.gz", "--reference_pattern: needs --pattern"),
        ("--list l.csv --reference_pattern {case}/ct.nii.gz", "it searches --input_dir"),
        ("--input_dir d --resample_reference", "does nothing without true CT"),
    ],
)
def test_true_ct_needs_a_place(options, message, capsys):
    with pytest.raises(SystemExit):
        pipeline_options.parse(["--name", "n", *options.split()])
    assert message in capsys.readouterr().err


def test_defaults_and_published_names_of_options():
    options = pipeline_options.parse("--name n --input_dir d --how_many 3 --batchSize 2 --nThreads 4".split())
    assert (options.num_test, options.batch_size, options.num_threads) == (3, 2, 4)
    defaults = pipeline_options.parse("--name n --input_dir d".split())
    assert (defaults.batch_size, defaults.precision, defaults.num_test) == (None, "auto", None)
    assert test_options.parse(["--name", "x", "--input", "mr.nii"]).precision == defaults.precision


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the development data are not beside the checkout")
def test_real_limbs_dicom_and_broken_inputs(tmp_path):
    write_model(tmp_path, settings=replace(SETTINGS, size=64, spacing_mm=4.0))
    (tmp_path / "in").mkdir()
    for folder in ("dev", "dicom"):
        (tmp_path / "in" / folder).symlink_to(SHARED / folder)
    (tmp_path / "in/broken").mkdir()
    write_broken(tmp_path / "in/broken")
    pattern = ("--pattern", "**/*MR_T1*", "broken/*")
    code, cases = run(tmp_path, *pattern)
    assert code == 1 and len(cases) == 12
    assert sum(case["status"] == "done" for case in cases.values()) == 8
    code, again = run(tmp_path, *pattern)
    assert code == 1
    assert redone(cases, again) == {name for name, case in cases.items() if case["status"] == "failed"}
    # The same patient from NIfTI and from DICOM.
    nifti, dicom = (
        read_volume(tmp_path / "out" / NAME / f"{name}.nii.gz") for name in ("dev__STS_024_MR_T1", "STS_024")
    )
    np.testing.assert_allclose(nifti.array, dicom.array, atol=1)  # spacings differ in the ninth digit


def test_results_are_shown_case_by_case_and_as_a_cohort(site):
    mr = read_volume(site / "in/p0/mr.nii.gz")
    write_volume(mr.with_array(np.where(mr.array > 100, 40, -1000).astype(np.int16)), site / "ct.nii.gz")
    (site / "list.csv").write_text("id,path,reference\na,in/p0/mr.nii.gz,ct.nii.gz\nb,in/p1/mr.nii.gz,\nc,gone.nii,\n")
    code, cases = run(site, source=("--list", "list.csv"))
    assert code == 1
    out = site / "out" / NAME
    page, cohort = (out / "pages/a/index.html").read_text(), (out / "index.html").read_text()
    assert f"{cases['a']['scores']['mae']:.1f}" in page
    assert f"{cases['a']['scores']['mae']:.1f}" in cohort
    assert 'href="../../index.html"' in page
    assert re.search(rf"model.*{NAME}.*epoch.*latest", page, re.DOTALL)
    assert "median of soft tissue [HU]" in cohort and "body [l]" in cohort and (out / "pages/b/thumbnail.png").exists()
    assert 'href="pages/a/index.html"' in cohort
    assert 'href="pages/b/index.html"' in cohort
    assert "pages/c" not in cohort
    assert "gone.nii" in cohort
    assert {file.name for file in (out / "pages/b/data").iterdir()} == {"mr.js", "ct.js"}
    assert not list(out.glob("*.png"))


def test_a_value_that_a_series_cannot_have_is_a_note_of_its_patient_and_no_warning(site, caplog):
    caplog.set_level("INFO")
    write_dicom_patient(site / "in/p9", change=lambda k, header: setattr(header, "StudyID", "longer than sixteen"))
    code, cases = run(site, "--dicom", "--no_html")
    assert code == 0
    told = "the series leaves out the MR's DICOM tag StudyID, whose value is invalid; the series itself is valid"
    assert [name for name, case in cases.items() if told in case["notes"]] == ["p9"]
    assert not any("StudyID" in warning for case in cases.values() for warning in case["warnings"])
    assert f"\n    note: {told}" in caplog.text
    warned = sum(bool(case["warnings"]) for case in cases.values())
    assert f"4 done ({warned} with warnings), 0 failed" in caplog.text


def test_pages_can_be_left_out(site, monkeypatch):
    real, headings = conversion.save_preview, []
    keep = lambda *given: (headings.append(given[4]), real(*given))  # noqa: E731
    monkeypatch.setattr(conversion, "save_preview", keep)
    code, _ = run(site, "--no_html")
    assert code == 0
    assert [lines[1:] for lines in headings] == [[f"synthetic CT, not for clinical use; model: {NAME}"]] * 3
    assert sorted(lines[0] for lines in headings) == ["p0", "p1", "p2"]
    assert len(list((site / "out" / NAME).glob("*.png"))) == 3
    assert not (site / "out" / NAME / "pages").exists()


def test_pages_that_were_left_out_are_made_without_another_conversion(site, monkeypatch):
    _, before = run(site, "--no_html")
    monkeypatch.setattr(conversion.Conversion, "translate", None)
    code, after = run(site)
    assert code == 0
    assert {name: case["output_sha256"] for name, case in after.items()} == {
        name: case["output_sha256"] for name, case in before.items()
    }
    page = site / "out" / NAME / "pages/p1/index.html"
    written = page.stat().st_mtime_ns
    assert redone(after, run(site)[1]) == set() and page.stat().st_mtime_ns == written
    monkeypatch.undo()
    write_model(site, seed=1)
    assert run(site)[0] == 0 and page.stat().st_mtime_ns > written


def test_a_cohort_page_that_fails_costs_a_warning(site, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise OSError("no luck")

    monkeypatch.setattr(summary, "write_cohort_page", fail)
    code, cases = run(site)
    assert code == 0
    assert len(cases) == 3
    assert "no page of the cohort: no luck" in caplog.text


def test_a_failure_that_cannot_be_recorded_is_not_hidden_by_an_earlier_success(site, monkeypatch):
    assert run(site)[0] == 0
    write_model(site, seed=1)

    def full(*args):
        raise InputError("disk full")

    monkeypatch.setattr(conversion, "write_volume", full)
    monkeypatch.setattr(Results, "write", full)
    assert run(site)[0] == 1


def test_a_name_that_is_not_text_does_not_cost_the_summary(site):
    name = os.fsdecode(b"p\xff.nii.gz")
    try:
        (site / "in" / name).write_bytes((site / "in/p0/mr.nii.gz").read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    code, cases = run(site)
    assert code == 1
    assert sorted(case["status"] for case in cases.values()) == ["done", "done", "done", "failed"]
    assert any("not UTF-8 text" in case["reason"] for case in cases.values())
    assert "\\udcff" in (site / "out" / NAME / "summary.csv").read_text()


def test_scores_that_fail_do_not_cost_the_volume(site, monkeypatch):
    def fail(*args, **kwargs):
        raise ZeroDivisionError("no luck")

    monkeypatch.setattr(conversion, "score_case", fail)
    mr = read_volume(site / "in/p0/mr.nii.gz")
    write_volume(mr.with_array(np.where(mr.array > 100, 40, -1000).astype(np.int16)), site / "ct.nii.gz")
    (site / "list.csv").write_text("id,path,reference\na,in/p0/mr.nii.gz,ct.nii.gz\n")
    code, cases = run(site, source=("--list", "list.csv"))
    assert code == 1 and (site / "out" / NAME / "a.nii.gz").exists()
    assert "not scored: no luck" in cases["a"]["warnings"]


def test_another_patient_of_the_same_name_is_not_overwritten_while_both_run(site, monkeypatch):
    """The second pipeline has looked at the folder before the first one writes into it."""
    write_volume(patient_mr(56.0), site / "elsewhere/p1/mr.nii.gz")
    make_survey = pipeline.make_survey

    def early(*of):
        survey = make_survey(*of)
        monkeypatch.setattr(pipeline, "make_survey", make_survey)
        assert run(site)[0] == 0
        return survey

    monkeypatch.setattr(pipeline, "make_survey", early)
    code, cases = run(site, source=("--input_dir", "elsewhere"))
    assert code == 1
    assert cases["p1"]["status"] == "done"
    assert cases["p1"]["input"] == str(site / "in/p1/mr.nii.gz")
    (refused,) = [case for name, case in cases.items() if name.startswith("p1__")]
    assert "which another process converted meanwhile" in refused["reason"]
    np.testing.assert_array_equal(
        read_volume(site / "out" / NAME / "p1.nii.gz").array, expected_ct(site, site / "in/p1/mr.nii.gz").array
    )


def test_what_was_decided_on_reading_stands_in_the_record_and_codes_are_kept(tmp_path):
    write_model(tmp_path)
    (path,) = write_patients(tmp_path / "in", 1)
    image = nibabel.load(path)
    image.header["qform_code"] = image.header["sform_code"] = 0
    nibabel.save(nibabel.Nifti1Image(image.get_fdata(dtype=np.float32), None, image.header), path)
    code, cases = run(tmp_path, "--no_html")
    assert code == 0
    assert any("the header has no orientation" in warning for warning in cases["p0"]["warnings"])
    written = nibabel.load(tmp_path / "out" / NAME / "p0.nii.gz").header
    assert (int(written["qform_code"]), int(written["sform_code"])) == (0, 0)
    np.testing.assert_allclose(written.get_zooms(), image.header.get_zooms())
