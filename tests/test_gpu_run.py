"""`scripts/gpu_run.sh` with a Python that writes down what it is called with."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "gpu_run.sh"
# Appends its arguments to $CALLS in one line, and fails where $FAILING occurs in them; $BEFORE runs first.
STUB = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
echo "output of $2"
eval "$BEFORE"
if [ -n "$FAILING" ] && [[ "$*" == *"$FAILING"* ]]; then exit 3; fi
"""


@pytest.fixture
def call(tmp_path):
    """Return a function that gives the script's command and environment for data sets `one` and `two` and OUT."""
    (tmp_path / "python").write_text(STUB)
    (tmp_path / "python").chmod(0o755)
    for name in ("one", "two"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "manifest.json").write_text("{}")

    def prepared(*folders, **settings):
        chosen = {"PYTHON": str(tmp_path / "python"), "CALLS": str(tmp_path / "calls"), "FAILING": "", "BEFORE": ""}
        kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        return {
            "args": ["bash", str(SCRIPT), *(folders or ("data/one", "data/two", "out"))], "cwd": tmp_path,
            "env": kept | chosen | settings, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
        }  # fmt: skip

    return prepared


def calls(tmp_path):
    """Return what was called: the check, and the trainings in the order of their names."""
    first, *others = (tmp_path / "calls").read_text().splitlines()
    return [first, *sorted(others)]


def training(tmp_path, name, seconds):
    return (
        f"train.py --model simulated_pairs --dataroot {tmp_path}/data/{name} --seconds {seconds} --precision auto "
        f"--name {name} --checkpoints_dir {tmp_path}/out/checkpoints --device cuda:0"
    )


