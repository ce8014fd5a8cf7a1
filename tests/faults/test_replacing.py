"""Files of others in the way of a command's: they stay, byte for byte, unless --overwrite is given."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

import fill_hole
import test_adapt
import test_pipeline
from benchmarks import first_step
from data.errors import InputError
from data.files import read_json, write_json
from data.prepared import bodies
from data.prepared.jobs import BEGUN
from data.prepared.manifest import read_manifest
from data.volumes.outputs import check_free, volume_targets
from data.volumes.volume import Volume, read_volume, write_volume
from models.run_folder import check_new
from scripts import (
    evaluate,
    export_model,
    figure,
    gpu_check,
    import_generator,
    plot_losses,
    prepare_dataset,
    trivial_predictors,
)
from tests.cohort_data import NAME, patient_mr, write_patients
from tests.faults.commands import adapt, assert_refused, pipeline, prepare, snapshot
from visualization.case_page import write_case_page


def assert_stays(capsys, folder: Path, main: Callable[[], object], *words: str) -> None:
    """Check that a command ends with one clear line, and that no file below `folder` is new, gone or changed."""
    before = snapshot(folder)
    assert_refused(capsys, main, *words)
    assert snapshot(folder) == before


def test_targets_of_a_header_are_its_voxels_too(tmp_path):
    for name in ("a.mhd", "b.nii.gz", "c.mha", "d.nrrd", "E.MHD"):
        write_volume(patient_mr(), tmp_path / name)
        assert sorted(volume_targets(tmp_path / name)) == sorted(tmp_path.glob(f"{name[0]}*"))


def test_an_input_is_never_written_over_whatever_it_is_called(tmp_path):
    path = write_volume(patient_mr(), tmp_path / "mr.mhd")
    (tmp_path / "soft").symlink_to(path)
    (tmp_path / "hard").hardlink_to(tmp_path / "mr.raw")
    for target in ("mr.mhd", "mr.raw", "soft", "hard"):
        with pytest.raises(InputError, match="is one of the inputs; choose another --x"):
            check_free([tmp_path / target], "--x", [path], made=[tmp_path / target], overwrite=True)
    check_free([tmp_path / "new"], "--x", [path])


def test_a_link_that_leads_nowhere_is_there_all_the_same(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="exists already; choose another --x"):
        check_free([tmp_path / "link"], "--x")
    check_free([tmp_path / "link"], "--x", made=[tmp_path / "link"])


@pytest.mark.parametrize("header", ["mr.nhdr", "mr.mhd"])
def test_the_voxels_of_an_input_s_header_stay(site, capsys, header):
    (site / "d").mkdir()
    sitk.WriteImage(patient_mr().to_sitk(), str(site / "d" / header))
    output = site / "d" / ("mr.mhd" if header == "mr.nhdr" else "mr.nrrd")
    if header == "mr.nhdr":
        for more in ((), ("--overwrite",)):
            arguments = adapt(site, site / "d" / header, "--output", output, *more)
            assert_stays(capsys, site, lambda a=arguments: test_adapt.main(a), "mr.raw: is one of the inputs")
    else:
        test_adapt.main(adapt(site, site / "d" / header, "--output", output))
        np.testing.assert_array_equal(read_volume(site / "d" / header).array, patient_mr().array)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sct.json", b'{"EchoTime": 0.02}'),  # a BIDS sidecar
        ("sct.json", b'{"EchoTime": 0.0'),
        ("sct.json", b"[" * 100_000),
        ("sct.json", b'{"made": "all", "input": 3}'),
        ("sct.json", b'{"made": ["a/b", "", ".", "..", "\\u0000", 3], "input": "INPUT"}'),
        ("sct.png", b"a figure"),
        ("sct_page/index.html", b"a page"),
        ("sct_page/data/mine.js", b"data"),
        ("sct.nii.gz", b"a volume"),
    ],
)
def test_files_of_others_beside_an_output_stay(site, capsys, name, content):
    (site / "d" / name).parent.mkdir(parents=True)
    (site / "d" / name).write_bytes(content.replace(b"INPUT", str(site / "good.nii.gz").encode()))
    arguments = adapt(site, site / "good.nii.gz", "--output", site / "d/sct.nii.gz")
    top = name.partition("/")[0]
    assert_stays(capsys, site, lambda: test_adapt.main(arguments), f"{top}: exists already", "--output", "--overwrite")
    test_adapt.main([*arguments, "--overwrite"])
    assert json.loads((site / "d/sct.json").read_text())["input"] == str(site / "good.nii.gz")
    assert (site / "d/sct_page/index.html").read_bytes() != content


def test_a_report_says_where_its_results_lie_however_that_was_said(site):
    (site / "d").mkdir()
    arguments = adapt(site, site / "good.nii.gz", "--output", site / "d/sct.nii.gz")
    test_adapt.main([*arguments, "--mu_map", str(site / "d/../mu.nii.gz")])
    made = {str(site / "mu.nii.gz"), "sct.json", "sct.nii.gz", "sct.png", "sct_page"}
    assert set(json.loads((site / "d/sct.json").read_text())["made"]) == made
    test_adapt.main([*arguments, "--mu_map", str(site / "mu.nii.gz")])  # and knows them as its own


def test_a_patient_s_own_result_is_renewed_and_another_s_stays(site, capsys):
    write_volume(patient_mr(48.0), site / "good.nii.gz")
    before = read_volume(site / "out" / NAME / "good.nii.gz").array
    test_adapt.main(adapt(site, site / "good.nii.gz"))
    assert not np.array_equal(read_volume(site / "out" / NAME / "good.nii.gz").array, before)
    # One name, two formats: both stay known as this patient's.
    for _ in range(2):
        for suffix in (".nii.gz", ".mhd"):
            test_adapt.main(adapt(site, site / "good.nii.gz", "--output", site / f"both{suffix}"))
    write_volume(patient_mr(44.0), site / "other/good.nii.gz")
    for more in ((), ("--output", site / "both.mhd")):
        arguments = adapt(site, site / "other/good.nii.gz", *more)
        assert_stays(
            capsys, site, lambda a=arguments: test_adapt.main(a), "is the result of", str(site / "good.nii.gz")
        )


def test_a_page_removes_only_what_a_page_has(tmp_path):
    mr, ct = patient_mr(), patient_mr().with_array(np.zeros((6, 60, 60), np.int16))
    write_case_page(tmp_path / "page", "case", mr, ct, ct, {})
    (tmp_path / "page/data/mine.js").write_text("mine")
    write_case_page(tmp_path / "page", "case", mr, ct, None, {})
    assert sorted(path.name for path in (tmp_path / "page/data").iterdir()) == ["ct.js", "mine.js", "mr.js"]


@pytest.mark.parametrize("name", ["p0.nii.gz", "pages/p0/index.html"])
def test_files_of_others_in_the_way_cost_their_case_alone(site, name):
    write_patients(site / "in", 2)
    folder = site / "results" / NAME
    arguments = pipeline(site, site / "in", "--results_dir", site / "results")
    (site / "in/p0").rename(site / "p0")
    assert test_pipeline.main(arguments) == 0
    (site / "p0").rename(site / "in/p0")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"of somebody else")
    for _ in range(2):  # nor does the record of the failure make it the pipeline's
        assert test_pipeline.main(arguments) == 1
        summary = json.loads((folder / "summary.json").read_text())
        cases = {case["case"]: case for case in summary["cases"]}
        assert cases["p1"]["status"] == "done" and cases["p0"]["status"] == "failed"
        assert "exists already, and was not made by this command" in cases["p0"]["reason"]
        assert (folder / name).read_bytes() == b"of somebody else"
    assert test_pipeline.main([*arguments, "--overwrite"]) == 0
    assert (folder / name).read_bytes() != b"of somebody else"


@pytest.mark.parametrize("name", ["summary.csv", "summary.json", "index.html", "records/x.json", "pages/x"])
def test_a_cohort_does_not_start_in_a_folder_of_others(site, capsys, name):
    write_patients(site / "in", 1)
    path = site / "results" / NAME / name
    path.parent.mkdir(parents=True)
    path.write_text("of somebody else")
    arguments = pipeline(site, site / "in", "--results_dir", site / "results")
    assert_stays(capsys, site, lambda: test_pipeline.main(arguments), "exists already", "--results_dir")


def write_extras(site: Path) -> None:
    ct = patient_mr().with_array(np.where(patient_mr().array > 100, 40, -1000).astype(np.int16))
    write_volume(ct, site / "ct.nii.gz")
    mask = np.zeros((9, 9), np.uint8)
    mask[2:7, 2:7] = 1
    write_volume(Volume(np.stack([mask] * 3)), site / "mask.mhd")
    Image.fromarray(255 * mask).save(site / "mask.png")


WRITERS = {
    "evaluate": (evaluate.main, "--pred {site}/ct.nii.gz --ref {site}/ct.nii.gz --json {site}/x.json", "x.json"),
    "figure": (figure.main, "--ct {site}/ct.nii.gz --dpi 30 --out {site}/x.png", "x.png"),
    "fill_hole volume": (fill_hole.main, "--input {site}/mask.mhd --output {site}/x.mhd", "x.raw"),
    "fill_hole slice": (fill_hole.main, "--input {site}/mask.png --output {site}/x.png", "x.png"),
    "trivial_predictors": (
        trivial_predictors.main, "--mr {site}/good.nii.gz --out {site}/x", "x/constant/good.nii.gz",
    ),
    "export_model": (
        export_model.main, "--name tiny --checkpoints_dir {site}/checkpoints --out {site}/x", "x/inference.json",
    ),
    "import_generator": (
        import_generator.main,
        "--weights {site}/checkpoints/tiny/latest_net_G_A.pth --checkpoints_dir {site} --name x --netG resnet_6blocks "
        "--ngf 2 --upsample resize --size 32 --spacing_mm 2",
        "x/latest_net_G_A.pth",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_every_command_leaves_files_of_others(site, capsys, name):
    write_extras(site)
    main, words, file = WRITERS[name]
    arguments = words.format(site=site).split()
    (site / file).parent.mkdir(parents=True, exist_ok=True)
    (site / file).write_bytes(b"of somebody else")
    assert_stays(capsys, site, lambda: main(arguments), f"{file.rpartition('/')[-1]}: exists already", "--overwrite")
    assert not main([*arguments, "--overwrite"])
    assert (site / file).read_bytes() != b"of somebody else"


def test_a_report_does_not_replace_the_reference(site, capsys):
    write_extras(site)
    ct = str(site / "ct.nii.gz")
    for more in ([], ["--overwrite"]):
        arguments = ["--pred", ct, "--ref", ct, "--json", ct, *more]
        assert_stays(capsys, site, lambda a=arguments: evaluate.main(a), "ct.nii.gz: is one of the inputs")


def test_losses_are_not_drawn_over_a_file_of_others(site, capsys, monkeypatch):
    monkeypatch.chdir(site)
    (site / "losses.png").write_bytes(b"of somebody else")
    arguments = [NAME, "--checkpoints_dir", str(site / "checkpoints")]
    assert_stays(capsys, site, lambda: plot_losses.main(arguments), "losses.png: exists already", "--out")


@pytest.mark.parametrize(
    "name",
    [
        "trainA/p0.npy",
        "trainB/q1.json",
        "maskB/q0.npy",
        "bodies/trainA/p1.nii.gz",
        "bodies/index.html",
        "manifest.json",
    ],
)
def test_preparation_leaves_files_of_others(raw, capsys, name):
    path = raw / "set" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"of": "somebody else"}')
    arguments = prepare(raw)
    assert_stays(capsys, raw, lambda: prepare_dataset.main(arguments), f"{path.name}: exists already", "--out")
    assert prepare_dataset.main([*arguments, "--overwrite"]) == 0
    assert len(read_manifest(raw / "set").cases) == 4


def test_a_preparation_that_was_cut_short_resumes(raw):
    assert prepare_dataset.main(prepare(raw)) == 0
    whole = snapshot(raw / "set")
    (raw / "set/manifest.json").unlink()
    write_json(raw / "set/trainA/p0.json", BEGUN)
    (raw / "set/maskA/p0.npy").unlink()
    assert prepare_dataset.main(prepare(raw)) == 0
    assert snapshot(raw / "set") == whole


def test_another_method_prepares_anew(raw, monkeypatch):
    assert prepare_dataset.main(prepare(raw)) == 0
    kept = snapshot(raw / "set")
    times = {path: path.stat().st_mtime_ns for path in kept}
    assert prepare_dataset.main(prepare(raw)) == 0
    arrays = [path for path in kept if path.suffix in (".npy", ".gz")]
    assert all(path.stat().st_mtime_ns == times[path] for path in arrays)
    body = raw / "set/bodies/trainA/p0.nii.gz"
    corrected = read_volume(body)
    corrected.array[0] = 0
    write_volume(corrected, body)
    monkeypatch.setattr("data.prepared.bodies.METHOD_VERSION", bodies.METHOD_VERSION + 1)
    monkeypatch.setattr("data.prepared.slice_writing.ct_slices", lambda volume, *_: np.full((6, 64, 64), 7, np.int16))
    assert prepare_dataset.main(prepare(raw)) == 0
    manifest = read_manifest(raw / "set")
    assert {case.method for case in manifest.cases} == {bodies.METHOD_VERSION}
    assert (np.load(raw / "set/trainB/q0.npy") == 7).all()
    np.testing.assert_array_equal(read_volume(body).array, corrected.array)  # corrected by hand: kept and used
    # A data set of before methods were recorded is prepared anew, too.
    for record in (raw / "set/trainB").glob("*.json"):
        data = json.loads(record.read_text())
        del data["method"]
        record.write_text(json.dumps(data))
    monkeypatch.undo()
    assert prepare_dataset.main(prepare(raw)) == 0
    assert not (np.load(raw / "set/trainB/q0.npy") == 7).any()


RUN_FILES = ("inference.json", "opt.json", "losses.jsonl", "loss_log.txt", "web/index.html")


@pytest.mark.parametrize("name", RUN_FILES)
def test_no_run_begins_where_files_of_others_have_its_names(tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"of": "somebody else"}')
    (tmp_path / "run/notes.txt").write_text("in nobody's way")
    before = snapshot(tmp_path)
    top = name.partition("/")[0]
    with pytest.raises(InputError, match=rf"run/{top}: exists already; choose another --name, or move it away"):
        check_new(tmp_path / "run")
    assert snapshot(tmp_path) == before
    path.rename(tmp_path / "elsewhere")
    if top == "web":
        path.parent.rmdir()
    check_new(tmp_path / "run")


def test_what_a_run_left_that_never_saved_is_no_file_of_others(site):
    run = site / "begun"
    run.mkdir()
    (run / "inference.json").write_bytes((site / "checkpoints" / NAME / "inference.json").read_bytes())
    for name in RUN_FILES[1:]:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("{}")
    check_new(run)
    assert sorted(path.name for path in run.iterdir()) == ["inference.json", "opt.json", "web"]


def test_a_report_of_a_command_without_overwrite_is_not_put_in_the_place_of_another_file(tmp_path, monkeypatch, capsys):
    report = tmp_path / "first_step.json"
    report.write_text("of somebody else")
    monkeypatch.setattr("sys.argv", ["first_step", str(report), "--dataroot", "none", "--name", "none"])
    assert_stays(capsys, tmp_path, first_step.main, "first_step.json: exists already; choose another REPORT.json")
    (tmp_path / "gpu_check.json").write_text('{"of": "somebody else"}')
    arguments = ["--out", str(tmp_path), "--device", "cpu", "--tiny"]
    assert_stays(capsys, tmp_path, lambda: gpu_check.main(arguments), "gpu_check.json: exists already", "--out")
    report = {"date": "", "settings": {}, "hardware": {}, "sections": {}}
    write_json(tmp_path / "gpu_check.json", report)
    monkeypatch.setattr(gpu_check.Checks, "sections", lambda self: {"one": lambda: {"passed": True}})
    assert gpu_check.main(arguments) == 0  # its own is renewed: scripts/gpu_run.sh is started again to resume
    assert read_json(tmp_path / "gpu_check.json")["sections"]["one"]["status"] == "done"
