"""Durations in words, the time to the end of a run, and where both are shown."""

import json
import logging
import time
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch

from data.durations import TimeLeft, describe_seconds
from data.progress import shown_progress
from models.test_model import Translator
from tests.test_visualization import CT_MAP, log_with, losses, run_info
from visualization.console import Console
from visualization.panels import VisualsStyle
from visualization.records import LossRecord, parse_record
from visualization.training_log import TrainingLog


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_durations_are_said_as_people_say_them():
    said = [describe_seconds(seconds) for seconds in (0.4, 89, 91, 3600, 7800, 36000)]
    assert said == ["0 s", "89 s", "2 min", "60 min", "2 h 10 min", "10 h 0 min"]


def test_what_is_left_follows_the_pace_since_the_start(clock):
    """But for the first step, which also compiles."""
    left = TimeLeft(steps=100, done=40)
    assert left.after(40) is None  # no pace yet
    clock[0] += 500
    left.step()
    assert left.pace(41) is None and left.after(41) is None
    clock[0] += 30
    left.step()
    assert (left.pace(51), left.after(51)) == (3, 3 * 49)
    clock[0] += 30
    assert left.after(100) == 0


def test_a_run_by_the_clock_ends_by_the_clock(clock):
    left = TimeLeft(steps=None, done=0, seconds=60)
    clock[0] += 45
    assert left.after(3) == 15
    clock[0] += 45
    assert left.after(4) == 0


def test_a_log_says_how_long_the_whole_run_will_take_yet(tmp_path, clock, capsys):
    """Of 3 epochs of 10 steps one is done; the first of 5 steps takes 60 s, the others 3 s each."""
    run = run_info(tmp_path)
    total = run.epochs * run.steps_per_epoch
    with log_with(tmp_path, Console(tmp_path), start=(2, 0)) as training_log:
        training_log.start_epoch(2, 0)
        for seconds in (60, 3, 3, 3, 3):
            clock[0] += seconds
            training_log.step(0.0)
        training_log.write_losses(2, 5, losses(G=1.0), 1e-4)
    (record,) = map(json.loads, (tmp_path / "losses.jsonl").read_text().splitlines())
    expected = 3 * (total - run.steps_per_epoch - 5)
    assert record["seconds_left"] == expected
    assert f"  about {describe_seconds(expected)} left  G 1.0000" in capsys.readouterr().out


def test_the_time_left_does_not_count_the_quick_steps_of_a_warm_start(tmp_path, clock):
    """3 epochs of 10 steps: the first takes 1 s a step, the others 5 s."""
    run = replace(run_info(tmp_path), epochs=3, steps_per_epoch=10, warm_epochs=1)
    with TrainingLog(run, VisualsStyle(CT_MAP), [("console", Console(tmp_path))], (1, 0)) as training_log:
        for epoch, seconds in ((1, 1), (2, 5)):
            training_log.start_epoch(epoch, 0)
            for _ in range(4):
                clock[0] += seconds
                training_log.step(0.0)
            training_log.write_losses(epoch, 4, losses(G=1.0), 1e-4)
    lines = map(json.loads, (tmp_path / "losses.jsonl").read_text().splitlines())
    assert [record.get("seconds_left") for record in lines] == [None, 5 * (20 - 4)]


def test_a_run_that_is_a_warm_start_alone_says_what_is_left(tmp_path, clock):
    run = replace(run_info(tmp_path), epochs=2, steps_per_epoch=10, warm_epochs=2)
    with TrainingLog(run, VisualsStyle(CT_MAP), [("console", Console(tmp_path))], (1, 0)) as training_log:
        training_log.start_epoch(1, 0)
        for _ in range(4):
            clock[0] += 2
            training_log.step(0.0)
        training_log.write_losses(1, 4, losses(G=1.0), 1e-4)
    assert json.loads((tmp_path / "losses.jsonl").read_text())["seconds_left"] == 2 * (20 - 4)


def test_records_of_earlier_versions_have_no_time_left():
    record = LossRecord(1, 2, 3.0, 1e-4, 0.5, 0.1, {"G": 1.0}, 60.0)
    assert parse_record(record.to_json()) == record
    older = json.dumps({name: value for name, value in vars(record).items() if name != "seconds_left"})
    assert parse_record(older).seconds_left is None
    assert parse_record(record.to_json().replace("60.0", '"soon"')) is None


@pytest.mark.parametrize("bar", ["converting", ""])
def test_a_synthesis_shows_its_slices_where_asked_for(bar, caplog):
    caplog.set_level(logging.INFO)
    translator = Translator(torch.nn.Identity(), 1, torch.device("cpu"))
    slices = np.random.default_rng(1).uniform(-1, 1, (5, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(translator.translate(slices, bar=bar), slices)
    assert caplog.messages == ["converting: 5 slices"] * bool(bar)


def test_a_log_file_says_at_once_what_begins_and_every_ten_seconds_how_far_it_is(clock, caplog):
    """Seven volumes of 4 s each: lines after 12 s and 24 s."""
    caplog.set_level(logging.INFO)
    said = []

    def work():
        said.append(list(caplog.messages))
        for k in range(7):
            clock[0] += 4
            yield k

    assert list(shown_progress(work(), 7, "finding bodies", "volume")) == list(range(7))
    assert said == [["finding bodies: 7 volumes"]]  # before the first is begun
    assert caplog.messages[1:] == [
        "finding bodies: 3 of 7 volumes, about 16 s left",
        "finding bodies: 6 of 7 volumes, about 4 s left",
    ]


def test_what_counts_is_what_the_caller_has_done(clock, caplog):
    """Four images of 12 s each, worked on where they are asked for; the first one says nothing of the others."""
    caplog.set_level(logging.INFO)
    for _ in shown_progress(range(4), 4, "filling holes", "image"):
        clock[0] += 12
    assert caplog.messages[1:] == [
        "filling holes: 1 of 4 images",
        "filling holes: 2 of 4 images, about 24 s left",
        "filling holes: 3 of 4 images, about 12 s left",
    ]


def test_of_nothing_and_of_one_it_is_said_as_it_is(caplog):
    caplog.set_level(logging.INFO)
    assert list(shown_progress([], 0, "finding bodies", "volume")) == []
    assert list(shown_progress(["a"], 1, "finding bodies", "volume")) == ["a"]
    assert caplog.messages == ["finding bodies: 1 volume"]


def test_a_terminal_has_a_bar(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    terminal = StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(shown_progress(range(3), 3, "finding bodies", "volume")) == [0, 1, 2]
    assert "finding bodies: 100%" in terminal.getvalue() and "3/3" in terminal.getvalue()
    assert not caplog.messages


def test_steps_are_counted_over_the_epochs_of_a_process():
    left = TimeLeft(steps=100, done=40)
    for _ in range(3):
        left.step()
    assert (left.done, left.taken) == (41, 2)