def test_the_check_comes_first_and_all_trainings_get_the_rest(tmp_path, call):
    done = subprocess.run(**call(BEFORE="if [[ $2 == *gpu_check ]]; then sleep 1.1; fi"), timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    check, one, two = calls(tmp_path)
    assert check == f"-m scripts.gpu_check --out {tmp_path}/out --seconds 180 --device cuda:0"
    rest = int(one.split("--seconds ")[1].split()[0])
    assert 500 < rest <= 539
    assert [one, two] == [training(tmp_path, name, rest) for name in ("one", "two")]
    assert (tmp_path / "out" / "gpu_check.log").read_text() == "output of scripts.gpu_check\n"
    assert (tmp_path / "out" / "train_two.log").read_text() == "output of --model\n"


def test_trainings_run_at_the_same_time(tmp_path, call):
    """Each waits until the other has begun."""
    both = "if [[ $2 != *gpu_check ]]; then until [ $(wc -l <$CALLS) = 3 ]; do sleep 0.1; done; fi"
    assert subprocess.run(**call(BEFORE=both), timeout=60).returncode == 0


@pytest.mark.parametrize("failing", ["gpu_check", "--name one", "--name two"])
def test_what_fails_does_not_stop_the_others(tmp_path, call, failing):
    done = subprocess.run(**call(FAILING=failing), timeout=60)
    assert done.returncode == 1
    assert len(calls(tmp_path)) == 3
    assert done.stdout.count("failed with exit code 3") == 1
    assert done.stdout.count(": done; ") == 2


def test_settings(tmp_path, call):
    threads = {"BEFORE": "echo threads $OMP_NUM_THREADS", "OMP_NUM_THREADS": "7"}
    done = subprocess.run(**call(SECONDS_TOTAL="3600", CHECK_SECONDS="60", DEVICE="cpu", **threads), timeout=60)
    assert done.returncode == 0
    check, one, _ = calls(tmp_path)
    assert "--seconds 60 --device cpu" in check
    assert "--device cpu" in one
    assert 3500 < int(one.split("--seconds ")[1].split()[0]) <= 3600
    assert "threads 7" in (tmp_path / "out" / "train_one.log").read_text()


def test_a_run_with_a_saved_state_is_resumed(tmp_path, call):
    (tmp_path / "out/checkpoints/two").mkdir(parents=True)
    (tmp_path / "out/checkpoints/two/previous_state.pth").touch()
    assert subprocess.run(**call(), timeout=60).returncode == 0
    _, one, two = calls(tmp_path)
    assert not one.endswith("--continue_train")
    assert two.endswith("--continue_train")


def test_without_time_left_no_training_begins(tmp_path, call):
    done = subprocess.run(**call(SECONDS_TOTAL="1", BEFORE="sleep 2"), timeout=60)
    assert done.returncode == 1
    assert len(calls(tmp_path)) == 1
    assert "training two: not started: no time is left; raise SECONDS_TOTAL" in done.stdout


@pytest.mark.parametrize(
    ("folders", "settings", "said"),
    [
        (("data/one",), {}, "too few paths"),
        (("data/one", "data/two"), {}, "data/two is a prepared data set"),
        (("data/one", "data/three", "out"), {}, "data/three has no manifest.json"),
        (("data/one", "data/two/../one", "out"), {}, "two trainings are called one"),
        ((), {"SECONDS_TOTAL": "ten"}, "SECONDS_TOTAL=ten"),
        ((), {"CHECK_SECONDS": "-1"}, "CHECK_SECONDS=-1"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(tmp_path, call, folders, settings, said):
    done = subprocess.run(**call(*folders, **settings), timeout=60)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "calls").exists()
    assert not (tmp_path / "out").exists()


def test_a_file_of_trainings(tmp_path, call):
    """Words in quotes stay one, nothing is expanded, and the time that is left goes where it is asked for."""
    lines = ["# arms", "", "a  --dataroot 'data/my arms' --leave_out ''", 'b --names "$HOME *" --seconds {seconds}']
    (tmp_path / "runs.txt").write_text("\n".join(lines))  # the last line does not end
    done = subprocess.run(**call("runs.txt", "out", BEFORE="printf '<%s>' \"$@\"", CHECK_SECONDS="0"), timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    common = f"<--checkpoints_dir><{tmp_path}/out/checkpoints><--device><cuda:0>"
    logs = [(tmp_path / "out" / f"train_{name}.log").read_text().splitlines()[1] for name in "ab"]
    assert logs[0] == f"<train.py><--dataroot><data/my arms><--leave_out><><--name><a>{common}"
    assert re.fullmatch(rf"<train.py><--names><\$HOME \*><--seconds><5[34]\d><--name><b>{re.escape(common)}", logs[1])
    assert not (tmp_path / "out" / "gpu_check.log").exists()


STOPPED = """trap 'sleep 0.5; echo stopped; exit 143' TERM
for k in {1..60}; do sleep 0.1; done"""


def test_a_training_of_any_length_is_stopped_when_the_time_is_over(tmp_path, call):
    """It saves at the signal; one that knows its time is not stopped, and may take a little longer."""
    (tmp_path / "runs.txt").write_text("long --dataroot d\ntimed --dataroot d --seconds {seconds}\n")
    save = "mkdir -p out/checkpoints/long && touch out/checkpoints/long/latest_state.pth\n"
    settings = {"BEFORE": f"cd {tmp_path}; {save}{STOPPED}", "SECONDS_TOTAL": "3", "CHECK_SECONDS": "0"}
    done = subprocess.run(**call("runs.txt", "out", **settings), timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "training long: saved when the time was over; the same command resumes it" in done.stdout
    assert "training timed: done" in done.stdout
    logs = [(tmp_path / "out" / f"train_{name}.log").read_text() for name in ("long", "timed")]
    assert [log.endswith("stopped\n") for log in logs] == [True, False]


def test_a_training_that_was_stopped_before_it_saved_has_failed(tmp_path, call):
    (tmp_path / "runs.txt").write_text("long --dataroot d\n")
    settings = {"BEFORE": STOPPED, "SECONDS_TOTAL": "3", "CHECK_SECONDS": "0"}
    done = subprocess.run(**call("runs.txt", "out", **settings), timeout=60)
    assert done.returncode == 1
    assert "training long: failed with exit code 143" in done.stdout


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("# nothing\n", "runs.txt holds no training"),
        ("--dataroot d\n", "a line begins with --dataroot; expected the training's name"),
        ("a\n", "a: no options"),
        ("a --dataroot 'd\n", "a: its quotes do not match"),
        ("a --dataroot d\na --dataroot e\n", "two trainings are called a"),
        ("a --dataroot d --name b\n", "--name is set by this script; leave it out"),
    ],
)
def test_a_file_of_trainings_that_cannot_work_is_refused(tmp_path, call, lines, said):
    (tmp_path / "runs.txt").write_text(lines)
    done = subprocess.run(**call("runs.txt", "out"), timeout=60)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize("phase", ["scripts.gpu_check", "--model"])
def test_a_signal_reaches_what_runs_and_nothing_is_begun_after_it(tmp_path, call, phase):
    """What runs takes its time to save, and the script waits for it."""
    saving = f"if [ $2 = {phase} ]; then trap 'sleep 0.5; echo saved; exit 143' TERM; touch $CALLS.$$; "
    process = subprocess.Popen(**call(BEFORE=saving + "while true; do sleep 0.1; done; fi"))
    running = 1 if phase == "scripts.gpu_check" else 2
    limit = time.monotonic() + 60
    while len(list(tmp_path.glob("calls.*"))) < running:
        assert time.monotonic() < limit
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.count("not started: stopped by a signal") == (2 if running == 1 else 0)
    assert len(calls(tmp_path)) == (1 if running == 1 else 3)
    logs = sorted((tmp_path / "out").glob("*.log"))
    assert [log.read_text().endswith("saved\n") for log in logs] == ([True] if running == 1 else [False, True, True])


@pytest.mark.parametrize("words", [["--help"], ["data/one", "out", "-h"]])
def test_help(tmp_path, call, words):
    done = subprocess.run(**call(*words), timeout=60)
    assert done.returncode == 0
    assert "bash scripts/gpu_run.sh DATASET... OUT" in done.stdout
    assert "set -e" not in done.stdout
    assert not (tmp_path / "calls").exists()
