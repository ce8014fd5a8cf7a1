"""Resample a volume to another one's grid: `python -m scripts.resample --input A --like B [--output C]`.

Nothing is registered: both volumes stay where their headers put them. Voxels outside A are air in a CT (-1000 HU) and
0 in an MR, a mask or any other volume. Masks and label maps keep their labels (nearest neighbour) unless
--interpolation is given.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.errors import InputError, run_command
from data.settings.declaration import HelpFormatter, add_options, from_namespace
from data.settings.dicom_choice import DicomChoice
from data.settings.parser import CommandParser
from data.settings.values import finite_float
from data.values.attenuation import is_mu
from data.values.intensity import AIR_HU
from data.values.modality import kind_of
from data.volumes.outputs import check_free, volume_targets
from data.volumes.resampling import INTERPOLATIONS, resample
from data.volumes.volume import WRITABLE_SUFFIXES, description_in, read_volume, volume_stem, volume_suffix, write_volume
from evaluation.origin import SYNTHETIC

log = logging.getLogger(__name__)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(prog="python -m scripts.resample", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="volume file or DICOM folder to resample")
    parser.add_argument("--series_uid", help="which DICOM series of --input")
    parser.add_argument("--like", type=Path, required=True, help="volume file or DICOM folder with the wanted grid")
    parser.add_argument("--output", type=Path, help="volume file (default: beside --input, <input>_like_<like>.nii.gz)")
    parser.add_argument(
        "--interpolation", choices=INTERPOLATIONS, help="how (default: linear; nearest for masks and label maps)"
    )
    parser.add_argument(
        "--outside", type=finite_float, metavar="VALUE", help="value outside --input (default: -1000 for a CT, else 0)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_options(parser, DicomChoice)
    options = parser.parse_args(arguments)
    if options.output is None:
        name = f"{volume_stem(options.input)}_like_{volume_stem(options.like)}.nii.gz"
        options.output = options.input.absolute().with_name(name)
    if volume_suffix(options.output) not in WRITABLE_SUFFIXES:
        parser.error(f"--output {options.output}: expected a file ending in {' '.join(WRITABLE_SUFFIXES)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Resample and write."""
    opt = parse_arguments(arguments)
    check_free(volume_targets(opt.output), "--output", [opt.input, opt.like], overwrite=opt.overwrite)
    choice = from_namespace(DicomChoice, opt)
    volume = read_volume(opt.input, opt.series_uid, chosen=choice.chosen, description=choice.series_description)
    like = read_volume(opt.like)
    kind = kind_of(volume)
    interpolation = opt.interpolation or ("nearest" if kind == "labels" else "linear")
    outside = opt.outside if opt.outside is not None else AIR_HU if kind == "CT" else 0
    try:
        result, covered = resample(volume, like, interpolation, outside)
    except InputError as error:
        raise InputError(f"{opt.input}, {opt.like}: {error}") from error
    said = description_in(opt.input)  # of other software it may say anything
    write_volume(result, opt.output, said if said in SYNTHETIC.values() or is_mu(said) else "")
    what = {"CT": "a CT", "MR": "no CT", "labels": "a mask or label map"}[kind]
    share = 100 * (1 - np.count_nonzero(covered) / covered.size)
    log.info(
        "%s: %s of %s, %s; %.1f %% of it lies outside and is %g",
        opt.output, interpolation, opt.input, what, share, outside,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    run_command(main)
