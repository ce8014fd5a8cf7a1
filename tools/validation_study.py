"""How well criteria without pairs follow the true error: `python -m tools.validation_study --work DIR --out FILE`.

Trains small models by several methods on generated patients and keeps the weights of every epoch. Each of these
checkpoints is measured twice: by a validation without pairs, on patients of its own, and by the true MAE on test
patients whose CT is known. Prints, for every criterion:

    all       Spearman's rank correlation with the true MAE over all checkpoints
    in a run  the same over the epochs of one run, the mean over the runs: it is there that weights are chosen
    lost      by how many HU the true MAE of the epoch that it chooses is above the best epoch's, the mean over the runs

Started again with the same options it continues where it was.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr

from data.errors import run_command
from data.files import read_json, write_json
from data.masks.body_mask import mr_body_mask
from data.phantom.labels import body_mask
from data.phantom.patients import PhantomSettings, write_dataset
from data.prepared.manifest import read_manifest
from data.prepared.splits import ValidationCases
from data.settings.parser import CommandParser
from data.settings.values import positive_int
from data.volumes.volume import Volume, read_volume
from evaluation import metrics
from evaluation.criteria import CRITERIA, score
from evaluation.report import markdown_table
from models.inference_settings import read_inference_settings
from models.run_folder import weights_path
from models.synthesis import load_synthesiser, synthesize_volume
from models.test_model import TestModel
from scripts import prepare_dataset
from tools import studies
from training.validation import Validation

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
TRUTH = "mae"
UNPAIRED = [name for name in CRITERIA if name != TRUTH]
_PLAIN = ["--lambda_correlation_A", "0", "--lambda_correlation_B", "0"]
_WARM = ["--warm_start", "simulated_mr", "--n_epochs_warm"]


def arms(epochs: int) -> dict[str, list[str]]:
    """Return options of `train.py` by the name of the method; each trains for `epochs` epochs."""
    constant, decay = epochs - epochs // 3, epochs // 3
    half = epochs // 2

    def lengths(n_epochs: int, n_epochs_decay: int) -> list[str]:
        return ["--n_epochs", str(n_epochs), "--n_epochs_decay", str(n_epochs_decay)]

    return {
        "pure": [*_PLAIN, *lengths(constant, decay)],
        "lcc": lengths(constant, decay),
        "local_lcc": ["--lcc_window", "15", *lengths(constant, decay)],
        "warm": [*_WARM, str(half), *lengths(epochs - half, 0)],
        "simulated": [*_WARM, str(epochs), *lengths(0, 0)],
    }


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="python -m tools.validation_study", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for patients, data sets and runs")
    add("--out", type=Path, required=True, help="JSON file of all measurements and correlations")
    add("--arms", nargs="+", choices=arms(2), default=list(arms(2)), help="methods (default: all)")
    add("--seeds", type=positive_int, default=2, help="runs of every method (default: 2)")
    add("--epochs", type=positive_int, default=6, help="epochs of every run (default: 6)")
    add("--steps", type=positive_int, default=60, help="steps of every epoch (default: 60)")
    add("--ngf", type=positive_int, default=8, help="width of the generators (default: 8)")
    add("--patients", type=positive_int, default=6, help="training patients in each domain (default: 6)")
    add(
        "--held_back",
        type=positive_int,
        default=3,
        help="validation patients in each domain, without pairs (default: 3)",
    )
    add("--test_patients", type=positive_int, default=4, help="test patients with MR and true CT (default: 4)")
    add("--matrix", type=positive_int, default=64, help="rows and columns of a slice (default: 64)")
    add("--slices", type=positive_int, default=32, help="slices of a patient (default: 32)")
    return parser.parse_args(arguments)


class TestPatient(NamedTuple):
    """A patient whose CT is known: MR, the body found in it, the true CT, and where that is body, (z, y, x)."""

    __test__ = False

    mr: Volume
    found: np.ndarray
    ct: Volume
    body: np.ndarray


def make_data(options: argparse.Namespace) -> tuple[Path, Path, list[TestPatient]]:
    """Return the data set to train on, that of the patients to validate with, and those to test on."""
    field_mm, length_mm = 512.0, 1250.0
    grid = PhantomSettings(
        options.matrix, options.slices, field_mm / options.matrix, length_mm / options.slices
    )  # fmt: skip
    made, spacing = [], []
    for name, seed, patients, tested in (
        ("train", 1, options.patients, options.test_patients), ("held_back", 2, options.held_back, 0),
    ):  # fmt: skip
        raw, prepared = options.work / f"{name}_raw", options.work / name
        write_dataset(raw, grid, seed, patients, tested)
        prepare_dataset.main([
            "--mr", f"{raw}/train/mr/*", "--ct", f"{raw}/train/ct/*", "--out", str(prepared), "--size",
            str(options.matrix), "--workers", "1", *spacing,
        ])  # fmt: skip
        spacing = ["--spacing_mm", str(read_manifest(prepared).spacing_mm)]
        made.append(prepared)
    tests = []
    for folder in sorted((options.work / "train_raw/test").iterdir()):
        mr, ct, labels = (read_volume(folder / f"{what}.nii.gz") for what in ("mr", "ct", "labels"))
        tests.append(TestPatient(mr, mr_body_mask(mr), ct, body_mask(labels.array)))
    return made[0], made[1], tests


def train_run(options: argparse.Namespace, dataroot: Path, arm: str, seed: int) -> Path:
    """Train one run, or what is left of it; return its folder."""
    words = ["--max_dataset_size", str(options.steps), "--save_epoch_freq", "1", *arms(options.epochs)[arm]]
    return studies.train_run(options, dataroot, f"{arm}_{seed}", seed, options.epochs, words)


def measure(
    folder: Path, epoch: int, validation: Validation, tests: Sequence[TestPatient]
) -> dict[str, dict[str, float]]:
    """Return what a validation without pairs gives for the weights of an epoch, and how good they are in truth."""
    synthesiser = load_synthesiser(folder, str(epoch), CPU)
    back = TestModel(synthesiser.settings, weights_path(folder, epoch, "G_B"), CPU).netG
    values, _ = validation.run(synthesiser.model.netG, back)
    made = [synthesize_volume(patient.mr, synthesiser, patient.found).array for patient in tests]
    errors = [metrics.mae(ct, patient.ct.array, patient.body) for ct, patient in zip(made, tests, strict=True)]
    return {"unpaired": values, "truth": {TRUTH: float(np.mean(errors))}}


def correlate(rows: Sequence[Mapping], criteria: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return for every criterion the figures that the module's description names.

    Args:
        rows: a checkpoint each: `run`, `unpaired` (values by name) and `truth` (with `mae`).
        criteria: of `CRITERIA`.
    """
    runs = sorted({row["run"] for row in rows})
    figures = {}
    for criterion in criteria:
        of_run = []
        for run in runs:
            points = [(score(r["unpaired"], criterion), r["truth"][TRUTH]) for r in rows if r["run"] == run]
            of_run.append(np.array(points))
        inside = [_rank_correlation(points) for points in of_run]
        lost = [points[points[:, 0].argmin(), 1] - points[:, 1].min() for points in of_run]
        figures[criterion] = {
            "all": _rank_correlation(np.concatenate(of_run)), "in_a_run": float(np.mean(inside)),
            "in_a_run_least": min(inside), "lost_hu": float(np.mean(lost)), "lost_most": float(max(lost)),
        }  # fmt: skip
    return figures


