"""Trainings with `--val`: what cannot be is refused before a step, every end validates, nothing is told twice."""

import json
import logging
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train
import training.run
from data.errors import InputError
from data.prepared.manifest import Manifest, read_manifest
from data.prepared.splits import validation_cases
from evaluation.criteria import CRITERIA
from models import run_folder
from models.cycle_gan_model import CycleGANModel
from models.run_folder import load_state
from tests.test_train import TINY, assert_same_weights
from tests.test_validation import CPU, MM, SETTINGS, SIZE, prepared, write_case  # noqa: F401
from training.validation import Validation

EPOCHS = "--n_epochs 3 --n_epochs_decay 0".split()
BY_CLOCK = "--lr_policy warmup_cosine --seconds".split()


def run(dataroot, checkpoints, *words, name="run", steps=4, code=0) -> Path:
    where = ["--dataroot", str(dataroot), "--checkpoints_dir", str(checkpoints), "--name", name, "--no_html"]
    assert train.main([*where, *TINY, "--val", "--print_freq", "1", "--max_dataset_size", str(steps), *words]) == code
    return checkpoints / name


def validations(folder) -> list[tuple[int, int]]:
    """Where `losses.jsonl` has validations, in its order."""
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    return [(line["epoch"], line["iteration"]) for line in lines if "validation" in line]


def values(folder) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    return [line["validation"] for line in lines if "validation" in line]


def steps(folder) -> list[tuple[int, int]]:
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    return [(line["epoch"], line["iteration"]) for line in lines if "losses" in line]


@pytest.fixture(scope="module")
def unpaired(tmp_path_factory) -> Path:
    """Four patients to train on in each domain; a share of them is to validate."""
    root = tmp_path_factory.mktemp("unpaired")
    cases = [write_case(root, f"{domain}{k}", domain, "train", f"{domain}{k}") for domain in "AB" for k in range(4)]
    Manifest(SIZE, MM, None, tuple(cases), {}).write(root)
    return root


# ------------------------------------------------------------------ what can be chosen by


def no_step(monkeypatch) -> None:
    monkeypatch.setattr(CycleGANModel, "step", lambda *_: pytest.fail("a step was taken"))


def test_a_criterion_that_cannot_be_met_is_refused_before_any_step(unpaired, tmp_path, monkeypatch):
    no_step(monkeypatch)
    said = r"--val_criterion mae: needs a validation patient with MR and true CT on one "
    said += "grid; choose another criterion: simulated_mae, histogram, cycle, body_dice$"
    with pytest.raises(InputError, match=said):
        run(unpaired, tmp_path, "--val_criterion", "mae")
    assert not (tmp_path / "run").exists()


def test_a_method_without_a_way_back_has_no_cycle_to_choose_by(unpaired, tmp_path):
    small = "--slab 1 --crop_size 16 --ngf 2 --device cpu --steps_per_epoch 1 --n_epochs 1 --batch_size 2".split()
    small += ["--mr_window", "0", "100"]
    where = ["--dataroot", str(unpaired), "--checkpoints_dir", str(tmp_path), "--name", "x", "--no_html"]
    with pytest.raises(InputError, match=r"--val_criterion cycle: needs .* a generator from CT back to MR"):
        train.main(["--model", "simulated_pairs", *where, *small, "--val", "--val_criterion", "cycle"])


@pytest.mark.parametrize("way_back", [True, False])
@pytest.mark.parametrize("known", ["all", "no truth", "no histogram", "no MR", "no CT"])
def test_what_a_validation_says_it_gives_it_gives(prepared, way_back, known):  # noqa: F811
    cases, settings = validation_cases(read_manifest(prepared), None, 0), SETTINGS
    if known == "no truth":
        cases = replace(cases, ct=tuple(case for case in cases.ct if case.name == "ct"))
    if known == "no histogram":
        settings = replace(settings, training=None)
    if known == "no MR":
        cases = replace(cases, mr=())
    if known == "no CT":
        cases = replace(cases, ct=())
    validation = Validation(prepared, cases, settings, 0, CPU)
    net = torch.nn.Identity()
    found = validation.run(net, net if way_back else None)[0]
    assert validation.gives(way_back) == set(found) & {criterion.value for criterion in CRITERIA.values()}


