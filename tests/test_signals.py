"""Signals and kills: `train.py` saves and leaves, or dies, and ends all the same with the weights of a whole run."""

import logging
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.processes import Program
from tests.test_datasets import dataroot, write_dataroot  # noqa: F401
from tests.test_train import TINY, assert_same_weights, run
from tools import kill_and_resume
from training.interruption import Interruption

ROOT = Path(__file__).resolve().parents[1]
LONG = (
    "--n_epochs 25 --n_epochs_decay 0 --print_freq 1 --save_epoch_freq 1000 --save_latest_freq 4 --use_dropout".split()
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the processes that are started: the order of sums is that of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_nohup():
    """As where the tests do not run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def whole(one_thread, tmp_path_factory) -> Path:
    """What an undisturbed training leaves."""
    folder = tmp_path_factory.mktemp("whole")
    return run(write_dataroot(folder), folder, *LONG)


def start(dataroot, checkpoints, *arguments):  # noqa: F811
    """Start `train.py`, and return it once it is training."""
    where = ["--dataroot", str(dataroot), "--name", "run", "--checkpoints_dir", str(checkpoints)]
    program = Program("train.py", *where, *TINY, *LONG, *arguments, together=True)
    program.wait_for("iteration 2")
    return program


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "whole_group"),
    [(signal.SIGTERM, False), (signal.SIGINT, True), (signal.SIGUSR1, True), (signal.SIGHUP, True)],
)
def test_a_signal_saves_and_ends_and_the_run_resumes_bit_for_bit(
    dataroot,  # noqa: F811
    tmp_path,
    whole,
    number,
    whole_group,
):
    """To the trainer alone, and, as a terminal and Slurm do, to its whole group; slices are loaded in threads."""
    process = start(dataroot, tmp_path / "ck", "--num_threads", "2")
    (os.killpg if whole_group else os.kill)(process.pid, number)
    assert process.wait() == 128 + number, process.stdout
    output = process.stdout
    name = signal.Signals(number).name
    found = re.search(rf"{name}: saved at epoch (\d+) of \d+, step (\d+) of \d+: .*run\n", output)
    assert found and int(found[1]) < 20, output
    assert output.endswith(f"resume: python train.py --continue_train --name run --checkpoints_dir {tmp_path}/ck\n")
    assert "Traceback" not in output
    resumed = run(dataroot, tmp_path / "ck", *LONG, "--continue_train")
    assert_same_weights(resumed, whole)


def test_a_second_ctrl_c_ends_at_once_but_not_what_a_launcher_passes_on(monkeypatch):
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the launcher's copy of the first
        assert interruption.received == signal.SIGINT
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 2)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1])
def test_what_was_ignored_from_the_start_stays_so(number):
    """As nohup has it."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), number)
            assert not interruption.received
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_kept_and_said_at_once_and_its_handler_given_back(number, caplog):
    before = signal.getsignal(number)
    caplog.set_level(logging.INFO)
    with Interruption() as interruption:
        os.kill(os.getpid(), number)
        assert interruption.received == number
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        said = f"{name}: saving the state after this step, then stopping{again}"
        assert caplog.messages == [said]
    assert signal.getsignal(number) == before


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path):
    """The short version of `python -m tools.kill_and_resume`, whose full output is in docs/performance.md."""
    report = kill_and_resume.measure(kill_and_resume.parse_arguments(["--work", str(tmp_path), "--kills", "3"]))
    assert report["kills"] == 3 and report["identical"]
    assert report["compared"] == 4 * 2  # networks, at the latest and the last epoch
    assert not list((tmp_path / "checkpoints").rglob(".writing-*"))
