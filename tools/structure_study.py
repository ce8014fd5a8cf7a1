"""What ties a synthetic CT to its MR, one view or three: `python -m tools.structure_study --work DIR --out FILE`.

Trains small CycleGANs of one budget on generated trunks, in every variant: without a loss of structure, with the
correlation over the slice, the local correlation, mutual information over the slice and in tiles; and with the
correlation on coronal and sagittal slices, which are fused with the axial model by mean and by median. Scores test
patients whose CT is known, in the true body. Prints a line per variant: mean over patients and seeds, and the range of
the seeds' means.

Started again with the same options it goes on where it was.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch

from data.errors import run_command
from data.files import write_json
from data.phantom.labels import body_mask
from data.phantom.patients import PhantomSettings, write_dataset
from data.settings.parser import CommandParser
from data.settings.values import positive_int
from data.volumes.slice_frame import VIEWS
from data.volumes.volume import read_volume
from evaluation.report import COLUMNS, markdown_table, score_case
from models.ensemble import FUSIONS, synthesize_ensemble
from models.synthesis import load_synthesiser
from scripts import prepare_dataset
from tools import studies

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
_NO_CORRELATION = ["--lambda_correlation_A", "0", "--lambda_correlation_B", "0"]
_INFORMATION = [*_NO_CORRELATION, "--lambda_mi_A", "2", "--lambda_mi_B", "2"]
# Options of `train.py` by the name of the variant; the weights are those of the correlation, 2.
ARMS: dict[str, list[str]] = {
    "none": _NO_CORRELATION,
    "correlation": [],
    "local correlation": ["--lcc_window", "15"],
    "mutual information": _INFORMATION,
    "local mutual information": [*_INFORMATION, "--mi_window", "16", "--mi_bins", "16"],
}
MULTI_VIEW_ARM = "correlation"
SCORES = ("mae", "dice_body", "dice_bone", "mae_bone", "ssim")
# The patients' field of view, of which slices of 64 pixels have pixels of 8 mm in every view.
FIELD_MM = 512.0


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="python -m tools.structure_study", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for patients, data sets and runs")
    add("--out", type=Path, required=True, help="JSON file of all scores")
    add("--seeds", type=positive_int, default=2, help="runs of every variant (default: 2)")
    add("--steps", type=positive_int, default=240, help="steps of every run, with batch 1 (default: 240)")
    add("--ngf", type=positive_int, default=8, help="width of the generators (default: 8)")
    add("--patients", type=positive_int, default=6, help="training patients in each domain (default: 6)")
    add("--test_patients", type=positive_int, default=3, help="test patients with MR and true CT (default: 3)")
    add("--matrix", type=positive_int, default=64, help="rows and columns of a slice (default: 64)")
    return parser.parse_args(arguments)


def make_data(options: argparse.Namespace) -> dict[str, Path]:
    """Make the patients, slices twice as thick as pixels; return the data set of each view."""
    pixel_mm = FIELD_MM / options.matrix
    grid = PhantomSettings(options.matrix, options.matrix // 2, pixel_mm, 2 * pixel_mm)
    raw = options.work / "raw"
    if not (raw / "test").exists():
        write_dataset(raw, grid, 1, options.patients, options.test_patients)
    for view in VIEWS:
        prepare_dataset.main([
            "--mr", f"{raw}/train/mr/*", "--ct", f"{raw}/train/ct/*", "--out", str(options.work / view), "--view", view,
            "--size", str(options.matrix), "--spacing_mm", str(pixel_mm), "--workers", "1",
        ])  # fmt: skip
    return {view: options.work / view for view in VIEWS}


def train_run(options: argparse.Namespace, dataroot: Path, name: str, arm: str, seed: int) -> Path:
    """Train one run, or what is left of it; return its folder. Half of its steps have a falling rate."""
    lengths = "--n_epochs 1 --n_epochs_decay 1 --save_epoch_freq 2 --max_dataset_size".split()
    return studies.train_run(options, dataroot, name, seed, 2, [*lengths, str(options.steps // 2), *ARMS[arm]])


def score(raw: Path, folders: Sequence[Path], fusion: str = "mean") -> list[dict[str, float]]:
    """Return the scores of every test patient, converted by one model or by the fusion of several."""
    synthesisers = [load_synthesiser(folder, "latest", CPU) for folder in folders]
    rows = []
    for patient in sorted((raw / "test").iterdir()):
        mr, ct, labels = (read_volume(patient / f"{what}.nii.gz") for what in ("mr", "ct", "labels"))
        made, _ = synthesize_ensemble(mr, synthesisers, fusion=fusion)
        scores = score_case(made, ct, mask=labels.with_array(body_mask(labels.array).astype(np.uint8)))
        rows.append({name: scores[name] for name in SCORES})
    return rows


def format_scores(rows: Sequence[dict]) -> str:
    """Return the table: a line per variant, of rows with `arm`, `seed` and the scores of one patient."""
    lines = [["variant", *(COLUMNS[name][0] for name in SCORES)]]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        cells = [arm]
        for name in SCORES:
            by_seed: dict[int, list[float]] = {}
            for row in rows:
                if row["arm"] == arm:
                    by_seed.setdefault(row["seed"], []).append(row[name])
            means, digits = [float(np.nanmean(values)) for values in by_seed.values()], COLUMNS[name][1]
            cells.append(f"{np.mean(means):.{digits}f} ({min(means):.{digits}f} to {max(means):.{digits}f})")
        lines.append(cells)
    return markdown_table(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make patients, train, score, print the table and write the JSON file.

    Raises:
        InputError: the folder holds a study with other options.
    """
    options = parse_arguments(arguments)
    studies.claim(options, free=("seeds",))
    datasets = make_data(options)
    rows: list[dict] = []

    def add(arm: str, seed: int, folders: Sequence[Path], fusion: str = "mean") -> None:
        found = score(options.work / "raw", folders, fusion)
        rows.extend({"arm": arm, "seed": seed, **scores} for scores in found)
        log.info("%s, seed %d: MAE %.1f HU", arm, seed, np.mean([scores["mae"] for scores in found]))

    for seed, arm in product(range(1, options.seeds + 1), ARMS):
        add(arm, seed, [train_run(options, datasets["axial"], f"{arm.replace(' ', '_')}_{seed}", arm, seed)])
    for seed in range(1, options.seeds + 1):
        names = {view: f"{MULTI_VIEW_ARM}_{seed}" if view == "axial" else f"{view}_{seed}" for view in VIEWS}
        folders = [train_run(options, datasets[view], name, MULTI_VIEW_ARM, seed) for view, name in names.items()]
        for view, folder in zip(VIEWS, folders, strict=True):
            if view != "axial":
                add(f"{MULTI_VIEW_ARM}, {view}", seed, [folder])
        for fusion in FUSIONS:
            add(f"{MULTI_VIEW_ARM}, three views, {fusion}", seed, folders, fusion)
    sys.stdout.write(f"{format_scores(rows)}\n")
    write_json(options.out, {"options": studies.described(options), "cases": rows})


if __name__ == "__main__":
    run_command(main)
