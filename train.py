"""Train an unpaired MR to CT model: `python train.py --dataroot datasets/NAME --name NAME`."""

import logging
import time
from argparse import Namespace
from dataclasses import fields
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from ct_segmentation.extractor import ShapeExtractor, load_extractor
from data.errors import InputError, run_command
from data.unaligned_dataset import UnalignedDataset, UnalignedSampler, collate, open_unaligned, raise_errors
from models import experiment
from models.cycle_gan_model import CycleGANModel, CycleGANSettings
from models.inference_settings import check_compatible, describe_run, read_inference_settings
from models.schedules import LearningRate
from options import train_options
from visualization.training_log import open_training_log

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    """Train from the first epoch, or from the saved state with `--continue_train`, to the last."""
    opt = train_options.parse(arguments)
    folder = opt.checkpoints_dir / opt.name
    torch.manual_seed(opt.seed)  # of dropout; order and augmentation have their own
    settings = CycleGANSettings(**{field.name: getattr(opt, field.name) for field in fields(CycleGANSettings)})
    warm = opt.warm_start == "simulated_mr"
    dataset = open_unaligned(
        opt.dataroot, opt.mr_window, opt.ct_map, opt.augmentation, settings.uses_shape, opt.seed, simulate_mr=warm
    )
    extractor = open_extractor(opt, dataset.spacing_mm) if settings.uses_shape else None
    sampler = UnalignedSampler(dataset, opt.seed, opt.max_dataset_size)
    loader = open_loader(opt, dataset, sampler)
    model = CycleGANModel(settings, opt.device, extractor, dataset.a.mask_labels)
    if settings.uses_shape:
        log.info(
            "shape: %d of %d classes, which all masks tell apart", model.shape_classes, extractor.settings.n_classes
        )
    optimisers = list(model.optimisers.values())
    rate = LearningRate(
        optimisers, opt.lr_policy, opt.lr, opt.n_epochs, opt.n_epochs_decay, opt.lr_decay_iters,
        n_epochs_warm=opt.n_epochs_warm, warm_lr=opt.warm_lr,
    )  # fmt: skip
    epochs = opt.n_epochs_warm + opt.n_epochs + opt.n_epochs_decay
    steps = -(-sampler.samples // opt.batch_size)
    record = experiment.options_record(vars(opt)) | {"slices of A and B": f"{len(dataset.a)}, {len(dataset.b)}"}
    at = go_on(folder, model, rate, record) if opt.continue_train else begin(opt, folder, model, dataset)
    counts = (len(dataset.a), len(dataset.b), steps)
    log.info("%s: %d slices of A, %d of B, %d steps an epoch, on %s", opt.name, *counts, opt.device)

    def save(position: experiment.Position) -> None:
        experiment.save_weights(folder, model, "latest")
        parts = {"model": model.state_dict(), "rate": rate.state_dict(), "position": position._asdict()}
        experiment.save_state(folder, {**parts, "options": record})

    with open_training_log(opt, epochs, steps, (at.epoch, at.iteration)) as training_log:
        for epoch in range(at.epoch, epochs + 1):
            rate.start_epoch(epoch)
            step = model.warm_step if epoch <= opt.n_epochs_warm else model.step
            sampler.set_epoch(epoch, start=at.iteration * opt.batch_size)
            training_log.start_epoch(epoch, at.iteration)
            epoch_loss = at.epoch_loss
            waiting_since = time.perf_counter()
            for iteration, batch in enumerate(raise_errors(loader), start=at.iteration + 1):
                data_seconds = time.perf_counter() - waiting_since
                losses = step(batch)
                epoch_loss += losses["G"].double() / steps
                training_log.step(data_seconds)
                if iteration % opt.print_freq == 0 or iteration == steps:
                    training_log.write_losses(epoch, iteration, losses, rate.current)
                if iteration % opt.display_freq == 0 or iteration == steps:
                    training_log.write_pictures(epoch, iteration, model.visuals)
                if iteration % opt.save_latest_freq == 0:
                    save(experiment.Position(epoch, iteration, float(epoch_loss)))
                waiting_since = time.perf_counter()
            training_log.end_epoch()
            rate.end_epoch(float(epoch_loss))
            if epoch % opt.save_epoch_freq == 0 or epoch == epochs:
                # Before the state: a run killed between would not go back.
                experiment.save_weights(folder, model, epoch)
            at = experiment.Position(epoch + 1)
            save(at)
    log.info("trained: %s", folder)


def open_loader(opt: Namespace, dataset: UnalignedDataset, sampler: UnalignedSampler) -> DataLoader:
    """Return the loader of batches, or of the error of one of their samples."""
    return DataLoader(
        dataset,
        opt.batch_size,
        sampler=sampler,
        collate_fn=collate,
        num_workers=opt.num_threads,
        pin_memory=opt.device.type == "cuda",
        generator=torch.Generator(),  # its own: it would draw from dropout's at every start of an epoch
    )


def open_extractor(opt: Namespace, spacing_mm: float | None) -> ShapeExtractor:
    """Return the frozen shape extractor, for CT of this pixel spacing under this run's intensity map."""
    if not opt.shape_extractor.exists():
        raise InputError(
            f"--shape_extractor {opt.shape_extractor}: no such file or folder; train one with python -m "
            f"ct_segmentation.train --dataroot {opt.dataroot} --out {opt.shape_extractor}, or train without the shape "
            "constraint: --lambda_shape 0 --lambda_shape_gan 0"
        )
    extractor = load_extractor(opt.shape_extractor, opt.device, opt.ct_map)
    learnt_mm = extractor.settings.spacing_mm
    if spacing_mm and not 0.75 <= learnt_mm / spacing_mm <= 1.25:  # the scales that it was augmented with
        log.warning("warning: the shape extractor knows pixels of %g mm, these are %g mm", learnt_mm, spacing_mm)
    return extractor


def begin(opt: Namespace, folder: Path, model: CycleGANModel, dataset: UnalignedDataset) -> experiment.Position:
    """Make the folder of a new run, with fresh weights or those of `--init_from`."""
    experiment.check_new(folder)
    settings = describe_run(opt, dataset, model.netG_A.multiple)
    if opt.init_from:
        source = opt.checkpoints_dir / opt.init_from
        check_compatible(opt.init_from, read_inference_settings(source), settings)
        experiment.load_weights(source, model, opt.epoch)
    settings.write(folder)
    experiment.save_options(folder, vars(opt))
    return experiment.Position()


def go_on(folder: Path, model: CycleGANModel, rate: LearningRate, record: dict[str, str]) -> experiment.Position:
    """Restore the last saved state of a run with the same options."""
    state = experiment.load_state(folder)
    experiment.check_same_options(folder, state["options"], record)
    model.load_state_dict(state["model"])
    rate.load_state_dict(state["rate"])
    experiment.restore_random_state(state)
    return experiment.Position(**state["position"])


if __name__ == "__main__":
    run_command(main)
