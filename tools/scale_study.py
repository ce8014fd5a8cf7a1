"""What another scanner's scale or a bias field costs: `python -m tools.scale_study --data DIR --name recommended`.

DIR holds a folder a patient with an MR and its true CT on one grid. Each MR is converted as it is, times 0.3, times 3,
and under smooth bias fields from +40 % to -40 % along each axis. The table holds the mean MAE (HU, in the body of the
true CT where MR > 0), its difference from the unchanged MR's, and the largest difference of one patient.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from data.errors import run_command
from data.settings.devices import torch_device
from data.settings.parser import CommandParser
from data.volumes.volume import Volume
from evaluation.report import score_case
from models.synthesis import Synthesiser, load_synthesiser, synthesize_volume
from tools.patients import add_patients, patients

BIAS = 0.4


def under_bias(mr: Volume, axis: int) -> Volume:
    """Return an MR times half a cosine along an array axis, from 1 + BIAS to 1 - BIAS."""
    shape = [-1 if k == axis else 1 for k in range(3)]
    field = 1 + BIAS * np.cos(np.linspace(0, np.pi, mr.array.shape[axis])).reshape(shape)
    return mr.with_array((mr.array * field).astype(np.float32))


def changed(mr: Volume) -> dict[str, Volume]:
    """Return an MR as it is and as other scanners might have written it."""
    scaled = {f"times {k:g}": mr.with_array((mr.array * k).astype(np.float32)) for k in (0.3, 3.0)}
    fields = {f"bias field along {name}": under_bias(mr, axis) for axis, name in enumerate("zyx")}
    return {"as it is": mr} | scaled | fields


def measure(mr: Volume, ct: Volume, synthesiser: Synthesiser) -> dict[str, float]:
    """Return the MAE (HU) of every change of an MR; all are scored in the same voxels."""
    return {
        name: score_case(synthesize_volume(one, synthesiser), ct, mr=mr)["mae"] for name, one in changed(mr).items()
    }


def table(found: dict[str, dict[str, float]]) -> str:
    """Return the figures by change of MR, over all patients, as a Markdown table."""
    lines = ["| MR | MAE [HU] | difference [HU] | largest [HU] |", "| --- | ---: | ---: | ---: |"]
    plain = np.array([row["as it is"] for row in found.values()])
    for name in next(iter(found.values())):
        values = np.array([row[name] for row in found.values()])
        more = values - plain
        lines.append(f"| {name} | {values.mean():.1f} | {more.mean():+.1f} | {more[np.abs(more).argmax()]:+.1f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert, score and print."""
    parser = CommandParser(
        prog="python -m tools.scale_study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_patients(parser)
    parser.add_argument("--name", default="recommended", help="the model (default: recommended)")
    parser.add_argument(
        "--bias_correction",
        choices=("yes", "no"),
        help="whether bias fields are corrected (default: as the model does)",
    )
    opt = parser.parse_args(arguments)
    device = torch_device("auto")
    synthesiser = load_synthesiser(opt.checkpoints_dir / opt.name, "latest", device)
    if opt.bias_correction:
        corrects = opt.bias_correction == "yes"
        synthesiser = replace(synthesiser, settings=replace(synthesiser.settings, bias_correction=corrects))
    found = {}
    for case, mr, ct in patients(opt):
        found[case] = measure(mr, ct, synthesiser)
        sys.stdout.write(f"{case}: {', '.join(f'{name} {value:.1f}' for name, value in found[case].items())}\n")
        sys.stdout.flush()
    sys.stdout.write(table(found) + "\n")


if __name__ == "__main__":
    run_command(main)
