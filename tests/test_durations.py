"""Durations in words, the time to the end of a run, and where both are shown."""

import json
import time

import numpy as np
import pytest
import torch

from models import test_model
from models.test_model import Translator
from tests.test_visualization import log_with, losses, run_info
from visualization.console import Console
from visualization.durations import TimeLeft, describe_seconds
from visualization.records import LossRecord, parse_record


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_durations_are_said_as_people_say_them():
    said = [describe_seconds(seconds) for seconds in (0.4, 89, 91, 3600, 7800, 36000)]
    assert said == ["0 s", "89 s", "2 min", "60 min", "2 h 10 min", "10 h 0 min"]


def test_what_is_left_follows_the_pace_since_the_start(clock):
    left = TimeLeft(steps=100, done=40)
    assert left.after(40) is None  # no pace yet
    clock[0] += 30
    assert left.after(50) == 30 / 10 * 50
    clock[0] += 30
    assert left.after(100) == 0


def test_a_run_by_the_clock_ends_by_the_clock(clock):
    left = TimeLeft(steps=None, done=0, seconds=60)
    clock[0] += 45
    assert left.after(3) == 15
    clock[0] += 45
    assert left.after(4) == 0


def test_a_log_says_how_long_the_whole_run_will_take_yet(tmp_path, clock, capsys):
    """Of 3 epochs of 10 steps one is done; 5 steps take 60 s."""
    run = run_info(tmp_path)
    total = run.epochs * run.steps_per_epoch
    with log_with(tmp_path, Console(tmp_path), start=(2, 0)) as training_log:
        training_log.start_epoch(2, 0)
        clock[0] += 60
        for _ in range(5):
            training_log.step(0.0)
        training_log.write_losses(2, 5, losses(G=1.0), 1e-4)
    (record,) = map(json.loads, (tmp_path / "losses.jsonl").read_text().splitlines())
    expected = 60 / 5 * (total - run.steps_per_epoch - 5)
    assert record["seconds_left"] == expected
    assert f"  about {describe_seconds(expected)} left  G 1.0000" in capsys.readouterr().out


def test_records_of_earlier_versions_have_no_time_left():
    record = LossRecord(1, 2, 3.0, 1e-4, 0.5, 0.1, {"G": 1.0}, 60.0)
    assert parse_record(record.to_json()) == record
    older = json.dumps({name: value for name, value in vars(record).items() if name != "seconds_left"})
    assert parse_record(older).seconds_left is None
    assert parse_record(record.to_json().replace("60.0", '"soon"')) is None


@pytest.mark.parametrize("bar", [True, False])
def test_a_synthesis_shows_its_slices_where_asked_for(bar, monkeypatch):
    seen = []

    def counting(slices, total, disable, **_):
        seen.append([disable, total, 0])
        for one in slices:
            seen[-1][2] += 1
            yield one

    monkeypatch.setattr(test_model, "tqdm", counting)
    translator = Translator(torch.nn.Identity(), 1, torch.device("cpu"))
    slices = np.random.default_rng(1).uniform(-1, 1, (5, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(translator.translate(slices, bar=bar), slices)
    assert seen == [[None if bar else True, 5, 5]]  # None: in a terminal only
