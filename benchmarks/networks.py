"""How fast networks train and translate: the model's own ways against plain ones, in turns."""

import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import (
    MatrixProducts,
    Seconds,
    peak_memory_mib,
    share_of_peak,
    speed_ratio,
    take_turns,
)
from benchmarks.reference import ReferenceStep
from benchmarks.settings import BenchmarkSettings, upsampling
from data.values.intensity import CT_WINDOW_HU, IntensityMap
from models.cycle_gan_model import CycleGANModel, CycleGANSettings
from models.inference_settings import InferenceSettings, package_versions
from models.networks import Architecture, build_generator
from models.precision import choose_precision
from models.shape_extractor import ExtractorSettings, ShapeExtractor
from models.state_dicts import save_network_weights
from models.test_model import TestModel

# Memory has peaked by then: the optimisers' moments are there from the second step on.
STEPS_TO_PEAK = 3


def random_batch(opt: BenchmarkSettings, seed: int = 0) -> dict:
    """Return a batch as the loader gives it out, in the CPU's memory: `batch_size` slices of noise each, and masks."""
    generator = torch.Generator().manual_seed(seed)
    shape = (opt.batch_size, 1, opt.size, opt.size)
    a, b = (torch.rand(shape, generator=generator) * 2 - 1 for _ in "AB")
    batch = {"A": a, "B": b, "mask_A": (torch.rand(shape, generator=generator) < 0.5).to(torch.uint8)}
    if opt.device.type == "cuda":
        batch = {name: value.pin_memory() for name, value in batch.items()}
    return batch | {"origin_A": ["a"] * opt.batch_size, "origin_B": ["b"] * opt.batch_size}


def full_pools(model: CycleGANModel, batch: dict) -> None:
    """Fill a model's image pools with noise, as they are for all but the first steps of a training."""
    size = batch["A"].shape[-2:]
    channels = {"A": 1, "B": 1, "S": 2 * getattr(model, "shape_classes", 0)}
    for name, pool in model.pools.items():
        if channels[name]:
            pool.query(torch.rand(pool.size, channels[name], *size).to(model.device))


def build_model(opt: BenchmarkSettings) -> CycleGANModel:
    """Build the model of the full method, its pools full, with an extractor of random weights."""
    chosen: dict[str, Any] = {name: getattr(opt, name) for name in ("netG", "ngf", "ndf", "upsample", "compile")}
    chosen |= {"precision": choose_precision(opt.precision, opt.device), **opt.method}
    torch.manual_seed(0)
    settings = ExtractorSettings(opt.extractor_width, 1, IntensityMap.window(*CT_WINDOW_HU), opt.size, 1.0)
    extractor = ShapeExtractor(settings).freeze()
    weights = {"lambda_shape": 10.0, "lambda_shape_gan": 1.0}
    model = CycleGANModel(CycleGANSettings(**weights | chosen), opt.device, extractor)
    full_pools(model, random_batch(opt))
    return model


def repeat_steps(step, batch: dict, times: int) -> None:
    """Take `times` steps on one batch."""
    for _ in range(times):
        step(batch)


def measure_training(opt: BenchmarkSettings) -> dict:
    """Return how fast the model's step is beside the reference's, and the memory that both take."""
    return compare_steps(opt) | {"peak_memory_mib": _memory(opt)}


def plain_flop(opt: BenchmarkSettings) -> float:
    """Return the floating-point operations of the plain step for one slice of each domain."""
    one = replace(opt, batch_size=1, compile=False)
    reference = ReferenceStep(build_model(one))
    with FlopCounterMode(display=False) as counter:
        reference.step(random_batch(one))
    return counter.get_total_flops()


def measure_own_step(opt: BenchmarkSettings) -> dict:
    """Return how fast the model's step is by itself, taking turns with matrix products."""
    batch, model = random_batch(opt), build_model(opt)
    precision, flop = model.settings.precision, plain_flop(opt) * opt.batch_size * opt.steps_a_turn
    product = MatrixProducts(precision, opt.device)

    def steps() -> None:
        choose_precision(precision, opt.device)
        repeat_steps(model.step, batch, opt.steps_a_turn)

    seconds = take_turns({"ours": steps, "products": product.measure}, opt.turns, opt.device)
    median = statistics.median(seconds["ours"])
    return {
        "precision": precision,
        "batch_size": opt.batch_size,
        "compiled": opt.compile,
        "seconds": [round(value, 4) for value in seconds["ours"]],
        "iterations_per_second": round(opt.steps_a_turn / median, 4),
        "slices_per_second": round(opt.steps_a_turn * opt.batch_size / median, 3),
        "peak_gflops": round(product.peak_flops / 1e9, 1),
        "share_of_peak": round(share_of_peak(flop, median, product.peak_flops), 4),
    }


def compare_steps(opt: BenchmarkSettings) -> dict:
    """Return how fast the model's step is beside the reference's, taking turns with it and with matrix products."""
    batch, model = random_batch(opt), build_model(opt)
    reference = ReferenceStep(model)
    precision = model.settings.precision
    with FlopCounterMode(display=False) as counter:
        reference.step(batch)
    products = {name: MatrixProducts(name, opt.device) for name in {"fp32", precision}}

    def steps(name: str, step) -> None:
        choose_precision(name, opt.device)  # torch keeps TF32 as a state of the process
        repeat_steps(step, batch, opt.steps_a_turn)

    ways = {"reference": partial(steps, "fp32", reference.step), "ours": partial(steps, precision, model.step)}
    seconds = take_turns(ways | _measured(products), opt.turns, opt.device)
    report = compare(
        seconds, counter.get_total_flops() * opt.steps_a_turn, opt.steps_a_turn * opt.batch_size, products, precision
    )
    report["iterations_per_second"] = {
        way: round(opt.steps_a_turn / statistics.median(seconds[way]), 4) for way in ("reference", "ours")
    }
    return report


