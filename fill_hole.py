"""Fill holes in binary masks by iterated voting: `python fill_hole.py --input F|DIR --output F|DIR`.

A background voxel becomes foreground if the foreground has a majority in the box around it. This repeats until nothing
changes or --iterations are done (SimpleITK's VotingBinaryIterativeHoleFilling). Masks are volumes (.nii.gz .nii .mha
.mhd .nrrd), filled in 3-D and written as 0 and 1, or slices (.png), filled in 2-D and written as 0 and 255. In a
folder, all masks in it and below are filled.
"""

import argparse
import glob
import logging
import math
from pathlib import Path

import data  # noqa: F401  # isort: skip  # first: it says what to do where packages are missing
import numpy as np
import SimpleITK as sitk
from PIL import Image

from data.errors import InputError, run_command
from data.files import whole_file
from data.loading.images import read_mask_image
from data.progress import shown_progress
from data.settings.parser import CommandParser
from data.volumes.outputs import check_free, volume_targets
from data.volumes.paths import find_paths, is_regular_file
from data.volumes.volume import WRITABLE_SUFFIXES, Volume, from_sitk, read_volume, write_volume

log = logging.getLogger(__name__)

MASK_SUFFIXES = (*WRITABLE_SUFFIXES, ".png")


def fill_holes(mask: Volume, iterations: int = 10, radius: int | tuple[int, int, int] = 1, majority: int = 1) -> Volume:
    """Fill holes of a binary mask by voting.

    A background voxel becomes foreground where at least (N - 1) / 2 + `majority` of the N voxels of the box around it
    are foreground; foreground stays. Beyond the volume's border the nearest voxel counts.

    Args:
        mask: 0 is background, one other value is foreground.
        iterations: how often to vote at most; each closes a hole by about one voxel from its rim.
        radius: half the box's size in voxels, for all axes or along x, y, z. A mask of one slice (a PNG) has 0 along z.
        majority: voxels of foreground beyond one half that it takes; at most (N + 1) / 2.

    Returns:
        The mask as uint8, 0 and 1, on the same grid.

    Raises:
        InputError: the mask holds several values besides 0, or a number is out of range.
    """
    values = np.unique(mask.array)
    if np.count_nonzero(values) > 1:
        found = f"{values.size} values, {', '.join(f'{v:g}' for v in values[:8])}{' ...' * (values.size > 8)}"
        raise InputError(f"hole filling: the mask holds {found}; expected 0 and one other: extract one label first")
    radii = (radius,) * 3 if isinstance(radius, int) else tuple(radius)
    radii = tuple(0 if extent == 1 else r for extent, r in zip(mask.size, radii, strict=True))
    if iterations < 1 or min(radii) < 0 or max(radii) < 1:
        raise InputError(
            f"hole filling: iterations {iterations}, radius {radii}; expected iterations and a radius above 0"
        )
    half = (math.prod(2 * r + 1 for r in radii) + 1) // 2
    if not 1 <= majority <= half:
        raise InputError(f"hole filling: majority {majority}; expected 1 to {half} for radius {radii}")
    image = mask.with_array((mask.array != 0).astype(np.uint8)).to_sitk()
    return from_sitk(sitk.VotingBinaryIterativeHoleFilling(image, radii, iterations, majority, 1.0, 0.0))


def main(arguments: list[str] | None = None) -> int:
    """Fill one mask or a folder of them; return 1 if a mask of the folder failed."""
    opt = _parse(arguments)
    if not opt.input.is_dir():
        _check_target(opt.input, opt.output, opt)
        _fill_file(opt.input, opt.output, opt)
        return 0
    sources = sorted(path for path in find_paths(f"{glob.escape(str(opt.input))}/**") if _is_mask(path))
    out = opt.output.resolve()
    if opt.input.resolve() in out.parents:  # masks that an earlier run filled are no inputs
        sources = [path for path in sources if not path.resolve().is_relative_to(out)]
    if not sources:
        raise InputError(f"--input {opt.input}: no mask in it; expected {' '.join(MASK_SUFFIXES)}")
    targets = {source: opt.output / source.relative_to(opt.input) for source in sources}
    for source, target in targets.items():
        _check_target(source, target, opt)
    failures = []
    for source, target in shown_progress(targets.items(), len(targets), "filling holes", "mask"):
        try:
            _fill_file(source, target, opt)
        except (InputError, OSError) as error:
            failures.append(error)
    log.info("%s: %d of %d masks filled", opt.output, len(sources) - len(failures), len(sources))
    for failure in failures:
        log.error("failed: %s", failure)
    return int(bool(failures))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="a mask or a folder of masks")
    parser.add_argument("--output", type=Path, required=True, help="file to write, or folder if --input is a folder")
    parser.add_argument(
        "--iterations", type=int, default=10, help="largest number of voting rounds (default %(default)s)"
    )
    parser.add_argument(
        "--radius",
        type=int,
        nargs="+",
        default=[1],
        help="radius of the box in voxels: one number, or x y z (default 1)",
    )
    parser.add_argument(
        "--majority",
        type=int,
        default=1,
        help="how many voxels more than half of the box must be foreground to fill its centre (default %(default)s)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace existing files, also a mask by its filled version"
    )
    opt = parser.parse_args(arguments)
    if len(opt.radius) not in (1, 3):
        parser.error(f"--radius {opt.radius}: expected one number or three")
    if opt.iterations < 1 or opt.majority < 1 or min(opt.radius) < 0:
        parser.error("--iterations and --majority must be 1 or more, --radius 0 or more")
    opt.radius = opt.radius[0] if len(opt.radius) == 1 else tuple(opt.radius)
    return opt


def _is_mask(path: Path) -> bool:
    return path.name.lower().endswith(MASK_SUFFIXES) and not path.name.startswith(".") and is_regular_file(path)


def _check_target(source: Path, target: Path, opt: argparse.Namespace) -> None:
    """Refuse to write over a file without --overwrite; with it, a mask may be replaced by its filled one."""
    if target.resolve() == source.resolve():
        if not opt.overwrite:
            raise InputError(f"{target}: is the input; choose another --output, or use --overwrite to replace it")
        return
    check_free(volume_targets(target), "--output", [source], overwrite=opt.overwrite)


def _fill_file(source: Path, target: Path, opt: argparse.Namespace) -> None:
    is_slice = source.suffix.lower() == ".png"
    if is_slice != (target.suffix.lower() == ".png"):
        raise InputError(f"{target}: {source.name} is a {'slice' if is_slice else 'volume'}; expected the same kind")
    mask = Volume(read_mask_image(source)[None]) if is_slice else read_volume(source)
    try:
        filled = fill_holes(mask, opt.iterations, opt.radius, opt.majority)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    (_write_slice if is_slice else write_volume)(filled, target)


def _write_slice(mask: Volume, path: Path) -> None:
    with whole_file(path) as scratch:
        Image.fromarray(255 * mask.array[0]).save(scratch)


if __name__ == "__main__":
    run_command(main)