def lost_by_the_last(rows: Sequence[Mapping]) -> float:
    """Return how far (HU) the true MAE of a run's last epoch is above that of its best one, the mean over the runs."""
    errors: dict[str, list[float]] = {}
    for row in rows:
        errors.setdefault(row["run"], []).append(row["truth"][TRUTH])
    return float(np.mean([of_run[-1] - min(of_run) for of_run in errors.values()]))


def _rank_correlation(points: np.ndarray) -> float:
    """Return Spearman's correlation of two columns; 0 where one is the same everywhere and says nothing."""
    if np.ptp(points, axis=0).min() == 0:
        return 0.0
    return float(spearmanr(points[:, 0], points[:, 1]).statistic)


def format_figures(figures: Mapping[str, Mapping[str, float]]) -> str:
    """Return the table of `correlate`'s figures, the criterion that loses least first."""
    lines = [["criterion", "all", "in a run", "least in a run", "lost [HU]", "lost at most [HU]"]]
    for name, values in sorted(figures.items(), key=lambda item: item[1]["lost_hu"]):
        all_, inside, least, lost, most = values.values()
        lines.append([f"`{name}`", f"{all_:.2f}", f"{inside:.2f}", f"{least:.2f}", f"{lost:.1f}", f"{most:.1f}"])
    return markdown_table(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make patients, train, measure, print the table and write the JSON file.

    Raises:
        InputError: the folder holds a study with other options.
    """
    options = parse_arguments(arguments)
    studies.claim(options, free=("arms", "seeds"))
    dataroot, held_back, tests = make_data(options)
    rows, validation = [], None
    for seed, arm in product(range(1, options.seeds + 1), options.arms):
        folder = train_run(options, dataroot, arm, seed)
        validation = validation or _without_pairs(held_back, folder)
        for epoch in range(1, options.epochs + 1):
            row = {"run": folder.name, "arm": arm, "seed": seed, "epoch": epoch}
            rows.append(row | _kept(folder, epoch, validation, tests))
            log.info("%s epoch %d: true MAE %.1f HU", folder.name, epoch, rows[-1]["truth"][TRUTH])
    figures, last = correlate(rows, UNPAIRED), lost_by_the_last(rows)
    runs = len({row["run"] for row in rows})
    sys.stdout.write(
        f"{format_figures(figures)}\n{len(rows)} checkpoints of {runs} runs; the last epochs lose {last:.1f} HU\n"
    )
    described = {"options": studies.described(options), "figures": figures, "last_lost_hu": last}
    write_json(options.out, {**described, "checkpoints": rows})


def _without_pairs(held_back: Path, run: Path) -> Validation:
    """Return the validation of all runs, whose frame, intensity maps and training CT are those of `run`."""
    apart = read_manifest(held_back)
    cases = ValidationCases(tuple(apart.select("train", "A")), tuple(apart.select("train", "B")), frozenset())
    return Validation(held_back, cases, read_inference_settings(run), 0, CPU)


def _kept(
    folder: Path, epoch: int, validation: Validation, tests: Sequence[TestPatient]
) -> dict[str, dict[str, float]]:
    """Return what `measure` does, from its file where it was measured before."""
    path = folder / f"{epoch}_study.json"
    if not path.exists():
        write_json(path, measure(folder, epoch, validation, tests))
    return read_json(path)


if __name__ == "__main__":
    run_command(main)
