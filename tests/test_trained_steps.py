"""For how many steps a model was trained: recorded while it trains, kept on export, said in use where they are few."""

from dataclasses import replace

import pytest
import torch

import train
from models.inference_settings import model_sha256, read_inference_settings
from models.run_folder import weights_path
from models.state_dicts import load_checkpoint, save_atomically
from models.synthesis import load_synthesiser
from scripts import export_model
from tests.test_datasets import dataroot  # noqa: F401
from tests.test_train import run

CPU = torch.device("cpu")


def few_steps(caplog, folder) -> list[str]:
    caplog.clear()
    load_synthesiser(folder, "latest", CPU)
    return [message for message in caplog.messages if "steps only" in message]


def test_a_run_records_its_steps_and_the_use_of_few_is_warned_of(dataroot, tmp_path, caplog):  # noqa: F811
    folder = run(dataroot, tmp_path, "--batch_size", "2")  # 6 samples an epoch, 3 epochs
    assert read_inference_settings(folder).steps == 3 * 3
    train.main(["--continue_train", "--name", "run", "--checkpoints_dir", str(tmp_path), "--n_epochs", "3"])
    settings = read_inference_settings(folder)
    assert settings.steps == 4 * 3
    said = "was trained for 12 steps only; expect no usable CT"
    assert few_steps(caplog, folder) == [f"warning: {folder} {said}"]
    small = tmp_path / "small"
    export_model.main(["--name", "run", "--checkpoints_dir", str(tmp_path), "--out", str(small)])
    assert read_inference_settings(small).steps == 12
    assert few_steps(caplog, small) == [f"warning: {small} {said}"]
    for steps, warned in ((0, True), (999, True), (1000, False), (None, False)):
        replace(settings, steps=steps).write(folder)
        assert bool(few_steps(caplog, folder)) == warned
    weights = weights_path(folder, "latest", "G_A")
    hashes = {model_sha256(replace(settings, steps=steps), weights) for steps in (None, 12)}
    assert len(hashes) == 1  # no result depends on it


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
