"""Whether a device computes the training step and the synthesis right: beside float64 on the CPU, in every precision.

What rounding may do depends on the arithmetic alone. Its unit roundoff u is 2^-24 in float32, 2^-11 in TF32 and
float16, 2^-8 in bfloat16; sums are taken in float32, and those of many terms, or Winograd's and Fourier's ways to
convolve, cost a few bits: e = u + 2^-19. Losses and images are off by a multiple of e, gradients by a multiple of
sqrt(e): a share of about e of all ReLUs and absolute differences changes its side, and each puts one entry of the
gradient wholly wrong. The multiples below leave room over what correct arithmetic gave, least for gradients in
bfloat16 and float16: 1.3 to 2.3 times a CPU's error, 2.4 times an H200's (docs/performance.md). What float32 may is far
less than what TF32 gives, so that TF32 where float32 was asked for is noticed.
"""

import copy
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.networks import build_model, random_batch, write_random_model
from benchmarks.reference import OPTIMISED, ReferenceStep
from benchmarks.settings import BenchmarkSettings
from data.errors import InputError
from data.phantom.patients import PhantomSettings, make_patient
from models.cycle_gan_model import CycleGANModel
from models.inference_settings import MIRRORINGS, InferenceSettings
from models.networks import build_generator
from models.synthesis import prepare_volume
from models.test_model import TestModel

UNIT_ROUNDOFF = {"fp32": 2.0**-24, "tf32": 2.0**-11, "fp16": 2.0**-11, "bf16": 2.0**-8}
SUMS = 2.0**-19
# Multiples of e that losses and images may be off by, and of sqrt(e) that gradients may; of 2^-24, for Adam.
VALUE_FACTOR, DIRECTION_FACTOR, LENGTH_FACTOR, UPDATE_FACTOR = 32.0, 14.0, 4.0, 16.0
# Steps before the one that is compared: the optimisers have moments then.
STEPS_BEFORE = 3
# In float16 the scale of the loss is halved, and the step skipped, until all gradients are finite.
MOST_SKIPPED = 24
SLICES, FIELD_MM, HEIGHT_MM = 8, 512.0, 1600.0


@dataclass(frozen=True)
class Check:
    """One number beside its tolerance: the worst of its kind, and of which part."""

    name: str
    worst: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; one that is not a number is not."""
        return self.error <= self.tolerance

    def to_dict(self) -> dict:
        """Return plain values."""
        return asdict(self) | {"passed": self.passed}


def _check(name: str, errors: dict[str, float], tolerance: float) -> Check:
    worst = max(errors, key=lambda key: errors[key] if np.isfinite(errors[key]) else np.inf)
    return Check(name, worst, errors[worst], tolerance)


class StepProblem:
    """One training step of the full method from a state in mid-training, and what float64 makes of it."""

    def __init__(self, opt: BenchmarkSettings) -> None:
        """Train a few steps on the CPU, and take the next one in float64.

        `opt` has what `benchmarks.networks.build_model` and `random_batch` need; device, precision and compile are
        chosen with each step.
        """
        self._opt = replace(opt, device=torch.device("cpu"), precision="fp32", compile=False)
        start = build_model(self._opt)
        for seed in range(STEPS_BEFORE):
            start.step(random_batch(self._opt, seed))
        self._state, self._pools = copy.deepcopy((start.state_dict(), start.process_state()))
        reference = ReferenceStep(start, dtype=torch.float64)
        self.losses = {name: float(loss) for name, loss in reference.step(self._batch(self._opt)).items()}
        self.gradients = flat_gradients(reference.networks)

    def _batch(self, opt: BenchmarkSettings) -> dict:
        return random_batch(opt, STEPS_BEFORE)

    def build(self, device: torch.device, precision: str, compiled: bool = False) -> CycleGANModel:
        """Return a model on a device that stands where the step begins."""
        model = build_model(self._with(device, precision, compiled))
        self.rewind(model)
        return model

    def _with(self, device: torch.device, precision: str, compiled: bool = False) -> BenchmarkSettings:
        return replace(self._opt, device=device, precision=precision, compile=compiled)

    def rewind(self, model: CycleGANModel) -> None:
        """Put a model back to where the step begins."""
        model.load_state_dict(copy.deepcopy(self._state))
        model.load_process_state(copy.deepcopy(self._pools))

    def step(self, model: CycleGANModel) -> dict[str, float]:
        """Take the step, in float16 from the first scale that no gradient overflows at; return the losses.

        Raises:
            InputError: gradients overflow at every scale.
        """
        batch = self._batch(self._with(model.device, model.settings.precision))
        for _ in range(MOST_SKIPPED):
            scale = model.scaler.get_scale()
            losses = {name: float(loss) for name, loss in model.step(batch).items()}
            model.finite.settle()
            if model.scaler.get_scale() >= scale:
                return losses
            self.rewind(model)
        raise InputError(f"{model.settings.precision}: gradients overflow at every scale of the loss down to {scale:g}")

    def checks(self, model: CycleGANModel) -> list[Check]:
        """Take the step with a model that stands where it begins; compare losses, gradients and the new weights."""
        follower = ReferenceStep(model, torch.device("cpu"), torch.float64)
        losses = self.step(model)
        e = UNIT_ROUNDOFF[model.settings.precision] + SUMS
        found = flat_gradients(model.networks)
        lengths = {name: float(g.norm() / self.gradients[name].norm() - 1) for name, g in found.items()}
        return [
            _check("losses", {k: abs(losses[k] - v) / abs(v) for k, v in self.losses.items()}, VALUE_FACTOR * e),
            _check("gradient, length", {k: abs(v) for k, v in lengths.items()}, LENGTH_FACTOR * e**0.5),
            _check(
                "gradient, direction",
                {k: relative_error(g, self.gradients[k]) for k, g in found.items()},
                DIRECTION_FACTOR * e**0.5,
            ),
            check_update(follower, model),
        ]


def check_update(follower: ReferenceStep, model: CycleGANModel) -> Check:
    """Compare a model's new weights with those that Adam in float64 makes of the old ones and the model's gradients.

    Args:
        follower: a float64 copy of the model before its step, on the CPU; takes the same step.
        model: after its step.
    """
    before = flat_weights(follower.networks)
    for name, net in follower.networks.items():
        for ours, theirs in zip(net.parameters(), model.networks[name].parameters(), strict=True):
            ours.grad = theirs.grad.detach().to(ours)
    for name in OPTIMISED.keys() & follower.optimisers.keys():
        follower.optimisers[name].step()
    after, found = flat_weights(follower.networks), flat_weights(model.networks)
    errors = {k: relative_error(found[k] - before[k], after[k] - before[k]) for k in after}
    # Weights are float32, many times as large as what is added to them.
    stored = max(float(before[k].norm() / (after[k] - before[k]).norm()) for k in after)
    return _check("new weights", errors, UPDATE_FACTOR * UNIT_ROUNDOFF["fp32"] * (1 + stored))


def flat_gradients(networks: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Return every network's gradient as one float64 vector on the CPU."""
    return {name: _flat(p.grad for p in net.parameters()) for name, net in networks.items()}


