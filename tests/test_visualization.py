"""What a training shows: windows, panels, records, resume, and that no failure of a display stops it."""

import io
import json
import logging
import os
import re
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import InputError
from data.values.intensity import IntensityMap
from visualization import console, training_page, windows
from visualization.console import Console
from visualization.display import Picture, RunInfo
from visualization.panels import GAP_PX, VisualsStyle, _fitted, arrange, caption_px, training_sheet
from visualization.records import History, LossRecord, parse_record, read_records
from visualization.training_log import TrainingLog
from visualization.training_page import TrainingPage, thin
from visualization.windows import (
    DIFFERENCE_COLOURS,
    DisplayWindow,
    colour_table,
    gray,
    mr_display_range,
    parse_display_window,
)

CT_MAP = IntensityMap.window(-1000, 1400)
TILE = 192
CAPTION_PX = caption_px(4 * TILE)


def record(epoch, iteration, **losses) -> LossRecord:
    return LossRecord(epoch, iteration, 100.0 * epoch + iteration, 2e-4, 0.5, 0.1, losses or {"G": float(iteration)})


def run_info(folder, steps=10, name="run", **options) -> RunInfo:
    return RunInfo(name, folder, options, {"torch": "2"}, 5, steps)


def losses(**values):
    return {name: torch.tensor(value) for name, value in values.items()}


# ------------------------------------------------------------------ windows


def test_windows_are_level_and_width():
    assert parse_display_window(["40", "400"]).range == (-160, 240)
    assert parse_display_window(["bone"]).range == (-500, 1300)
    assert str(DisplayWindow(-600, 1500)) == "L -600 W 1500"
    np.testing.assert_array_equal(gray(np.array([-200, -160, 40, 240, 999]), -160, 240), [0, 0, 128, 255, 255])
    for bad in (["40"], ["40", "0"], ["40", "-5"], ["nan", "5"], ["a", "b"], ["bones"], ["1", "2", "3"]):
        with pytest.raises(InputError, match="LEVEL WIDTH in HU"):
            parse_display_window(bad)


def test_mr_white_does_not_depend_on_the_background():
    body = np.linspace(1, 1000, 1000)
    for background in (np.zeros(10), np.zeros(100_000)):
        low, high = mr_display_range(np.concatenate([background, body]))
        assert (low, high) == (0, pytest.approx(np.percentile(body, 99.5)))
    assert mr_display_range(np.array([-2.0, -2.0, 3.0]))[0] == -2
    assert mr_display_range(np.zeros(5))[1] > 0