def test_another_criterion_on_resume_begins_to_choose_anew_and_says_so(unpaired, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = run(unpaired, tmp_path, "--n_epochs", "1", "--n_epochs_decay", "0")
    before = load_state(folder)["best"]
    assert before["epoch"] == 1 and before["score"] == values(folder)[0]["simulated_mae"]
    run(unpaired, tmp_path, "--n_epochs", "2", "--n_epochs_decay", "0", "--continue_train", "--val_criterion", "cycle")
    assert "val_criterion: was simulated_mae, now cycle" in caplog.text
    assert "the best weights are now chosen by cycle; those of epoch 1, chosen by simulated_mae" in caplog.text
    assert load_state(folder)["best"] == {"score": values(folder)[1]["cycle"], "epoch": 2}
    assert_same_network(folder / "best_net_G_A.pth", folder / "latest_net_G_A.pth")


def assert_same_network(a: Path, b: Path) -> None:
    first, second = (torch.load(path, weights_only=True) for path in (a, b))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


# ------------------------------------------------------------------ who validates


def with_patients(root: Path, folder: Path, more: dict[str, str]) -> Path:
    """Return a copy of a data set with further patients."""
    manifest = read_manifest(root)
    shutil.copytree(root, folder)
    added = tuple(write_case(folder, name, domain, "train", name) for name, domain in more.items())
    replace(manifest, cases=manifest.cases + added).write(folder)
    return folder


def test_other_patients_to_validate_with_are_refused_on_resume_by_name(unpaired, tmp_path, monkeypatch):
    one = ["--n_epochs", "1", "--n_epochs_decay", "0"]
    folder = run(unpaired, tmp_path, *one)
    before = (folder / "latest_state.pth").read_bytes()
    (was,) = [load_state(folder)["options"]["patients to validate with"]]
    assert [name[0] for name in was.split(", ")] == ["A", "B"]
    grown = with_patients(unpaired, tmp_path / "grown", {f"B{k}": "B" for k in range(4, 12)})
    no_step(monkeypatch)
    with pytest.raises(InputError, match=f"patients to validate with: was {was}, now A., B"):
        run(grown, tmp_path, "--continue_train", "--n_epochs", "2")
    assert (folder / "latest_state.pth").read_bytes() == before


def test_another_seed_on_resume_validates_with_the_same_patients_and_simulated_mr(unpaired, tmp_path):
    folder = run(unpaired, tmp_path, "--n_epochs", "1", "--n_epochs_decay", "0")
    was = load_state(folder)["options"]["patients to validate with"]
    run(unpaired, tmp_path, *EPOCHS, "--n_epochs", "2", "--seed", "7", "--lr", "1e-30", "--continue_train")
    assert load_state(folder)["options"]["patients to validate with"] == was
    first, second = (found["simulated_mae"] for found in values(folder))
    assert second == pytest.approx(first, abs=0.6)  # HU are whole numbers; another simulation is off by tens


# ------------------------------------------------------------------ the end of a run


@pytest.mark.parametrize(("seconds", "where"), [(80, (2, 4)), (60, (2, 2)), (10, (1, 1))])
def test_a_run_by_the_clock_ends_with_a_validation_wherever_its_time_is_up(
    unpaired, tmp_path, monkeypatch, seconds, where
):
    now, step = [0.0], CycleGANModel.step

    def slow(self, batch):
        now[0] += 10.0
        return step(self, batch)

    monkeypatch.setattr(training.run.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(CycleGANModel, "step", slow)
    folder = run(unpaired, tmp_path, *BY_CLOCK, str(seconds), "--val_freq", "1000", "--save_epoch_freq", "1000")
    assert steps(folder)[-1] == where and validations(folder) == [where]
    state = load_state(folder)
    assert state["spent"] == seconds and state["position"]["validated"]
    assert state["best"]["epoch"] == where[0]
    assert_same_network(folder / "best_net_G_A.pth", folder / "latest_net_G_A.pth")
    assert (folder / "2_net_G_A.pth").exists() == (where == (2, 4))  # a whole epoch's, as of a run by epochs
    before = (folder / "latest_state.pth").read_bytes()
    run(unpaired, tmp_path, *BY_CLOCK, str(seconds), "--val_freq", "1000", "--continue_train")
    assert (folder / "latest_state.pth").read_bytes() == before and validations(folder) == [where]
    run(unpaired, tmp_path, *BY_CLOCK, "120", "--val_freq", "1000", "--continue_train")
    assert validations(folder) == [where, (3, 4)]


def test_time_that_is_up_between_two_epochs_is_an_end_too(unpaired, tmp_path, monkeypatch):
    now, save = [0.0], run_folder.save_state

    def slow(folder, state):
        now[0] += 10.0
        save(folder, state)

    monkeypatch.setattr(training.run.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(run_folder, "save_state", slow)
    folder = run(unpaired, tmp_path, *BY_CLOCK, "10", "--val_freq", "1000")
    assert steps(folder)[-1] == (1, 4) and len(validations(folder)) == 1
    assert load_state(folder)["best"]["epoch"] == 1
    assert (folder / "best_net_G_A.pth").exists()


# ------------------------------------------------------------------ kills and signals


@pytest.fixture(scope="module")
def whole(unpaired, tmp_path_factory) -> Path:
    """What an undisturbed run leaves that validates after every epoch."""
    return run(unpaired, tmp_path_factory.mktemp("whole"), *EPOCHS, "--val_freq", "1")


@pytest.mark.parametrize("rhythm", ["4", "3"])
def test_a_validation_after_which_a_run_was_killed_is_told_once(unpaired, whole, tmp_path, monkeypatch, rhythm):
    """The state before it is of the epoch's last step, or of an earlier one."""
    often = ["--val_freq", "1", "--save_latest_freq", rhythm]
    with monkeypatch.context() as patch:
        patch.setattr(training.run.LearningRate, "end_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(unpaired, tmp_path, *EPOCHS, *often)
    assert validations(tmp_path / "run") == [(1, 4)]
    folder = run(unpaired, tmp_path, *EPOCHS, *often, "--continue_train")
    assert validations(folder) == [(1, 4), (2, 4), (3, 4)] and values(folder) == values(whole)
    assert steps(folder) == steps(whole)
    assert_same_weights(folder, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_validation_is_heard_after_one_patient_and_nothing_is_lost(
    unpaired, whole, tmp_path, monkeypatch, number, caplog
):
    caplog.set_level(logging.INFO)
    measured, synthesize = [], Validation._synthesize

    def signalled(self, *args):
        measured.append(1)
        if len(measured) == 3:  # the first patient of the second epoch's validation
            os.kill(os.getpid(), number)
        return synthesize(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Validation, "_synthesize", signalled)
        run(unpaired, tmp_path, *EPOCHS, "--val_freq", "1", code=128 + number)
    assert len(measured) == 3  # of two a validation
    assert re.search(r"saved at epoch 2 of \d, step 4", caplog.text)
    folder = tmp_path / "run"
    assert load_state(folder)["position"]["validated"] is False and validations(folder) == [(1, 4)]
    run(unpaired, tmp_path, *EPOCHS, "--val_freq", "1", "--continue_train")
    assert values(folder) == values(whole) and steps(folder) == steps(whole)
    assert_same_weights(folder, whole)


def test_a_signal_in_the_last_validation_of_a_run_by_the_clock_leaves_it_to_do(unpaired, tmp_path, monkeypatch):
    now, step, synthesize = [0.0], CycleGANModel.step, Validation._synthesize

    def slow(self, batch):
        now[0] += 10.0
        return step(self, batch)

    def signalled(self, *args):
        os.kill(os.getpid(), signal.SIGTERM)
        return synthesize(self, *args)

    monkeypatch.setattr(training.run.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(CycleGANModel, "step", slow)
    with monkeypatch.context() as patch:
        patch.setattr(Validation, "_synthesize", signalled)
        folder = run(unpaired, tmp_path, *BY_CLOCK, "20", code=128 + signal.SIGTERM)
    assert validations(folder) == [] and not (folder / "best_net_G_A.pth").exists()
    run(unpaired, tmp_path, *BY_CLOCK, "20", "--continue_train")
    assert validations(folder) == [(1, 2)] and steps(folder) == [(1, 1), (1, 2)]
    assert (folder / "best_net_G_A.pth").exists()


def test_a_last_step_that_does_not_come_out_even_is_done_all_the_same(unpaired, tmp_path):
    """Five samples in steps of two: a state after the third step keeps its record."""
    one = ["--n_epochs", "1", "--n_epochs_decay", "0", "--batch_size", "2", "--save_latest_freq", "3"]
    folder = run(unpaired, tmp_path, *one, steps=5)
    (folder / "previous_state.pth").replace(folder / "latest_state.pth")
    assert load_state(folder)["position"]["samples"] == 5
    run(unpaired, tmp_path, *one, "--continue_train", steps=5)
    assert steps(folder) == [(1, 1), (1, 2), (1, 3)] and validations(folder) == [(1, 3)]


def test_a_run_has_a_state_before_its_best_weights(unpaired, tmp_path, monkeypatch):
    """Killed where these are written, it resumes; without a state it could neither resume nor start again."""
    found = []

    def dies(folder, model, epoch):
        if epoch == "best":
            found.append(run_folder.has_state(folder))
            raise KeyboardInterrupt
        save_weights(folder, model, epoch)

    save_weights = run_folder.save_weights
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run_folder, "save_weights", dies)
        run(unpaired, tmp_path, "--val_patients", "0.25", "--n_epochs", "2", "--n_epochs_decay", "0")
    assert found == [True]
    killed = run(
        unpaired, tmp_path, "--val_patients", "0.25", "--n_epochs", "2", "--n_epochs_decay", "0", "--continue_train"
    )
    assert_same_weights(
        run(unpaired, tmp_path, "--val_patients", "0.25", "--n_epochs", "2", "--n_epochs_decay", "0", name="whole"),
        killed,
    )