def flat_weights(networks: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Return every network's parameters as one float64 vector on the CPU."""
    return {name: _flat(p.detach() for p in net.parameters()) for name, net in networks.items()}


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().cpu().double().flatten() for tensor in tensors])


def relative_error(found: Tensor, right: Tensor) -> float:
    """Return |found - right| / |right|, Euclidean norms."""
    return float((found - right).norm() / right.norm())


def check_repeats(problem: StepProblem, device: torch.device, precision: str) -> Check:
    """Take the step twice; what differs between the two, bit for bit, is the error."""
    results = []
    for _ in range(2):
        model = problem.build(device, precision)
        losses = problem.step(model)
        results.append((losses, flat_weights(model.networks)))
    (losses, weights), (losses_again, weights_again) = results
    errors = {name: abs(value - losses_again[name]) for name, value in losses.items()}
    errors |= {f"weights of {k}": float((value - weights_again[k]).abs().max()) for k, value in weights.items()}
    return _check("repeated, bit for bit", errors, 0.0)


class SynthesisProblem:
    """A small phantom MR, a generator of random weights, and what float64 makes of the one with the other."""

    def __init__(self, opt: BenchmarkSettings) -> None:
        """Draw the MR, of `opt.size` pixels, and write the generator's weights under `opt.folder`."""
        self.folder: Path = opt.folder / "correctness"
        settings = write_random_model(self.folder, opt.netG, opt.ngf, opt.size, FIELD_MM / opt.size)
        self.settings: InferenceSettings = replace(settings, mirrored="xy")
        grid = PhantomSettings(opt.size, SLICES, FIELD_MM / opt.size, min(100.0, HEIGHT_MM / SLICES))
        self.slices = np.asarray(prepare_volume(make_patient(1, 0, "mr", grid).mr, self.settings)[0])

    @property
    def weights(self) -> Path:
        """The generator's file."""
        return self.folder / "latest_net_G_A.pth"

    @cached_property
    def right(self) -> np.ndarray:
        """What comes out, float64 (N, H, W): the mean over the mirrorings of a slice."""
        s = self.settings
        net = build_generator(s.generator)
        net.load_state_dict(torch.load(self.weights, weights_only=True))
        net.double().eval()
        images = torch.from_numpy(self.slices).double()[:, None]
        with torch.inference_mode():
            outputs = [net(images.flip(axes)).flip(axes) for axes in MIRRORINGS[self.settings.mirrored]]
        return torch.stack(outputs).mean(0)[:, 0].numpy()

    def check(self, device: torch.device, precision: str) -> Check:
        """Translate the volume on a device."""
        model = TestModel(self.settings, self.weights, device, precision)
        found = torch.from_numpy(model.translate(self.slices)).double()
        tolerance = VALUE_FACTOR * (UNIT_ROUNDOFF[model.precision] + SUMS)
        return Check("synthesis", "G_A", relative_error(found, torch.from_numpy(self.right)), tolerance)
