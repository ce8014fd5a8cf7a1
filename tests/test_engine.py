"""The engine around the step: precisions, losses, saving in time, options on resume, the recipe that resumes itself."""

import argparse
import copy
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import InputError
from data.settings.declaration import options_of
from models import run_folder
from models.cycle_gan_model import CycleGANModel, CycleGANSettings
from models.finite_losses import FiniteLosses, NonFiniteLossError
from models.memory import memory_shortage_said
from models.precision import choose_precision
from models.schedules import LearningRate
from options import train_options
from options.train_options import METHODS
from scripts import export_model
from tests.test_cycle_gan_model import CPU, TINY, batch, weights
from tests.test_datasets import dataroot  # noqa: F401
from tests.test_train import SHORT, assert_same_weights, run
from tests.test_train import TINY as TINY_OPTIONS
from training import settings as training_settings
from training.distributed import ProcessGroup
from training.run import TrainingRun
from training.settings import SHARED_GROUPS, SaveRhythm, save_rhythm

ROOT = Path(__file__).resolve().parents[1]


def test_fp16_steps_with_a_scale_that_is_restored_and_resumes_bit_for_bit():
    model = CycleGANModel(CycleGANSettings(**TINY, precision="fp16"), CPU)
    plain = CycleGANModel(CycleGANSettings(**TINY), CPU)
    before = weights(model, *model.networks)
    assert model.scaler.get_scale() == 2.0**16 and not plain.scaler.is_enabled()
    losses, expected = model.step(batch()), plain.step(batch())
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, rtol=0.03, atol=0.02)
    for seed in range(12):  # the scale falls to where the gradients fit
        model.step(batch(seed=seed))
    assert not torch.equal(before["G_A.model.1.weight"], model.netG_A.state_dict()["model.1.weight"])
    resumed = CycleGANModel(CycleGANSettings(**TINY, precision="fp16", seed=9), CPU)
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed.load_process_state(copy.deepcopy(model.process_state()))
    for seed in (1, 2):
        model.step(batch(seed=seed))
        resumed.step(batch(seed=seed))
    after = weights(resumed, *model.networks)
    assert all(torch.equal(value, after[key]) for key, value in weights(model, *model.networks).items())
    plain.load_state_dict(model.state_dict())  # and another precision may follow


def test_fp16_gradients_that_overflow_are_skipped_and_the_scale_falls():
    model = CycleGANModel(CycleGANSettings(**TINY, precision="fp16"), CPU)
    model.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = weights(model, *model.networks)
    model.step(batch())
    after = weights(model, *model.networks)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert model.scaler.get_scale() == 2.0**39


def test_the_optimiser_itself_skips_a_loss_that_is_not_finite(monkeypatch):
    """As on a GPU, where the host learns of it only later."""
    model = CycleGANModel(CycleGANSettings(**TINY), CPU)
    settle = FiniteLosses.settle
    monkeypatch.setattr(FiniteLosses, "settle", lambda self: None)
    bad = batch()
    bad["A"][0, 0, 0, 0] = float("nan")
    before = weights(model, *model.networks)
    model.step(bad)
    after = weights(model, *model.networks)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    with pytest.raises(NonFiniteLossError, match=r"D_A.*on slices m:1, c:2; no weight was changed"):
        settle(model.finite)
    settle(model.finite)  # said once
    model.step(batch())
    assert not torch.equal(before["G_A.model.1.weight"], model.netG_A.state_dict()["model.1.weight"])


def test_precisions_are_those_of_the_device():
    assert [choose_precision(name, CPU) for name in ("fp32", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]
    assert choose_precision("auto", CPU) in ("fp32", "bf16")
    with pytest.raises(ValueError, match="tf32: cpu has no TF32"):
        choose_precision("tf32", CPU)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5000", SaveRhythm(5000, None)), ("10min", SaveRhythm(None, 10)), ("1 min", SaveRhythm(None, 1))],
)
def test_states_are_saved_by_steps_or_minutes(text, expected, monkeypatch):
    rhythm = save_rhythm(text)
    assert rhythm == expected
    if rhythm.steps:
        assert [rhythm.due(k, 0.0) for k in (4999, 5000, 5001, 10000)] == [False, True, False, True]
        return
    monkeypatch.setattr(training_settings.time, "monotonic", lambda: 1000.0)
    limit = 60 * rhythm.minutes
    assert [rhythm.due(1, 1000.0 - seconds) for seconds in (limit - 1, limit, limit + 1)] == [False, True, True]


