"""The generator back, `G_B`, in use: which one is taken, what it takes, and in which units it answers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import test_adapt
import test_pipeline
from data.errors import InputError
from data.values.intensity import IntensityMap
from data.volumes.volume import read_volume, same_grid, write_volume
from models.inference_settings import InferenceSettings, read_inference_settings
from models.networks import build_generator
from models.state_dicts import save_network_weights
from models.synthesis import find_generator, load_synthesiser, synthesize_volume
from options import test_options
from tests.cohort_data import NAME, SETTINGS, patient_mr, write_dicom_patient, write_model
from tests.test_preparation import ct_volume

CPU = torch.device("cpu")
UNITS = IntensityMap.window(0.0, 640.0)
WITH_UNITS = replace(SETTINGS, typical_mr=UNITS)


class Constant(torch.nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x):
        return torch.full_like(x, self.value)


@pytest.fixture
def site(tmp_path) -> Path:
    """A training's two generators, and a CT and an MR of a patient."""
    write_both(tmp_path, WITH_UNITS)
    write_volume(ct_volume(), tmp_path / "in/p0/ct.nii.gz")
    write_volume(patient_mr(), tmp_path / "mr/p0.nii.gz")
    return tmp_path


def write_both(root: Path, settings: InferenceSettings) -> Path:
    folder = write_model(root, settings=settings) / NAME
    torch.manual_seed(7)
    back = build_generator(settings.generator)
    save_network_weights(back, folder / "latest_net_G_B.pth")
    return folder


def where(root: Path) -> list[str]:
    return [
        "--name",
        NAME,
        "--checkpoints_dir",
        f"{root}/checkpoints",
        "--results_dir",
        f"{root}/out",
        "--device",
        "cpu",
    ]


def adapt(root: Path, volume: str, *more: str) -> int:
    return test_adapt.main([*where(root), "--precision", "fp32", "--input", str(root / volume), *more])


@pytest.mark.parametrize("trained", ["AtoB", "BtoA"])
def test_a_direction_is_made_by_the_generator_that_learnt_it(tmp_path, trained):
    folder = write_both(tmp_path, replace(WITH_UNITS, direction=trained, solid_body=trained == "AtoB"))
    other = {"AtoB": "BtoA", "BtoA": "AtoB"}[trained]
    own = find_generator(folder, "latest")
    assert find_generator(folder, "latest", direction=trained) == own
    assert (own.settings, own.weights.name, own.suffix) == (read_inference_settings(folder), "latest_net_G_A.pth", "")
    back = find_generator(folder, "latest", direction=other)
    assert (back.weights.name, back.suffix) == ("latest_net_G_B.pth", f"_{other}")
    assert back.settings.direction == other and not back.settings.solid_body
    kept = ("size", "spacing_mm", "ct", "mr_window", "typical_mr", "slab")
    assert all(getattr(back.settings, name) == getattr(own.settings, name) for name in kept)
    assert back.settings.turned() == replace(own.settings, training=None, solid_body=False)


def test_a_slabs_generator_back_swaps_its_channels():
    settings = replace(SETTINGS, slab=3, generator=replace(SETTINGS.generator, input_nc=3, output_nc=3))
    assert settings.turned().channels == (3, 3)
    several = replace(SETTINGS, contrasts=("fat", "water"), generator=replace(SETTINGS.generator, input_nc=2))
    with pytest.raises(InputError, match="MR of one contrast; the model has fat, water"):
        several.turned()


def test_ct_in_hu_goes_in_and_mr_in_the_trainings_units_comes_out(site):
    """A network that says 0.25 everywhere: 0.25 in [-1, 1] is 400 of 0 to 640."""
    synthesiser = load_synthesiser(site / "checkpoints" / NAME, "latest", CPU, direction="BtoA")
    synthesiser.model.netG = Constant(0.25).eval()
    ct = ct_volume()
    mr = synthesize_volume(ct, synthesiser)
    assert mr.array.dtype == np.float32 and same_grid(mr, ct)
    np.testing.assert_allclose(mr.array[:, 30, 30], 400.0, atol=1e-3)
    with pytest.raises(InputError, match="not a CT in HU"):
        synthesize_volume(patient_mr(), synthesiser)
    with pytest.raises(InputError, match="not an MR"):
        synthesize_volume(ct, load_synthesiser(site / "checkpoints" / NAME, "latest", CPU, direction="AtoB"))


