"""Train on MR simulated from CT alone: `python -m scripts.train_simulated --dataroot datasets/NAME --name NAME`.

No MR of any patient is read, so none can be paired with a CT. The result is used like any other model: test_adapt.py,
test_pipeline.py and scripts.export_model take it by its name.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

from data.errors import InputError, run_command
from data.prepared.manifest import read_manifest, write_json
from data.prepared.training_statistics import training_statistics
from data.simulation.simulation_set import SimulationSet, open_simulation_set
from data.values.intensity import CT_TRANSFERS, IntensityMap
from models import run_folder
from models.inference_settings import InferenceSettings, package_versions
from models.state_dicts import save_network_weights
from options.base_options import (
    experiment_name,
    mr_window_rule,
    nonnegative_float,
    nonnegative_int,
    positive_float,
    positive_int,
    share,
    torch_device,
)
from training.interruption import Interruption, exit_code
from training.simulated_pairs import SimulatedPairsSettings, SimulatedPairsTraining

log = logging.getLogger(__name__)

DEFAULTS = SimulatedPairsSettings()
# Pixels of a crop's side: the network halves them four times.
_MULTIPLE = 16
# What a saved state is made of.
_STATE_PARTS = {"training": dict, "options": dict, "spent": float}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train_simulated", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--dataroot", type=Path, required=True, help="prepared data set; only its training CT is read")
    add("--name", type=experiment_name, required=True, help="the model's name: its folder in --checkpoints_dir")
    add("--checkpoints_dir", type=Path, default=Path("checkpoints"), help="where models are kept")
    add("--continue_train", action="store_true", help="resume from the last saved state")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=positive_int, default=6000, help="length of the training")
    length.add_argument("--seconds", type=positive_int, help="length by the clock instead, for a rented GPU")
    add("--limbs", default="", metavar="TEXT", help="CT whose names hold TEXT are limbs, put beside trunks as arms")
    add("--limbs_share", type=share, default=DEFAULTS.limbs_share, help="share of limbs in a batch, with --limbs")
    add("--leave_out", default="", metavar="TEXT", help="CT whose names hold TEXT are not trained on")
    add("--slab", type=positive_int, default=DEFAULTS.slab, help="neighbouring slices seen together, odd")
    add("--crop_size", type=positive_int, default=DEFAULTS.crop_size, help=f"pixels, a multiple of {_MULTIPLE}")
    add("--batch_size", type=positive_int, default=DEFAULTS.batch_size, help="slabs a step")
    add("--ngf", type=positive_int, default=DEFAULTS.ngf, help="features at full resolution")
    add("--lr", type=positive_float, default=DEFAULTS.lr, help="learning rate at its highest")
    add("--lambda_hu", type=nonnegative_float, default=DEFAULTS.lambda_hu, help="weight of the error in HU / 1000")
    add("--ema", type=share, default=DEFAULTS.ema, help="decay of the moving average of the weights")
    add("--rotate", type=nonnegative_float, default=DEFAULTS.rotate, help="turn slabs by up to this many degrees")
    add("--zoom", type=share, default=DEFAULTS.zoom, help="enlarge or shrink slabs by up to this share")
    add("--flip", choices=("", "x", "y", "xy"), default=DEFAULTS.flip,
        help="mirror slabs: x left to right, y front to back; xy for limbs, x for bodies")  # fmt: skip
    add("--field_of_view", type=share, default=DEFAULTS.field_of_view, help="twice the probability that a side is cut")
    add("--bias", type=nonnegative_float, default=DEFAULTS.bias, help="greatest spread of the simulated bias field")
    add("--mr_window", nargs="+", default=["tissue"], metavar="WORD",
        help="how MR is windowed in use: tissue (by where its fat lies), percentile, or two numbers LO HI")  # fmt: skip
    add("--device", type=torch_device, default="auto", help="auto, cpu, cuda, cuda:1, ... or mps")
    add("--precision", choices=("fp32", "bf16"), default=DEFAULTS.precision, help="bf16: for GPUs that have it")
    add("--workers", type=positive_int, default=2, help="processes that prepare the CT, once a data set")
    add("--seed", type=nonnegative_int, default=DEFAULTS.seed, help="of everything random")
    add("--print_freq", type=positive_int, default=100, help="steps between two lines of losses")
    add("--save_minutes", type=positive_float, default=5.0, help="minutes between two saved states")
    options = parser.parse_args(arguments)
    if options.slab % 2 == 0:
        parser.error(f"argument --slab: {options.slab}; expected an odd number, so that a slice is in the middle")
    if options.crop_size % _MULTIPLE:
        parser.error(f"argument --crop_size: {options.crop_size}; expected a multiple of {_MULTIPLE}")
    options.mr_window = mr_window_rule(parser, options.mr_window)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Train from the start, or resume with `--continue_train`; return the exit code.

    Raises:
        InputError: no CT, a run that would be replaced, nothing to resume, or a loss that is not finite.
    """
    options = parse_arguments(arguments)
    folder = options.checkpoints_dir / options.name
    ct = open_simulation_set(options.dataroot, options.workers)
    if options.leave_out:
        ct = replace(ct, volumes={name: v for name, v in ct.volumes.items() if options.leave_out not in name})
    limbs = [name for name in ct.volumes if options.limbs and options.limbs in name]
    _check_volumes(options, ct, limbs)
    settings = SimulatedPairsSettings(**{f.name: getattr(options, f.name) for f in fields(SimulatedPairsSettings)})
    ct_map = IntensityMap(CT_TRANSFERS["soft_tissue"])
    training = SimulatedPairsTraining(settings, ct, limbs, ct_map, options.device)
    record = {key: str(value) for key, value in asdict(settings).items()} | {"volumes": " ".join(sorted(ct.volumes))}
    with run_folder.lock(folder), Interruption() as interruption:
        spent = _resume(folder, training, record) if options.continue_train else 0.0
        if not options.continue_train:
            run_folder.check_new(folder)
            _describe(options, ct, ct_map).write(folder)
            write_json(folder / "opt.json", {key: str(value) for key, value in vars(options).items()})
        log.info(
            "%s: %d CT volumes (%d of limbs), %d slices of %g mm, on %s in %s", options.name, len(ct.volumes),
            len(limbs), sum(len(v["hu"]) for v in ct.volumes.values()), ct.slice_mm, options.device, options.precision,
        )  # fmt: skip
        return _train(folder, training, options, record, spent, interruption)


