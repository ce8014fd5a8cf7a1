"""Train the shape extractor on the CT slices and masks of a prepared data set; `--out` is the run's folder, where
`train.py` finds it unless another is chosen.

Patients are split: some only validate, by Dice over their whole volumes. `extractor.pth` is the best so far,
`latest_state.pth` what `--continue_train` goes on from, `validation.json` the split and the scores.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from ct_segmentation.predict import segment_slices
from ct_segmentation.scoring import dice_by_class, format_scores, mean_by_class
from ct_segmentation.training_data import ShapeSlices, count_classes
from data.errors import InputError, is_out_of_memory, run_command
from data.loading.slices import read_case
from data.prepared.manifest import Case, read_manifest, write_json
from data.prepared.splits import split_by_patient
from data.settings.values import nonnegative_int, parse_numbers, positive_float, positive_int, torch_device
from models.finite_losses import NonFiniteLossError
from models.initialisation import initialise
from models.schedules import learning_rate_factor
from models.shape_extractor import (
    FILE_NAME,
    FOLDER_NAME,
    ExtractorSettings,
    ShapeExtractor,
    label_channels,
    save_extractor,
    software_versions,
)
from models.state_dicts import load_checkpoint, load_optimiser, save_atomically
from options.base_options import add_ct_map, ct_map

log = logging.getLogger(__name__)

STATE_NAME = "latest_state.pth"
STATE_VERSION = 1
VALIDATION_NAME = "validation.json"
# A run goes on only with the same; `--epochs` may be raised.
FIXED_OPTIONS = ("width", "batch_size", "lr", "val_share", "seed")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command's options, `ct_map` among them."""
    parser = argparse.ArgumentParser(
        prog="python -m ct_segmentation.train",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--dataroot", type=Path, required=True, help="prepared data set")
    parser.add_argument("--out", type=Path, help=f"the run's folder (default: DATAROOT/{FOLDER_NAME})")
    parser.add_argument("--width", type=positive_int, default=64, help="features at full resolution")
    parser.add_argument("--epochs", type=positive_int, default=20, help="passes over all slices")
    parser.add_argument("--batch_size", type=positive_int, default=8, help="slices a step")
    parser.add_argument("--lr", type=positive_float, default=1e-3, help="learning rate of Adam, then cosine to 0")
    parser.add_argument("--val_share", type=_share, default=0.2, help="share of the patients that only validate")
    parser.add_argument("--seed", type=nonnegative_int, default=0, help="of split, weights, order and augmentation")
    parser.add_argument("--num_threads", type=nonnegative_int, default=2, help="processes that load slices")
    parser.add_argument("--device", type=torch_device, default="auto", help="auto, cpu, cuda, cuda:1, ... or mps")
    parser.add_argument("--continue_train", action="store_true", help="go on from the last saved state in --out")
    add_ct_map(parser)
    options = parse_numbers(parser, arguments)
    options.ct_map = ct_map(parser, options)
    options.out = options.out or options.dataroot / FOLDER_NAME
    return options


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number between 0 and 1")
    return value


def segmentation_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return binary cross entropy plus soft Dice loss, a scalar.

    Mean over classes of 1 - (2 sum p t + 1) / (sum p + sum t + 1) with sums over the batch's pixels, after Milletari et
    al., "V-Net", 3DV 2016, without squares; the ones keep slices without a body from dividing by 0.

    Args:
        logits: (N, K, H, W).
        targets: 0 or 1, of the same shape.
    """
    probabilities = logits.sigmoid()
    overlap = 2 * (probabilities * targets).sum(dim=(0, 2, 3)) + 1
    dice = overlap / ((probabilities + targets).sum(dim=(0, 2, 3)) + 1)
    return F.binary_cross_entropy_with_logits(logits, targets) + (1 - dice).mean()


def main(arguments: list[str] | None = None) -> None:
    """Train from the first epoch, or from the saved state with `--continue_train`, to the last.

    Raises:
        InputError: the data set or the run's folder is unusable.
    """
    opt = parse(arguments)
    manifest = read_manifest(opt.dataroot)
    train_cases, val_cases = split_by_patient(manifest.select("train", "B"), opt.val_share, opt.seed)
    slices = ShapeSlices(opt.dataroot, train_cases, opt.ct_map, opt.seed)
    settings = ExtractorSettings(
        width=opt.width,
        n_classes=count_classes(opt.dataroot, [*train_cases, *val_cases]),
        ct=opt.ct_map,
        size=manifest.size,
        spacing_mm=manifest.spacing_mm,
        versions=software_versions(),
        training={
            "dataset": opt.dataroot.resolve().name,
            "ct": len(train_cases),
            "patients": len(_patients(train_cases)),
            "slices": len(slices),
            "sources": sorted(case.source_sha256 for case in train_cases),
        },
    )
    extractor = ShapeExtractor(settings)
    initialise(extractor, "kaiming", generator=torch.Generator().manual_seed(opt.seed))
    extractor.to(opt.device)
    optimiser = torch.optim.Adam(extractor.parameters(), lr=opt.lr)
    patients = {"train": _patients(train_cases), "validation": _patients(val_cases)}
    progress = begin(opt, extractor, optimiser, patients)
    counts = (len(train_cases), len(slices), len(val_cases))
    log.info("training on %d CT (%d slices), validating with %d, on %s", *counts, opt.device)

    for epoch in range(progress["epoch"] + 1, opt.epochs + 1):
        optimiser.param_groups[0]["lr"] = opt.lr * learning_rate_factor("cosine", epoch, opt.epochs, 0)
        loader = DataLoader(slices, opt.batch_size, sampler=slices.epoch(epoch), num_workers=opt.num_threads)
        mean_loss = train_epoch(extractor, optimiser, loader)
        scores = validate(extractor, opt.dataroot, val_cases)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in mean_by_class(scores).items())
        log.info("epoch %d/%d  loss %.4f  Dice of unseen patients: %s", epoch, opt.epochs, mean_loss, shown)
        progress = record(opt.out, extractor, progress, epoch, scores)
        save_state(opt, extractor, optimiser, progress)
    log.info(
        "best, of epoch %d: %s\n%s", progress["best_epoch"], opt.out / FILE_NAME, format_scores(progress["scores"])
    )


def train_epoch(extractor: ShapeExtractor, optimiser: torch.optim.Optimizer, loader: DataLoader) -> float:
    """Take one optimisation step on every batch of images and masks; return the mean loss.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite; it has changed no weight.
    """
    extractor.train()
    device = next(extractor.parameters()).device
    total = torch.zeros((), device=device)
    for images, masks in loader:
        targets = label_channels(masks.to(device), extractor.settings.n_classes)
        loss = segmentation_loss(extractor(images.to(device)), targets)
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"loss not finite: {loss.item()}, the training has diverged; no weight was changed by it: train anew "
                f"with a lower --lr in another --out; {FILE_NAME} here is the best extractor so far"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        total += loss.detach()
    return float(total) / len(loader)


def validate(extractor: ShapeExtractor, root: Path, cases: list[Case]) -> dict[str, dict[str, float]]:
    """Return the Dice of every class in every case, over all slices of the case together."""
    scores = {}
    for case in cases:
        slices, reference = read_case(root, case)
        scores[case.name] = dice_by_class(segment_slices(extractor, slices), reference, extractor.settings.class_names)
    return scores


def begin(
    opt: argparse.Namespace,
    extractor: ShapeExtractor,
    optimiser: torch.optim.Adam,
    patients: dict[str, list[str]],
) -> dict[str, Any]:
    """Return the progress so far: none in a new folder, that of the saved state with `--continue_train`.

    `patients` must be those of the beginning: in a data set that has grown, patients trained on would validate.
    """
    path = opt.out / STATE_NAME
    if not opt.continue_train:
        if any(file.exists() for file in (path, opt.out / FILE_NAME, opt.out / VALIDATION_NAME)):
            raise InputError(f"{opt.out}: holds a run already; go on with --continue_train, or choose another --out")
        return {"epoch": 0, "best": -1.0, "best_epoch": 0, "scores": {}, "patients": patients}
    if not path.exists():
        raise InputError(f"{path}: no such file: nothing to continue; leave out --continue_train to start the run")
    state = load_checkpoint(path)
    if state.get("format_version") != STATE_VERSION:
        raise InputError(f"{path}: format version {state.get('format_version')}, expected {STATE_VERSION}")
    try:
        return _restore(opt, extractor, optimiser, patients, state)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, StopIteration) as error:
        if is_out_of_memory(error):
            raise
        what = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path}: damaged: it lacks what the run needs, or has it in another form ({type(error).__name__}: {what});"
            f" train anew in another --out; {FILE_NAME} beside it is the best extractor so far"
        ) from error


def _restore(
    opt: argparse.Namespace,
    extractor: ShapeExtractor,
    optimiser: torch.optim.Adam,
    patients: dict[str, list[str]],
    state: dict[str, Any],
) -> dict[str, Any]:
    """Set extractor and optimiser to a saved state; return its progress."""
    wanted = _fixed(opt, extractor)
    changed = [f"{name} {state['fixed'].get(name)} -> {value}" for name, value in wanted.items()
               if state["fixed"].get(name) != value]  # fmt: skip
    if changed:
        raise InputError(
            f"{opt.out}: was begun otherwise ({'; '.join(changed)}); go on with the same, or anew elsewhere"
        )
    if state["progress"]["patients"] != patients:
        raise InputError(
            f"{opt.out}: was begun with other patients than {opt.dataroot} holds now; train anew elsewhere"
        )
    extractor.load_state_dict(state["extractor"])
    load_optimiser(optimiser, state["optimiser"])
    progress = state["progress"]
    numbers = (progress["epoch"], progress["best"], progress["best_epoch"])
    if not all(isinstance(number, int | float) for number in numbers):
        raise ValueError(f"progress {numbers}")
    format_scores(progress["scores"])
    return progress


def record(
    folder: Path, extractor: ShapeExtractor, progress: dict[str, Any], epoch: int, scores: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Return the progress after an epoch; where it is the best, write the extractor and its scores."""
    defined = [value for value in mean_by_class(scores).values() if value == value]
    mean = sum(defined) / len(defined) if defined else 0.0
    progress = progress | {"epoch": epoch}
    if mean <= progress["best"]:
        return progress
    progress |= {"best": mean, "best_epoch": epoch, "scores": scores}
    shown = {case: {n: None if v != v else v for n, v in row.items()} for case, row in scores.items()}
    validation = {"epoch": epoch, "dice": shown, "patients": progress["patients"]}
    save_extractor(extractor, folder / FILE_NAME, validation)
    write_json(folder / VALIDATION_NAME, validation)
    return progress


def save_state(
    opt: argparse.Namespace, extractor: ShapeExtractor, optimiser: torch.optim.Optimizer, progress: dict[str, Any]
) -> None:
    """Write all that later epochs depend on."""
    state = {"extractor": extractor.state_dict(), "optimiser": optimiser.state_dict(), "progress": progress}
    fixed = _fixed(opt, extractor)
    save_atomically({"format_version": STATE_VERSION, "fixed": fixed, **state}, opt.out / STATE_NAME)


def _patients(cases: list[Case]) -> list[str]:
    return sorted({case.patient for case in cases})


def _fixed(opt: argparse.Namespace, extractor: ShapeExtractor) -> dict[str, Any]:
    settings = extractor.settings.to_dict()
    del settings["versions"], settings["training"]
    return {name: getattr(opt, name) for name in FIXED_OPTIONS} | {"settings": settings}


if __name__ == "__main__":
    run_command(main)
