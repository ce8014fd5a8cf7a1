"""For how many steps a model was trained: recorded while it trains, kept on export, said in use where they are few."""

import json
import logging
import os
import signal
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import test_adapt
import test_pipeline
import train
from cohort.checks import Check
from data.values.attenuation import MuSettings, describe_mu, mu_map
from data.volumes.volume import description_in, read_volume, write_volume
from models.cycle_gan_model import CycleGANModel
from models.inference_settings import model_sha256, read_inference_settings
from models.run_folder import weights_path
from models.state_dicts import load_checkpoint, save_atomically
from models.synthesis import load_synthesiser
from options.base_options import MuMapSettings
from scripts import export_model
from tests.cohort_data import NAME, SETTINGS, patient_mr, write_model
from tests.test_datasets import dataroot  # noqa: F401
from tests.test_train import run

CPU = torch.device("cpu")


def few_steps(folder, epoch: str = "latest") -> list[str]:
    """Return what is said of a CT by this model because of its steps."""
    steps = load_synthesiser(folder, epoch, CPU).settings.steps
    return Check(SimpleNamespace(body=None, to_ct=False), None, steps).findings.warnings


def notes_on_training(folder, epoch: str = "latest") -> list[str]:
    """Return what is said of a CT by this model because its training is not finished."""
    unfinished = load_synthesiser(folder, epoch, CPU).settings.unfinished
    return Check(SimpleNamespace(body=None, to_ct=False), None, unfinished=unfinished).findings.notes


def test_a_run_records_its_steps_and_the_use_of_few_is_warned_of(dataroot, tmp_path):  # noqa: F811
    folder = run(dataroot, tmp_path, "--batch_size", "2")  # 6 samples an epoch, 3 epochs
    assert read_inference_settings(folder).steps == 3 * 3
    train.main(["--continue_train", "--name", "run", "--checkpoints_dir", str(tmp_path), "--n_epochs", "3"])
    settings = read_inference_settings(folder)
    assert settings.steps == 4 * 3
    said = ["the model was trained for 12 steps only: expect a poor CT"]
    assert few_steps(folder) == said
    small = tmp_path / "small"
    export_model.main(["--name", "run", "--checkpoints_dir", str(tmp_path), "--out", str(small)])
    assert read_inference_settings(small).steps == 12
    assert few_steps(small) == said
    for steps, warned in ((0, True), (999, True), (1000, False), (None, False)):
        replace(settings, steps=steps).write(folder)
        assert bool(few_steps(folder)) == warned
    weights = weights_path(folder, "latest", "G_A")
    hashes = {model_sha256(replace(settings, steps=steps), weights) for steps in (None, 12)}
    assert len(hashes) == 1  # no result depends on it


def test_a_report_says_when_and_how_it_was_made_as_the_record_of_a_cohort_does(tmp_path):
    folder = write_model(tmp_path) / NAME
    mr = write_volume(patient_mr(), tmp_path / "in/p7.nii.gz")
    where = ["--name", NAME, "--checkpoints_dir", str(folder.parent), "--device", "cpu", "--precision", "bf16"]
    begun = datetime.now(UTC).replace(microsecond=0)
    test_adapt.main([*where, "--results_dir", str(tmp_path / "one"), "--input", str(mr)])
    test_pipeline.main([*where, "--results_dir", str(tmp_path / "all"), "--input_dir", str(mr.parent)])
    report = json.loads((tmp_path / f"one/{NAME}/p7.json").read_text())
    record = json.loads((tmp_path / f"all/{NAME}/records/p7.json").read_text())
    assert begun <= datetime.strptime(report["finished"], "%Y-%m-%dT%H:%M:%S%z") <= datetime.now(UTC)
    assert report["run"] == record["run"] and report["run"]["precision"] == "bf16"
    assert report["run"]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert report["model_sha256"] == record["key"]["model_sha256"]


