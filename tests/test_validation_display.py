"""How validations are shown: records, console, page and visdom; that a resumed run continues them."""

import json
import logging

import numpy as np
import pytest

from data.values.intensity import IntensityMap
from scripts import plot_losses
from tests.browser import open_browser, visit, wait_until
from tests.test_visdom import curves, impatient, server  # noqa: F401
from tests.test_visualization import Spy, losses, run_info
from visualization.console import Console
from visualization.loss_titles import VALIDATION_TITLES
from visualization.panels import GAP_PX, ValidationSlice, VisualsStyle, caption_px, validation_sheet
from visualization.records import RECORDS_NAME, ValidationRecord, parse_validation, read_records, read_validations
from visualization.training_log import TrainingLog
from visualization.training_page import TrainingPage
from visualization.visdom_display import VisdomDisplay
from visualization.windows import DIFFERENCE_COLOURS, colour_table

STYLE = VisualsStyle(IntensityMap.window(-1000, 1400))
TILE = 192
CAPTION_PX = caption_px(4 * TILE)
LOW, HIGH = STYLE.window.range


def shown(name="p0:3", mr=0.0, hu=LOW, true_hu=HIGH, **more) -> ValidationSlice:
    images = [np.full((16, 16), value) for value in (mr, hu, 0 if true_hu is None else true_hu)]
    return ValidationSlice(name, images[0], images[1], None if true_hu is None else images[2], **more)


def log_with(folder, *displays, start=(1, 0)) -> TrainingLog:
    return TrainingLog(run_info(folder), STYLE, [(f"display {k}", d) for k, d in enumerate(displays)], start)


def epochs_of(training_log, *epochs, **values):
    """Show epochs of ten steps, each with a validation after it."""
    for epoch in epochs:
        training_log.start_epoch(epoch, 0)
        training_log.step(0.0)
        training_log.write_losses(epoch, 10, losses(G=1.0), 1e-4)
        training_log.write_validation(epoch, 10, {"mae": 100.0 / epoch, "cycle": 0.25} | values, [shown()])
        training_log.end_epoch()


def test_a_sheet_of_slices_has_a_row_each_with_ct_in_its_window():
    pixels = np.array(validation_sheet([shown(mr=-1.0), shown(mr=1.0, hu=HIGH, true_hu=None)], STYLE))
    row_px = CAPTION_PX + TILE + GAP_PX + 8 + CAPTION_PX  # title, slice, bar with its numbers
    assert pixels.shape == (2 * row_px, 4 * TILE + 3 * GAP_PX, 3)

    def tile(row, column):
        top, left = row * row_px + CAPTION_PX, column * (TILE + GAP_PX)
        return set(map(tuple, pixels[top : top + TILE, left : left + TILE].reshape(-1, 3).tolist()))

    black, white = {(0, 0, 0)}, {(255, 255, 255)}
    too_low = {tuple(colour_table(DIFFERENCE_COLOURS)[0].tolist())}  # beyond -400 HU
    assert [[tile(row, column) for column in range(4)] for row in range(2)] == [
        [black, black, white, too_low], [white, white, black, black],
    ]  # fmt: skip


def test_a_validation_is_a_line_of_its_own_in_both_files(tmp_path):
    with log_with(tmp_path, Console(tmp_path)) as training_log:
        epochs_of(training_log, 1, 2)
    lines = (tmp_path / RECORDS_NAME).read_text().splitlines()
    assert ["validation" in json.loads(line) for line in lines] == [False, True] * 2
    assert json.loads(lines[3])["validation"] == {"mae": 50.0, "cycle": 0.25}
    assert [r.position for r in read_records(tmp_path)] == [(1, 10), (2, 10)]
    validations = [(r.position, r.validation["mae"]) for r in read_validations(tmp_path)]
    assert validations == [((1, 10, 1), 100), ((2, 10, 1), 50)]
    text = (tmp_path / "loss_log.txt").read_text().splitlines()
    assert text[3] == "epoch 2  iteration 10  validation  mae 50  cycle 0.25"
    assert plot_losses.read_records(tmp_path)[0].losses == {"G": 1.0}


