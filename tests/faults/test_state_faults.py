"""States that are damaged or lack something, and restarts by torchrun: a run resumes from a good state of its own."""

import random
import shutil
from pathlib import Path

import pytest
import torch

import train
from ct_segmentation import train as train_extractor
from data.errors import InputError
from models.state_dicts import load_checkpoint, save_atomically
from tests.faults.commands import snapshot
from tests.faults.test_training_faults import (  # noqa: F401
    finished,
    one_thread,
    refused,
    resumes,
    root,
    state_position,
    training,
)
from tests.shape_data import write_prepared
from training import distributed


@pytest.fixture
def run(root, finished) -> Path:  # noqa: F811
    """The folder of the finished run, copied."""
    shutil.copytree(finished / "checkpoints", root / "checkpoints")
    return root / "checkpoints/run"


# Damage


def flip(data: bytearray, at: int) -> None:
    data[at] ^= 1 << random.Random(at).randrange(8)


def blank(data: bytearray, at: int) -> None:
    data[at : at + 512] = bytes(512)


def cut(data: bytearray, at: int) -> None:
    del data[at:]


def damage(path: Path, how) -> None:
    """Damage a state in the first weights of a generator."""
    data = bytearray(path.read_bytes())
    content = load_checkpoint(path)
    weight = next(iter(content["model"]["networks"]["G_A"].values()))
    at = data.find(weight.numpy().tobytes())
    assert at > 0
    how(data, at + 2)
    path.write_bytes(data)


@pytest.mark.parametrize("how", [flip, blank, cut])
def test_a_damaged_state_gives_way_to_the_one_before_it_which_is_said(root, run, finished, caplog, how):  # noqa: F811
    damage(run / "latest_state.pth", how)
    resumes(root, finished)
    (warning,) = [entry.getMessage() for entry in caplog.records if "resuming from" in entry.getMessage()]
    assert "latest_state.pth: cannot be read" in warning and "damaged" in warning
    assert warning.endswith("resuming from the state before it, previous_state.pth")
    assert (run / "damaged_latest_state.pth").exists()


@pytest.mark.parametrize("how", [flip, blank, cut])
def test_two_damaged_states_are_refused_and_nothing_is_touched(root, run, capsys, how):  # noqa: F811
    for name in ("latest_state.pth", "previous_state.pth"):
        damage(run / name, how)
    before = snapshot(run)
    words = ("latest_state.pth: cannot be read", "previous_state.pth: cannot be read", "--init_from")
    refused(capsys, training(root, "--continue_train"), *words)
    assert snapshot(run) == before


# Entries that are missing or of another kind

GONE = object()


def change(state: dict, *where: object, to: object = GONE) -> None:
    *path, last = where
    for key in path:
        state = state[key]
    if to is GONE:
        del state[last]
    else:
        state[last] = to


