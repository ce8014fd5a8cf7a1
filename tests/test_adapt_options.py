"""`test_adapt.py`: what results are called, a model without its mirrorings, and a true CT on another grid."""

import html
import json
import os
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import test_adapt
from cohort import checks
from cohort.isolated_bone import IsolatedBone
from data.errors import InputError
from data.prepared.patient_ids import patient_id, warn_of_same_patients
from data.prepared.sources import Source
from data.values.intensity import AIR_HU
from data.volumes.volume import Volume, read_volume, write_volume
from models.synthesis import TrainedGenerator
from options import test_options
from tests.cohort_data import NAME, SETTINGS, patient_mr, write_dicom_patient, write_model


def adapt(root, source, *more) -> list[str]:
    where = ["--name", NAME, "--checkpoints_dir", str(root / "checkpoints"), "--results_dir", str(root / "results")]
    return [*where, "--device", "cpu", "--precision", "fp32", "--input", str(source), *map(str, more)]


@pytest.mark.parametrize("name", ["mr", "scan.1", "image"])
def test_a_result_is_called_after_its_file(tmp_path, name):
    write_model(tmp_path)
    for folder in ("chosen_by_nobody", "other"):
        write_volume(patient_mr(), tmp_path / folder / f"{name}.nii.gz")
    assert test_adapt.main(adapt(tmp_path, tmp_path / f"chosen_by_nobody/{name}.nii.gz")) == 0
    assert (tmp_path / "results" / NAME / f"{name}.nii.gz").exists()
    with pytest.raises(InputError, match=r"is the result of .*chosen_by_nobody.*; choose another --output"):
        test_adapt.main(adapt(tmp_path, tmp_path / f"other/{name}.nii.gz"))


def test_the_result_of_a_dicom_folder_is_called_after_the_folder(tmp_path):
    write_model(tmp_path)
    write_dicom_patient(tmp_path / "dicom/STS_024")
    assert test_adapt.main(adapt(tmp_path, tmp_path / "dicom/STS_024/")) == 0
    assert (tmp_path / "results" / NAME / "STS_024.nii.gz").exists()


@pytest.mark.parametrize("option", ["--output", "--mu_map"])
def test_a_place_that_cannot_be_written_is_refused_before_the_conversion(tmp_path, monkeypatch, option):
    monkeypatch.setattr(test_adapt, "synthesize", None)
    write_model(tmp_path)
    write_volume(patient_mr(), tmp_path / "mr.nii.gz")
    (tmp_path / "file").touch()
    target = tmp_path / "file/a/out.nii.gz"
    with pytest.raises(InputError) as error:
        test_adapt.main(adapt(tmp_path, tmp_path / "mr.nii.gz", option, target))
    assert str(error.value) == (
        f"{target}: cannot be written: nothing can be made in {tmp_path}/file: Not a directory; choose another {option}"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "file", "mr.nii.gz"]


def test_the_result_of_another_model_is_not_replaced(tmp_path):
    """Of one patient, with one --output; the same model's is, wherever the model now lies."""
    source, out = write_volume(patient_mr(), tmp_path / "mr.nii.gz"), tmp_path / "sct.nii.gz"
    first, second, moved = (tmp_path / name for name in ("first", "second", "moved"))
    for seed, root in enumerate((first, second, moved)):
        write_model(root, seed)
    (second / "checkpoints" / NAME).rename(second / "checkpoints/other")

    def convert(root, *more):
        assert test_adapt.main([*adapt(root, source, f"--output={out}"), *more]) == 0
        return read_volume(out).array

    made = convert(first)
    with pytest.raises(InputError) as error:
        convert(second, "--name=other")
    assert str(error.value) == (
        f"{out}: is the result of the model {NAME}; choose another --output for this model, or replace it with "
        "--overwrite"
    )
    np.testing.assert_array_equal(read_volume(out).array, made)
    by_other = convert(second, "--name=other", "--overwrite")
    assert (by_other != made).any()
    with pytest.raises(InputError, match="is the result of the model other"):
        convert(first)
    again = convert(first, "--overwrite")
    np.testing.assert_array_equal(again, made)
    assert (convert(moved) != made).any()


@pytest.mark.parametrize(
    ("options", "which"),
    [
        (("--mu_map", "sct.nii.gz"), ("sct.nii.gz", "--output", "--mu_map")),
        (("--mu_map", "x.nii.gz", "--dicom", "sct_page"), ("sct_page", "--output", "--dicom")),
        (("--mu_map", "sub/../x.mha", "--dicom", "x.mha"), ("x.mha", "--dicom", "--mu_map")),
    ],
)
def test_no_result_replaces_another_one_of_the_same_call(tmp_path, monkeypatch, options, which):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(test_adapt, "synthesize", None)
    (tmp_path / "sub").mkdir()
    write_model(tmp_path)
    write_volume(patient_mr(), tmp_path / "mr.nii.gz")
    place, first, second = which
    message = f"{tmp_path / place}: {first} and {second} would both be written there; choose another {second}"
    with pytest.raises(InputError, match=f"^{message}$"):
        test_adapt.main(adapt(tmp_path, tmp_path / "mr.nii.gz", "--output", "sct.nii.gz", *options))


