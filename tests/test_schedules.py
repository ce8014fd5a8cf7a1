"""Learning rate: closed forms at the boundaries, agreement with torch, plateau, and exact resuming."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR

from data.errors import InputError
from models.schedules import POLICIES, LearningRate, learning_rate_factor
from models.state_dicts import load_checkpoint, save_atomically

FALLING_THEN_FLAT = [5.0, 4.0, 3.0] + [3.0] * 12


def optimiser() -> Adam:
    return Adam([torch.zeros(1, requires_grad=True)], lr=123.0)


def rates(policy: str, epochs: int, n_epochs: int = 4, n_epochs_decay: int = 3, **kwargs) -> list[float]:
    """The learning rate during each epoch; 'plateau' gets a metric that stops falling."""
    rate = LearningRate([optimiser()], policy, 1.0, n_epochs, n_epochs_decay, **kwargs)
    seen = []
    for epoch in range(1, epochs + 1):
        rate.start_epoch(epoch)
        seen.append(rate.current)
        rate.end_epoch(FALLING_THEN_FLAT[epoch - 1])
    return seen


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [(1, 1), (99, 1), (100, 1), (101, 100 / 101), (150, 51 / 101), (200, 1 / 101), (201, 0), (300, 0)],
)
def test_linear_published(epoch, factor):
    assert learning_rate_factor("linear", epoch, 100, 100) == pytest.approx(factor, abs=1e-12)


def test_linear_without_decay_is_constant_to_the_last_epoch():
    assert [learning_rate_factor("linear", e, 3, 0) for e in (1, 2, 3, 4)] == [1, 1, 1, 0]


def test_linear_decay_from_the_start():
    assert [learning_rate_factor("linear", e, 0, 3) for e in (1, 2, 3)] == pytest.approx([0.75, 0.5, 0.25])


@pytest.mark.parametrize(("epoch", "factor"), [(1, 1), (50, 1), (51, 0.1), (100, 0.1), (101, 0.01)])
def test_step(epoch, factor):
    assert learning_rate_factor("step", epoch, 100, 100, lr_decay_iters=50) == pytest.approx(factor, rel=1e-12)
    assert learning_rate_factor("step", epoch, 100, 100, 50, gamma=1.0) == 1


@pytest.mark.parametrize(("epoch", "factor"), [(1, 1), (51, 0.5 + 0.5**1.5), (101, 0.5), (201, 0), (250, 0)])
def test_cosine(epoch, factor):
    assert learning_rate_factor("cosine", epoch, 100, 100) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(
    ("policy", "scheduler"),
    [("step", lambda o: StepLR(o, 2, 0.3)), ("cosine", lambda o: CosineAnnealingLR(o, 7))],
)
def test_agrees_with_torch(policy, scheduler):
    sgd = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference, expected = scheduler(sgd), []
    for _ in range(7):
        expected.append(sgd.param_groups[0]["lr"])
        sgd.step()
        reference.step()
    assert rates(policy, 7, lr_decay_iters=2, gamma=0.3) == pytest.approx(expected, rel=1e-9)


def test_plateau_is_torchs_fed_with_the_metric():
    sgd = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference, expected = ReduceLROnPlateau(sgd, factor=0.2, threshold=0.01, patience=5), []
    for metric in FALLING_THEN_FLAT:
        expected.append(sgd.param_groups[0]["lr"])
        reference.step(metric)
    seen = rates("plateau", len(FALLING_THEN_FLAT))
    assert seen == pytest.approx(expected)
    # Three epochs improve, five without improvement are borne, the sixth reduces: from the tenth epoch on.
    assert seen == pytest.approx([1.0] * 9 + [0.2] * 6)


def test_plateau_takes_a_small_fall_for_none():
    rate = LearningRate([optimiser()], "plateau", 1.0, 4, 3, patience=0)
    rate.end_epoch(1.0)
    rate.end_epoch(0.98)
    assert rate.current == 1.0
    rate.end_epoch(0.975)
    assert rate.current == pytest.approx(0.2)


@pytest.mark.parametrize("metric", [None, math.nan, math.inf])
def test_plateau_insists_on_a_metric_and_the_others_do_not(metric):
    for policy in POLICIES:
        rate = LearningRate([optimiser()], policy, 1.0, 4, 3)
        if policy == "plateau":
            with pytest.raises(ValueError, match="needs a finite metric"):
                rate.end_epoch(metric)
        else:
            rate.end_epoch(metric)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_starts_at_the_base_rate_and_never_rises(policy):
    seen = rates(policy, 7, lr_decay_iters=3)
    assert seen[0] == 1
    assert all(later <= earlier for earlier, later in itertools.pairwise(seen))
    assert min(seen) > 0


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "warmup_cosine"])
def test_all_optimisers_and_groups_follow(policy):
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (1.0, 2.0)]
    optimisers = [optimiser(), SGD(groups, lr=7.0)]
    rate = LearningRate(optimisers, policy, 2e-4, 1, 3, lr_decay_iters=1, patience=0)
    for epoch in (1, 2, 3):
        rate.start_epoch(epoch)
        assert {group["lr"] for o in optimisers for group in o.param_groups} == {rate.current}
        rate.end_epoch(1.0)
    assert 0 < rate.current < 2e-4


@pytest.mark.parametrize("policy", POLICIES)
def test_resumed_rate_resumes_exactly(policy, tmp_path):
    def make() -> LearningRate:
        return LearningRate([optimiser(), optimiser()], policy, 2e-4, 4, 11, lr_decay_iters=3)

    def run(rate: LearningRate, first: int, last: int) -> list[float]:
        seen = []
        for epoch in range(first, last + 1):
            rate.start_epoch(epoch)
            seen.append(rate.current)
            # NumPy's float64 is what a mean of metrics is; it must not make the checkpoint unreadable.
            rate.end_epoch(np.float64(FALLING_THEN_FLAT[epoch - 1]))
        return seen

    whole = run(make(), 1, 15)
    for stop in (1, 7, 9, 12):
        rate = make()
        run(rate, 1, stop)
        save_atomically(rate.state_dict(), tmp_path / "rate.pth")
        resumed = make()
        resumed.load_state_dict(load_checkpoint(tmp_path / "rate.pth"))
        assert resumed.current == rate.current
        assert run(resumed, stop + 1, 15) == whole[stop:]


def test_a_plateau_s_reductions_hold_for_another_base_rate():
    rate = LearningRate([optimiser()], "plateau", 1.0, 9, 0, patience=0, plateau_factor=0.2)
    for metric in (3.0, 3.0, 3.0):
        rate.end_epoch(metric)
    assert rate.current == pytest.approx(0.04)
    resumed = LearningRate([optimiser()], "plateau", 0.5, 9, 0, patience=0, plateau_factor=0.2)
    resumed.load_state_dict(rate.state_dict())
    assert resumed.current == pytest.approx(0.02)


def test_a_plateau_leaves_the_rate_of_a_warm_start_that_was_shortened():
    long, short = ({"n_epochs_warm": n, "warm_lr": 5.0} for n in (4, 1))
    rate = LearningRate([optimiser()], "plateau", 1.0, 9, 0, patience=0, **long)
    rate.start_epoch(3)
    assert rate.current == 5
    resumed = LearningRate([optimiser()], "plateau", 1.0, 9, 0, patience=0, **short)
    resumed.load_state_dict(rate.state_dict())
    resumed.start_epoch(3)
    assert resumed.current == 1
    for metric in (3.0, 3.0):
        resumed.end_epoch(metric)
    resumed.start_epoch(4)
    assert resumed.current == pytest.approx(0.2)  # reductions stay


def test_state_of_another_policy_is_refused():
    state = LearningRate([optimiser()], "linear", 1.0, 4, 3).state_dict()
    with pytest.raises(InputError, match=r"'linear', this one 'plateau'"):
        LearningRate([optimiser()], "plateau", 1.0, 4, 3).load_state_dict(state)


def test_unknown_policy_is_raised_not_returned():
    for call in (
        lambda: learning_rate_factor("exponential", 1, 4, 3),
        lambda: LearningRate([optimiser()], "exponential", 1.0, 4, 3),
    ):
        with pytest.raises(InputError, match=r"'exponential'; expected one of linear, step, plateau, cosine"):
            call()


def test_plateau_has_no_factor():
    with pytest.raises(InputError, match="follows a metric"):
        learning_rate_factor("plateau", 1, 4, 3)


def test_epochs_count_from_1_and_steps_are_apart():
    with pytest.raises(ValueError, match="epochs count from 1"):
        learning_rate_factor("linear", 0, 4, 3)
    with pytest.raises(InputError, match="lr_decay_iters is 0"):
        learning_rate_factor("step", 1, 4, 3, lr_decay_iters=0)


@pytest.mark.parametrize("policy", ["linear", "plateau"])
def test_a_warm_start_has_its_own_rate_and_the_policy_begins_after_it(policy):
    warm, plain = optimiser(), optimiser()
    rate = LearningRate([warm], policy, 1.0, 2, 2, n_epochs_warm=3, warm_lr=0.25, patience=0)
    reference = LearningRate([plain], policy, 1.0, 2, 2, patience=0)
    for epoch in range(1, 8):
        rate.start_epoch(epoch)
        if epoch <= 3:
            assert rate.current == 0.25
        else:
            reference.start_epoch(epoch - 3)
            assert rate.current == reference.current
            reference.end_epoch(1.0)
        rate.end_epoch(1.0)


def test_warmup_cosine_follows_every_step():
    watched = optimiser()
    rate = LearningRate([watched], "warmup_cosine", 2.0, 10, 0)
    rate.start_epoch(1)
    expected = {0.0: 0.02 * 1.003, 0.025: 0.52 * (0.5 + 0.5 * np.cos(0.025 * np.pi) + 0.003), 0.5: 0.503, 1.0: 0.003}
    for progress, factor in expected.items():
        rate.start_step(progress)
        assert rate.current == pytest.approx(2.0 * factor)
    plain = LearningRate([watched], "linear", 2.0, 10, 0)
    plain.start_epoch(1)
    plain.start_step(0.5)
    assert plain.current == 2.0
    with pytest.raises(InputError, match="'warmup_cosine' follows every step"):
        learning_rate_factor("warmup_cosine", 1, 4, 3)