@pytest.mark.parametrize("text", ["0", "-5", "0min", "10 hours", "1.5", ""])
def test_other_rhythms_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number of steps, or of minutes"):
        save_rhythm(text)


def test_minutes_are_counted_from_the_last_state(dataroot, tmp_path, monkeypatch):  # noqa: F811
    """A clock that advances by 20 seconds whenever it is asked: a state after every few steps, and the same weights."""
    saved, save, now = [], run_folder.save_state, [0.0]

    def count(folder, state):
        saved.append((state["position"]["epoch"], state["position"]["samples"]))
        save(folder, state)

    def clock():
        now[0] += 20
        return now[0]

    monkeypatch.setattr(run_folder, "save_state", count)
    whole = run(dataroot, tmp_path, name="steps", *["--no_html"])  # noqa: B026
    saved.clear()
    monkeypatch.setattr(training_settings.time, "monotonic", clock)
    timed = run(dataroot, tmp_path, "--no_html", "--save_latest_freq", "1min", name="minutes")
    assert_same_weights(whole, timed)
    within = [samples for _, samples in saved if samples]
    assert 3 <= len(within) <= 9 and (2, 0) in saved


def test_options_that_change_a_result_are_named_when_a_run_resumes_and_no_others(dataroot, tmp_path, caplog):  # noqa: F811
    run(dataroot, tmp_path)
    caplog.clear()
    caplog.set_level(logging.INFO)
    run(dataroot, tmp_path, "--continue_train", "--n_epochs", "3", "--lr", "1e-4", "--print_freq", "2")
    changed = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING]
    assert [text.rpartition("changes its result: ")[2] for text in changed] == ["lr: was 0.0002, now 0.0001"]
    length = "the run has another length now, and the learning rate follows it: n_epochs: was 2, now 3"
    assert length in caplog.messages


def test_batch_norm_is_synchronised_on_gpus_only(capsys):
    required = ["--dataroot", "d", "--name", "n", "--device", "cpu", "--sync_batch_norm"]
    for arguments, message in (
        ([], "does nothing without --norm batch"),
        (["--norm", "batch"], "cpu does not support it"),
    ):
        with pytest.raises(SystemExit):
            train_options.parse([*required, *arguments])
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_compiled_networks_take_the_same_step():
    compiled = CycleGANModel(CycleGANSettings(**TINY, compile=True), CPU)
    plain = CycleGANModel(CycleGANSettings(**TINY), CPU)
    for seed in (0, 1):
        losses, expected = compiled.step(batch(seed=seed)), plain.step(batch(seed=seed))
        for name, loss in expected.items():
            torch.testing.assert_close(losses[name], loss, rtol=1e-3, atol=1e-4)
    assert compiled.netG_A.state_dict().keys() == plain.netG_A.state_dict().keys()