def test_a_volume_alone_leaves_no_report_of_the_one_that_it_replaces(tmp_path):
    source, out = write_volume(patient_mr(), tmp_path / "mr.nii.gz"), tmp_path / "out/sct.nii.gz"
    write_model(tmp_path)
    assert test_adapt.main(adapt(tmp_path, source, "--output", out)) == 0
    (out.parent / "note.txt").touch()
    assert {path.name for path in out.parent.iterdir()} == {"sct.nii.gz", "sct.json", "sct.png", "sct_page", "note.txt"}
    write_model(tmp_path, seed=1)
    assert test_adapt.main(adapt(tmp_path, source, "--output", out, "--volume_only", "--overwrite")) == 0
    assert {path.name for path in out.parent.iterdir()} == {"sct.nii.gz", "note.txt"}


def test_a_volume_alone_costs_no_other_patient_s_report(tmp_path):
    """Whose volume was moved away meanwhile."""
    first, out = write_volume(patient_mr(), tmp_path / "mr.nii.gz"), tmp_path / "out/sct.nii.gz"
    other = write_volume(patient_mr(44.0), tmp_path / "other.nii.gz")
    write_model(tmp_path)
    assert test_adapt.main(adapt(tmp_path, first, "--output", out)) == 0
    out.rename(tmp_path / "kept.nii.gz")
    with pytest.raises(InputError, match=r"sct\.nii\.gz: is the result of .*mr\.nii\.gz; choose another --output"):
        test_adapt.main(adapt(tmp_path, other, "--output", out, "--volume_only"))
    assert {path.name for path in out.parent.iterdir()} == {"sct.json", "sct.png", "sct_page"}


def test_a_ct_given_in_place_of_its_mr_is_told_as_a_ct(tmp_path):
    """Both are called after the patient's folder: that the result's name is taken is not what is wrong."""
    write_model(tmp_path)
    test_adapt.main(adapt(tmp_path, write_volume(patient_mr(), tmp_path / "P07/mr.nii.gz")))
    ct = write_volume(patient_mr().with_array(np.full((6, 60, 60), -1000, np.int16)), tmp_path / "P07/ct.nii.gz")
    with pytest.raises(InputError, match=rf"{ct}: not an MR .*look like CT in HU.*; a true CT goes to --reference"):
        test_adapt.main(adapt(tmp_path, ct))


def test_mirrorings_and_the_solid_body_can_be_left_out(tmp_path):
    """The result is then that of the same weights without them, voxel by voxel."""
    write_volume(patient_mr(), tmp_path / "mr.nii.gz")
    results = {}
    for kind, settings in (("both", replace(SETTINGS, mirrored="xy", solid_body=True)), ("plain", SETTINGS)):
        write_model(tmp_path / kind, settings=settings)
        options = {"both": [], "plain": []}[kind]
        test_adapt.main(adapt(tmp_path / kind, tmp_path / "mr.nii.gz", *options))
        results[kind] = read_volume(tmp_path / kind / "results" / NAME / "mr.nii.gz").array
    off = tmp_path / "off.nii.gz"
    test_adapt.main(
        adapt(tmp_path / "both", tmp_path / "mr.nii.gz", "--no_mirrored", "--no_solid_body", "--output", off)
    )
    assert np.array_equal(read_volume(off).array, results["plain"])
    assert not np.array_equal(results["both"], results["plain"])
    report = json.loads(off.with_name("off.json").read_text())
    assert report["no_mirrored"] and report["no_solid_body"]
    for option, why in (
        ("--no_mirrored", "does not average"),
        ("--no_solid_body", "leaves air inside the body anyway"),
    ):
        with pytest.raises(InputError, match=f"{option} does nothing: .*{NAME} {why}"):
            test_adapt.main(adapt(tmp_path / "plain", tmp_path / "mr.nii.gz", option))