def _check_volumes(options: argparse.Namespace, ct: SimulationSet, limbs: list[str]) -> None:
    if not ct.volumes:
        raise InputError(f"--leave_out {options.leave_out}: leaves out every CT of {options.dataroot}")
    if options.limbs and not limbs:
        names = ", ".join(sorted(ct.volumes)[:5])
        raise InputError(f"--limbs {options.limbs}: no CT has that in its name; they are called {names}, ...")
    if options.crop_size > ct.size:
        raise InputError(
            f"--crop_size {options.crop_size}: the slices of {options.dataroot} have {ct.size} pixels; crop no more"
        )


def _train(
    folder: Path, training: SimulatedPairsTraining, options: argparse.Namespace, record: dict, spent: float,
    interruption: Interruption,
) -> int:  # fmt: skip
    """Train to the end, or until a signal asks to stop; save and return the exit code."""
    begun = saved = time.monotonic()
    sums: dict[str, torch.Tensor] = {}

    def progress() -> float:
        if options.seconds:
            return (spent + time.monotonic() - begun) / options.seconds
        return training.steps / options.steps

    def save() -> None:
        _report(training, sums, progress())
        state = {"training": training.state_dict(), "options": record, "spent": spent + time.monotonic() - begun}
        run_folder.save_state(folder, state)
        save_network_weights(training.average.module, run_folder.weights_path(folder, "latest", "G_A"))

    while (done := progress()) < 1 and not interruption.received:
        for name, loss in training.step(done).items():
            sums[name] = sums.get(name, 0) + loss
        sums["count"] = sums.get("count", 0) + 1
        if training.steps % options.print_freq == 0:
            _report(training, sums, done)
        if time.monotonic() - saved > 60 * options.save_minutes:
            save()
            saved = time.monotonic()
    save()
    if interruption.received and progress() < 1:
        log.info("stopped after %d steps; resume with --continue_train", training.steps)
        return exit_code(interruption.received)
    log.info("trained: %s (%d steps)", folder, training.steps)
    return 0


def _report(training: SimulatedPairsTraining, sums: dict, done: float) -> None:
    """Print the mean losses since the last time and begin anew."""
    if not sums:
        return
    count = float(sums.pop("count", 0) or 1)
    means = {name: float(total) / count for name, total in sums.items()}
    sums.clear()
    log.info("step %d (%.0f %%): %s", training.steps, 100 * done, ", ".join(f"{n} {v:.4f}" for n, v in means.items()))


def _resume(folder: Path, training: SimulatedPairsTraining, record: dict[str, str]) -> float:
    """Load the last state; return the seconds that the training has taken.

    Raises:
        InputError: there is none, or the run was started with other options.
    """

    def take_over(state: dict) -> None:
        differing = [f"{k}: was {v}, now {record.get(k)}" for k, v in state["options"].items() if record.get(k) != v]
        if differing:
            raise InputError(
                f"{folder}: started with other options ({'; '.join(differing)}); resume with the same ones"
            )
        training.load_state_dict(state["training"])

    return run_folder.load_state(folder, take_over, _STATE_PARTS)["spent"]


def _describe(options: argparse.Namespace, ct: SimulationSet, ct_map: IntensityMap) -> InferenceSettings:
    """Return what inference must know of the model."""
    manifest = read_manifest(options.dataroot)
    return InferenceSettings(
        netG="unet", ngf=options.ngf, norm="batch", use_dropout=False, upsample="resize", direction="AtoB",
        size=ct.size, spacing_mm=ct.pixel_mm, slice_mm=ct.slice_mm if options.slab > 1 else manifest.slice_mm,
        mr_window=options.mr_window,
        typical_mr=None, ct=ct_map, versions=package_versions(), training=training_statistics(manifest),
        slab=options.slab, bias_correction=manifest.bias_corrected,
    )  # fmt: skip


if __name__ == "__main__":
    run_command(main)
