"""Learning rate as a function of the epoch."""

import math
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from data.errors import InputError

POLICIES = ("linear", "step", "plateau", "cosine", "warmup_cosine")
# `warmup_cosine`: the rate rises from 2 % over this share of the run, then falls by a cosine to 0.3 %.
_WARM_UP, _FIRST, _LAST = 0.05, 0.02, 0.003


def learning_rate_factor(
    policy: str, epoch: int, n_epochs: int, n_epochs_decay: int, lr_decay_iters: int = 50, gamma: float = 0.1
) -> float:
    """Return what the base learning rate is multiplied by throughout one epoch.

    With e = `epoch`, n = `n_epochs`, d = `n_epochs_decay`:

    'linear': 1 for e <= n, then 1 - (e - n) / (d + 1): the last epoch n + d still learns, n + d + 1 would not
    (Zhu et al., ICCV 2017).
    'step': gamma^floor((e - 1) / lr_decay_iters).
    'cosine': (1 + cos(pi (e - 1) / (n + d))) / 2 (Loshchilov and Hutter, SGDR, ICLR 2017, without restarts).

    Args:
        policy: one of `POLICIES` but 'plateau' and 'warmup_cosine', which follow something else: see `LearningRate`.
        epoch: from 1; past the end, 'linear' and 'cosine' stay at 0.
        n_epochs: epochs at the full rate.
        n_epochs_decay: epochs of decay after them.
        lr_decay_iters: 'step': epochs between two steps.
        gamma: 'step': factor of a step.

    Raises:
        InputError: unknown policy, or one that has no factor for an epoch; `lr_decay_iters` below 1.
        ValueError: `epoch` below 1.
    """
    if epoch < 1:
        raise ValueError(f"epoch {epoch}; epochs count from 1")
    if lr_decay_iters < 1:
        raise InputError(f"lr_decay_iters is {lr_decay_iters}; expected 1 epoch or more between two steps")
    total = n_epochs + n_epochs_decay
    match policy:
        case "linear":
            return max(0.0, 1 - max(0, epoch - n_epochs) / (n_epochs_decay + 1))
        case "step":
            return gamma ** ((epoch - 1) // lr_decay_iters)
        case "cosine":
            return (1 + math.cos(math.pi * min(epoch - 1, total) / total)) / 2
        case "plateau" | "warmup_cosine":
            follows = "a metric" if policy == "plateau" else "every step"
            raise InputError(f"learning-rate policy {policy!r} follows {follows}: it has no factor for an epoch")
        case _:
            raise _unknown(policy)


def warmup_cosine_factor(progress: float) -> float:
    """Return what the base learning rate is multiplied by when a share `progress` of the run, in [0, 1], is done.

    min(1, 0.02 + p / 0.05) ((1 + cos(pi p)) / 2 + 0.003): a linear rise (Goyal et al., "Accurate, large minibatch SGD",
    2017), then a cosine (Loshchilov and Hutter, SGDR, ICLR 2017, without restarts).
    """
    return min(1.0, _FIRST + progress / _WARM_UP) * ((1 + math.cos(math.pi * progress)) / 2 + _LAST)


def _unknown(policy: str) -> InputError:
    return InputError(f"unknown learning-rate policy {policy!r}; expected one of {', '.join(POLICIES)}")


class LearningRate:
    """Sets one learning rate on several optimisers, epoch by epoch.

    for epoch in range(1, last + 1):
        rate.start_epoch(epoch)
        rate.start_step(progress)  # before every step
        ...
        rate.end_epoch(metric)
    """

    def __init__(
        self,
        optimisers: Sequence[Optimizer],
        policy: str,
        base_lr: float,
        n_epochs: int,
        n_epochs_decay: int,
        lr_decay_iters: int = 50,
        gamma: float = 0.1,
        plateau_factor: float = 0.2,
        patience: int = 5,
        threshold: float = 0.01,
        n_epochs_warm: int = 0,
        warm_lr: float = 0.0,
    ) -> None:
        """Set `base_lr` on all `optimisers`, times the `rate` of a group of parameters that has one.

        Args:
            optimisers: whose learning rate is set, in all their parameter groups.
            policy: one of `POLICIES`.
            base_lr: learning rate that the policy scales.
            n_epochs: see `learning_rate_factor`.
            n_epochs_decay: see `learning_rate_factor`.
            lr_decay_iters: see `learning_rate_factor`.
            gamma: see `learning_rate_factor`.
            plateau_factor: 'plateau': factor of a reduction.
            patience: 'plateau': epochs without improvement that are borne; the next one reduces the rate.
            threshold: 'plateau': relative fall of the metric that counts as improvement.
            n_epochs_warm: epochs of a warm start, before those that the policy counts.
            warm_lr: learning rate during them.

        Raises:
            InputError: unknown policy.
        """
        if policy not in POLICIES:
            raise _unknown(policy)
        self._optimisers = list(optimisers)
        self._policy = policy
        self._base_lr = base_lr
        self._schedule = (n_epochs, n_epochs_decay, lr_decay_iters, gamma)
        self._n_epochs_warm, self._warm_lr = n_epochs_warm, warm_lr
        self._epoch, self._is_warm = 1, False
        self._set(base_lr)
        self._plateaus = [
            ReduceLROnPlateau(optimiser, "min", plateau_factor, patience, threshold)
            for optimiser in (self._optimisers if policy == "plateau" else [])
        ]

    @property
    def current(self) -> float:
        """The learning rate that all optimisers have now."""
        return self._optimisers[0].param_groups[0]["lr"]

    def start_epoch(self, epoch: int) -> None:
        """Set the learning rate of an epoch, counted from 1, before its first step."""
        self._epoch = epoch - self._n_epochs_warm
        if self._epoch < 1:
            self._set(self._warm_lr)
        elif self._policy not in ("plateau", "warmup_cosine"):
            self._set(self._base_lr * learning_rate_factor(self._policy, self._epoch, *self._schedule))
        elif self._epoch == 1 or self._is_warm:
            self._set(self._base_lr)
        self._is_warm = self._epoch < 1

    def start_step(self, progress: float) -> None:
        """Set the learning rate of a step; only 'warmup_cosine' changes it.

        Args:
            progress: share of the run that is done, in [0, 1].
        """
        if self._policy == "warmup_cosine" and self._epoch >= 1:
            self._set(self._base_lr * warmup_cosine_factor(progress))

    def end_epoch(self, metric: float | None = None) -> None:
        """Take an epoch's metric (smaller is better) into account; only 'plateau' needs it.

        Raises:
            ValueError: 'plateau' got no finite metric.
        """
        if self._policy != "plateau" or self._epoch < 1:
            return
        if metric is None or not math.isfinite(metric):
            raise ValueError(f"policy 'plateau' needs a finite metric at the end of every epoch, got {metric}")
        for plateau in self._plateaus:
            plateau.step(metric)

    def state_dict(self) -> dict[str, Any]:
        """Return the policy, the rate now and whether it is a warm start's, the base rate, and what 'plateau' knows."""
        return {
            "policy": self._policy,
            "lr": self.current,
            "base_lr": self._base_lr,
            "warm": self._is_warm,
            "plateaus": [plateau.state_dict() for plateau in self._plateaus],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises:
            InputError: the state is of another policy.
            ValueError: it lacks something.
        """
        if state["policy"] != self._policy:
            raise InputError(
                f"learning rate: the stored policy is {state['policy']!r}, this one {self._policy!r}: "
                "resume with the policy of the earlier run"
            )
        # A plateau's rate is what its reductions left of the base rate, which may be another one now.
        factor = self._base_lr / state["base_lr"] if self._policy == "plateau" else 1.0
        self._set(float(state["lr"]) * factor)
        self._is_warm = state.get("warm", False)  # an earlier version did not say so
        for plateau, stored in zip(self._plateaus, state["plateaus"], strict=True):
            if missing := plateau.state_dict().keys() - stored.keys():  # torch would begin those anew
                raise ValueError(f"learning rate: the stored plateau lacks {', '.join(sorted(missing))}")
            plateau.load_state_dict(stored)

    def _set(self, lr: float) -> None:
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr * group.get("rate", 1.0)
