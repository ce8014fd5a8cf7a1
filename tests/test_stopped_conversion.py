"""Signals to the conversion of a cohort: the first lets volumes in progress finish, the second ends it at once."""

import json
import os
import signal
import time

import pytest

import test_pipeline
from models.test_model import TestModel
from tests import processes
from tests.cohort_data import NAME, write_model, write_patients
from tests.processes import ROOT


@pytest.fixture
def command(tmp_path) -> list[str]:
    write_model(tmp_path)
    write_patients(tmp_path / "in", 5)
    return [
        "--name", NAME, "--checkpoints_dir", str(tmp_path / "checkpoints"), "--device", "cpu", "--precision", "fp32",
        "--input_dir", str(tmp_path / "in"), "--results_dir", str(tmp_path / "out"), "--no_html", "--num_threads", "1",
    ]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_volumes_in_progress_finish(number, command, tmp_path, monkeypatch, capfd, caplog):
    translate, calls = TestModel.translate, []

    def stop_at_the_second(self, *args):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return translate(self, *args)

    monkeypatch.setattr(TestModel, "translate", stop_at_the_second)
    before = signal.getsignal(number)
    assert test_pipeline.main(command) == 128 + number
    assert signal.getsignal(number) == before
    called = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert f"{called}: stopping after the volumes in progress" in capfd.readouterr().err
    summary = json.loads((tmp_path / "out" / NAME / "summary.json").read_text())
    done = {case["case"] for case in summary["cases"] if case["status"] == "done"}
    assert 2 <= len(done) <= 3 and len(summary["cases"]) == len(done)  # one more may have been prepared
    assert f"stopped by a signal, with {5 - len(done)} case" in caplog.text
    monkeypatch.setattr(TestModel, "translate", translate)
    assert test_pipeline.main(command) == 0
    assert len(list((tmp_path / "out" / NAME).glob("*.nii.gz"))) == 5


SLOW = """
import os, signal, sys, threading, time
sys.path.insert(0, {root!r})
from cohort import conversion
def send():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
def forever(*args, **kwargs):
    threading.Thread(target=send, daemon=True).start()
    time.sleep(600)
conversion.{stage} = forever
import test_pipeline
test_pipeline.main({arguments!r})
"""


@pytest.mark.parametrize("stage", ["read_volume", "write_volume"])
def test_the_second_ends_at_once_whatever_runs(stage, command):
    began = time.monotonic()
    process = processes.run("-c", SLOW.format(root=str(ROOT), stage=stage, arguments=command))
    assert process.returncode == 128 + signal.SIGTERM, process.stderr
    assert "SIGTERM: stopping after the volumes in progress" in process.stderr
    assert process.stderr.endswith("SIGTERM: stopped at once\n")
    assert time.monotonic() - began < 300