def test_of_a_large_mr_every_second_voxel_along_each_axis_says_what_is_white(monkeypatch):
    mr = np.random.default_rng(0).uniform(0, 100, (8, 10, 12))
    monkeypatch.setattr(windows, "_SAMPLE_VOXELS", mr.size // 7)
    assert mr_display_range(mr) == (0, np.percentile(mr[::2, ::2, ::2], 99.5))


# ------------------------------------------------------------------ panels


def shades(style, name, image):
    """The gray values that an image (H, W) in [-1, 1] is shown in, a pixel each; its tile is enlarged."""
    tile = style.tile(name, style.plane(name, torch.tensor(image, dtype=torch.float32)[None, None])).picture
    larger = tile.width // len(image[0])
    return np.array(tile)[: larger * len(image) : larger, ::larger]


def test_ct_is_shown_in_hu_mr_in_its_window_and_masks_in_0_to_1():
    style = VisualsStyle(CT_MAP, DisplayWindow(40, 400))
    ct = CT_MAP.to_network(np.array([[-160.0, 40.0, 240.0]]))
    np.testing.assert_allclose(shades(style, "fake_B", ct), [[0, 128, 255]], atol=1)
    np.testing.assert_allclose(shades(style, "real_A", [[-1.0, 0.0, 1.0]]), [[0, 128, 255]], atol=1)
    np.testing.assert_allclose(shades(style, "mask", [[0.0, 0.5, 1.0]]), [[0, 128, 255]], atol=1)
    reverse = VisualsStyle(CT_MAP, DisplayWindow(40, 400), direction="BtoA")
    np.testing.assert_allclose(shades(reverse, "real_A", ct), [[0, 128, 255]], atol=1)
    assert np.ptp(shades(reverse, "fake_B", ct)) == 43  # 255 * 400 / 2400: in an MR it is a sixth of the range


def test_the_bar_below_a_ct_goes_through_its_window():
    pixels = np.array(arrange([[VisualsStyle(CT_MAP).tile("real_B", np.full((TILE, TILE), 440.0))]]))
    assert np.all(pixels[CAPTION_PX : CAPTION_PX + TILE] == 255)
    bar = pixels[CAPTION_PX + TILE + GAP_PX, GAP_PX:-GAP_PX].astype(int)
    np.testing.assert_allclose(bar, np.linspace(0, 255, TILE - 2 * GAP_PX), atol=1)
    assert arrange([[VisualsStyle(CT_MAP).tile("real_A", np.zeros((TILE, TILE)))]]).size == (TILE, TILE + CAPTION_PX)


@pytest.mark.parametrize("size", [16, 128, 191, 320, 512])
def test_letters_are_legible_where_the_page_shows_a_sheet(size):
    visuals = {name: torch.full((1, 1, size, size), -1.0) for name in ("real_A", "fake_B", "rec_A", "idt_B")}
    sheet = training_sheet(visuals, VisualsStyle(CT_MAP))
    line = caption_px(sheet.width)
    shown = np.nonzero((np.array(sheet)[:line, : sheet.width // 4] > 128).any(axis=1))[0]  # "real MR"
    letters = shown[-1] - shown[0] + 1
    assert letters * 950 / sheet.width > 9.5  # capitals of 14 pixels are 10 high
    assert letters + 2 < line and letters >= 10
    numbers = (np.array(sheet)[-line:, : sheet.width // 2] > 128).any(axis=1)  # "40 HU" below the CT
    assert letters - 2 <= numbers.sum() <= letters + 3


NAMES = ("real_A", "fake_B", "rec_A", "idt_B", "real_B", "fake_A", "rec_B", "idt_A", "simulated_A", "from_simulated_A",
         "simulated_B", "from_simulated_B", "paired_A", "from_paired_A", "paired_B")  # fmt: skip


@pytest.mark.parametrize(
    ("direction", "ct"),
    [
        (
            "AtoB",
            {"fake_B", "rec_B", "idt_A", "real_B", "from_simulated_A", "simulated_B", "from_paired_A", "paired_B"},
        ),
        ("BtoA", {"real_A", "rec_A", "fake_A", "idt_B", "simulated_A", "from_simulated_B", "paired_A"}),
    ],
)
def test_titles_say_what_is_shown_and_how_it_came_about(direction, ct):
    style = VisualsStyle(CT_MAP, direction=direction)
    assert {name for name in NAMES if style.modality(name) == "CT"} == ct
    for name in NAMES:
        modality, other = ("CT", "MR") if name in ct else ("MR", "CT")
        title = style.title(name)
        assert modality in title and "_" not in title
        assert (other not in title) or title in (
            "MR simulated from CT", "MR made from the true CT", "CT made from the MR",
        )  # fmt: skip
    assert style.title("mask") == "body mask of the MR"


@pytest.mark.parametrize(
    ("width", "text", "smaller"),
    [(400, "STS_002_CT_on_MR_grid:17: MR", False), (180, "STS_002_CT_on_MR_grid:17: MR", True),
     (60, "STS_002_CT_on_MR_grid:17:", True)],
)  # fmt: skip
def test_a_title_that_does_not_fit_gets_smaller_letters_before_it_loses_words(width, text, smaller):
    fitted, font = _fitted("STS_002_CT_on_MR_grid:17: MR", width, 16)
    assert fitted == text
    assert (font.size < 16) == smaller and font.size >= 0.6 * 16
    assert font.getlength(fitted) <= width or " " not in fitted


def test_titles_of_pairs():
    style = VisualsStyle(CT_MAP, contrast="water")
    pairs = [name.format(pair) for pair in ("simulated", "paired") for name in ("{}_A", "from_{}_A", "{}_B")]
    assert [style.title(name) for name in pairs] == [
        "MR (water) simulated from CT", "CT made from it", "true CT", "real MR (water)", "CT made from it", "true CT",
    ]  # fmt: skip


BAR = GAP_PX + 8 + CAPTION_PX


def test_a_training_sheet_has_every_image_at_its_place():
    rows = [["real_A", "fake_B", "rec_A", "idt_B"], ["real_B", "fake_A", "rec_B", "idt_A"], ["mask", "shape"]]
    visuals = {
        name: torch.full((2, 1, 16, 16), 0.9 - 0.2 * k) for k, name in enumerate(name for row in rows for name in row)
    }
    for columns in (4, 3):
        style = VisualsStyle(IntensityMap.window(-360, 440), columns=columns)
        pixels = np.array(training_sheet(visuals, style))
        top, wide = 0, 0
        for row in [each[k : k + columns] for each in rows for k in range(0, len(each), columns)]:
            of_ct = [style.modality(name) == "CT" for name in row]
            for k, name in enumerate(row):
                left = k * (TILE + GAP_PX)
                value = float(visuals[name][0, 0, 0, 0])
                expected = 255 * (np.clip(value, 0, 1) if name in ("mask", "shape") else (value + 1) / 2)
                tile = pixels[top + CAPTION_PX : top + CAPTION_PX + TILE, left : left + TILE]
                assert np.all(np.abs(tile - expected) <= 1), name
                assert pixels[top : top + CAPTION_PX, left : left + TILE].max() > 100  # the title
                wide = max(wide, left + TILE)
            top += CAPTION_PX + TILE + BAR * any(of_ct)
        assert pixels.shape == (top, wide)


def test_a_pair_is_shown_with_the_difference_in_hu():
    hu = {"from_simulated_A": 140.0, "simulated_B": 40.0}
    visuals = {
        name: torch.full((1, 1, 16, 16), float(CT_MAP.to_network(np.array(value)))) for name, value in hu.items()
    }
    visuals |= {"simulated_A": torch.zeros(1, 1, 16, 16), "from_simulated_B": torch.zeros(1, 1, 16, 16)}
    pixels = np.array(training_sheet(visuals, VisualsStyle(CT_MAP, DisplayWindow(40, 400), columns=5)))
    shown = [pixels[CAPTION_PX + 50, k * (TILE + GAP_PX) + 50].tolist() for k in range(5)]
    # 100 HU above the middle, in a window of 400 HU; the difference in colours from -400 to 400 HU.
    difference = colour_table(DIFFERENCE_COLOURS)[round(127.5 + 255 / 8)].tolist()
    assert len(set(difference)) == 3 and shown.pop(3) == difference
    np.testing.assert_allclose(shown, np.repeat([[127.5], [127.5 + 255 / 4], [127.5], [127.5]], 3, axis=1), atol=1)
    del visuals["simulated_B"]
    assert np.array(training_sheet(visuals, VisualsStyle(CT_MAP))).shape[1] == 3 * TILE + 2 * GAP_PX


def test_slices_that_stay_come_first_under_a_heading():
    style = VisualsStyle(IntensityMap.window(-360, 440), columns=2)
    fixed = {"real_A": torch.full((1, 1, TILE, TILE), -0.5), "rec_A": torch.full((1, 1, TILE, TILE), 0.0)}
    visuals = {"real_A": torch.full((1, 1, TILE, TILE), 0.5)}
    pixels = np.array(training_sheet(visuals, style, fixed))
    heading = CAPTION_PX + 1
    first = heading + CAPTION_PX
    second = first + TILE + heading + CAPTION_PX
    assert pixels.shape == (second + TILE, 2 * TILE + GAP_PX)
    for top, left, value in ((first, 0, 64), (first, TILE + GAP_PX, 128), (second, 0, 191)):
        assert np.all(np.abs(pixels[top : top + TILE, left : left + TILE].astype(int) - value) <= 1)
    assert pixels[:CAPTION_PX].max() > 100 and pixels[first + TILE : first + TILE + CAPTION_PX].max() > 100
    np.testing.assert_array_equal(
        np.array(training_sheet(visuals, style, {})), np.array(training_sheet(visuals, style))
    )


# ------------------------------------------------------------------ records and history


def test_a_history_stays_small_and_keeps_the_mean():
    history = History(steps_per_epoch=10, max_points=100)
    values = np.random.default_rng(0).normal(size=1000)
    redrawn = [history.add(record(k // 10 + 1, k % 10 + 1, G=float(v))) for k, v in enumerate(values)]
    assert len(history.points) <= 100 and sum(redrawn) < 30 and redrawn[0] and not any(redrawn[1:100])
    assert sum(point.count for point in history.points) == 1000
    weighted = sum(point.losses["G"] * point.count for point in history.points) / 1000
    assert weighted == pytest.approx(values.mean(), abs=1e-12)
    x = [point.x for point in history.points]
    assert x == sorted(x) and x[-1] == 100
    assert history.points[-1].losses["G"] == values[-1]  # the newest are never averaged at once


def test_losses_may_change_in_mid_run():
    """A warm start has other losses: each curve has the places of its own records only."""
    history = History(steps_per_epoch=10, max_points=4)
    warm, later = {"G": 1.0, "simulated_A": 3.0}, {"G": 2.0, "D_A": 5.0}
    redrawn = [history.add(record(1, k, **(warm if k < 4 else later))) for k in range(1, 6)]
    assert redrawn == [True, False, False, True, True]
    assert history.names == ["G", "simulated_A", "D_A"]
    assert [(point.losses, point.count) for point in history.points] == [
        (warm, 2), ({"G": 1.5, "simulated_A": 3.0, "D_A": 5.0}, 2), (later, 1),
    ]  # fmt: skip


def test_records_survive_the_disk_and_torn_lines(tmp_path):
    records = [record(1, k, G=k / 3, D_A=0.25) for k in (1, 2, 3)]
    text = "".join(f"{r.to_json()}\n" for r in records)
    (tmp_path / "losses.jsonl").write_text(text + records[0].to_json()[:40])
    assert read_records(tmp_path) == records
    assert read_records(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    "change",
    [{"epoch": "1"}, {"iteration": 1.5}, {"lr": None}, {"losses": [1.0]}, {"losses": {"G": "1"}}, {"more": 1}],
)
def test_a_line_with_other_types_is_no_record(change):
    good = vars(record(1, 2))
    assert parse_record(json.dumps(good)) == record(1, 2)
    assert parse_record(json.dumps(good | change)) is None


# ------------------------------------------------------------------ the log and its displays


class Spy:
    """A display that notes what it is given, and fails while told to."""

    def __init__(self):
        self.seen, self.failing = [], False

    def _note(self, *what):
        if self.failing:
            raise OSError("broken")
        self.seen.append(what)

    def restore(self, history, start):
        self._note("restore", len(history.points), start)

    def show_losses(self, record, history, redraw):
        self._note("losses", record.position, record.losses, len(history.points))

    def show_picture(self, picture):
        self._note("picture", picture().sheet.size)

    def close(self):
        self._note("close")


def log_with(folder, *displays, start=(1, 0)):
    return TrainingLog(run_info(folder), VisualsStyle(CT_MAP), [("spy", display) for display in displays], start)


@pytest.mark.parametrize(("epochs", "seconds", "said"), [(24, None, "epoch 3/24"), (None, 600, "epoch 3, 71 of 600 s")])
def test_the_bar_tells_how_far_a_run_is(tmp_path, monkeypatch, epochs, seconds, said):
    bars = []
    monkeypatch.setattr("visualization.training_log.tqdm", lambda **options: bars.append(options) or nullcontext())
    run = RunInfo("run", tmp_path, {}, {}, epochs, 10, seconds)
    TrainingLog(run, VisualsStyle(CT_MAP), [], (3, 0)).start_epoch(3, 4, 71.4)
    assert (bars[-1]["desc"], bars[-1]["initial"]) == (said, 4)


def test_a_failing_display_costs_one_warning_and_catches_up(tmp_path, caplog):
    good, bad = Spy(), Spy()
    with log_with(tmp_path, bad, good) as training_log:
        training_log.start_epoch(1, 0)
        bad.failing = True
        for iteration in (1, 2, 3):
            training_log.step(0.0)
            training_log.write_losses(1, iteration, losses(G=1.0), 1e-4)
            training_log.write_pictures(1, iteration, {"real_A": torch.zeros(1, 1, 8, 8)})
        bad.failing = False
        for iteration in (4, 5):
            training_log.write_losses(1, iteration, losses(G=1.0), 1e-4)
        training_log.end_epoch()
    warnings = [entry for entry in caplog.records if entry.levelno == logging.WARNING]
    assert len(warnings) == 1 and "training continues" in warnings[0].getMessage()
    assert bad.seen[1:] == [("restore", 4, (1, 4)), ("losses", (1, 5), {"G": 1.0}, 5), ("close",)]
    assert [entry[0] for entry in good.seen] == ["restore", *["losses", "picture"] * 3, "losses", "losses", "close"]


def test_each_loss_is_explained_once_at_the_first_step_that_has_it(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with log_with(tmp_path, Spy()) as training_log:
        training_log.start_epoch(1, 0)
        for names in (["G", "simulated_A"], ["G", "simulated_A"], ["G", "cycle_B", "of_my_own"]):
            training_log.step(0.0, names)
    told = "losses, already multiplied by their weights: "
    assert caplog.messages == [
        f"{told}G = Total; simulated_A = Simulated pairs: MR to CT",
        f"{told}cycle_B = Cycle consistency: CT to MR and back",
    ]
    caplog.clear()
    with log_with(tmp_path) as other_process:
        other_process.start_epoch(1, 0)
        other_process.step(0.0, ["G"])
    assert caplog.messages == []


@pytest.mark.parametrize(("epochs", "seconds", "left"), [(4, None, "17 min"), (None, 600, "9 min"), (None, None, None)])
def test_where_losses_are_long_in_coming_the_time_is_told_once(tmp_path, monkeypatch, caplog, epochs, seconds, left):
    """4 epochs of 10 steps; this process began with the 7th, and has made three, the last two in 65 s: 31 are left."""
    now = 1000.0
    monkeypatch.setattr("visualization.training_log.time.perf_counter", lambda: now)
    monkeypatch.setattr("data.durations.time.monotonic", lambda: now)
    caplog.set_level(logging.INFO)
    run = RunInfo("run", tmp_path, {}, {}, epochs, 10, seconds)
    with TrainingLog(run, VisualsStyle(CT_MAP), [("spy", Spy())], (1, 6)) as training_log:
        training_log.start_epoch(1, 6)
        for later in (10.0, 4.0, 61.0, 25.0):
            now += later
            training_log.step(0.0)
    left_words = f"; about {left} left" if left else ""
    assert caplog.messages == [f"32.5 s a step{left_words}; losses follow"]


def test_the_time_of_a_step_is_told_without_the_validation_before_it(tmp_path, monkeypatch, caplog):
    """Resumed at the last step of an epoch: a validation of 300 s follows it."""
    now = 1000.0
    monkeypatch.setattr("visualization.training_log.time.perf_counter", lambda: now)
    monkeypatch.setattr("data.durations.time.monotonic", lambda: now)
    caplog.set_level(logging.INFO)
    run = RunInfo("run", tmp_path, {}, {}, None, 10, None)
    with TrainingLog(run, VisualsStyle(CT_MAP), [("spy", Spy())], (1, 9)) as training_log:
        training_log.start_epoch(1, 9)
        now += 4
        training_log.step(0.0)
        now += 300
        training_log.start_epoch(2, 0)
        for _ in range(4):
            now += 7
            training_log.step(0.0)
    assert caplog.messages == ["7.0 s a step; losses follow"]


def test_no_time_is_told_where_losses_come_soon(tmp_path, monkeypatch, caplog):
    now = 1000.0
    monkeypatch.setattr("visualization.training_log.time.perf_counter", lambda: now)
    caplog.set_level(logging.INFO)
    with log_with(tmp_path, Spy()) as training_log:
        training_log.start_epoch(1, 0)
        training_log.step(0.0)
        training_log.write_losses(1, 1, losses(G=1.0), 1e-4)
        now = 1100.0
        training_log.step(0.0)
    assert caplog.messages == []


def test_every_outage_is_told_once_and_its_end_too(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    spy = Spy()
    with log_with(tmp_path, spy) as training_log:
        training_log.start_epoch(1, 0)
        for iteration, failing in enumerate((False, True, True, False, True, True, False, False), start=1):
            spy.failing = failing
            training_log.write_losses(1, iteration, losses(G=1.0), 1e-4)
    told = [(entry.levelname, entry.getMessage()) for entry in caplog.records]
    assert [level for level, _ in told] == ["WARNING", "INFO", "WARNING", "INFO"]
    assert all("spy: broken" in text for _, text in told[::2])
    assert all("spy: works again" in text for _, text in told[1::2])


def test_pictures_that_never_work_cost_one_warning(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with log_with(tmp_path, Spy()) as training_log:
        training_log.start_epoch(1, 0)
        for iteration in (1, 2, 3):
            training_log.write_pictures(1, iteration, {"real_A": torch.zeros(1, 1)})
            training_log.write_losses(1, iteration, losses(G=1.0), 1e-4)
    assert [entry.levelname for entry in caplog.records] == ["WARNING"]


def test_an_image_that_cannot_be_drawn_does_not_stop_a_training(tmp_path, caplog):
    with log_with(tmp_path, Spy()) as training_log:
        training_log.start_epoch(1, 0)
        training_log.write_pictures(1, 1, {"real_A": torch.zeros(1, 1)})
        training_log.write_losses(1, 2, losses(G=1.0), 1e-4)
    assert "training continues" in caplog.text


def test_losses_leave_the_device_in_one_piece(tmp_path, monkeypatch):
    """One wait for the accelerator a record, however many losses there are; none between records."""
    moves = []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: moves.append(1) or [0.0] * self.numel())
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: pytest.fail("a loss was read on its own"))
    monkeypatch.setattr(torch.Tensor, "item", lambda self: pytest.fail("a loss was read on its own"))
    with log_with(tmp_path, Spy()) as training_log:
        training_log.start_epoch(1, 0)
        for _ in range(5):
            training_log.step(0.1)
        assert moves == []
        training_log.write_losses(1, 5, losses(G=1.0, D_A=2.0, D_B=3.0), 1e-4)
    assert moves == [1]


def test_lines_and_records_say_time_and_every_loss(tmp_path, capsys):
    with log_with(tmp_path, Console(tmp_path)) as training_log:
        training_log.start_epoch(3, 0)
        for _ in range(4):
            training_log.step(0.25)
        training_log.write_losses(3, 4, losses(G=1.5, idt_A=0.25), 2e-4)
    (line,) = (tmp_path / "loss_log.txt").read_text().splitlines()
    assert line in capsys.readouterr().out
    assert re.fullmatch(
        r"epoch 3  iteration 4  \d\.\d{3} s/it  data 0\.250 s  lr 2\.00e-04  (about \d+ s left  )?G 1\.5000  "
        r"idt_A 0\.2500", line,
    )  # fmt: skip  # a busy machine has time left
    (written,) = map(json.loads, (tmp_path / "losses.jsonl").read_text().splitlines())
    assert (written["epoch"], written["iteration"], written["lr"]) == (3, 4, 2e-4)
    assert written["seconds_of_data"] == 0.25 and written["losses"] == {"G": 1.5, "idt_A": 0.25}
    assert 0 <= written["seconds_per_step"] < 5 and written["time"] > 1.7e9


def test_no_bar_is_drawn_where_nobody_sees_it(tmp_path, capsys):
    with log_with(tmp_path) as training_log:
        training_log.start_epoch(1, 0)
        training_log.step(0.0)
        training_log.end_epoch()
    assert capsys.readouterr() == ("", "")


def test_a_resumed_run_drops_what_is_taken_again(tmp_path):
    with log_with(tmp_path, Console(tmp_path)) as training_log:
        training_log.start_epoch(1, 0)
        for epoch, iteration in ((1, 5), (1, 10), (2, 5), (2, 10)):
            training_log.write_losses(epoch, iteration, losses(G=1.0), 1e-4)
    with (tmp_path / "loss_log.txt").open("a") as file:
        file.write("epoch 2  iter")  # torn by a crash
    spy = Spy()
    with log_with(tmp_path, Console(tmp_path), spy, start=(2, 5)):
        pass
    assert [r.position for r in read_records(tmp_path)] == [(1, 5), (1, 10), (2, 5)]
    assert len((tmp_path / "loss_log.txt").read_text().splitlines()) == 3
    assert spy.seen[0] == ("restore", 3, (2, 5))


def test_a_full_disk_loses_no_record(tmp_path, monkeypatch, caplog):
    back_end, history = Console(tmp_path), History(10)
    back_end.restore(history, (1, 0))
    whole_append = Console._append

    def full(self, name, lines):
        with (self.folder / name).open("a") as file:
            file.write("".join(lines)[:7])
        raise OSError(28, "No space left on device")

    back_end.show_losses(record(1, 1), history, False)
    monkeypatch.setattr(Console, "_append", full)
    back_end.show_losses(record(1, 2), history, False)
    back_end.show_losses(record(1, 3), history, False)
    monkeypatch.setattr(Console, "_append", whole_append)
    back_end.show_losses(record(1, 4), history, False)
    assert [r.position for r in read_records(tmp_path)] == [(1, k) for k in (1, 2, 3, 4)]
    lines = (tmp_path / "loss_log.txt").read_text().splitlines()
    assert lines == [console.format_record(record(1, k)) for k in (1, 2, 3, 4)]
    assert caplog.text.count("No space left") == 1


# ------------------------------------------------------------------ the page of a training


def picture(epoch, iteration):
    return lambda: Picture(epoch, iteration, Image.new("L", (8, 8), 7))


def page_state(folder):
    curves = (folder / "web/data/curves.js").read_text().splitlines()
    rows = [line for line in curves if line.startswith("point(")]
    points = [json.loads(f"[{line.removeprefix('point(').removesuffix(');')}]") for line in rows]
    (call,) = (folder / "web/data/pictures.js").read_text().splitlines()
    listed = [entry["file"] for entry in json.loads(call.removeprefix("pictures(").removesuffix(");"))]
    assert sorted(listed) == sorted(path.name for path in (folder / "web/images").iterdir())
    return curves[0], points, listed


def test_the_page_of_a_training_grows_and_resumes_after_a_resume(tmp_path):
    page, history = TrainingPage(run_info(tmp_path, name="<b>run", dataroot="<i>x")), History(10)
    page.restore(history, (1, 0))
    for epoch, iteration in ((1, 5), (1, 10), (2, 5), (2, 10)):
        page.show_picture(picture(epoch, iteration))
        taken = record(epoch, iteration, G=1.25, D_A=0.5)
        page.show_losses(taken, history, history.add(taken))
    names, points, listed = page_state(tmp_path)
    assert names == 'begin(["G","D_A"],[["Total",""],["Discriminators","real or synthetic CT"]]);'
    assert points == [[x, 2e-4, 0.5, 1.25, 0.5] for x in (0.5, 1, 1.5, 2)]
    assert listed == ["epoch001_000010.png", "epoch002_000005.png", "epoch002_000010.png"]
    text = (tmp_path / "web/index.html").read_text()
    assert "&lt;b&gt;run" in text and "&lt;i&gt;x" in text and "<b>run" not in text and "<i>x" not in text

    taken = record(3, 5, G=1.25, cycle_A=2.0)  # other losses
    page.show_losses(taken, history, history.add(taken))
    names, points, _ = page_state(tmp_path)
    assert names.startswith('begin(["G","D_A","cycle_A"],[["Total",""],')
    assert [point[3:] for point in points] == [[1.25, 0.5, None]] * 4 + [[1.25, None, 2.0]]

    resumed, history = TrainingPage(run_info(tmp_path)), History(10)
    for epoch, iteration in ((1, 5), (1, 10), (2, 5)):
        history.add(record(epoch, iteration, G=1.25, D_A=0.5))
    resumed.restore(history, (2, 5))
    _, points, listed = page_state(tmp_path)
    assert [point[0] for point in points] == [0.5, 1, 1.5]
    assert listed == ["epoch001_000010.png", "epoch002_000005.png"]


def test_pictures_of_many_epochs_become_fewer():
    kept = []
    for epoch in range(1, 1001):
        for iteration in (400, 800):
            kept = thin([*kept, (epoch, iteration)])
            assert len(kept) <= training_page.MAX_PICTURES
    assert kept[-2:] == [(1000, 400), (1000, 800)]
    assert {iteration for epoch, iteration in kept if epoch < 1000} == {800}
    assert kept == sorted(kept) and kept[0][0] < 50


def test_a_page_on_a_full_disk_is_whole_again_when_there_is_room(tmp_path, monkeypatch, caplog):
    page = TrainingPage(run_info(tmp_path))
    whole_file = training_page.whole_file
    with TrainingLog(run_info(tmp_path), VisualsStyle(CT_MAP), [("page", page)], (1, 0)) as training_log:
        training_log.start_epoch(1, 0)
        training_log.write_losses(1, 1, losses(G=1.0), 1e-4)

        def full(path):
            raise InputError("No space left on device")

        monkeypatch.setattr(training_page, "whole_file", full)
        training_log.write_pictures(1, 1, {"real_A": torch.zeros(1, 1, 8, 8)})
        with (tmp_path / "web/data/curves.js").open("a") as file:
            file.write("point(")  # half a line
        training_log.write_losses(1, 2, losses(G=2.0), 1e-4)
        monkeypatch.setattr(training_page, "whole_file", whole_file)
        training_log.write_losses(1, 3, losses(G=3.0), 1e-4)
        training_log.write_losses(1, 4, losses(G=4.0), 1e-4)
        training_log.write_pictures(1, 4, {"real_A": torch.zeros(1, 1, 8, 8)})
    _, points, listed = page_state(tmp_path)
    assert [point[3] for point in points] == [1, 2, 3, 4]
    assert listed == ["epoch001_000004.png"]
    assert len([entry for entry in caplog.records if entry.levelno == logging.WARNING]) == 1


class BrokenOutput(io.StringIO):
    """An output as of `train.py | head`, once head has ended."""

    def write(self, text):
        raise BrokenPipeError("nobody reads")


def test_an_output_that_nobody_reads_loses_no_record(tmp_path, monkeypatch, caplog):
    with log_with(tmp_path, Console(tmp_path)) as training_log:
        training_log.start_epoch(1, 0)
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", BrokenOutput())
            for iteration in (1, 2, 3):
                training_log.write_losses(1, iteration, losses(G=1.0), 1e-4)
        training_log.write_losses(1, 4, losses(G=1.0), 1e-4)
    assert [r.position for r in read_records(tmp_path)] == [(1, k) for k in (1, 2, 3, 4)]
    assert len((tmp_path / "loss_log.txt").read_text().splitlines()) == 4
    assert caplog.text.count("nobody reads") == 1


def test_a_line_is_out_at_once_where_output_goes_to_a_file(tmp_path, monkeypatch):
    with (tmp_path / "nohup.out").open("w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        Console(tmp_path).show_losses(record(1, 1), History(10), False)
        assert (tmp_path / "nohup.out").read_text().startswith("epoch 1  iteration 1  ")


@pytest.mark.parametrize("broken", ["drop_records_after", "drop_lines_after"])
def test_a_cut_that_fails_at_a_resume_is_made_up_for(tmp_path, monkeypatch, caplog, broken):
    """The records of the abandoned steps go, and all of the resumed run stay, also those taken meanwhile."""
    caplog.set_level(logging.INFO)
    with log_with(tmp_path, Console(tmp_path)) as training_log:
        training_log.start_epoch(1, 0)
        for iteration in range(1, 11):
            training_log.write_losses(1, iteration, losses(G=1.0), 1e-4)
    with monkeypatch.context() as patched:

        def full(*_):
            raise InputError("No space left on device")

        patched.setattr(console, broken, full)
        second = log_with(tmp_path, Console(tmp_path), start=(1, 4))
        second.start_epoch(1, 4)
        second.write_losses(1, 5, losses(G=2.0), 1e-4)
        second.write_losses(1, 6, losses(G=2.0), 1e-4)
    second.write_losses(1, 7, losses(G=2.0), 1e-4)
    second.write_losses(1, 8, losses(G=2.0), 1e-4)
    second.close()
    taken = [(r.iteration, r.losses["G"]) for r in read_records(tmp_path)]
    assert taken == [(k, 1.0 if k <= 4 else 2.0) for k in range(1, 9)]
    lines = (tmp_path / "loss_log.txt").read_text().splitlines()
    assert [line.endswith("G 2.0000") for line in lines] == [False] * 4 + [True] * 4
    assert caplog.text.count("No space left") == 1 and caplog.text.count("written again") == 1


def test_records_that_wait_are_written_at_the_end(tmp_path, monkeypatch):
    back_end = Console(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Console, "_append", lambda *_: (_ for _ in ()).throw(OSError("full")))
        back_end.show_losses(record(1, 1), History(10), False)
    back_end.close()
    assert [r.position for r in read_records(tmp_path)] == [(1, 1)]


def test_a_resume_keeps_lines_that_are_no_records(tmp_path):
    kept = ["a note\n", record(1, 5).to_json() + "\n", '{"epoch": 1, "of": "a later version"}\n', "\n"]
    gone = [record(1, 6).to_json() + "\n", record(1, 7).to_json()[:30]]
    (tmp_path / "losses.jsonl").write_text("".join([*kept, *gone]))
    lines = ["# a note\n", console.format_record(record(1, 5)) + "\n"]
    (tmp_path / "loss_log.txt").write_text("".join([*lines, console.format_record(record(1, 5))[:33]]))
    Console(tmp_path).restore(History(10), (1, 5))
    assert (tmp_path / "losses.jsonl").read_text() == "".join(kept)
    assert (tmp_path / "loss_log.txt").read_text() == "".join(lines)
    before = (tmp_path / "losses.jsonl").stat().st_size
    Console(tmp_path).restore(History(10), (1, 9))
    assert (tmp_path / "losses.jsonl").stat().st_size == before


def test_earlier_records_that_cannot_be_read_do_not_stop_a_training(tmp_path, caplog):
    (tmp_path / "losses.jsonl").mkdir()
    spy = Spy()
    with log_with(tmp_path, spy) as training_log:
        training_log.start_epoch(1, 0)
        training_log.write_losses(1, 1, losses(G=1.0), 1e-4)
    assert spy.seen[:2] == [("restore", 0, (1, 0)), ("losses", (1, 1), {"G": 1.0}, 1)]
    assert [entry.levelname for entry in caplog.records] == ["WARNING"]
    assert "earlier losses cannot be read" in caplog.text


def test_a_line_of_wrong_type_does_not_stop_a_training(tmp_path):
    strange = json.dumps(vars(record(1, 1)) | {"epoch": "1"})
    (tmp_path / "losses.jsonl").write_text(f"{strange}\n{record(1, 2).to_json()}\n")
    spy = Spy()
    with log_with(tmp_path, spy, start=(1, 2)):
        pass
    assert spy.seen[0] == ("restore", 1, (1, 2))


@pytest.mark.parametrize(
    ("backend", "kept"),
    [
        ("module://not_installed.backend", "None"),
        ("module://pytest.not_there", "None"),
        ("module://json.decoder", "module://json.decoder"),
        ("agg", "agg"),
    ],
)
def test_a_notebooks_backend_that_is_not_installed_here_is_left_out(backend, kept):
    ask = "import os, visualization; print(os.environ.get('MPLBACKEND'))"
    environment = os.environ | {"MPLBACKEND": backend}
    assert subprocess.check_output([sys.executable, "-c", ask], env=environment, text=True).strip() == kept
