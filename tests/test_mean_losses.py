"""A record is the mean over the steps since the record before, of all processes, and survives a resume."""

import json

import numpy as np
import pytest
import torch

from models.cycle_gan_model import CycleGANModel
from tests.test_datasets import dataroot  # noqa: F401
from tests.test_train import run
from training.distributed import ProcessGroup
from training.mean_losses import MeanLosses

CPU = torch.device("cpu")


def losses(**values):
    return {name: torch.tensor(value) for name, value in values.items()}


def values(means):
    return {name: mean.item() for name, mean in means.items()}


def test_a_record_is_of_the_steps_since_the_one_before():
    means, group = MeanLosses(CPU), ProcessGroup()
    for g, d in ((1.0, 4.0), (2.0, 8.0), (6.0, 0.0)):
        means.add(losses(G=g, D_A=d))
    assert values(means.take(group)) == {"G": 3.0, "D_A": 4.0}
    means.add(losses(G=0.5, simulated_A=0.25))  # a warm start has other losses
    assert values(means.take(group)) == {"G": 0.5, "simulated_A": 0.25}


def test_steps_are_counted_without_waiting_for_the_device(monkeypatch):
    means = MeanLosses(CPU)
    for name in ("tolist", "item", "__float__", "__bool__", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, lambda self: pytest.fail("a step waits for the device"))
    for _ in range(3):
        means.add(losses(G=1.0, D_A=2.0))


def test_a_restored_sum_goes_on_bit_for_bit():
    steps = torch.rand(7, 2, generator=torch.Generator().manual_seed(0)).tolist()
    whole, broken = MeanLosses(CPU), MeanLosses(CPU)
    for k, (g, d) in enumerate(steps):
        if k in (0, 3):
            state = json.loads(json.dumps(broken.state_dict()))
            broken = MeanLosses(CPU)
            broken.load_state_dict(state)
        for each in (whole, broken):
            each.add(losses(G=g, D_A=d))
    assert values(whole.take(ProcessGroup())) == values(broken.take(ProcessGroup()))


@pytest.mark.parametrize("other", [{"G": 1.0}, {"G": 1.0, "correlation_B": 2.0}], ids=["fewer", "as many"])
def test_a_resume_with_other_losses_begins_a_new_sum(other):
    means = MeanLosses(CPU)
    means.load_state_dict({"steps": 3, "sums": {"G": 30.0, "correlation_A": 3.0}})
    means.add(losses(**other))
    assert values(means.take(ProcessGroup())) == other


class WithAnother(ProcessGroup):
    """A group of two: the other process has these totals."""

    def __init__(self, *totals):
        super().__init__()
        self.other = torch.tensor(totals, dtype=torch.float64)

    def average(self, values):
        return {name: (value + self.other) / 2 for name, value in values.items()}


def test_a_step_of_any_process_counts_alike():
    means = MeanLosses(CPU)
    for g in (1.0, 2.0, 3.0):
        means.add(losses(G=g))
    assert values(means.take(WithAnother(10.0, 1))) == {"G": 4.0}  # (1 + 2 + 3 + 10) / 4


def records(folder):
    return [((r["epoch"], r["iteration"]), r["losses"]) for r in map(json.loads, (folder / "losses.jsonl").open())]


def test_a_killed_run_makes_the_records_of_an_unbroken_one(dataroot, tmp_path, monkeypatch):  # noqa: F811
    """Six steps an epoch, records after 5 and 6 of them, states after 4 and 6; the run dies in step 5 of epoch 2."""
    each = run(dataroot, tmp_path, "--no_html", name="each")
    whole = run(dataroot, tmp_path, "--no_html", "--print_freq", "5", name="whole")
    by_place = dict(records(each))
    for (epoch, iteration), shown in records(whole):
        steps = [by_place[epoch, k] for k in (range(1, 6) if iteration == 5 else [6])]
        for name, value in shown.items():
            assert value == pytest.approx(np.mean([step[name] for step in steps]), rel=1e-6), (epoch, iteration, name)
    assert [place for place, _ in records(whole)] == [(e, i) for e in (1, 2, 3) for i in (5, 6)]
    step, calls = CycleGANModel.step, []

    def dying(self, batch):
        calls.append(1)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(CycleGANModel, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        run(dataroot, tmp_path, "--no_html", "--print_freq", "5", name="killed")
    monkeypatch.setattr(CycleGANModel, "step", step)
    killed = run(dataroot, tmp_path, "--no_html", "--print_freq", "5", "--continue_train", name="killed")
    assert records(killed) == records(whole)