@pytest.mark.parametrize(("device", "kind"), [("cpu", np.float64), ("mps", np.float32)])
def test_an_epoch_s_loss_is_summed_in_the_device_s_best_type(dataroot, tmp_path, monkeypatch, device, kind):  # noqa: F811
    """MPS has no float64. The networks stay on the CPU here; what the run asks of its device does not."""
    losses, metrics, step = [], [], CycleGANModel.step

    def watched(self, batch):
        found = step(self, batch)
        losses.append(found["G"].numpy())
        return found

    monkeypatch.setattr(CycleGANModel, "step", watched)
    monkeypatch.setattr(LearningRate, "end_epoch", lambda self, metric: metrics.append(metric))
    where = ["--dataroot", str(dataroot), "--name", "run", "--checkpoints_dir", str(tmp_path)]
    settings = train_options.parse([*where, *TINY_OPTIONS, *SHORT, "--no_html"])
    training = TrainingRun(METHODS["cycle_gan"], settings, ProcessGroup())
    training.device = torch.device(device)
    training.train()
    sums = [kind(0)] * 3
    for k, loss in enumerate(losses):  # six steps an epoch
        sums[k // 6] += kind(loss) / kind(6)
    assert metrics == [float(value) for value in sums]


def test_a_state_after_an_epoch_s_last_step_keeps_its_whole_loss(dataroot, tmp_path, monkeypatch):  # noqa: F811
    """Nothing is left of the epoch then but its end, which the run was killed before."""
    metrics = []
    monkeypatch.setattr(LearningRate, "end_epoch", lambda self, metric: metrics.append(metric))
    run(dataroot, tmp_path, "--save_latest_freq", "6", "--n_epochs", "1", "--n_epochs_decay", "0")
    (expected,) = metrics
    assert expected != float(np.float32(expected))
    folder = tmp_path / "run"
    (folder / "previous_state.pth").replace(folder / "latest_state.pth")
    assert run_folder.load_state(folder)["position"] == {
        "epoch": 1, "samples": 6, "epoch_loss": expected, "validated": False,
    }  # fmt: skip
    run(dataroot, tmp_path, "--continue_train", "--n_epochs", "1", "--n_epochs_decay", "0")
    assert metrics == [expected, expected]


@pytest.mark.parametrize(
    ("model", "smaller"),
    [("cycle_gan", "--crop_size (--preprocess body_crop) or --ngf"), ("shape_extractor", "--width"),
     ("simulated_pairs", "--crop_size, --slab or --ngf")],
)  # fmt: skip
def test_a_shortage_of_memory_names_the_options_that_the_method_has(model, smaller):
    method, asked = METHODS[model], "CUDA out of memory. Tried to allocate 2.50 GiB."
    with pytest.raises(InputError) as said, memory_shortage_said(CPU, method.memory_options):
        raise torch.OutOfMemoryError(asked)
    assert str(said.value).endswith(f"with --continue_train, or start a run with a smaller {smaller}")
    options = {field.name for group in (*SHARED_GROUPS, method.settings_type) for field, _ in options_of(group)}
    assert set(re.findall(r"--(\w+)", str(said.value))) <= options


@pytest.fixture
def recipe(tmp_path):
    """Start the recipe on tmp_path/limbs, with an interpreter that notes its arguments and ends with the code DIES."""
    python = tmp_path / "python"
    python.write_text(f"""#!{sys.executable}
import json, os, sys
with open({str(tmp_path / "calls")!r}, "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
sys.exit(int(os.environ.get("DIES", 0)))
""")
    python.chmod(0o755)

    def start(*options, **environment):
        (tmp_path / "calls").write_text("")
        process = subprocess.run(
            ["bash", str(ROOT / "scripts/train_recommended.sh"), "limbs", *options], cwd=tmp_path,
            env=os.environ | {"PYTHON": str(python)} | environment, capture_output=True, text=True,
        )  # fmt: skip
        calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
        trained = [call for call in calls if call[0] == "train.py"]
        assert all(call[1:3] == ["--model", "simulated_pairs"] for call in trained)
        exported = [call[2:] for call in calls if call[:2] == ["-m", "scripts.export_model"]]
        assert len(trained) + len(exported) == len(calls) and len(exported) == (process.returncode == 0)
        process.words = [word for call in trained for word in call]
        process.exported = [export_model.parse_arguments(words) for words in exported]
        return process, [train_options.parse(call[1:]) for call in trained]

    (tmp_path / "limbs").mkdir()
    return start


@pytest.mark.parametrize("joint", [False, True])
def test_the_recipe_passes_options_on_and_resumes_what_has_a_state(recipe, tmp_path, joint):
    models = tmp_path / "my models"
    more = ["--mr_window", "0", "1200", "--n_epochs", "7"]
    more += [f"--checkpoints_dir={models}"] if joint else ["--checkpoints_dir", str(models)]
    process, (run,) = recipe(*more, "--flip", "x")
    assert process.returncode == 0, process.stderr
    data, where = run.data, run.run
    assert (where.name, data.dataroot, where.checkpoints_dir) == ("recommended_limbs", tmp_path / "limbs", models)
    assert (run.epochs, data.mr_window, data.flip, where.continue_train) == (7, (0.0, 1200.0), "x", False)
    assert run.model.precision == "auto" and recipe(*more, "--precision", "fp32")[1][0].model.precision == "fp32"
    # Its latest state or the one before it; half a state is none.
    for name, resumes in (("latest", True), ("previous", True), ("next_latest", False)):
        state = models / f"recommended_limbs/{name}_state.pth"
        state.parent.mkdir(parents=True, exist_ok=True)
        state.touch()
        process, (run,) = recipe(*more)
        assert run.run.continue_train == resumes
        assert ("--precision" in process.words) == (not resumes)  # what a run began with stays
        state.unlink()
    assert recipe(*more, DIES="143")[0].returncode == 143


@pytest.mark.parametrize("ways", [[], ["--solid_body"], ["--solid_body", "--bias_correction"]])
def test_the_recipe_ends_with_a_small_model_for_use(recipe, tmp_path, ways):
    models = tmp_path / "m"
    process, (run,) = recipe("--checkpoints_dir", str(models), *ways, "--seed", "3")
    (small,) = process.exported
    assert (small.name, small.checkpoints_dir, small.out) == (run.run.name, models, models / "recommended_limbs_small")
    assert (small.solid_body, small.bias_correction) == ("--solid_body" in ways, "--bias_correction" in ways)
    assert run.model.seed == 3
    (small.out).mkdir(parents=True)
    (small.out / "latest_state.pth").touch()  # of a training of its own
    process, runs = recipe("--checkpoints_dir", str(models))
    assert (process.returncode, runs) == (2, []) and "a training's own folder" in process.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_to_the_recipe_reaches_the_training_which_saves_first(tmp_path, number):
    """The stand-in for the training says that it listens, and notes the signal half a second after it.

    What resumes is the recipe, which makes the model for use at its end, and not the training alone.
    """
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip(f"{signal.Signals(number).name} is ignored here, as under nohup, and a shell cannot change that")
    python, notes = tmp_path / "python", tmp_path / "notes"
    python.write_text(f"""#!{sys.executable}
import os, signal, sys, time
def save(number, frame):
    time.sleep(0.5)
    open({str(notes)!r}, "a").write(f"saved {{number}} ")
    sys.exit(128 + number)
for number in ({signal.SIGTERM.value}, {signal.SIGINT.value}, {signal.SIGHUP.value}, {signal.SIGUSR1.value}):
    signal.signal(number, save)
open({str(notes)!r}, "a").write(" ".join(sys.argv[1:2]) + f" [{{os.environ['RESUME_COMMAND']}}] ")
print("listening", flush=True)
time.sleep(60)
""")
    python.chmod(0o755)
    (tmp_path / "limbs").mkdir()
    process = subprocess.Popen(
        ["bash", str(ROOT / "scripts/train_recommended.sh"), "limbs", "--n_epochs", "2"], cwd=tmp_path,
        stdout=subprocess.PIPE, env=os.environ | {"PYTHON": str(python)}, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "listening\n"
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    command = f"bash scripts/train_recommended.sh {tmp_path.resolve()}/limbs --n_epochs 2"
    assert notes.read_text() == f"train.py [{command}] saved {number.value} "  # and nothing was exported


def test_ctrl_c_ends_a_recipe_whose_training_does_not_listen_yet(tmp_path):
    """While it starts, Python has its own handler, unless it was started with the signal ignored."""
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport time\nprint('starting', flush=True)\ntime.sleep(60)\n")
    python.chmod(0o755)
    (tmp_path / "limbs").mkdir()
    process = subprocess.Popen(
        ["bash", str(ROOT / "scripts/train_recommended.sh"), "limbs"], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env=os.environ | {"PYTHON": str(python)}, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "starting\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130


@pytest.mark.parametrize("option", ["--name", "--dataroot", "--continue_train"])
@pytest.mark.parametrize("form", ["{} 3", "{}=3"])
def test_the_recipe_refuses_what_it_sets_itself(recipe, option, form):
    process, runs = recipe("--flip", "x", *form.format(option).split(), "--seed", "1")
    assert (process.returncode, runs) == (2, [])
    (line,) = process.stderr.splitlines()
    assert line.startswith(f"error: scripts/train_recommended.sh: {option}: the recipe sets it")
