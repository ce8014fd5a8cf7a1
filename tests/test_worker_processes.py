"""Processes that work for a command: what happens to them, and what they say, when it ends early."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from data.files import whole_file
from data.worker_processes import WorkerProcesses
from tests.processes import Program

COMMAND = """
import sys
from pathlib import Path
from data.errors import run_command
from data.worker_processes import WorkerProcesses
from tests.test_worker_processes import write_slowly

def main():
    paths = [Path(sys.argv[1]) / f"{k}.txt" for k in range(6)]
    with WorkerProcesses(2) as pool:
        for path in pool.map(write_slowly, paths):
            print("wrote", path.name)

run_command(main)
"""


def write_slowly(path: Path) -> Path:
    """Write a file: the first at once, the others in a minute."""
    with whole_file(path) as scratch:
        scratch.write_text("half")
        time.sleep(0 if path.stem == "0" else 60)
    return path


def wait_and_take_away(path: Path, seconds: float) -> None:
    """Say at `path` that it began, and beside it, `seconds` after it was ended, that it took away what it had made."""
    try:
        path.touch()
        time.sleep(60)
    finally:
        time.sleep(seconds)
        path.with_suffix(".done").touch()


def fail_on(number: int, waits: Path) -> None:
    if number == 0:
        raise ValueError("the first")
    write_slowly(waits)


def wait_until(true, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_command_that_is_ended_ends_its_processes_in_one_line(number, tmp_path):
    """It goes to all of them, as from a terminal or from Slurm."""
    program = Program("-c", COMMAND, tmp_path)
    wait_until(lambda: (tmp_path / "0.txt").exists() and len(list(tmp_path.glob(".writing-*/*.txt"))) == 2)
    workers = psutil.Process(program.pid).children(recursive=True)
    if number == signal.SIGTERM:  # which ends the processes by itself
        os.kill(program.pid, number)
    else:
        os.killpg(program.pid, number)
    assert program.wait(60) == 128 + number
    name = signal.Signals(number).name
    assert program.stderr == ("interrupted\n" if number == signal.SIGINT else f"{name}: stopping\n")
    assert program.stdout == "wrote 0.txt\n"
    wait_until(lambda: not any(worker.is_running() for worker in workers), 30)
    assert [path.name for path in tmp_path.iterdir()] == ["0.txt"]  # what was made stays, what was not is gone


def test_processes_end_with_a_command_that_is_killed(tmp_path):
    program = Program("-c", COMMAND, tmp_path)
    wait_until(lambda: (tmp_path / "0.txt").exists() and len(list(tmp_path.glob(".writing-*/*.txt"))) == 2)
    workers = psutil.Process(program.pid).children(recursive=True)
    assert len(workers) >= 2
    program.kill()
    assert program.wait(60) == -signal.SIGKILL
    wait_until(lambda: not any(worker.is_running() for worker in workers), 30)


def test_a_second_signal_does_not_keep_processes_from_being_ended(tmp_path, monkeypatch):
    """One comes while they are waited for; it is not heard before all have ended."""
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), WorkerProcesses(1) as pool:
        pool.submit(write_slowly, tmp_path / "a.txt")
        wait_until(lambda: list(tmp_path.glob(".writing-*/a.txt")))
        (process,) = pool._processes.values()
        terminate = process.terminate

        def ended_and_signalled():
            monkeypatch.undo()  # the pool will end it, too
            os.kill(os.getpid(), signal.SIGINT)
            terminate()

        monkeypatch.setattr(process, "terminate", ended_and_signalled)
        raise KeyboardInterrupt
    process.join(30)
    assert not process.is_alive() and time.monotonic() - began < 50
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_process_that_ends_first_does_not_stop_another_one_from_taking_away_what_it_made(tmp_path):
    """The pool finds it gone, and sends SIGTERM to all others once more."""
    paths = [tmp_path / "fast", tmp_path / "slow"]
    with pytest.raises(KeyboardInterrupt), WorkerProcesses(2) as pool:
        for path, seconds in zip(paths, (0, 2), strict=True):
            pool.submit(wait_and_take_away, path, seconds)
        wait_until(lambda: all(path.exists() for path in paths))
        raise KeyboardInterrupt
    assert all(path.with_suffix(".done").exists() for path in paths)


def test_a_failure_does_not_wait_for_the_others(tmp_path):
    began = time.monotonic()
    with pytest.raises(ValueError, match="the first"), WorkerProcesses(2) as pool:
        list(pool.map(fail_on, (0, 1), [tmp_path / "a.txt"] * 2))
    assert time.monotonic() - began < 50  # of the minute that the second takes
    assert not list(tmp_path.glob("*"))


def test_processes_that_are_done_end_with_the_block(tmp_path):
    with WorkerProcesses(2) as pool:
        assert list(pool.map(abs, [-1, 2])) == [1, 2]
        processes = list(pool._processes.values())
    assert len(processes) == 2 and not any(process.is_alive() for process in processes)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()  # this process hears Ctrl-C as before
