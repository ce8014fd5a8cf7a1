"""The engine around the step: precisions, the watch on losses, saving in time, and options on resume."""

import argparse
import copy
import logging

import pytest
import torch

from models import experiment
from models.cycle_gan_model import CycleGANModel, CycleGANSettings
from models.finite_losses import FiniteLosses, NonFiniteLossError
from models.precision import choose_precision
from options import train_options
from options.train_options import SaveRhythm, save_rhythm
from tests.test_cycle_gan_model import CPU, TINY, batch, weights
from tests.test_datasets import dataroot  # noqa: F401
from tests.test_train import assert_same_weights, run


def test_fp16_steps_with_a_scale_that_is_restored_and_goes_on_bit_for_bit():
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
    resumed.load_pools_state(copy.deepcopy(model.pools_state()))
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
    monkeypatch.setattr(train_options.time, "monotonic", lambda: 1000.0)
    limit = 60 * rhythm.minutes
    assert [rhythm.due(1, 1000.0 - seconds) for seconds in (limit - 1, limit, limit + 1)] == [False, True, True]


@pytest.mark.parametrize("text", ["0", "-5", "0min", "10 hours", "1.5", ""])
def test_other_rhythms_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number of steps, or of minutes"):
        save_rhythm(text)


def test_minutes_are_counted_from_the_last_state(dataroot, tmp_path, monkeypatch):  # noqa: F811
    """A clock that goes on by 20 seconds whenever it is asked: a state after every few steps, and the same weights."""
    saved, save, now = [], experiment.save_state, [0.0]

    def count(folder, state):
        saved.append((state["position"]["epoch"], state["position"]["samples"]))
        save(folder, state)

    def clock():
        now[0] += 20
        return now[0]

    monkeypatch.setattr(experiment, "save_state", count)
    whole = run(dataroot, tmp_path, name="steps", *["--no_html"])  # noqa: B026
    saved.clear()
    monkeypatch.setattr(train_options.time, "monotonic", clock)
    timed = run(dataroot, tmp_path, "--no_html", "--save_latest_freq", "1min", name="minutes")
    assert_same_weights(whole, timed)
    within = [samples for _, samples in saved if samples]
    assert 3 <= len(within) <= 9 and (2, 0) in saved


def test_options_that_change_a_result_are_named_and_those_of_the_architecture_refused(dataroot, tmp_path, caplog):  # noqa: F811
    run(dataroot, tmp_path)
    caplog.clear()
    run(dataroot, tmp_path, "--continue_train", "--n_epochs", "3", "--lr", "1e-4", "--print_freq", "2")
    changed = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING]
    assert [text.rpartition("would have: ")[2] for text in changed] == [
        "lr: was 0.0002, now 0.0001", "n_epochs: was 2, now 3",
    ]  # fmt: skip


def test_batch_norm_is_synchronised_on_gpus_only(capsys):
    required = ["--dataroot", "d", "--name", "n", "--device", "cpu", "--sync_batch_norm"]
    for arguments, message in (([], "does nothing without --norm batch"), (["--norm", "batch"], "cpu cannot")):
        with pytest.raises(SystemExit):
            train_options.parse([*required, *arguments])
        assert message in capsys.readouterr().err


def test_compiled_networks_take_the_same_step():
    compiled = CycleGANModel(CycleGANSettings(**TINY), CPU, compiled=True)
    plain = CycleGANModel(CycleGANSettings(**TINY), CPU)
    for seed in (0, 1):
        losses, expected = compiled.step(batch(seed=seed)), plain.step(batch(seed=seed))
        for name, loss in expected.items():
            torch.testing.assert_close(losses[name], loss, rtol=1e-3, atol=1e-4)
    assert compiled.netG_A.state_dict().keys() == plain.netG_A.state_dict().keys()