def test_time_spent_on_validation_is_no_time_of_steps(tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr("visualization.training_log.time.perf_counter", lambda: float(next(clock)))
    with log_with(tmp_path, Console(tmp_path)) as training_log:
        training_log._is_silent = False  # it does not look at the clock between losses
        epochs_of(training_log, 1)
        training_log.start_epoch(2, 0)
        training_log.step(0.0)
        training_log.write_losses(2, 1, losses(G=1.0), 1e-4)
    assert [r.seconds_per_step for r in read_records(tmp_path)] == [100, 100]


@pytest.mark.parametrize("change", [{"validation": [1]}, {"validation": {"mae": "x"}}, {"epoch": "1"}, {"losses": {}}])
def test_lines_that_are_no_validation_are_passed_over(change):
    good = {"epoch": 1, "iteration": 2, "time": 3.5, "validation": {"mae": 4.5}}
    assert parse_validation(json.dumps(good)) == ValidationRecord(**good)
    assert parse_validation(json.dumps(good | change)) is None
    assert parse_validation(json.dumps(good)[:-5]) is None


def test_a_resumed_run_drops_the_validations_after_its_state(tmp_path):
    with log_with(tmp_path, Console(tmp_path), TrainingPage(run_info(tmp_path))) as training_log:
        epochs_of(training_log, 1, 2, 3)
    spy, page = Spy(), TrainingPage(run_info(tmp_path))
    with log_with(tmp_path, Console(tmp_path), page, spy, start=(3, 0)) as training_log:
        assert [point.x for point in training_log.history.validations] == [1, 2]
        assert [r.position for r in read_validations(tmp_path)] == [(1, 10, 1), (2, 10, 1)]
        assert len((tmp_path / "loss_log.txt").read_text().splitlines()) == 4
        names = ["validation001_000010.png", "validation002_000010.png"]
        assert sorted(path.name for path in (tmp_path / "web/images").iterdir()) == names
        spy.show_validation = lambda record, history, picture: spy.seen.append(record.position)
        epochs_of(training_log, 3, ssim=0.5)
    calls = (tmp_path / "web/data/validation.js").read_text().splitlines()
    assert calls == [
        f"beginValidation({json.dumps(VALIDATION_TITLES, separators=(',', ':'))});",
        'validation(1.0,{"mae":100.0,"cycle":0.25});',
        'validation(2.0,{"mae":50.0,"cycle":0.25});',
        'validation(3.0,{"mae":33.333,"cycle":0.25,"ssim":0.5});',
    ]
    assert (3, 10, 1) in spy.seen


def test_a_validation_with_nothing_to_show_has_its_values_on_the_page(tmp_path, caplog):
    with log_with(tmp_path, TrainingPage(run_info(tmp_path))) as training_log:
        training_log.write_validation(1, 10, {"dice_body": 0.5}, [])
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    assert (tmp_path / "web/data/validation.js").read_text().splitlines()[1:] == ['validation(1.0,{"dice_body":0.5});']


@pytest.mark.parametrize(("start", "kept"), [((2, 10), 1), ((2, 10, 1), 2)])
def test_a_validation_after_the_last_step_stays_only_where_the_state_knows_of_it(tmp_path, start, kept):
    with log_with(tmp_path, Console(tmp_path), TrainingPage(run_info(tmp_path))) as training_log:
        epochs_of(training_log, 1, 2)
    with log_with(tmp_path, Console(tmp_path), TrainingPage(run_info(tmp_path)), start=start) as training_log:
        assert len(training_log.history.points) == 2 and len(training_log.history.validations) == kept
    assert [r.position for r in read_records(tmp_path)] == [(1, 10), (2, 10)]
    assert [r.position for r in read_validations(tmp_path)] == [(1, 10, 1), (2, 10, 1)][:kept]
    assert len((tmp_path / "loss_log.txt").read_text().splitlines()) == 2 + kept
    assert len(list((tmp_path / "web/images").glob("validation*.png"))) == kept
    assert len((tmp_path / "web/data/validation.js").read_text().splitlines()) == 1 + kept


def test_a_display_that_fails_costs_one_warning_and_catches_up(tmp_path, caplog, monkeypatch):
    page = TrainingPage(run_info(tmp_path))
    with log_with(tmp_path, Console(tmp_path), page) as training_log:
        epochs_of(training_log, 1)
        add = page._validation_pictures.add
        monkeypatch.setattr(page._validation_pictures, "add", lambda picture: (_ for _ in ()).throw(OSError("full")))
        epochs_of(training_log, 2)
        monkeypatch.setattr(page._validation_pictures, "add", add)
        epochs_of(training_log, 3)
    assert caplog.text.count("full; training continues without it") == 1
    calls = (tmp_path / "web/data/validation.js").read_text().splitlines()
    assert [call.split("(")[1].split(",")[0] for call in calls[1:]] == ["1.0", "2.0", "3.0"]
    assert len(read_validations(tmp_path)) == 3


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


def test_the_page_has_a_chart_for_every_value_and_the_pictures(browser, tmp_path):
    with log_with(tmp_path, TrainingPage(run_info(tmp_path))) as training_log:
        epochs_of(training_log, 1, 2, 4)
    with visit(browser, (tmp_path / "web/index.html").as_uri()) as page:
        page.wait_for_selector("body[data-ready=true]")
        page.wait_for_selector("circle.dot")
        titles = page.locator(".chart figcaption").all_inner_texts()
        assert titles[1:3] == ["Validation: MAE [HU]", "Validation: cycle error"]
        assert page.locator("#chart-1 circle.dot").count() == 3
        heights = [float(dot.get_attribute("cy")) for dot in page.locator("#chart-1 circle.dot").all()]
        assert heights == sorted(heights)  # it falls, which is down: larger y
        places = [text.strip() for text in page.locator("#validation-earlier button").all_inner_texts()]
        assert places == [f"epoch {epoch}, iteration 10" for epoch in (4, 2, 1)]
        wait_until(page, "document.getElementById('validation-sheet').naturalWidth > 0")
        page.focus("#validation-time")
        page.keyboard.press("ArrowLeft")
        assert page.inner_text("#validation-where") == "epoch 2, iteration 10"
        assert page.is_hidden("#pictures")


def test_visdom_has_the_curves_and_the_picture(server, tmp_path):  # noqa: F811
    display = VisdomDisplay(run_info(tmp_path), "http://localhost", server.port, "validating", 1, start_server=False)
    with log_with(tmp_path, display) as training_log:
        epochs_of(training_log, 1, 2)
    assert curves(server.port, "validation-1", "validating") == {
        "MAE [HU]": ([1, 2], [100, 50]), "cycle error": ([1, 2], [0.25, 0.25]),
    }  # fmt: skip
    assert curves(server.port, "losses-1", "validating") == {"Total": ([1, 2], [1, 1])}
