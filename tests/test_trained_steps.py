"""For how many steps a model was trained: recorded while it trains, kept on export, said in use where they are few."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import test_adapt
import test_pipeline
import train
from cohort.checks import Check
from data.volumes.volume import write_volume
from models.inference_settings import model_sha256, read_inference_settings
from models.run_folder import weights_path
from models.state_dicts import load_checkpoint, save_atomically
from models.synthesis import load_synthesiser
from scripts import export_model
from tests.cohort_data import NAME, SETTINGS, patient_mr, write_model
from tests.test_datasets import dataroot  # noqa: F401
from tests.test_train import run

CPU = torch.device("cpu")


def few_steps(folder, epoch: str = "latest") -> list[str]:
    """Return what is said of a CT by this model because of its steps."""
    steps = load_synthesiser(folder, epoch, CPU).settings.steps
    return Check(SimpleNamespace(body=None, to_ct=False), None, steps).findings.warnings


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


def test_a_model_s_caution_is_a_warning_of_every_result_and_changes_no_hash(tmp_path):
    folder = write_model(tmp_path, settings=replace(SETTINGS, caution="of no use on heads")) / NAME
    mr = write_volume(patient_mr(), tmp_path / "in/p7.nii.gz")
    where = ["--name", NAME, "--checkpoints_dir", str(folder.parent), "--device", "cpu", "--results_dir"]
    test_adapt.main([*where, str(tmp_path / "one"), "--input", str(mr)])
    test_pipeline.main([*where, str(tmp_path / "all"), "--input_dir", str(mr.parent)])
    for report in (tmp_path / f"one/{NAME}/p7.json", tmp_path / f"all/{NAME}/records/p7.json"):
        assert json.loads(report.read_text())["warnings"].count("of no use on heads") == 1
    settings, weights = read_inference_settings(folder), weights_path(folder, "latest", "G_A")
    assert model_sha256(settings, weights) == model_sha256(replace(settings, caution=""), weights)


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


def test_steps_are_those_of_the_latest_weights_alone(dataroot, tmp_path):  # noqa: F811
    folder = run(dataroot, tmp_path)
    assert few_steps(folder) and not few_steps(folder, "2")
    words = ["--name", "run", "--checkpoints_dir", str(tmp_path), "--epoch", "2", "--out", str(tmp_path / "small")]
    export_model.main(words)
    assert read_inference_settings(tmp_path / "small").steps is None


@pytest.mark.parametrize("known", [True, False])
def test_what_is_not_known_from_its_beginning_is_not_recorded(dataroot, tmp_path, known):  # noqa: F811
    """A run from the weights of another, and one that an earlier version began."""
    folder = run(dataroot, tmp_path, name="first")
    if known:
        assert read_inference_settings(run(dataroot, tmp_path, "--init_from", "first")).steps is None
        return
    for name in ("latest_state.pth", "previous_state.pth"):
        state = load_checkpoint(folder / name)
        assert state.pop("steps") >= 0
        save_atomically(state, folder / name)
    run(dataroot, tmp_path, "--continue_train", "--n_epochs", "3", name="first")
    assert read_inference_settings(folder).steps is None