def test_a_fixed_window_is_the_unit_where_the_training_set_has_none(tmp_path):
    folder = write_both(tmp_path, replace(SETTINGS, mr_window=(0.0, 500.0)))
    synthesiser = load_synthesiser(folder, "latest", CPU, direction="BtoA")
    synthesiser.model.netG = Constant(0.2).eval()
    np.testing.assert_allclose(synthesize_volume(ct_volume(), synthesiser).array[:, 30, 30], 300.0, atol=1e-3)
    unknown = load_synthesiser(write_both(tmp_path / "b", SETTINGS), "latest", CPU, direction="BtoA")
    with pytest.raises(InputError, match="no MR units are known"):
        synthesize_volume(ct_volume(), unknown)


@pytest.mark.parametrize("option", [["--direction", "BtoA"], ["--model_suffix", "_B"]])
def test_one_patients_ct_becomes_mr(site, option):
    assert adapt(site, "in/p0/ct.nii.gz", *option) == 0
    folder = site / "out" / f"{NAME}_BtoA"
    synthesiser = load_synthesiser(site / "checkpoints" / NAME, "latest", CPU, direction="BtoA")
    expected = synthesize_volume(read_volume(site / "in/p0/ct.nii.gz"), synthesiser).array
    np.testing.assert_allclose(read_volume(folder / "p0.nii.gz").array, expected, atol=1e-3)
    report = json.loads((folder / "p0.json").read_text())
    assert report["direction"] == "BtoA"
    assert "synthetic MR" in (folder / "p0_page/index.html").read_text()


def test_pages_of_synthetic_mr_that_were_left_out_are_made_later(site):
    words = ["--name", NAME, "--direction", "BtoA", "--list", str(site / "ct.csv"), "--results_dir", str(site / "out")]
    words += ["--checkpoints_dir", str(site / "checkpoints"), "--device", "cpu", "--precision", "fp32"]
    (site / "ct.csv").write_text("id,path\np0,in/p0/ct.nii.gz\n")
    page = site / "out" / f"{NAME}_BtoA/pages/p0/index.html"
    assert test_pipeline.main([*words, "--no_html"]) == 0 and not page.exists()
    assert test_pipeline.main(words) == 0 and page.exists()


def test_what_there_is_of_ct_alone_is_refused(site):
    ct, back = "in/p0/ct.nii.gz", ("--direction", "BtoA")
    for more in (
        ["--air_outside"],
        ["--reference", str(site / ct)],
        ["--mu_map", str(site / "mu.nii.gz")],
        ["--dicom", str(site / "d")],
    ):
        with pytest.raises(InputError, match="the model makes MR"):
            adapt(site, ct, *back, *more)
    with pytest.raises(InputError, match=r"--dicom, --mu_map, --uncertainty, --air_outside: need a synthetic CT"):
        test_pipeline.main([*where(site), *back, "--input_dir", str(site / "in"), "--dicom"])
    (site / "list.csv").write_text("id,path,reference\np0,in/p0/ct.nii.gz,in/p0/ct.nii.gz\n")
    with pytest.raises(InputError, match="leave that column out"):
        test_pipeline.main([*where(site), *back, "--list", str(site / "list.csv")])
    assert not (site / "out").exists()


def test_a_model_without_the_generator_back_says_so(site):
    (site / "checkpoints" / NAME / "latest_net_G_B.pth").unlink()
    with pytest.raises(
        InputError, match=r"--direction BtoA: no .*latest_net_G_B\.pth: .* use the folder of a training"
    ):
        adapt(site, "in/p0/ct.nii.gz", "--direction", "BtoA")
    with pytest.raises(InputError, match=r"7_net_G_B\.pth: no such file"):
        adapt(site, "in/p0/ct.nii.gz", "--direction", "BtoA", "--epoch", "7")


