"""What a perfect segmentation would score on generated patients: each tissue's mean HU in place of its true labels.

    python -m tools.tissue_means --phantom datasets/phantom_raw --out results/tissue_means

The volumes are scored as those of `scripts.trivial_predictors`: docs/results.md, "Generated patients: the three
variants".

Labels are those at the voxels' centres. A model can be better: the MR shows which voxels hold several tissues.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.errors import InputError, run_command
from data.phantom.labels import Tissue
from data.phantom.patients import CT_HU, SAME_AS
from data.settings.parser import CommandParser
from data.volumes.outputs import check_free
from data.volumes.volume import Volume, read_volume, write_volume


def tissue_means(labels: Volume) -> Volume:
    """Return a CT, int16 HU, in which every voxel has the mean HU of its tissue over all generated patients.

    `labels`: values of `Tissue`.
    """
    hu = np.zeros(len(Tissue), np.int16)
    for tissue in Tissue:
        hu[tissue] = CT_HU[SAME_AS.get(tissue, tissue)][0]
    return labels.with_array(hu[labels.array])


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a volume for each test patient.

    Raises:
        InputError: there is no test patient, or a volume exists.
    """
    parser = CommandParser(
        prog="python -m tools.tissue_means", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phantom", type=Path, required=True, help="folder that scripts.make_phantom wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the volumes")
    opt = parser.parse_args(arguments)
    patients = {path.parent.name: path for path in sorted((opt.phantom / "test").glob("*/labels.nii.gz"))}
    if not patients:
        raise InputError(f"--phantom {opt.phantom}: no test patient (test/*/labels.nii.gz) in it")
    written = {name: opt.out / f"{name}.nii.gz" for name in patients}
    check_free(list(written.values()), "--out")
    for name, path in patients.items():
        write_volume(tissue_means(read_volume(path)), written[name])


if __name__ == "__main__":
    run_command(main)
