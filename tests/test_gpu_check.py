"""The check of a GPU: what is right passes, what is wrong is noticed, and no section takes another's result along."""

import json
import math
import os
import time
import warnings
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks import correctness
from benchmarks.correctness import Check, StepProblem, SynthesisProblem, check_repeats, relative_error
from benchmarks.waits import waiting_places
from models.cycle_gan_model import CycleGANModel
from models.test_model import TestModel
from scripts import gpu_check
from scripts.gpu_check import Checks, NotRunError, describe, run_section

CPU = torch.device("cpu")
KINDS = ["losses", "gradient, length", "gradient, direction", "new weights"]


def later(seconds=1000.0):
    return time.monotonic() + seconds


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    return StepProblem(Checks(CPU, tmp_path_factory.mktemp("work"), True, later()).small)


@pytest.fixture(scope="module")
def synthesis(tmp_path_factory):
    return SynthesisProblem(Checks(CPU, tmp_path_factory.mktemp("work"), True, later()).small)


def wrong(checks):
    return [check.name for check in checks if not check.passed]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_right_step_passes(problem, precision):
    checks = problem.checks(problem.build(CPU, precision))
    assert [check.name for check in checks] == KINDS
    assert wrong(checks) == []
    assert max(check.error for check in checks) > 0


def test_the_tolerance_is_that_of_the_arithmetic(problem, monkeypatch):
    """What bf16 gives would not pass for float32, in any loss or gradient; Adam is float32 in both."""
    monkeypatch.setitem(correctness.UNIT_ROUNDOFF, "bf16", 2.0**-24)
    assert wrong(problem.checks(problem.build(CPU, "bf16"))) == KINDS[:3]
    assert wrong(problem.checks(problem.build(CPU, "fp32"))) == []


def test_a_wrong_gradient_is_noticed(problem):
    model = problem.build(CPU, "fp32")
    model.netG_B.model[1].weight.register_hook(lambda grad: 3 * grad)
    checks = problem.checks(model)
    assert wrong(checks) == ["gradient, length", "gradient, direction"]
    assert {check.worst for check in checks if not check.passed} == {"G_B"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_gets_lost_is_noticed_in_every_precision(problem, precision):
    model = problem.build(CPU, precision)
    for parameter in model.netD_A.parameters():
        parameter.register_hook(torch.zeros_like)
    assert {"gradient, length", "gradient, direction"} <= set(wrong(problem.checks(model)))


def test_a_wrong_loss_is_noticed(problem, monkeypatch):
    whole = CycleGANModel._correlation
    monkeypatch.setattr(CycleGANModel, "_correlation", lambda self, fake, real: 1.0001 * whole(self, fake, real))
    (losses, *_) = problem.checks(problem.build(CPU, "fp32"))
    assert not losses.passed
    assert losses.worst.startswith("correlation")
    assert losses.error == pytest.approx(1e-4, rel=0.1)


def test_a_wrong_update_is_noticed(problem):
    """The optimiser takes one per cent more than it was told, from right gradients."""
    model = problem.build(CPU, "fp32")
    adam, step = model.optimisers["D"], model.optimisers["D"].step

    def too_far(*arguments):
        before = [p.detach().clone() for p in model.netD_A.parameters()]
        step(*arguments)
        for parameter, old in zip(model.netD_A.parameters(), before, strict=True):
            parameter.data += 0.01 * (parameter.data - old)

    adam.step = too_far
    checks = problem.checks(model)
    assert wrong(checks) == ["new weights"]
    assert (checks[-1].worst, checks[-1].error) == ("D_A", pytest.approx(0.01, rel=0.1))


def test_a_repeated_step_is_compared_bit_for_bit(problem, monkeypatch):
    assert check_repeats(problem, CPU, "fp32").passed
    whole, draws = CycleGANModel._correlation, iter((1.0, 1.0, 1.0 + 2e-7, 1.0))
    monkeypatch.setattr(CycleGANModel, "_correlation", lambda self, *images: next(draws) * whole(self, *images))
    found = check_repeats(problem, CPU, "fp32")
    assert not found.passed
    assert found.error > 0


def test_synthesis_is_compared(synthesis, monkeypatch):
    assert synthesis.check(CPU, "fp32").passed
    translate = TestModel.translate
    monkeypatch.setattr(TestModel, "translate", lambda self, slices: translate(self, np.flip(slices, 0).copy()))
    assert not synthesis.check(CPU, "bf16").passed


def test_the_float64_image_is_the_mean_over_the_mirrorings(synthesis):
    single = SynthesisProblem.__new__(SynthesisProblem)
    single.folder, single.settings = synthesis.folder, synthesis.settings
    single.slices = synthesis.slices[:, ::-1, ::-1].copy()
    np.testing.assert_allclose(single.right[:, ::-1, ::-1], synthesis.right, atol=1e-12)


def test_what_is_no_number_is_wrong():
    check = Check("losses", "G", math.nan, 1.0)
    assert not check.passed
    section = {"status": "failed", "seconds": 1.0, "found": {"checks": [check.to_dict()]}}
    assert "nan of 1  WRONG" in describe("correct in fp32", section)
    assert gpu_check._writable(section)["found"]["checks"][0]["error"] == "nan"
    assert correctness._check("losses", {"G": 0.5, "D_A": math.nan, "D_B": 0.7}, 1.0).worst == "D_A"
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 4.0])) == 0.75


