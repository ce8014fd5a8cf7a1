"""How much smoother MR are across their slices than within them: do slices hold something of their own?

    python -m tools.slice_smoothness --mr STS --mr_pattern '{case}/{case}_MR_T1.nii.gz'

For each slice: second differences across slices, root mean square in the body, relative to those along rows at the
same distance in mm. About 1 where slices are thin. Near 0 where a slice is the mean of its neighbours: thicker ones
were interpolated. The table has the median over slices, and the 10th and 90th percentile.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.errors import InputError, run_command
from data.settings.parser import CommandParser
from data.volumes.volume import Volume, read_volume
from evaluation.case_folders import CaseVolumes
from evaluation.cases import case_volumes

# What is brighter than this share of the 99th percentile is body; slices with fewer voxels of it do not count.
_BODY, _LEAST_VOXELS = 0.1, 300


def smoothness(mr: Volume) -> np.ndarray:
    """Return for each slice but the first and last the ratio of its second differences, NaN where there is little body.

    Raises:
        InputError: no row is long enough for the distance of two slices.
    """
    image = mr.array.astype(np.float64)
    body = image > _BODY * np.percentile(image, 99)
    step = max(1, round(mr.spacing[2] / mr.spacing[0]))
    if image.shape[2] <= 2 * step or len(image) < 3:
        raise InputError(f"{image.shape[2]} columns and {len(image)} slices; expected more than {2 * step} and 2")
    squared, inside = _second_differences(image, body, 0, 1)
    across = np.array([np.mean(plane[seen]) if seen.sum() >= _LEAST_VOXELS else np.nan for plane, seen in
                       zip(squared, inside, strict=True)])  # fmt: skip
    if np.isnan(across).all():
        raise InputError(f"no slice has {_LEAST_VOXELS} voxels of body in it and in both neighbours")
    squared, inside = _second_differences(image, body, 2, step)
    return np.sqrt(across / np.mean(squared[inside]))


def _second_differences(image: np.ndarray, body: np.ndarray, axis: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the square of second differences along an axis, and where all three voxels are body."""
    image, body = np.moveaxis(image, axis, 0), np.moveaxis(body, axis, 0)
    squared = (image[2 * step :] - 2 * image[step:-step] + image[: -2 * step]) ** 2
    return squared, body[2 * step :] & body[step:-step] & body[: -2 * step]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each MR."""
    parser = CommandParser(
        prog="python -m tools.slice_smoothness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--mr", type=Path, required=True, help="an MR, or a folder of cases")
    parser.add_argument("--mr_pattern", metavar="PATTERN", help="where a case's MR lies, e.g. '{case}/mr.nii.gz'")
    opt = parser.parse_args(arguments)
    found = case_volumes(CaseVolumes("--mr", opt.mr, opt.mr_pattern, "mr"))
    print("| MR | median | 10th percentile | 90th percentile |\n| --- | ---: | ---: | ---: |")
    for name, path in (found or {opt.mr.name: opt.mr}).items():
        try:
            median, low, high = np.nanpercentile(smoothness(read_volume(path)), (50, 10, 90))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        print(f"| {name} | {median:.2f} | {low:.2f} | {high:.2f} |")


if __name__ == "__main__":
    run_command(main)
