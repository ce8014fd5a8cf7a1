"""Several models as one, and the uncertainty: against closed forms of networks that are known."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import test_adapt
import test_pipeline
from cohort.checks import Check
from cohort.findings import Findings, join_findings
from data.errors import InputError
from data.loading.single_dataset import SlabSpread
from data.masks.body_mask import mr_body_mask
from data.volumes.volume import read_volume, same_grid, write_volume
from models.ensemble import check_ensemble, mixed_air, synthesize_ensemble
from models.synthesis import Synthesiser, load_synthesiser, synthesize_volume
from models.test_model import TestModel
from tests.cohort_data import NAME, patient_mr, write_model
from tests.cohort_data import SETTINGS as TINY
from tests.faults.commands import adapt, pipeline
from tests.test_cohort import TRAINING
from tests.test_synthesis import CPU, SETTINGS, ramp_mr

HU_PER_UNIT = 1200  # of the window of -1000 to 1400 HU


class Shifted(torch.nn.Module):
    """A generator that adds a constant to each plane of a slab, and another one to the first half of all columns."""

    def __init__(self, planes: list[float], half: float = 0.0) -> None:
        super().__init__()
        self.planes, self.half = torch.tensor(planes)[None, :, None, None], half

    def forward(self, x):
        left = torch.arange(x.shape[-1]) < x.shape[-1] // 2
        return 0.1 * x + self.planes + self.half * left


def known(planes: list[float], half: float = 0.0, **changes) -> Synthesiser:
    slab = len(planes)
    generator = replace(SETTINGS.generator, input_nc=slab, output_nc=slab)
    settings = replace(SETTINGS, slab=slab, generator=generator, **changes)
    model = TestModel.__new__(TestModel)
    super(TestModel, model).__init__(Shifted(planes, half).eval(), slab, CPU, "fp32", settings.mirrored)
    return Synthesiser(settings, model)


def test_overlapping_slabs_that_disagree_are_the_uncertainty():
    """Weights 1 2 1 of values d, 0, -d: variance d^2 / 2 within, and 2/9 d^2 at an end, where one is missing."""
    mr, d = ramp_mr(), 0.05
    body = np.ones(mr.array.shape, bool)
    synthesiser = known([d, 0.0, -d])
    ct, deviation = synthesize_ensemble(mr, [synthesiser], body)
    np.testing.assert_array_equal(ct.array, synthesize_volume(mr, synthesiser, body).array)
    assert deviation.array.dtype == np.float32 and same_grid(deviation, mr)
    np.testing.assert_allclose(deviation.array[1:-1], d * HU_PER_UNIT / np.sqrt(2), rtol=1e-4)
    np.testing.assert_allclose(deviation.array[[0, -1]], d * HU_PER_UNIT * np.sqrt(2) / 3, rtol=1e-4)


def test_mirrorings_that_disagree_are_the_uncertainty():
    """Half of the mirrorings see a voxel in the first half of the columns: values h and 0, deviation h / 2."""
    mr, h = ramp_mr(), 0.08
    synthesiser = known([0.0], h, mirrored="xy")
    ct, deviation = synthesize_ensemble(mr, [synthesiser], np.ones(mr.array.shape, bool))
    np.testing.assert_allclose(deviation.array, h * HU_PER_UNIT / 2, rtol=1e-4)
    np.testing.assert_array_equal(ct.array, synthesize_volume(mr, synthesiser, np.ones(mr.array.shape, bool)).array)


def test_several_models_are_their_mean_and_their_variances_add_up():
    """Three models at -s, 0, s with slabs that disagree by d: variance 2/3 s^2 between, d^2 / 2 within."""
    mr, s, d = ramp_mr(), 0.1, 0.05
    body = np.ones(mr.array.shape, bool)
    models = [known([m + d, m, m - d]) for m in (-s, 0.0, s)]
    ct, deviation = synthesize_ensemble(mr, models, body)
    singles = [synthesize_volume(mr, one, body).array.astype(float) for one in models]
    np.testing.assert_array_equal(ct.array, np.rint(np.mean(singles, axis=0)))
    assert ct.array.dtype == np.int16
    expected = HU_PER_UNIT * np.sqrt(2 / 3 * s**2 + d**2 / 2)
    np.testing.assert_allclose(deviation.array[1:-1], expected, rtol=0.01)  # members are rounded to whole HU


def test_slices_without_body_are_certain_air():
    mr = ramp_mr()
    body = np.zeros(mr.array.shape, bool)
    body[2:4] = True
    ct, deviation = synthesize_ensemble(mr, [known([0.05, 0.0, -0.05])], body)
    assert np.all(ct.array[[0, 1, 4, 5]] == -1000) and np.all(deviation.array[[0, 1, 4, 5]] == 0)
    assert np.all(deviation.array[2:4] > 10)


def test_the_spread_is_that_of_numpy():
    rng = np.random.default_rng(0)
    outputs = rng.normal(1000, 5, (40, 1, 3, 4)).astype(np.float32)  # far from 0: sums of squares would lose digits
    spread = SlabSpread(1, 1, lambda values: values)
    for output in outputs:
        spread.add(0, output)
    np.testing.assert_allclose(spread.take(0), outputs[:, 0].var(axis=0), rtol=1e-3)


def test_what_cannot_be_an_ensemble_is_refused():
    one, fat, slabs = (known(*how).settings for how in (([0.0],), ([0.0],), ([0.0, 0.0, 0.0],)))
    fat = replace(fat, contrasts=("fat",))
    with pytest.raises(InputError, match="--name b: makes AtoB of fat; a makes AtoB of mr"):
        check_ensemble(["a", "b"], [one, fat], False)
    with pytest.raises(InputError, match=r"--uncertainty: a computes each voxel once.* \(--name A B C\)"):
        check_ensemble(["a"], [one], True)
    reverse = replace(one, direction="BtoA")
    with pytest.raises(InputError, match="they make MR from CT; expected a single model"):
        check_ensemble(["a", "b"], [reverse, reverse], False)
    check_ensemble(["a"], [slabs], True)
    check_ensemble(["a"], [replace(one, mirrored="xy")], True)
    check_ensemble(["a", "b"], [one, one], True)


def test_the_command_writes_mean_and_uncertainty_and_says_its_mean(tmp_path, caplog, capsys):
    two_models(tmp_path)
    mr = write_volume(patient_mr(), tmp_path / "p7.nii.gz")

    def run(names: list[str], *more) -> int:
        arguments = adapt(tmp_path, mr, "--precision", "fp32", *more)
        return test_adapt.main(["--name", *names, *arguments[2:]])

    with caplog.at_level("INFO"):
        assert run(["a", "b"], "--uncertainty", tmp_path / "sd.nii.gz", "--dicom", tmp_path / "dicom") == 0
    volumes = [read_volume(mr)]
    singles = [
        synthesize_volume(volumes[0], load_synthesiser(tmp_path / "checkpoints" / name, "latest", CPU)).array
        for name in ("a", "b")
    ]
    ct = read_volume(tmp_path / "out/a+b/p7.nii.gz")
    np.testing.assert_array_equal(ct.array, np.rint(np.mean(singles, axis=0)))
    np.testing.assert_array_equal(read_volume(tmp_path / "dicom").array, ct.array)
    deviation = read_volume(tmp_path / "sd.nii.gz").array
    assert np.all(
        deviation >= np.abs(singles[0] / 2 - singles[1] / 2) - 0.01
    )  # two models, and what b's mirrorings add
    report = json.loads((tmp_path / "out/a+b/p7.json").read_text())
    assert report["uncertainty_mean_hu"] == pytest.approx(deviation[mr_body_mask(volumes[0])].mean(), abs=0.01)
    assert f"uncertainty: {report['uncertainty_mean_hu']:.1f} HU on average" in caplog.text
    assert run(["b"], "--uncertainty", tmp_path / "b.nii.gz") == 0
    np.testing.assert_array_equal(read_volume(tmp_path / "out/b/p7.nii.gz").array, singles[1])
    with pytest.raises(InputError, match="--uncertainty: a computes each voxel once"):
        run(["a"], "--uncertainty", tmp_path / "x.nii.gz")
    for names, more in ((["a", "a"], []), (["a"], ["--uncertainty", "x.png"])):
        with pytest.raises(SystemExit):
            run(names, *more)
    said = capsys.readouterr().err
    assert "a model is named twice" in said and "--uncertainty x.png: expected a file ending in" in said


def two_models(root, **changes) -> None:
    """Write the models a and b; b is used mirrored, or with other changes."""
    for number, name in enumerate(("a", "b")):
        write_model(root, seed=number, settings=replace(TINY, **(changes or {"mirrored": "xy"}) if number else {}))
        (root / "checkpoints" / NAME).rename(root / "checkpoints" / name)


def test_a_cohort_gets_what_a_patient_gets(tmp_path, capsys):
    """Of two models: the mean, its uncertainty and all figures, in the record, in the summary and on the pages."""
    two_models(tmp_path)
    mr = write_volume(patient_mr(), tmp_path / "in/p7.nii.gz")
    where = ["--checkpoints_dir", f"{tmp_path}/checkpoints", "--device", "cpu", "--precision", "fp32"]

    def cohort(names: list[str], *more: str) -> dict:
        arguments = ["--name", *names, *where, "--input_dir", f"{tmp_path}/in", "--results_dir", f"{tmp_path}/cohort"]
        assert test_pipeline.main([*arguments, *more]) == 0
        return json.loads((tmp_path / "cohort" / "+".join(names) / "summary.json").read_text())

    single = [
        *where,
        "--input",
        str(mr),
        "--output",
        f"{tmp_path}/one.nii.gz",
        "--uncertainty",
        f"{tmp_path}/sd.nii.gz",
    ]
    assert test_adapt.main(["--name", "a", "b", *single]) == 0
    report = json.loads((tmp_path / "one.json").read_text())
    summary = cohort(["a", "b"], "--uncertainty", "--dicom")
    (record,) = summary["cases"]
    folder = tmp_path / "cohort/a+b"
    for name, path in (("one", "p7"), ("sd", "uncertainty/p7")):
        one, other = read_volume(tmp_path / f"{name}.nii.gz"), read_volume(folder / f"{path}.nii.gz")
        np.testing.assert_array_equal(one.array, other.array)
        assert one.array.dtype == other.array.dtype and same_grid(one, other)
    np.testing.assert_array_equal(read_volume(folder / "dicom/p7").array, read_volume(folder / "p7.nii.gz").array)
    figures = {name: value for name, value in record["checks"].items() if name != "uncertainty_mean_hu"}
    assert figures == report["checks"] and {"a: body_dice", "b: mr_median"} <= figures.keys()
    assert (record["warnings"], record["unchecked"], record["hu"]) == tuple(
        report[name] for name in ("warnings", "unchecked", "hu")
    )
    assert record["checks"]["uncertainty_mean_hu"] == pytest.approx(report["uncertainty_mean_hu"], rel=1e-5)
    (row,) = csv.DictReader((folder / "summary.csv").open())
    assert float(row["uncertainty_mean_hu"]) == record["checks"]["uncertainty_mean_hu"]
    text = f"{report['uncertainty_mean_hu']:.1f}"
    page = (folder / "index.html").read_text()
    assert "uncertainty [HU]" in page and f">{text}</td>" in page
    assert (folder / "pages/p7/data/uncertainty.js").exists() and (tmp_path / "one_page/data/uncertainty.js").exists()
    # It is up to date, with what is asked for; a lost map is made again, and a case without one is done anew.
    assert cohort(["a", "b"], "--uncertainty")["cases"][0]["attempt"] == record["attempt"]
    (folder / "uncertainty/p7.nii.gz").unlink()
    assert cohort(["a", "b"], "--uncertainty")["cases"][0]["attempt"] != record["attempt"]
    assert (folder / "uncertainty/p7.nii.gz").exists()
    # One model that sees each slice four times has an uncertainty, one that sees it once has none.
    plain, mirrored = cohort(["b"])["cases"][0], cohort(["b"], "--uncertainty")["cases"][0]
    assert plain["output_sha256"] == mirrored["output_sha256"] and plain["key"] == mirrored["key"]
    assert "uncertainty_mean_hu" not in plain["checks"] and mirrored["checks"]["uncertainty_mean_hu"] > 0
    with pytest.raises(InputError, match="--uncertainty: a computes each voxel once"):
        cohort(["a"], "--uncertainty")
    assert not (tmp_path / "cohort/a").exists()
    with pytest.raises(SystemExit):
        cohort(["a", "a"])
    assert "a model is named twice" in capsys.readouterr().err


def test_models_of_which_some_fill_air_are_told_before_the_conversion_and_in_every_report(tmp_path, caplog):
    two_models(tmp_path, solid_body=True)
    mr = write_volume(patient_mr(), tmp_path / "in/p7.nii.gz")
    caution = (
        "the models treat air inside the body differently: filled with tissue by b, left as it is by a; in the mean, "
        "gas is about -500 HU instead of -1000 HU, and lungs are too dense; for a trunk leave out b, or use "
        "test_adapt.py with --no_solid_body"
    )
    with caplog.at_level("INFO"):
        assert test_adapt.main(adapt(tmp_path, mr, "--name", "a", "b")) == 0
    assert caplog.messages.count(f"warning: {caution}") == 1
    folder = tmp_path / "out/a+b"
    assert json.loads((folder / "p7.json").read_text())["warnings"].count(caution) == 1
    assert caution in (folder / "p7_page/index.html").read_text()
    caplog.clear()
    with caplog.at_level("INFO"):
        assert test_adapt.main(adapt(tmp_path, mr, "--name", "a", "b", "--no_solid_body", "--overwrite")) == 0
        assert caution not in caplog.text
        where = ["--results_dir", f"{tmp_path}/cohort"]
        assert test_pipeline.main(pipeline(tmp_path, tmp_path / "in", "--name", "a", "b", *where)) == 0
    said = f"warning: {caution}"
    assert caplog.messages.count(said) == 1
    assert caplog.messages.index(said) < next(k for k, text in enumerate(caplog.messages) if "p7: done" in text)
    folder = tmp_path / "cohort/a+b"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["model"]["warning"] == caution
    assert summary["cases"][0]["warnings"].count(caution) == 1
    # The series of both commands are the same, warnings and UIDs.
    series = ["--dicom", str(tmp_path / "one"), "--precision", "fp32", "--overwrite"]
    assert test_adapt.main(adapt(tmp_path, mr, "--name", "a", "b", *series)) == 0
    assert test_pipeline.main(pipeline(tmp_path, tmp_path / "in", "--name", "a", "b", *where, "--dicom")) == 0
    bytes_of = [
        sorted(one.read_bytes() for one in where.glob("*.dcm")) for where in (tmp_path / "one", folder / "dicom/p7")
    ]
    assert bytes_of[0] and bytes_of[0] == bytes_of[1]
    for page in (folder / "index.html", folder / "pages/p7/index.html"):
        assert f'<p class="warning" role="note">{said}' in page.read_text()


def test_a_mixture_says_what_becomes_of_gas():
    solid, plain = replace(TINY, solid_body=True), TINY
    assert "gas is about -667 HU" in mixed_air(["a", "b", "c"], [plain, solid, plain])
    assert "only where most models leave them" in mixed_air(["a", "b", "c"], [plain, solid, plain], "median")
    assert mixed_air(["a", "b"], [solid, solid]) is None and mixed_air(["a"], [plain]) is None


def test_what_models_of_an_ensemble_find_stands_once_where_they_agree():
    first = Findings({"body_dice": 0.9}, ["the same", "a alone"], ["nothing known"])
    second = Findings({"body_dice": 0.8}, ["the same"], [])
    joined = join_findings({"a": first, "b": second})
    assert joined.figures == {"a: body_dice": 0.9, "b: body_dice": 0.8}
    assert joined.warnings == ["the same", "a: a alone"] and joined.unchecked == ["a: nothing known"]
    assert join_findings({"a": first}) is first


def test_what_one_patient_s_conversion_looks_like_is_checked_and_said(tmp_path, caplog):
    """As in a cohort: an MR far brighter than the training set's, of a model that was trained on smaller bodies."""
    training = replace(TRAINING, section_cm2=(5.0, 20.0), gas_share=0.0, mr_high=(1.0, 2.0))
    write_model(tmp_path, settings=replace(TINY, training=training))
    mr = write_volume(patient_mr(), tmp_path / "in/p7.nii.gz")
    arguments = adapt(tmp_path, mr, "--precision", "fp32")
    with caplog.at_level("INFO"):
        assert test_adapt.main(arguments) == 0
    report = json.loads((tmp_path / "out" / NAME / "p7.json").read_text())
    assert any("6 of 6 slices are larger" in text for text in report["warnings"])
    assert any("another scanner, sequence or scaling" in text for text in report["warnings"])
    assert {f"warning: {text}" for text in report["warnings"]} <= set(caplog.messages)
    page = (tmp_path / "out" / NAME / "p7_page/index.html").read_text()
    assert "6 of 6 slices are larger" in page
    assert test_pipeline.main(pipeline(tmp_path, tmp_path / "in", "--results_dir", tmp_path / "cohort")) == 0
    record = json.loads((tmp_path / "cohort" / NAME / "records/p7.json").read_text())
    for name in ("warnings", "unchecked", "checks", "hu"):
        assert record[name] == report[name], name


def test_a_check_that_fails_does_not_cost_the_volume(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    write_model(tmp_path)
    monkeypatch.setattr(Check, "_finish", fail)
    assert test_adapt.main(adapt(tmp_path, write_volume(patient_mr(), tmp_path / "p7.nii.gz"))) == 0
    report = json.loads((tmp_path / "out" / NAME / "p7.json").read_text())
    assert report["warnings"] == ["not checked: MemoryError"] and (tmp_path / "out" / NAME / "p7.nii.gz").exists()


def test_an_ensemble_has_one_progress(tmp_path, caplog):
    caplog.set_level("INFO")
    two_models(tmp_path)
    mr = write_volume(patient_mr(), tmp_path / "p7.nii.gz")
    where = ["--checkpoints_dir", f"{tmp_path}/checkpoints", "--device", "cpu", "--precision", "fp32", "--volume_only"]
    assert test_adapt.main(["--name", "a", "b", *where, "--input", str(mr), "--output", f"{tmp_path}/one.nii.gz"]) == 0
    assert [text for text in caplog.messages if text.startswith("converting")] == ["converting: 2 models"]
