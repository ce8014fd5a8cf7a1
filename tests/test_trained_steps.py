"""For how many steps a model was trained: recorded while it trains, kept on export, said in use where they are few."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import train
from cohort.checks import Check
from models.inference_settings import model_sha256, read_inference_settings
from models.run_folder import weights_path
from models.state_dicts import load_checkpoint, save_atomically
from models.synthesis import load_synthesiser
from scripts import export_model
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


def test_a_model_s_caution_is_a_warning_of_every_result(dataroot, tmp_path):  # noqa: F811
    folder = run(dataroot, tmp_path)
    settings, small = read_inference_settings(folder), tmp_path / "small"
    assert settings.caution == ""
    command = ["--name", "run", "--checkpoints_dir", str(tmp_path), "--out", str(small)]
    export_model.main([*command, "--caution", "of no use on heads"])
    exported = read_inference_settings(small)
    plan = SimpleNamespace(body=None, to_ct=False)
    assert Check(plan, None, None, exported.caution).findings.warnings == ["of no use on heads"]
    assert Check(plan, None, None, settings.caution).findings.warnings == []
    assert model_sha256(settings, weights_path(folder, "latest", "G_A")) == model_sha256(
        exported, weights_path(folder, "latest", "G_A")
    )
    export_model.main([*command[:-1], str(tmp_path / "plain"), "--caution", ""])
    assert read_inference_settings(tmp_path / "plain").caution == ""


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