CHANGES = {
    "no model": (("model",), GONE),
    "a list for the model": (("model",), []),
    "no networks": (("model", "networks"), GONE),
    "a network is missing": (("model", "networks", "G_B"), GONE),
    "a weight is missing": (("model", "networks", "D_A", "net.0.weight"), GONE),
    "a weight of another shape": (("model", "networks", "D_A", "net.0.weight"), torch.zeros(3)),
    "an optimiser is missing": (("model", "optimisers", "D"), GONE),
    "no moments of one weight": (("model", "optimisers", "G", "state", 3), GONE),
    "one moment is missing": (("model", "optimisers", "G", "state", 3, "exp_avg"), GONE),
    "a moment of another shape": (("model", "optimisers", "G", "state", 3, "exp_avg_sq"), torch.zeros(7)),
    "no betas": (("model", "optimisers", "G", "param_groups", 0, "betas"), GONE),
    "no learning rate": (("rate", "lr"), GONE),
    "a text for the learning rate": (("rate", "lr"), "fast"),
    "no position": (("position",), GONE),
    "half a position": (("position", "samples"), GONE),
    "an epoch of text": (("position", "epoch"), "2"),
    "epoch 0": (("position", "epoch"), 0),
    "a loss that is not finite": (("position", "epoch_loss"), float("nan")),
    "not known whether it validated": (("position", "validated"), "no"),
    "no pools": (("processes", 0, "model"), GONE),
    "a pool is missing": (("processes", 0, "model", "B"), GONE),
    "a pool of text": (("processes", 0, "model", "A", "images"), "images"),
    "a pool of more than it holds": (("processes", 0, "model", "A", "images"), torch.zeros(3, 1, 8, 8)),
    "no random state": (("processes", 0, "random", "cpu"), GONE),
    "a random state of text": (("processes", 0, "random", "cpu"), "4"),
    "options of a list": (("options",), []),
    "of another kind": (("kind",), "weights"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_state_that_lacks_something_gives_way_to_the_one_before_it(root, run, finished, caplog, name):  # noqa: F811
    where, to = CHANGES[name]
    path = run / "latest_state.pth"
    state = load_checkpoint(path)
    if where[-1] == "net.0.weight":
        where = (*where[:-1], next(iter(state["model"]["networks"]["D_A"])))
    change(state, *where, to=to)
    save_atomically(state, path)
    resumes(root, finished)
    assert "resuming from the state before it, previous_state.pth" in caplog.text


def test_a_state_alone_that_lacks_something_is_refused(root, run, capsys):  # noqa: F811
    state = load_checkpoint(run / "latest_state.pth")
    change(state, "model", "networks", "G_B")
    save_atomically(state, run / "latest_state.pth")
    (run / "previous_state.pth").unlink()
    before = snapshot(run)
    refused(capsys, training(root, "--continue_train"), "latest_state.pth: damaged: it lacks", "KeyError: 'G_B'")
    assert snapshot(run) == before


def test_other_options_are_no_damage(root, run, capsys):  # noqa: F811
    """Refused with both states kept, not taken for a reason to go back to the state before."""
    before = snapshot(run)
    refused(capsys, training(root, "--continue_train", "--ngf", "3"), "ngf: was 2, now 3")
    assert snapshot(run) == before


@pytest.mark.parametrize(
    "where",
    [("model", "networks", "E"), ("model", "optimisers"), ("model", "optimisers", "G", "state", 2), ("best", "score")],
)
def test_the_state_of_an_extractor_that_lacks_something_is_refused(tmp_path, where):
    write_prepared(tmp_path / "data", ["a", "b"])
    options = ["--dataroot", str(tmp_path / "data"), *"--width 2 --num_threads 0 --device cpu --epochs".split()]
    train_extractor.main([*options, "1"])
    path = tmp_path / "data/shape_extractor/latest_state.pth"
    state = load_checkpoint(path)
    change(state, *where)
    save_atomically(state, path)
    (path.parent / "previous_state.pth").unlink(missing_ok=True)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=r"latest_state\.pth: damaged: it lacks"):
        train_extractor.main([*options, "2", "--continue_train"])
    assert snapshot(tmp_path) == before


# Restarts by torchrun


class Launcher:
    """What psutil says of torchrun's process."""

    pid = 7

    def __init__(self, started: float) -> None:
        self.started = started

    def create_time(self) -> float:
        return self.started


def restart(monkeypatch, count: int, run_id: str = "none", started: float = 5000.0) -> None:
    """Be started by torchrun, for the time `count` + 1."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
    monkeypatch.setattr(distributed.psutil, "Process", lambda pid: Launcher(started))
    monkeypatch.setattr(distributed.psutil, "boot_time", lambda: 1000.0)


@pytest.mark.parametrize("began", ["by hand", "another id", "another start", "latest is damaged"])
def test_a_restart_does_not_take_over_the_run_of_another(root, finished, monkeypatch, began):  # noqa: F811
    if began == "another id":
        restart(monkeypatch, 0, run_id="first")
    elif began != "by hand":
        restart(monkeypatch, 0, started=4000.0)
    assert train.main(training(root)) == 0
    folder = root / "checkpoints/run"
    if began == "latest is damaged":
        damage(folder / "latest_state.pth", flip)
    weights = (folder / "latest_net_G_A.pth").read_bytes()
    for count in (0, 1, 2):
        restart(monkeypatch, count)
        with pytest.raises(InputError, match="already holds a run; resume it with --continue_train"):
            train.main(training(root, "--n_epochs", "3"))
    assert (folder / "latest_net_G_A.pth").read_bytes() == weights


def test_a_restart_resumes_with_what_its_job_began(root, finished, monkeypatch):  # noqa: F811
    """Also where the clock was set right meanwhile, by which the system's times of start move."""
    restart(monkeypatch, 0)
    assert train.main(training(root, "--n_epochs", "1")) == 0
    restart(monkeypatch, 1, started=5030.0)
    monkeypatch.setattr(distributed.psutil, "boot_time", lambda: 1030.0)
    assert train.main(training(root)) == 0
    assert state_position(root / "checkpoints/run") == (3, 0)


def test_a_restart_before_the_first_state_begins_again(root, finished, monkeypatch):  # noqa: F811
    folder = root / "checkpoints/run"
    folder.mkdir(parents=True)
    (folder / "losses.jsonl").write_text("{}\n")
    (folder / "opt.json").write_text('{"name": "run", "dataroot": "data"}')
    restart(monkeypatch, 1)
    assert train.main(training(root)) == 0
    for name in ("G_A", "D_B"):
        a, b = (torch.load(where / f"latest_net_{name}.pth", weights_only=True)
                for where in (folder, finished / "checkpoints/run"))  # fmt: skip
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_by_itself_a_process_belongs_to_no_job(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert distributed.job() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert distributed.job() == distributed.job() and distributed.job().startswith("x ")