def test_a_model_s_caution_is_a_warning_of_every_result_and_changes_no_hash(tmp_path):
    folder = write_model(tmp_path, settings=replace(SETTINGS, caution="of no use on heads")) / NAME
    mr = write_volume(patient_mr(), tmp_path / "in/p7.nii.gz")
    where = ["--name", NAME, "--checkpoints_dir", str(folder.parent), "--device", "cpu", "--results_dir"]
    test_adapt.main([*where, str(tmp_path / "one"), "--input", str(mr)])
    test_pipeline.main([*where, str(tmp_path / "all"), "--input_dir", str(mr.parent)])
    report, record = (
        json.loads((tmp_path / path).read_text()) for path in (f"one/{NAME}/p7.json", f"all/{NAME}/records/p7.json")
    )
    assert report["warnings"].count("of no use on heads") == record["warnings"].count("of no use on heads") == 1
    settings, weights = read_inference_settings(folder), weights_path(folder, "latest", "G_A")
    assert model_sha256(settings, weights) == model_sha256(replace(settings, caution=""), weights)


@pytest.mark.parametrize("recorded, asked, used, why", [
    (None, None, 120, "because the model records no tube voltage; its card may say more, and --kvp takes another"),
    (100, None, 100, "as the model records; --kvp takes another"),
    (100, 80, 80, "as --kvp says"),
])  # fmt: skip
def test_a_mu_map_takes_the_tube_voltage_that_the_model_records(recorded, asked, used, why, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = write_model(tmp_path, settings=replace(SETTINGS, ct_kvp=recorded)) / NAME
    mr = write_volume(patient_mr(), tmp_path / "in/p7.nii.gz")
    where = ["--name", NAME, "--checkpoints_dir", str(folder.parent), "--device", "cpu", "--results_dir"]
    kvp = [] if asked is None else ["--kvp", str(asked)]
    test_adapt.main([*where, str(tmp_path / "one"), "--input", str(mr), "--mu_map", str(tmp_path / "mu.nii.gz"), *kvp])
    test_pipeline.main([*where, str(tmp_path / "all"), "--input_dir", str(mr.parent), "--mu_map", *kvp])
    expected = mu_map(read_volume(tmp_path / f"one/{NAME}/p7.nii.gz"), MuSettings(used)).array
    for path in (tmp_path / "mu.nii.gz", tmp_path / f"all/{NAME}/mu_maps/p7.nii.gz"):
        np.testing.assert_array_equal(read_volume(path).array, expected)
        assert description_in(path) == describe_mu(MuSettings(used))
    assert caplog.messages.count(f"attenuation: curve for CT of {used} kVp, {why}") == 2
    settings, weights = read_inference_settings(folder), weights_path(folder, "latest", "G_A")
    assert model_sha256(settings, weights) == model_sha256(replace(settings, ct_kvp=None), weights)


def test_models_of_several_tube_voltages_take_the_default_and_say_so(caplog):
    caplog.set_level(logging.INFO)
    assert MuMapSettings(mu_map=True).mu_settings([140, None, 120]) == MuSettings(120)
    assert "because the models record 120 and 140 kVp; its card" in caplog.text
    assert MuMapSettings(mu_map=True, pet_fwhm_mm=4.0).mu_settings([140, None]) == MuSettings(140, 4.0)
    assert MuMapSettings().mu_settings([140]) is None


def test_the_tube_voltage_is_recorded_at_export(tmp_path):
    folder = write_model(tmp_path) / NAME
    for kvp, expected in (([], None), (["--kvp", "140"], 140)):
        out = ["--checkpoints_dir", str(folder.parent), "--out", str(tmp_path / "small"), "--overwrite"]
        export_model.main(["--name", NAME, *out, *kvp])
        assert read_inference_settings(tmp_path / "small").ct_kvp == expected
    export_model.main(["--name", "small", "--checkpoints_dir", str(tmp_path), "--out", str(tmp_path / "again")])
    assert read_inference_settings(tmp_path / "again").ct_kvp == 140


def test_a_caution_is_kept_changed_and_removed_on_export(tmp_path):
    folder = write_model(tmp_path, settings=replace(SETTINGS, caution="of no use on heads")) / NAME
    for caution, expected in (([], "of no use on heads"), (["--caution", "new"], "new"), (["--caution", ""], "")):
        out = ["--checkpoints_dir", str(folder.parent), "--out", str(tmp_path / "small"), "--overwrite"]
        export_model.main(["--name", NAME, *out, *caution])
        assert read_inference_settings(tmp_path / "small").caution == expected


def test_steps_are_counted_also_where_the_batches_change(dataroot, tmp_path):  # noqa: F811
    folder = run(dataroot, tmp_path, "--batch_size", "2")
    more = ["--continue_train", "--name", "run", "--checkpoints_dir", str(tmp_path), "--n_epochs", "3"]
    train.main([*more, "--batch_size", "6"])
    settings = read_inference_settings(folder)
    assert settings.steps == 3 * 3 + 1
    replace(settings, steps=9).write(folder)  # as if it had been killed between its state and this
    train.main([*more, "--batch_size", "6"])
    assert read_inference_settings(folder).steps == 10


def test_other_weights_had_at_most_as_many_steps_as_the_latest(dataroot, tmp_path):  # noqa: F811
    folder = run(dataroot, tmp_path)
    assert few_steps(folder) == few_steps(folder, "2") != []
    words = ["--name", "run", "--checkpoints_dir", str(tmp_path), "--epoch", "2", "--out", str(tmp_path / "small")]
    export_model.main(words)
    assert few_steps(tmp_path / "small") == few_steps(folder)


def test_a_run_counts_the_steps_of_the_weights_that_it_starts_from(dataroot, tmp_path):  # noqa: F811
    first = read_inference_settings(run(dataroot, tmp_path, name="first")).steps
    assert first == 3 * 6
    assert read_inference_settings(run(dataroot, tmp_path, "--init_from", "first")).steps == 2 * first


def test_a_training_that_is_not_finished_says_where_it_stood(dataroot, tmp_path, monkeypatch):  # noqa: F811
    """In use, and on export; not once it is over, of other weights, or in the hash."""
    steps, step = [], CycleGANModel.step

    def ended(self, samples):
        steps.append(0)
        if len(steps) == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, samples)

    with monkeypatch.context() as patched:
        patched.setattr(CycleGANModel, "step", ended)
        run(dataroot, tmp_path, "--batch_size", "2")  # 3 steps an epoch, 3 epochs
    folder = tmp_path / "run"
    at = "epoch 3 of 3, step 2 of 3"
    words = ["--name", "run", "--checkpoints_dir", str(tmp_path), "--out", str(tmp_path / "small"), "--overwrite"]
    export_model.main(words)
    said = [f"the training of the model is not finished; it stood at {at}"]
    assert notes_on_training(folder) == notes_on_training(tmp_path / "small") == said
    assert not notes_on_training(folder, "2")
    weights = weights_path(folder, "latest", "G_A")
    settings = read_inference_settings(folder)
    assert model_sha256(settings, weights) == model_sha256(replace(settings, unfinished=""), weights)
    # A start that ends before it saves leaves the same, also where the file was damaged.
    again = ["--continue_train", "--name", "run", "--checkpoints_dir", str(tmp_path)]
    for damaged in (False, True):
        if damaged:
            (folder / "inference.json").write_text("{")
        with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
            patched.setattr(CycleGANModel, "step", lambda self, samples: 1 / 0)
            train.main(again)
        assert read_inference_settings(folder).unfinished == at
    train.main(again)
    assert read_inference_settings(folder).unfinished == "" and not notes_on_training(folder)
    train.main(["--continue_train", "--name", "run", "--checkpoints_dir", str(tmp_path), "--n_epochs", "3"])
    assert not notes_on_training(folder)  # one epoch more, and over again


@pytest.mark.parametrize("known", [True, False])
def test_what_is_not_known_from_its_beginning_is_not_recorded(dataroot, tmp_path, known):  # noqa: F811
    """A run from weights of unknown steps, and one that an earlier version began."""
    folder = run(dataroot, tmp_path, name="first")
    if known:
        replace(read_inference_settings(folder), steps=None).write(folder)
        assert read_inference_settings(run(dataroot, tmp_path, "--init_from", "first")).steps is None
        return
    for name in ("latest_state.pth", "previous_state.pth"):
        state = load_checkpoint(folder / name)
        assert state.pop("steps") >= 0
        save_atomically(state, folder / name)
    run(dataroot, tmp_path, "--continue_train", "--n_epochs", "3", name="first")
    assert read_inference_settings(folder).steps is None