def test_a_reference_on_another_grid_is_resampled_where_asked_for(tmp_path, caplog, capsys):
    """A CT of 40 HU that covers all but the MR's last slice: what it does not cover is not scored."""
    caplog.set_level("INFO")
    write_model(tmp_path)
    mr = patient_mr()
    write_volume(mr, tmp_path / "mr.nii.gz")
    body = mr.array > mr.array.max() / 10
    finer = np.where(body, 40, AIR_HU).repeat(2, axis=1).repeat(2, axis=2)[:-1].astype(np.int16)
    x, y, z = mr.spacing
    origin = np.array(mr.origin) - 0.25 * np.array([x, y, 0])
    write_volume(Volume(finer, (x / 2, y / 2, z), tuple(origin)), tmp_path / "ct.nii.gz")
    with pytest.raises(
        InputError,
        match=rf"ct\.nii\.gz: not on the MR's grid \({tmp_path}/mr\.nii\.gz\): .*--resample_reference, or python -m "
        rf"scripts\.resample --input {tmp_path}/ct\.nii\.gz --like {tmp_path}/mr\.nii\.gz",
    ):
        test_adapt.main(adapt(tmp_path, tmp_path / "mr.nii.gz", "--reference", tmp_path / "ct.nii.gz"))
    assert (
        test_adapt.main(
            adapt(tmp_path, tmp_path / "mr.nii.gz", "--reference", tmp_path / "ct.nii.gz", "--resample_reference")
        )
        == 0
    )
    share = 100 / mr.array.shape[0]
    assert (
        f"resampled to the MR's grid; {share:.1f} % of that grid lies outside the CT, where nothing is scored"
        in caplog.text
    )
    assert json.loads((tmp_path / "results" / NAME / "mr.json").read_text())["mae"] > 0
    with pytest.raises(SystemExit):
        test_adapt.main(adapt(tmp_path, tmp_path / "mr.nii.gz", "--resample_reference"))
    assert "--resample_reference does nothing without --reference" in capsys.readouterr().err


def test_one_patient_in_mr_and_ct_is_noticed(tmp_path, caplog):
    def with_id(text):
        def change(k, header):
            header.PatientID = text

        return change

    for folder, text in (("mr1", "A1"), ("mr2", "B2"), ("mr3", ""), ("ct1", "C3"), ("ct2", "B2 "), ("ct3", "")):
        write_dicom_patient(tmp_path / folder, change=with_id(text))
    write_volume(patient_mr(), tmp_path / "ct4.nii.gz")
    assert [patient_id(tmp_path / name) for name in ("mr1", "mr3", "ct2", "ct4.nii.gz", "nowhere")] == [
        "A1", None, "B2", None, None,
    ]  # fmt: skip
    mr, ct = (
        [Source(name, name, tmp_path / name, None) for name in names]
        for names in (("mr1", "mr2", "mr3"), ("ct1", "ct2", "ct3", "ct4.nii.gz"))
    )
    warn_of_same_patients(mr, ct)
    (said,) = caplog.messages
    assert "MR and CT of 1 patients have the same PatientID" in said
    assert f"{tmp_path / 'mr2'} and {tmp_path / 'ct2'}" in said and "B2" not in said
    caplog.clear()
    warn_of_same_patients(mr[:1], ct)
    assert not caplog.messages


def test_what_is_turned_off_and_how_models_are_fused_give_a_series_other_uids(tmp_path):
    """Both change voxels, and the same UIDs on other voxels would be lost in an archive."""
    weights = tmp_path / "net.pth"
    weights.write_bytes(b"weights")

    def derived(solid: bool, fusion: str | None, models: int) -> str:
        settings = replace(SETTINGS, solid_body=solid)
        used = [SimpleNamespace(settings=settings, model=SimpleNamespace(precision="fp32"))] * models
        generators = [TrainedGenerator(SETTINGS, weights)] * models
        opt = SimpleNamespace(name=["a", "b", "c"][:models], epoch="latest", fusion=fusion)
        return test_adapt.model_hash(opt, generators, used)

    one = [derived(solid, None, 1) for solid in (False, True)]
    assert one[0] != one[1]
    assert derived(False, None, 3) == derived(False, "mean", 3) != derived(False, "median", 3)


def test_models_without_a_card_are_listed_with_what_is_known_of_them(tmp_path, capsys):
    """Those without weights are not."""
    folder = write_model(tmp_path, settings=replace(SETTINGS, steps=1200))
    for name in ("card", "exported", "empty"):
        shutil.copytree(folder / NAME, folder / name)
    (folder / "card/README.md").write_text("# card: limbs, T1\n")
    (folder / NAME / "opt.json").write_text(json.dumps({"model": "paired", "dataroot": "datasets/x"}))
    (folder / "exported/opt.json").write_text("{damaged")
    (folder / "empty/latest_net_G_A.pth").unlink()
    SETTINGS.write(folder / "empty")
    for name in (NAME, "exported"):
        os.utime(folder / name / "latest_net_G_A.pth", (0, time.mktime((2026, 3, 4, 12, 0, 0, 0, 0, -1))))
    with pytest.raises(SystemExit):
        test_options.parse(["--input", "mr.nii", "--checkpoints_dir", str(folder)])
    assert capsys.readouterr().err.splitlines() == [
        f"error: --name: expected a model. {folder} has:",
        "  card                 limbs, T1",
        "  exported             1200 steps, weights of 2026-03-04",
        f"  {NAME}                 paired, trained on datasets/x, 1200 steps, weights of 2026-03-04",
        "help: python test_adapt.py --help",
    ]


