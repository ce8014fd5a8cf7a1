"""`scripts.export_model`: half the size, the same HU, and nothing overwritten."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import test_adapt
import test_pipeline
from data.errors import InputError
from data.volumes.volume import write_volume
from models.inference_settings import read_inference_settings
from models.state_dicts import load_checkpoint
from models.synthesis import load_synthesiser, synthesize_volume
from scripts import export_model
from tests.cohort_data import NAME, patient_mr, write_model

CPU = torch.device("cpu")


def test_an_exported_model_gives_the_same_hu(tmp_path):
    write_model(tmp_path)
    source, out = tmp_path / "checkpoints" / NAME, tmp_path / "out/small"
    options = ["--checkpoints_dir", str(tmp_path / "checkpoints"), "--name", NAME]
    export_model.main([*options, "--out", str(out)])
    assert sorted(file.name for file in out.iterdir()) == ["inference.json", "latest_net_G_A.pth"]
    weights, whole = (load_checkpoint(folder / "latest_net_G_A.pth") for folder in (out, source))
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert all(torch.equal(weights[key], value.half()) for key, value in whole.items())
    results = [
        synthesize_volume(patient_mr(), load_synthesiser(folder, "latest", CPU)).array.astype(int)
        for folder in (source, out)
    ]
    assert np.ptp(results[0]) > 5
    difference = np.abs(results[0] - results[1])
    assert difference.max() <= 5 and difference.mean() < 1
    export_model.main([*options, "--out", str(tmp_path / "out/whole"), "--float32"])
    exact = load_checkpoint(tmp_path / "out/whole/latest_net_G_A.pth")
    assert all(torch.equal(exact[key], value) for key, value in whole.items())
    assert not read_inference_settings(out).mirrored
    export_model.main([*options, "--out", str(tmp_path / "out/mirrored"), "--mirrored", "x"])
    assert read_inference_settings(tmp_path / "out/mirrored") == replace(read_inference_settings(out), mirrored="x")
    export_model.main([*options, "--out", str(tmp_path / "out/solid"), "--solid_body"])
    solid = replace(read_inference_settings(out), solid_body=True)
    assert read_inference_settings(tmp_path / "out/solid") == solid
    export_model.main([*options, "--out", str(tmp_path / "out/corrected"), "--bias_correction"])
    corrected = replace(read_inference_settings(out), bias_correction=True)
    assert read_inference_settings(tmp_path / "out/corrected") == corrected != read_inference_settings(out)
    export_model.main([*options, "--out", str(tmp_path / "out/curve"), "--hu_curve", "-200:-100", "20:30", "--float32"])
    assert read_inference_settings(tmp_path / "out/curve").hu_curve == ((-200.0, -100.0), (20.0, 30.0))
    curved = synthesize_volume(patient_mr(), load_synthesiser(tmp_path / "out/curve", "latest", CPU)).array
    low, high = read_inference_settings(out).ct.range
    expected = np.interp(results[0], [low, -200, 20, high], [low, -100, 30, high])
    assert (
        np.abs(curved - expected).mean() < 3 < 9 < np.abs(curved - results[0]).mean()
    )  # slices are resampled after it
    again = ["--checkpoints_dir", str(tmp_path / "out"), "--name", "solid", "--float32"]
    export_model.main([*again, "--out", str(tmp_path / "out/again")])  # without the flag: as it was
    assert read_inference_settings(tmp_path / "out/again") == solid
    with pytest.raises(InputError, match="exists already"):
        export_model.main([*options, "--out", str(out)])


def test_weights_of_an_epoch_that_is_not_there_name_those_that_are(tmp_path):
    write_model(tmp_path)
    folder = tmp_path / "checkpoints" / NAME
    for epoch in (5, 20, 100):
        (folder / f"{epoch}_net_G_A.pth").write_bytes((folder / "latest_net_G_A.pth").read_bytes())
    there = "best_net_G_A.pth: no such file; expected the weights of a model; there are those of latest, 5, 20, 100: "
    there += "choose one with --epoch; only trainings with --val keep the best"
    options = ["--checkpoints_dir", str(folder.parent), "--name", NAME, "--epoch", "best"]
    write_volume(patient_mr(), tmp_path / "mr.nii.gz")
    for command, words in (
        (export_model.main, ["--out", str(tmp_path / "out")]),
        (test_adapt.main, ["--input", str(tmp_path / "mr.nii.gz"), "--output", str(tmp_path / "ct.nii.gz")]),
        (test_pipeline.main, ["--input_dir", str(tmp_path), "--results_dir", str(tmp_path / "results")]),
    ):
        with pytest.raises(InputError, match=re.escape(there)):
            command([*options, *words])
    options[-1] = "7"
    with pytest.raises(InputError, match=r"7_net_G_A.pth: no such file; .* 100: choose one with --epoch$"):
        export_model.main([*options, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("way", ["--solid_body", "--bias_correction", "--hu_curve=1:2"])
def test_a_model_that_makes_mr_has_no_solid_body_and_corrects_no_mr(tmp_path, way):
    write_model(tmp_path)
    folder = tmp_path / "checkpoints" / NAME
    replace(read_inference_settings(folder), direction="BtoA").write(folder)
    options = ["--checkpoints_dir", str(folder.parent), "--name", NAME, "--out", str(tmp_path / "out"), way]
    with pytest.raises(InputError, match=f"{way.partition('=')[0]} is for models that make CT; this one makes MR"):
        export_model.main(options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("words", "message"), [(["300:200", "400:100"], "rise"), (["1500:1600"], "rise")])
def test_a_curve_of_hu_that_does_not_rise_is_refused(tmp_path, words, message):
    write_model(tmp_path)
    options = ["--checkpoints_dir", str(tmp_path / "checkpoints"), "--name", NAME, "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match=f"--hu_curve: curve .*{message}"):
        export_model.main([*options, "--hu_curve", *words])
    assert not (tmp_path / "out").exists()


def test_a_knot_that_is_none_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        export_model.main(["--name", "x", "--out", str(tmp_path), "--hu_curve", "200"])
    assert "expected two HU, as in 200:250" in capsys.readouterr().err


def test_values_beyond_half_precision_are_refused():
    assert torch.equal(export_model.to_half(torch.tensor([3]), "x"), torch.tensor([3]))
    with pytest.raises(InputError, match="values beyond half precision \\(100000\\); export with --float32"):
        export_model.to_half(torch.tensor([1e5]), "net: weight")
