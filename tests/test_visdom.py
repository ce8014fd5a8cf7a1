"""Curves and pictures in a real visdom server, which these tests start on a free port: there, absent, killed, back."""

import base64
import io
import json
import logging
import multiprocessing
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import train
from data.values.intensity import IntensityMap
from tests.browser import open_browser, visit
from tests.processes import Program
from tests.test_datasets import dataroot  # noqa: F401
from tests.test_train import SHORT, TINY
from visualization import visdom_display, visdom_server
from visualization.console import Console
from visualization.display import RunInfo
from visualization.panels import VisualsStyle, training_sheet
from visualization.training_log import TrainingLog
from visualization.visdom_display import VisdomDisplay, _connect
from visualization.visdom_server import LocalServer, is_listening, scripts_are_there

STYLE = VisualsStyle(IntensityMap.window(-1000, 1400))
RAMP = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
# The second row has a difference, which is in colours.
VISUALS = {"real_A": RAMP, "fake_B": torch.zeros(1, 1, 8, 8)}
VISUALS |= {"simulated_A": RAMP, "from_simulated_A": RAMP, "simulated_B": torch.zeros(1, 1, 8, 8)}
PATIENCE_S = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server for the tests that do not kill it."""
    running = LocalServer(free_port(), tmp_path_factory.mktemp("visdom"))
    running.start()
    yield running
    running.stop()
    assert not is_listening(running.port)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(visdom_display, "_RETRY_SECONDS", 0.2)


def log_to(server_port, folder, start=(1, 0), env="env", name="run", more=()) -> TrainingLog:
    run = RunInfo(name, folder, {}, {}, 5, 10)
    display = VisdomDisplay(run, "http://localhost", server_port, env, 1, start_server=False)
    return TrainingLog(run, STYLE, [("visdom", display), *more], start)


def show(training_log, *positions):
    for epoch, iteration in positions:
        values = {"G": torch.tensor(10.0 * epoch + iteration), "D_A": torch.tensor(0.5)}
        training_log.write_losses(epoch, iteration, values, 1e-3 / epoch)


def wait_for(reached):
    deadline = time.monotonic() + PATIENCE_S
    while not (value := reached()):
        assert time.monotonic() < deadline, "the server never got there"
        time.sleep(0.1)
    return value


def curves(port, window, env="env"):
    """The curves of a window by name, as the server has them: lists of x and of y; empty where there is none."""
    client = _connect("http://127.0.0.1", port, env)
    traces = json.loads(client.get_window_data(window, env))["content"]["data"] if client.has(window) else []
    return {trace["name"]: (trace["x"], trace["y"]) for trace in traces}


def test_every_curve_has_a_colour_of_its_own():
    for count in (1, 16, 20, 33):
        assert len({tuple(colour) for colour in visdom_display.colours(count)}) == count


def test_curves_and_pictures_arrive_with_the_right_values(server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with log_to(server.port, tmp_path) as training_log:
        training_log.start_epoch(1, 0)
        show(training_log, (1, 5))
        wait_for(lambda: curves(server.port, "losses-1"))
        show(training_log, (1, 10), (2, 5))
        training_log.write_pictures(2, 5, VISUALS)
    assert curves(server.port, "losses-1") == {
        "Total": ([0.5, 1.0, 1.5], [15, 20, 25]),
        "Discriminators: real or synthetic CT": ([0.5, 1.0, 1.5], [0.5, 0.5, 0.5]),
    }
    assert curves(server.port, "rate-1") == {"learning rate": ([0.5, 1.0, 1.5], [1e-3, 1e-3, 5e-4])}
    window = json.loads(_connect("http://127.0.0.1", server.port, "env").get_window_data("images-1", "env"))
    assert window["content"]["caption"] == "epoch 2, iteration 5"
    assert f"visdom: http://localhost:{server.port}/env/env" in caplog.text  # and not the empty "main"
    losses = json.loads(_connect("http://127.0.0.1", server.port, "env").get_window_data("losses-1", "env"))
    drawn = [trace["line"]["color"] for trace in losses["content"]["data"]]
    assert drawn == ["#{:02x}{:02x}{:02x}".format(*colour) for colour in visdom_display.colours(2)]
    png = base64.b64decode(window["content"]["src"].partition("base64,")[2])
    sheet = training_sheet(VISUALS, STYLE)
    assert sheet.mode == "RGB"
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(png))), np.array(sheet))


def test_a_resumed_run_continues_its_curves(server, tmp_path):
    def resumable(start):
        training_log = log_to(server.port, tmp_path, start, env="resumed", more=[("files", Console(tmp_path))])
        training_log.start_epoch(*start)
        return training_log

    with resumable((1, 0)) as first:
        show(first, (1, 5), (1, 10), (2, 5), (2, 10))
    with resumable((2, 5)) as second:  # (2, 10) was after the last saved state
        wait_for(lambda: curves(server.port, "losses-1", "resumed").get("Total", ([], []))[0] == [0.5, 1.0, 1.5])
        show(second, (2, 9), (3, 5))
    assert curves(server.port, "losses-1", "resumed")["Total"] == ([0.5, 1.0, 1.5, 1.9, 2.5], [15, 20, 25, 29, 35])


def test_windows_that_vanish_are_drawn_anew(server, tmp_path):
    client = _connect("http://127.0.0.1", server.port, "closed")
    with log_to(server.port, tmp_path, env="closed") as training_log:
        training_log.start_epoch(1, 0)
        show(training_log, (1, 5), (1, 6))
        # All that was given is there: a window closed in the middle of an append is another matter.
        wait_for(lambda: curves(server.port, "losses-1", "closed").get("Total", ([], []))[0] == [0.5, 0.6])
        client.close("losses-1", "closed")
        show(training_log, (1, 7))
    assert curves(server.port, "losses-1", "closed")["Total"][0] == [0.5, 0.6, 0.7]


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back(tmp_path, caplog):
    """Killed in mid-run, training continues with one warning; started again, the whole curves are there."""
    caplog.set_level(logging.INFO)
    server = LocalServer(free_port(), tmp_path / "server")
    server.start()
    with log_to(server.port, tmp_path) as training_log:
        training_log.start_epoch(1, 0)
        show(training_log, (1, 1), (1, 2))
        training_log.write_pictures(1, 2, VISUALS)
        wait_for(lambda: "Total" in curves(server.port, "losses-1"))
        server._process.kill()
        server._process.wait()
        started = time.perf_counter()
        show(training_log, *((1, k) for k in range(3, 8)))
        training_log.write_pictures(1, 7, VISUALS)
        assert time.perf_counter() - started < 2, "the training waited for a dead server"
        wait_for(lambda: "no visdom server answers" in caplog.text or "training continues" in caplog.text)
        server.start()
        wait_for(lambda: len(curves(server.port, "losses-1").get("Total", ([], []))[0]) == 7)
        show(training_log, (1, 8))
    assert curves(server.port, "losses-1")["Total"] == ([k / 10 for k in range(1, 9)], [10.0 + k for k in range(1, 9)])
    window = json.loads(_connect("http://127.0.0.1", server.port, "env").get_window_data("images-1", "env"))
    assert window["content"]["caption"] == "epoch 1, iteration 7"
    server.stop()
    warnings = [
        entry for entry in caplog.records if entry.levelno >= logging.WARNING and "visdom: " in entry.getMessage()
    ]
    assert len([entry for entry in warnings if "training continues" in entry.getMessage()]) == 1
    assert "answers" in caplog.text


def test_a_server_that_hangs_does_not_make_the_training_wait(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(visdom_display, "_TIMEOUTS_S", (0.3, 0.3))
    monkeypatch.setattr(visdom_display, "_CLOSE_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and says nothing
        started = time.perf_counter()
        with log_to(mute.getsockname()[1], tmp_path) as training_log:
            training_log.start_epoch(1, 0)
            show(training_log, *((1, k) for k in range(1, 11)))
            assert time.perf_counter() - started < 1
            wait_for(lambda: "training continues" in caplog.text)  # it is given up, and tried again
            started = time.perf_counter()
        assert time.perf_counter() - started < 5


@pytest.mark.slow
@pytest.mark.parametrize("absent", [True, False])
def test_training_itself_with_an_absent_and_with_its_own_server(dataroot, tmp_path, caplog, absent):  # noqa: F811
    caplog.set_level(logging.INFO)
    port = free_port()
    where = ["--dataroot", str(dataroot), "--name", "run", "--checkpoints_dir", str(tmp_path)]
    options = ["--display_id", "3", "--display_port", str(port), *([] if absent else ["--display_start"])]
    train.main([*where, *TINY, *SHORT, *options])
    folder = tmp_path / "run"
    assert (folder / "latest_net_G_A.pth").exists()
    assert caplog.text.count("training continues") == (1 if absent else 0)
    assert not is_listening(port)
    if absent:
        return
    assert f"visdom: http://127.0.0.1:{port}" in caplog.text
    (saved,) = (folder / "visdom").glob("run.json")  # the server saved its windows when it was stopped
    windows = json.loads(saved.read_text())["jsons"]
    assert set(windows) == {"losses-3", "rate-3", "images-3"}
    records = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    (total,) = [trace for trace in windows["losses-3"]["content"]["data"] if trace["name"] == "Total"]
    assert total["y"] == [entry["losses"]["G"] for entry in records]


def test_the_server_of_a_run_is_reached_from_this_machine_only(server):
    addresses = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False).stdout.split()
    others = ["127.0.0.2", *addresses]
    assert is_listening(server.port)
    for address in others:
        with pytest.raises(OSError):
            socket.create_connection((address, server.port), timeout=1).close()


def test_a_taken_port_is_not_fought_for(server, tmp_path):
    with pytest.raises(ConnectionError, match=f"port {server.port} is taken"):
        LocalServer(server.port, tmp_path).start()


@pytest.mark.slow
def test_the_server_ends_with_its_parent(tmp_path):
    """Also where the training is killed and can stop nothing."""
    port = free_port()
    program = (
        "import time; from pathlib import Path; from visualization.visdom_server import LocalServer\n"
        f"LocalServer({port}, Path({str(tmp_path)!r})).start(); print('up', flush=True); time.sleep(600)"
    )
    parent = Program("-c", program)
    parent.wait_for("up\n")
    assert is_listening(port)
    parent.kill()
    parent.wait()
    wait_for(lambda: not is_listening(port))


def test_the_server_ends_at_once_though_a_forked_process_lives(tmp_path):
    """That process holds its standard input open; its windows are saved all the same."""
    server = LocalServer(free_port(), tmp_path)
    server.start()
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    worker.start()
    try:
        _connect("http://127.0.0.1", server.port, "kept").text("words", win="note")
        process = server._process
        server.stop()
        assert process.returncode == 0 and worker.is_alive()  # not killed
    finally:
        worker.kill()
        worker.join()
    assert "note" in json.loads((tmp_path / "kept.json").read_text())["jsons"]


def test_a_stopped_server_does_not_start_again(tmp_path):
    server = LocalServer(free_port(), tmp_path)
    server.stop()
    with pytest.raises(ConnectionError, match="was stopped"):
        server.start()
    assert server._process is None


def test_a_stop_ends_a_start_that_is_under_way(tmp_path, monkeypatch):
    server, raised = LocalServer(free_port(), tmp_path), []
    monkeypatch.setattr(visdom_server, "is_listening", lambda port: False)  # it never answers
    monkeypatch.setattr(visdom_server, "_STOP_SECONDS", 1)

    def start():
        try:
            server.start()
        except ConnectionError as error:
            raised.append(error)

    starting = threading.Thread(target=start, daemon=True)
    starting.start()
    process = wait_for(lambda: server._process)
    server.stop()
    starting.join(30)
    assert not starting.is_alive() and len(raised) == 1
    assert server._process is None and process.poll() is not None


def test_only_real_scripts_count(tmp_path, monkeypatch):
    """visdom writes `version.built` also where most of its downloads failed."""
    monkeypatch.setitem(
        sys.modules, "visdom", SimpleNamespace(__file__=str(tmp_path / "__init__.py"), __version__="1.2")
    )
    scripts = tmp_path / "static/js"
    scripts.mkdir(parents=True)
    (tmp_path / "static/version.built").write_text("1.2\n")
    assert not scripts_are_there()
    for name in ("jquery.min.js", "react-react.min.js", "react-dom.min.js", "layout_bin_packer.js"):
        (scripts / name).write_text("x")
    (scripts / "plotly-plotly.min.js").write_text("")
    assert not scripts_are_there()
    (scripts / "plotly-plotly.min.js").write_text("x")
    assert scripts_are_there()
    (tmp_path / "static/version.built").write_text("1.1\n")
    assert not scripts_are_there()


def test_training_resumes_without_visdom(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "visdom", None)  # as where it is not installed
    with log_to(free_port(), tmp_path) as training_log:
        training_log.start_epoch(1, 0)
        show(training_log, (1, 1))
        wait_for(lambda: "training continues" in caplog.text)
        show(training_log, (1, 2))
    assert caplog.text.count("training continues") == 1


def test_missing_scripts_are_explained_in_one_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(visdom_server, "scripts_are_there", lambda: False)
    server = LocalServer(free_port(), tmp_path)
    server.start()
    server.stop()
    (warning,) = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING]
    assert "scripts/visdom_offline.sh" in warning and "\n" not in warning


def test_the_dashboard_shows_curves_and_pictures(server, tmp_path):
    if not scripts_are_there():
        pytest.skip("visdom's dashboard has no scripts: bash scripts/visdom_offline.sh")
    with log_to(server.port, tmp_path, env="seen", name="<b>run") as training_log:
        training_log.start_epoch(1, 0)
        show(training_log, *((1, k) for k in range(1, 11)))
        training_log.write_pictures(1, 10, VISUALS)
    address = f"http://127.0.0.1:{server.port}"
    with open_browser() as browser, visit(browser, f"{address}/env/seen", (address, "ws:", "data:", "blob:")) as page:
        page.wait_for_selector(".js-plotly-plot .scatterlayer .trace")
        page.wait_for_selector("img[src^='data:image/png']")
        assert page.locator(".js-plotly-plot").count() == 2
        assert page.locator(".scatterlayer .trace").count() == 3
        assert page.locator("img[src^='data:image/png']").evaluate("image => image.naturalWidth") > 100