def test_notes_are_said_once_in_log_report_and_page(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    write_model(tmp_path)
    write_dicom_patient(tmp_path / "P07", change=lambda k, header: setattr(header, "StudyID", "longer than sixteen"))
    monkeypatch.setattr(checks, "isolated_bone", lambda ct, body: IsolatedBone(1, 0.42, 14.0, ((13, 24),)))
    assert test_adapt.main(adapt(tmp_path, tmp_path / "P07", "--output", f"{tmp_path}/sct/")) == 0
    notes = [
        "isolated bone: 1 piece, 0.4 ml, 3.0 % of the bone, in axial slices 13 to 24: look at it, it may be false",
        "the series leaves out the MR's DICOM tag StudyID, whose value is invalid; the series itself is valid",
    ]
    said = [one.getMessage() for one in caplog.records if one.getMessage().startswith("note: ")]
    assert said == [f"note: {text}" for text in notes]
    assert json.loads((tmp_path / "sct/P07.json").read_text())["notes"] == notes
    page = html.unescape((tmp_path / "sct/P07_page/index.html").read_text())
    assert all(f">note: {text}</p>" in page for text in notes)


SEVERAL = {
    "patients with CT": (["P1/mr", "P1/ct", "P2/mr", "P2/ct"], 4, "P1/mr", "2 of them", " --pattern '*/mr.nii.gz'"),
    "files": (["a", "b", "c"], 3, "a", "all", ""),
    "no name tells": (
        ["P1/vibe", "P1/ct", "P2/vibe", "P2/mask"],
        4,
        "P1/vibe",
        "2 of them",
        " --pattern '*/vibe.nii.gz'",
    ),
    "one patient": (["P1/ct", "P1/mr"], 2, "P1/mr", "", ""),
    "one volume": (["P1/x"], 1, "P1/x", "", ""),
    "CT alone": (["P1/ct", "P2/ct"], 2, "P1/ct", "", ""),
    "one MR among others": (["P1/mr", "P1/ct", "P2/ct"], 3, "P1/mr", "", ""),
}


@pytest.mark.parametrize(("files", "count", "first", "which", "pattern"), SEVERAL.values(), ids=SEVERAL)
def test_a_folder_of_patients_is_answered_by_the_command_for_cohorts(tmp_path, files, count, first, which, pattern):
    write_model(tmp_path)
    folder = tmp_path / "my patients"
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{file}.nii.gz").touch()
    with pytest.raises(InputError) as error:
        test_adapt.main(adapt(tmp_path, folder))
    command = f"python test_pipeline.py --name {NAME} --checkpoints_dir {tmp_path}/checkpoints --input_dir '{folder}'"
    volumes = "1 volume" if count == 1 else f"{count} volumes"
    assert str(error.value) == (
        f"{folder}: a folder of {volumes}, not a DICOM series; this command converts one patient. "
        f"Give one volume: --input '{folder}/{first}.nii.gz'"
        + (f"; or convert {which}: {command}{pattern}" if which else "")
    )


def test_a_model_that_makes_mr_is_offered_the_ct_of_a_folder(tmp_path):
    folder = tmp_path / "in"
    for file in ("P1/mr", "P1/ct", "P2/mr", "P2/ct"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{file}.nii.gz").touch()
    options = ["--direction=BtoA", "--spacing_mm=1.5", "--epoch=7"]
    opt = test_options.parse([*adapt(tmp_path, folder), *options])
    with pytest.raises(InputError) as error:
        test_adapt.read_patient(opt, {"mr": folder}, "BtoA")
    assert str(error.value).endswith(
        f"Give one volume: --input {folder}/P1/ct.nii.gz; or convert 2 of them: python test_pipeline.py --name {NAME} "
        f"--checkpoints_dir {tmp_path}/checkpoints --epoch 7 --direction BtoA --spacing_mm 1.5 --input_dir {folder} "
        "--pattern '*/ct.nii.gz'"
    )


def test_a_folder_of_dicom_series_is_answered_so_too(tmp_path):
    write_model(tmp_path)
    for name in ("P1", "P2"):
        write_dicom_patient(tmp_path / "in" / name)
    with pytest.raises(
        InputError, match=r"folder of 2 volumes, .*: --input .*/in/P1; or convert all: python test_pipe"
    ):
        test_adapt.main(adapt(tmp_path, tmp_path / "in"))