def _measured(products: dict[str, MatrixProducts]) -> dict:
    return {f"products_{name}": product.measure for name, product in products.items()}


def _memory(opt: BenchmarkSettings) -> dict[str, int]:
    ways = {"reference": _train_plainly, "ours": _train}
    return {way: round(peak_memory_mib(train, opt.device, opt)) for way, train in ways.items()}


def _train(opt: BenchmarkSettings) -> None:
    torch.set_num_threads(opt.threads)
    repeat_steps(build_model(opt).step, random_batch(opt), STEPS_TO_PEAK)


def _train_plainly(opt: BenchmarkSettings) -> None:
    torch.set_num_threads(opt.threads)
    model = build_model(opt)
    step = ReferenceStep(model).step
    del model
    repeat_steps(step, random_batch(opt), STEPS_TO_PEAK)


def compare(
    seconds: Seconds, flop: float, slices: int, products: dict[str, MatrixProducts], precision: str
) -> dict[str, object]:
    """Return the report on two ways of the same work, `reference` in float32 and `ours` in `precision`.

    Args:
        seconds: of both ways, in every turn.
        flop: floating-point operations that the work takes when it is done plainly.
        slices: how many the work takes.
        products: the machine's peak in float32 and in `precision`.
        precision: of ours.
    """
    medians = {way: statistics.median(seconds[way]) for way in ("reference", "ours")}
    peaks = {name: product.peak_flops for name, product in products.items()}
    used = {"reference": "fp32", "ours": precision}
    return {
        "precision": precision,
        "ratio": round(speed_ratio(seconds["reference"], seconds["ours"]), 3),
        "seconds": {way: [round(value, 4) for value in seconds[way]] for way in medians},
        "slices_per_second": {way: round(slices / value, 3) for way, value in medians.items()},
        "gflop": round(flop / 1e9, 6),
        "gflops": {way: round(flop / value / 1e9, 2) for way, value in medians.items()},
        "peak_gflops": {name: round(peak / 1e9, 1) for name, peak in peaks.items()},
        "share_of_peak": {
            way: round(share_of_peak(flop, value, peaks[used[way]]), 4) for way, value in medians.items()
        },
    }


def write_random_model(folder: Path, netG: str, ngf: int, size: int, spacing_mm: float) -> InferenceSettings:
    """Write a generator of random weights into a run's folder, as a training would leave it."""
    torch.manual_seed(0)
    settings = InferenceSettings(
        generator=Architecture(netG, ngf=ngf, norm="instance", upsample=upsampling(netG)), direction="AtoB",
        size=size, spacing_mm=spacing_mm, slice_mm=None, mr_window="percentile", typical_mr=None,
        ct=IntensityMap.window(*CT_WINDOW_HU), versions=package_versions(),
    )  # fmt: skip
    settings.write(folder)
    save_network_weights(build_generator(settings.generator), folder / "latest_net_G_A.pth")
    return settings


def measure_synthesis(opt: BenchmarkSettings) -> dict:
    """Return how fast `TestModel` translates slices beside the plain way: one by one, float32, contiguous."""
    folder = opt.folder / "model"
    settings = write_random_model(folder, opt.netG, opt.ngf, opt.size, 1.0)
    weights = folder / "latest_net_G_A.pth"
    ours = TestModel(settings, weights, opt.device, opt.precision)
    plain = build_generator(settings.generator)
    plain.load_state_dict(torch.load(weights, weights_only=True))
    plain.to(opt.device).eval()
    rng = np.random.default_rng(0)
    slices = rng.uniform(-1, 1, (opt.slices, opt.size, opt.size)).astype(np.float32)
    with FlopCounterMode(display=False) as counter:
        translate_plainly(plain, slices[:1], opt.device)
    products = {name: MatrixProducts(name, opt.device) for name in {"fp32", ours.precision}}

    def translate_in(name: str, translate) -> np.ndarray:
        choose_precision(name, opt.device)
        return translate(slices)

    ways = {
        "reference": partial(translate_in, "fp32", lambda images: translate_plainly(plain, images, opt.device)),
        "ours": partial(translate_in, ours.precision, ours.translate),
    }
    seconds = take_turns(ways | _measured(products), opt.turns, opt.device)
    report = compare(seconds, counter.get_total_flops() * opt.slices, opt.slices, products, ours.precision)
    return report | {"slices": opt.slices, "difference": difference(ways["reference"](), ways["ours"]())}


@torch.inference_mode()
def translate_plainly(net: nn.Module, slices: np.ndarray, device: torch.device) -> np.ndarray:
    """Return target slices (N, H, W) of source slices, each through the network by itself."""

    def translated(image: Tensor) -> np.ndarray:
        return net(image[None, None].to(device))[0, 0].cpu().numpy()

    return np.stack([translated(image) for image in torch.from_numpy(slices)])


def difference(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Return the mean and the greatest absolute difference of two results."""
    apart = np.abs(a - b)
    return {"mean": round(float(apart.mean()), 6), "greatest": round(float(apart.max()), 6)}