def test_a_section_never_raises():
    def broken():
        raise RuntimeError("device-side assert")

    def unfit():
        raise NotRunError("measured on CUDA only")

    assert run_section(lambda: {"ratio": 3}, later())["status"] == "done"
    assert run_section(lambda: {"passed": False}, later())["status"] == "failed"
    failed = run_section(broken, later())
    assert (failed["status"], failed["reason"]) == ("failed", "device-side assert")
    assert "in broken" in failed["traceback"]
    assert run_section(unfit, later())["reason"] == "measured on CUDA only"
    late = run_section(broken, later(-1))
    assert (late["status"], late["reason"]) == ("not run", "the time is up")


def test_the_command_writes_after_every_section(tmp_path, monkeypatch, capsys):
    file = tmp_path / "out" / "gpu_check.json"
    found_before = []

    def broken():
        found_before.append(json.loads(file.read_text())["sections"])
        raise RuntimeError("lost")

    right = {"checks": [Check("losses", "G", 1e-8, 1e-6).to_dict()], "passed": True}
    sections = {"first": lambda: right, "second": broken, "third": lambda: {"share_of_peak": 0.6}}
    monkeypatch.setattr(Checks, "sections", lambda self: sections)
    assert gpu_check.main(["--out", str(tmp_path / "out"), "--device", "cpu", "--tiny"]) == 1
    report = json.loads(file.read_text())
    assert [s["status"] for s in report["sections"].values()] == ["done", "failed", "done"]
    assert found_before == [{"first": report["sections"]["first"]}]
    assert report["sections"]["first"]["found"] == right
    printed = capsys.readouterr().out
    assert "share_of_peak: 0.6" in printed
    assert "failed: second" in printed
    sections.pop("second")
    assert gpu_check.main(["--out", str(tmp_path / "out"), "--device", "cpu", "--tiny"]) == 0


def test_a_wrong_check_is_printed_as_wrong():
    section = {"status": "failed", "seconds": 1.0, "found": {"checks": [Check("losses", "G", 0.5, 0.1).to_dict()]}}
    assert "WRONG  (G)" in describe("correct in fp32", section)


def test_what_a_cpu_cannot_do_is_not_run(tmp_path):
    checks = Checks(CPU, tmp_path, True, later(1.0))
    for section in (partial(checks.correct, "tf32"), checks.waits, checks.memory, checks.kernels):
        assert run_section(section, later())["status"] == "not run"
    compiled = run_section(checks.sections()["training, compiled"], later())
    assert compiled["reason"] == "1 s are left, too few to compile in"


def crash(name, device, work, tiny, sender):
    os._exit(3)


def hang(name, device, work, tiny, sender):
    time.sleep(600)


@pytest.mark.slow
@pytest.mark.parametrize(("work", "seconds", "status"), [(crash, 1200, "failed"), (hang, 20, "not run")])
def test_a_process_that_dies_or_hangs_is_reported(tmp_path, monkeypatch, work, seconds, status):
    monkeypatch.setattr(gpu_check, "_run_alone", work)
    monkeypatch.setattr(gpu_check, "LEAST_COMPILE_S", 1)
    found = run_section(Checks(CPU, tmp_path, True, later(seconds)).sections()["training, compiled"], later())
    assert found["status"] == status


def test_places_that_wait_are_named():
    def work():
        warnings.warn("called a synchronizing CUDA operation (Triggered internally)", UserWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)

    shown = warnings.showwarning
    (place,) = waiting_places(lambda: (work(), work()))
    assert place.startswith("tests/test_gpu_check.py:")
    assert "called a synchronizing CUDA operation" in place
    assert waiting_places(lambda: None) == []
    assert warnings.showwarning is shown


def test_larger_batches_are_timed(tmp_path):
    checks = Checks(CPU, tmp_path, True, later())
    assert (checks.full.batch_size, checks.larger.batch_size) == (1, 8)
    assert Checks(CPU, tmp_path, False, later()).larger.size == 256


def test_compiling_comes_before_what_is_least_needed(tmp_path):
    names = list(Checks(CPU, tmp_path, True, later()).sections())
    assert names[-4:] == ["correct, compiled", "training, compiled", "kernels", "loader"]
