"""Compare trained models on generated patients, whose truth is known: `python -m scripts.compare_arms`.

Every model of every --checkpoints_dir (one folder for each seed) converts the test patients of scripts.make_phantom.
Scores are taken in the true body. "Arms kept" is the share of the true arms' voxels that are not air in the synthetic
CT. Prints the mean over patients and seeds, and the range of the seeds' means:

    python -m scripts.compare_arms --phantom datasets/phantom_raw --checkpoints_dir seed1 seed2 \\
        --names pure_cyclegan cycle_Lcc Self+Lcc_finetune --out results/arms
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from data.commands import python_command
from data.errors import InputError, run_command
from data.phantom.labels import arm_mask, body_mask
from data.settings.devices import torch_device
from data.settings.parser import CommandParser
from data.settings.values import run_name
from data.volumes.outputs import check_free
from data.volumes.volume import Volume, read_volume, write_volume
from evaluation.origin import SYNTHETIC
from evaluation.report import COLUMNS, markdown_table, score_case, write_report
from models.precision import PRECISIONS
from models.synthesis import load_synthesiser, synthesize_volume

log = logging.getLogger(__name__)

# Half way from air to soft tissue.
AIR_BELOW_HU = -500
SCORES = {"dice_body": COLUMNS["dice_body"], "arms_kept": ("arms kept", 3)} | {
    name: COLUMNS[name] for name in ("mae", "dice_bone", "mae_bone", "ssim", "psnr")
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="python -m scripts.compare_arms", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phantom", type=Path, required=True, help="folder that scripts.make_phantom wrote")
    parser.add_argument("--names", type=run_name, nargs="+", required=True, help="the models' names")
    parser.add_argument(
        "--checkpoints_dir",
        type=Path,
        nargs="+",
        default=[Path("checkpoints")],
        help="folders that hold the models, one for each seed",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for volumes and scores.json")
    parser.add_argument("--device", type=torch_device, default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="number format of the networks")
    parser.add_argument("--overwrite", action="store_true", help="replace existing volumes and scores")
    return parser.parse_args(arguments)


def arms_kept(pred: Volume, labels: Volume) -> float:
    """Return the share of the arms' voxels in `labels` that are above -500 HU in `pred`; NaN without arms."""
    arms = arm_mask(labels.array)
    return float(np.mean(pred.array[arms] > AIR_BELOW_HU)) if arms.any() else float("nan")


def volume_path(out: Path, checkpoints: Path, name: str, patient: Path) -> Path:
    """Return where a model's volume of a patient goes."""
    return out / checkpoints.name / name / f"{patient.name}.nii.gz"


def score_model(
    checkpoints: Path, name: str, patients: list[Path], out: Path, device: torch.device, precision: str
) -> list[dict]:
    """Convert and score all patients with one model; the volumes go to `out/FOLDER/NAME/PATIENT.nii.gz`."""
    synthesiser = load_synthesiser(checkpoints / name, "latest", device, precision)
    rows = []
    for patient in patients:
        mr, ct, labels = (read_volume(patient / f"{what}.nii.gz") for what in ("mr", "ct", "labels"))
        pred = synthesize_volume(mr, synthesiser)
        write_volume(pred, volume_path(out, checkpoints, name, patient), SYNTHETIC["AtoB"])
        scores = score_case(pred, ct, mask=labels.with_array(body_mask(labels.array).astype(np.uint8)))
        row = {"model": name, "checkpoints": checkpoints.name, "case": patient.name, **scores}
        rows.append(row | {"arms_kept": arms_kept(pred, labels)})
        log.info("%s %s %s: MAE %.1f HU", checkpoints.name, name, patient.name, scores["mae"])
    return rows


def format_comparison(rows: list[dict], names: Sequence[str]) -> str:
    """Return a table, a line a model: the mean over patients and seeds, and the range of the seeds' means."""
    lines = [["model", *(title for title, _ in SCORES.values())]]
    for name in names:
        of_model = [row for row in rows if row["model"] == name]
        seeds = sorted({row["checkpoints"] for row in of_model})
        cells = []
        for score, (_, digits) in SCORES.items():
            means = [np.nanmean([row[score] for row in of_model if row["checkpoints"] == seed]) for seed in seeds]
            spread = f" ({min(means):.{digits}f} to {max(means):.{digits}f})" if len(seeds) > 1 else ""
            cells.append(f"{np.mean(means):.{digits}f}{spread}")
        lines.append([f"`{name}`", *cells])
    return markdown_table(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert, score, print the table and write `scores.json`.

    Raises:
        InputError: no test patient, or a model cannot be loaded.
    """
    options = parse_arguments(arguments)
    patients = sorted(path.parent for path in (options.phantom / "test").glob("*/labels.nii.gz"))
    if not patients:
        raise InputError(
            f"--phantom {options.phantom}: no test patient (test/*/labels.nii.gz) in it; make some with "
            + python_command("-m", "scripts.make_phantom", "--test_patients", 4)
        )
    if lacking := [patient for patient in patients if not (patient / "mr.nii.gz").exists()]:
        raise InputError(f"{lacking[0]}: has no mr.nii.gz; expected a phantom of one contrast, made without --dixon")
    options.checkpoints_dir = [
        folder.resolve() if folder.name in ("", "..") else folder for folder in options.checkpoints_dir
    ]
    folders = [folder.name for folder in options.checkpoints_dir]
    if len(set(folders)) < len(folders):
        raise InputError(f"--checkpoints_dir: expected folders of different names, found {' '.join(folders)}")
    scores = options.out / "scores.json"
    models = [(checkpoints, name) for checkpoints in options.checkpoints_dir for name in options.names]
    volumes = [volume_path(options.out, *model, patient) for model in models for patient in patients]
    check_free([scores, *volumes], "--out", overwrite=options.overwrite)
    rows = []
    for checkpoints, name in models:
        rows += score_model(checkpoints, name, patients, options.out, options.device, options.precision)
    sys.stdout.write(f"{format_comparison(rows, options.names)}\n")
    write_report({"cases": rows}, scores)


if __name__ == "__main__":
    run_command(main)
