"""Write the synthetic CT of the baselines: `python -m scripts.trivial_predictors --mr F --out DIR`.

Writes DIR/constant/CASE.nii.gz (40 HU in the body) and DIR/threshold/CASE.nii.gz (three levels of a T1 MR),
the baselines of a results table. --mr and --mask are one volume or a folder of cases, as in scripts.evaluate.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from data.errors import InputError, one_by_one, run_command
from data.masks.body_mask import mr_body_mask
from data.prepared.case_names import case_name
from data.settings.parser import CommandParser
from data.volumes.outputs import check_free
from data.volumes.volume import describe_difference, read_volume, resampling, same_grid, write_volume
from evaluation.baselines import PREDICTORS
from evaluation.case_folders import CaseVolumes
from evaluation.cases import case_volumes

log = logging.getLogger(__name__)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="python -m scripts.trivial_predictors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--mr", type=Path, required=True, help="T1 MR; a volume or a folder of cases")
    parser.add_argument("--mr_pattern", metavar="PATTERN", help="where a case lies below --mr, e.g. '{case}/mr.nii.gz'")
    parser.add_argument("--mask", type=Path, help="body mask, non-zero inside (default: the body found in the MR)")
    parser.add_argument("--mask_pattern", metavar="PATTERN", help="where a case lies below --mask")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to, one folder a predictor")
    parser.add_argument("--overwrite", action="store_true", help="replace existing volumes")
    options = parser.parse_args(arguments)
    if options.mask_pattern is not None and options.mask is None:
        parser.error("--mask_pattern needs --mask")
    return options


def predictor_path(out: Path, predictor: str, name: str) -> Path:
    """Return where a predictor's volume of a case goes."""
    return out / predictor / f"{name}.nii.gz"


def predict_case(name: str, mr_path: Path, mask_path: Path | None, out: Path) -> None:
    """Write every predictor's volume of one MR.

    Raises:
        InputError: a file cannot be read or written, or the mask is not on the MR's grid.
    """
    mr = read_volume(mr_path)
    if mask_path is None:
        body = mr_body_mask(mr)
    else:
        mask = read_volume(mask_path)
        if not same_grid(mask, mr):
            raise InputError(
                f"{mask_path}: the mask is not on the MR's grid: {describe_difference(mask, mr)}; resample it: "
                f"{resampling(mask_path, mr_path)}"
            )
        body = mask.array != 0
    made = {predictor: predict(mr, body) for predictor, predict in PREDICTORS.items()}
    for predictor, ct in made.items():
        log.info("wrote %s", write_volume(ct, predictor_path(out, predictor, name)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict every case; one of several that fails costs no other. Return the exit code.

    Raises:
        InputError: bad input; a case without its mask is named.
    """
    options = parse_arguments(arguments)
    mrs = case_volumes(CaseVolumes("--mr", options.mr, options.mr_pattern, "mr"))
    masks = None
    if options.mask is not None:
        masks = case_volumes(CaseVolumes("--mask", options.mask, options.mask_pattern, "mask"))
    if mrs is None:
        name = case_name(options.mr)
        mrs = {name: options.mr}
        if options.mask is not None and masks is None:
            masks = {name: options.mask}
    missing = [] if options.mask is None else [name for name in mrs if name not in (masks or {})]
    if missing:
        raise InputError(
            f"--mask {options.mask} has no mask of {', '.join(missing)}; expected one for every MR, by name"
        )
    targets = [predictor_path(options.out, predictor, name) for predictor in PREDICTORS for name in mrs]
    check_free(targets, "--out", [*mrs.values(), *(masks or {}).values()], overwrite=options.overwrite)

    def predict(case: tuple[str, Path]) -> None:
        name, mr_path = case
        try:
            predict_case(name, mr_path, masks[name] if masks else None, options.out)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error

    return one_by_one(mrs.items(), predict)


if __name__ == "__main__":
    run_command(main)
