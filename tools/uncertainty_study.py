"""How much of the error uncertainty finds: `python -m tools.uncertainty_study --data DIR --name recommended`.

Each folder of --data holds a folder a patient with an MR and its true CT on one grid. Every MR is converted with
--uncertainty, by one model or by an ensemble, and compared voxel by voxel in the body of the true CT where MR > 0:

    share of the error   of the sum of absolute errors, what lies in the most uncertain 10 % of voxels
    at best              what lies in the 10 % of voxels with the largest errors
    rank correlation     Spearman's, between uncertainty and absolute error
    by tenths            of the voxels, the most certain first: root mean squares of uncertainty and of error, equal
                         where the uncertainty is calibrated

--figure draws the tenths.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import spearmanr

from data.errors import run_command
from data.files import whole_file
from data.masks.body_mask import ct_body_mask
from data.settings.devices import torch_device
from data.settings.parser import CommandParser
from data.volumes.outputs import check_free
from data.volumes.volume import Volume
from evaluation.report import markdown_table, seen_voxels
from models.ensemble import check_ensemble, synthesize_ensemble
from models.synthesis import Synthesiser, load_synthesiser
from tools.patients import add_patients, patients

TENTHS = 10


def measure(mr: Volume, ct: Volume, synthesisers: Sequence[Synthesiser]) -> tuple[np.ndarray, np.ndarray]:
    """Return uncertainty and absolute error in HU, float32 (V,), of the V voxels that are scored."""
    synthetic, deviation = synthesize_ensemble(mr, synthesisers)
    assert deviation is not None, "it is asked for"
    inside = ct_body_mask(ct) & seen_voxels(mr)
    error = np.abs(synthetic.array[inside].astype(np.float32) - ct.array[inside])
    return deviation.array[inside], error


def found_share(uncertainty: np.ndarray, error: np.ndarray) -> float:
    """Return the share of the sum of `error` that lies in the tenth of voxels with the largest `uncertainty`.

    Voxels of one uncertainty stand in the order in which they come.
    """
    order = np.argsort(uncertainty, kind="stable")
    tenth = order[len(order) - len(order) // TENTHS :]
    return float(error[tenth].sum(dtype=np.float64) / error.sum(dtype=np.float64))


def figures(uncertainty: np.ndarray, error: np.ndarray) -> list[float]:
    """Return MAE, mean uncertainty, share of the error, that at best, and rank correlation."""
    return [
        float(error.mean(dtype=np.float64)), float(uncertainty.mean(dtype=np.float64)),
        found_share(uncertainty, error), found_share(error, error), float(spearmanr(uncertainty, error).statistic),
    ]  # fmt: skip


def tenths(uncertainty: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Return root mean squares of uncertainty and error, (2, 10), of a tenth of the voxels each, most certain first."""
    order = np.argsort(uncertainty, kind="stable")
    parts = np.array_split(order, TENTHS)
    return np.array(
        [
            [np.sqrt(np.mean(np.square(values[part], dtype=np.float64))) for part in parts]
            for values in (uncertainty, error)
        ]
    )


def tables(found: dict[str, list[float]], by_tenths: np.ndarray) -> str:
    """Return the figures of each patient and of all voxels, and the tenths, as Markdown."""
    head = ["patient", "MAE [HU]", "mean uncertainty [HU]", "share of the error", "at best", "rank correlation"]
    formats = (".1f", ".1f", ".2f", ".2f", ".2f")
    rows = [[name, *map(format, values, formats)] for name, values in found.items()]
    tenth = [["tenth", *map(str, range(1, TENTHS + 1))]]
    tenth += [
        [name, *(f"{value:.0f}" if value >= 10 else f"{value:.1f}" for value in values)]
        for name, values in zip(("uncertainty [HU]", "error [HU]"), by_tenths, strict=True)
    ]
    return f"{markdown_table([head, *rows])}\n\n{markdown_table(tenth)}"


def draw(by_tenths: np.ndarray, path: Path) -> None:
    """Draw error over uncertainty, both root mean squares of tenths, with the line of a calibrated uncertainty."""
    figure, axes = plt.subplots(figsize=(4.5, 4), layout="constrained")
    ends = [by_tenths.min() * 0.8, by_tenths.max() * 1.25]
    axes.plot(ends, ends, color="gray", linestyle="--", label="calibrated")
    axes.plot(*by_tenths, "o-", label="a tenth of the voxels")
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.set(xlabel="uncertainty [HU], root mean square", ylabel="error [HU], root mean square")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    with whole_file(path) as scratch:
        figure.savefig(scratch, dpi=130)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert, compare, print and draw."""
    parser = CommandParser(
        prog="python -m tools.uncertainty_study", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_patients(parser)
    parser.add_argument("--name", nargs="+", default=["recommended"], help="one model, or those of an ensemble")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the tenths into this PNG")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --figure")
    opt = parser.parse_args(arguments)
    device = torch_device("auto")
    synthesisers = [load_synthesiser(opt.checkpoints_dir / name, "latest", device) for name in opt.name]
    check_ensemble(opt.name, [one.settings for one in synthesisers], uncertainty=True)
    if opt.figure:
        check_free([opt.figure], "--figure", overwrite=opt.overwrite)
    measured = {}
    for case, mr, ct in patients(opt):
        measured[case] = measure(mr, ct, synthesisers)
        sys.stdout.write(f"{case}: {len(measured[case][0])} voxels\n")
        sys.stdout.flush()
    found = {case: figures(*values) for case, values in measured.items()}
    everything = [np.concatenate(parts) for parts in zip(*measured.values(), strict=True)]
    by_tenths = tenths(*everything)
    sys.stdout.write(tables(found | {"all voxels": figures(*everything)}, by_tenths) + "\n")
    if opt.figure:
        draw(by_tenths, opt.figure)


if __name__ == "__main__":
    run_command(main)