def test_a_cohort_of_ct_becomes_mr(site):
    """DICOM CT is found, DICOM MR and a volume of the other modality are not converted."""
    hu = np.clip(ct_volume().array, -1024, None)

    def as_ct(k, header):
        header.Modality, header.RescaleIntercept, header.RescaleSlope = "CT", -1024, 1
        header.PixelData = (hu[k] + 1024).astype(np.uint16).tobytes()

    write_dicom_patient(site / "in/dicom/CT", change=as_ct)
    write_dicom_patient(site / "in/dicom/MR")
    write_volume(patient_mr(), site / "in/p1/mr.nii.gz")
    back = [*where(site), "--precision", "fp32", "--direction", "BtoA", "--input_dir", str(site / "in")]
    assert test_pipeline.main(back) == 1
    folder = site / "out" / f"{NAME}_BtoA"
    summary = json.loads((folder / "summary.json").read_text())
    cases = {case["case"]: case for case in summary["cases"]}
    assert {name: case["status"] for name, case in cases.items()} == {
        "p0": "done", "dicom__CT": "done", "p1": "failed",
    }  # fmt: skip
    assert "not a CT in HU" in cases["p1"]["reason"]
    assert any("not CT" in passed for passed in summary["passed_over"])
    assert (summary["model"]["direction"], summary["model"]["name"]) == ("BtoA", f"{NAME}_BtoA")
    synthesiser = load_synthesiser(site / "checkpoints" / NAME, "latest", CPU, direction="BtoA")
    expected = synthesize_volume(read_volume(site / "in/p0/ct.nii.gz"), synthesiser).array
    np.testing.assert_allclose(read_volume(folder / "p0.nii.gz").array, expected, atol=1e-3)
    assert not cases["p0"]["hu"] and "synthetic MR" in cases["p0"]["unchecked"][0]
    assert "synthetic MR" in (folder / "pages/p0/index.html").read_text()
    attempts = {name: case["attempt"] for name, case in cases.items() if case["status"] == "done"}
    assert test_pipeline.main(back) == 1
    again = {case["case"]: case for case in json.loads((folder / "summary.json").read_text())["cases"]}
    assert {name: again[name]["attempt"] for name in attempts} == attempts


def test_generators_of_both_kinds_of_training_go_together(tmp_path):
    """One trained from MR to CT, one from CT to MR: each gives the generator that makes CT."""
    for name, direction in (("a", "AtoB"), ("b", "BtoA")):
        write_both(tmp_path, replace(WITH_UNITS, direction=direction)).rename(tmp_path / "checkpoints" / name)
    mr = write_volume(patient_mr(), tmp_path / "p7.nii.gz")
    words = ["--name", "a", "b", *where(tmp_path)[2:], "--precision", "fp32", "--input", str(mr)]
    with pytest.raises(InputError, match="makes BtoA of mr; a makes AtoB"):
        test_adapt.main(words)
    assert test_adapt.main([*words, "--direction", "AtoB"]) == 0
    singles = [
        synthesize_volume(
            read_volume(mr), load_synthesiser(tmp_path / "checkpoints" / name, "latest", CPU, direction="AtoB")
        )
        for name in ("a", "b")
    ]
    mean = np.rint(np.mean([one.array.astype(float) for one in singles], axis=0))
    np.testing.assert_array_equal(read_volume(tmp_path / "out/a+b_AtoB/p7.nii.gz").array, mean)


def test_b_of_a_run_from_ct_to_mr_is_not_the_published_one(tmp_path, capsys):
    write_both(tmp_path, replace(WITH_UNITS, direction="BtoA"))
    with pytest.raises(SystemExit):
        test_options.parse([*where(tmp_path), "--input", "x", "--model_suffix", "_B"])
    assert "trained with direction BtoA" in (said := capsys.readouterr().err) and "use --direction AtoB" in said
