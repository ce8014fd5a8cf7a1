"""TensorBoard and Weights & Biases as displays: what was written is read back."""

import io
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data.errors import InputError
from data.values.intensity import IntensityMap
from tests.test_visualization import losses, record, run_info
from visualization import logger_displays
from visualization.display import Picture
from visualization.logger_displays import TensorBoard, Wandb, check_installed
from visualization.panels import VisualsStyle
from visualization.records import History
from visualization.settings import DisplaySettings
from visualization.training_log import TrainingLog, open_training_log

STEPS = 10  # of an epoch


def log_of(folder, display, start=(1, 0)) -> TrainingLog:
    return TrainingLog(
        run_info(folder, STEPS), VisualsStyle(IntensityMap.window(-1000, 1400)), [("logger", display)], start
    )


def read_back(folder):
    """Return scalars as (step, value) by tag, and images as arrays by (tag, step)."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    tags = events.Tags()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
    images = {
        (tag, event.step): np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("L"))
        for tag in tags["images"]
        for event in events.Images(tag)
    }
    return scalars, images


def sheet(value):
    return Image.fromarray(np.full((6, 9), value, np.uint8))


def test_tensorboard_has_every_loss_and_picture_at_its_step(tmp_path):
    pytest.importorskip("tensorboard")
    board = TensorBoard(run_info(tmp_path, STEPS))
    with log_of(tmp_path, board) as training_log:
        training_log.start_epoch(1, 0)
        training_log.write_losses(1, 5, losses(G=1.5, D_A=0.25), 2e-4)
        training_log.write_losses(2, 3, losses(G=1.25, D_A=0.5), 1e-4)
        training_log.write_validation(2, 10, {"mae": 80.0}, [])
        board.show_picture(lambda: Picture(2, 3, sheet(77)))
    scalars, images = read_back(tmp_path)
    assert scalars["Total"] == [(5, 1.5), (13, 1.25)] and scalars["Discriminators/real or synthetic CT"] == [
        (5, 0.25),
        (13, 0.5),
    ]
    assert scalars["Learning rate"] == [(5, pytest.approx(2e-4)), (13, pytest.approx(1e-4))]
    assert scalars["Validation/MAE [HU]"] == [(20, 80.0)]
    assert np.array_equal(images["Pictures/training", 13], np.full((6, 9), 77))


def test_a_resumed_run_drops_the_steps_that_it_takes_again(tmp_path):
    pytest.importorskip("tensorboard")
    with log_of(tmp_path, TensorBoard(run_info(tmp_path, STEPS))) as training_log:
        for iteration, value in ((5, 1.0), (10, 2.0)):
            training_log.write_losses(1, iteration, losses(G=value), 1e-4)
    with log_of(tmp_path, TensorBoard(run_info(tmp_path, STEPS)), start=(1, 5)) as training_log:
        training_log.write_losses(1, 10, losses(G=3.0), 1e-4)
    assert read_back(tmp_path)[0]["Total"] == [(5, 1.0), (10, 3.0)]


def test_a_board_that_comes_later_has_the_whole_history(tmp_path):
    pytest.importorskip("tensorboard")
    history = History(STEPS)
    for iteration in (2, 4):
        history.add(record(1, iteration))
    board = TensorBoard(run_info(tmp_path, STEPS))
    board.restore(history, (1, 4))
    board.close()
    assert read_back(tmp_path)[0]["Total"] == [(2, 2.0), (4, 4.0)]


def test_what_a_failure_kept_back_is_sent_once(tmp_path, monkeypatch, caplog):
    pytest.importorskip("tensorboard")
    board = TensorBoard(run_info(tmp_path, STEPS))
    scalars = TensorBoard._scalars

    def full(*_):
        raise OSError(28, "No space left on device")

    with log_of(tmp_path, board) as training_log:
        training_log.write_losses(1, 1, losses(G=1.0), 1e-4)
        monkeypatch.setattr(TensorBoard, "_scalars", full)
        training_log.write_losses(1, 2, losses(G=2.0), 1e-4)
        training_log.write_losses(1, 3, losses(G=3.0), 1e-4)
        monkeypatch.setattr(TensorBoard, "_scalars", scalars)
        training_log.write_losses(1, 4, losses(G=4.0), 1e-4)
    assert read_back(tmp_path)[0]["Total"] == [(k, float(k)) for k in (1, 2, 3, 4)]
    assert len([text for text in caplog.messages if "training continues without it" in text]) == 1


class FakeWandb(ModuleType):
    """As much of wandb as is called; keeps what it is given."""

    def __init__(self):
        super().__init__("wandb")
        self.started, self.logged, self.ended = [], [], 0
        self.Image = lambda sheet: ("image", np.asarray(sheet)[0, 0])

    def init(self, **options):
        self.started.append(options)
        return SimpleNamespace(log=self.logged.append, define_metric=lambda *_, **__: None, finish=self._finish)

    def _finish(self):
        self.ended += 1


def test_wandb_gets_the_same_and_resumes_under_its_id(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    display = Wandb(run_info(tmp_path, STEPS, name="r", ngf=64))
    with log_of(tmp_path, display) as training_log:
        training_log.write_losses(2, 3, losses(G=1.25), 1e-4)
        training_log.write_validation(2, 10, {"mae": 80.0}, [])
        display.show_picture(lambda: Picture(2, 3, sheet(77)))
    assert fake.logged == [
        {"Total": 1.25, "Learning rate": 1e-4, "step": 13}, {"Validation/MAE [HU]": 80.0, "step": 20},
        {"Pictures/training": ("image", 77), "step": 13},
    ]  # fmt: skip
    with log_of(tmp_path, Wandb(run_info(tmp_path, STEPS)), start=(2, 5)):
        pass
    first, second = fake.started
    assert (first["project"], first["name"], first["config"], first["resume"]) == (
        "mr-to-ct", "r", {"ngf": 64}, "allow",
    )  # fmt: skip
    assert first["id"] == second["id"] and len(first["id"]) == 16 and fake.ended == 2


def test_the_log_of_a_run_opens_the_logger_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb())
    monkeypatch.setattr(logger_displays, "find_spec", lambda name: name)
    settings = DisplaySettings(logger="wandb", no_html=True)
    log = open_training_log(run_info(tmp_path), settings, IntensityMap.window(-1000, 1400), "AtoB", (1, 0))
    assert [type(guarded.display).__name__ for guarded in log.displays] == ["Console", "Wandb"]
    log.close()


def test_a_logger_that_is_not_installed_is_refused_in_words(monkeypatch):
    monkeypatch.setattr(logger_displays, "find_spec", lambda name: None)
    check_installed("none")
    for logger in ("tensorboard", "wandb"):
        with pytest.raises(InputError, match=f"--logger {logger}: not installed; run first: pip install {logger}"):
            DisplaySettings(logger=logger)
