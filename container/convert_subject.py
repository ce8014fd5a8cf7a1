"""Convert the subject in a folder: ``python -m container.convert_subject [--input_dir /input] [--output_dir /output]``.

Finds the MR by --pattern in the input folder, and writes its synthetic CT, on the MR's own grid, to the output folder.
Options that are not listed here go to test_adapt.py, which does the work. Options can also be in the environment
variable CONVERT_OPTIONS; those of the command line win.

Exit codes: 0 done; 1 the CT is written, but something else that was asked for is not; 2 no CT, with one line that says
why.
"""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import test_adapt
from cohort.inputs import glob_below
from data.errors import InputError, listed, run_command
from data.files import check_is_folder
from data.settings.declaration import HelpFormatter
from data.settings.parser import CommandParser, command_words
from data.volumes.contrasts import in_order, split_name
from data.volumes.paths import is_volume_or_series
from models.inference_settings import read_inference_settings
from models.model_settings import ModelChoice

VARIABLE = "CONVERT_OPTIONS"
# Whole-body Dixon MR, in phase, as the BIC-MAC challenge calls it.
PATTERN = "*DIXONbodyIN_T1w.nii.gz"
# Options of test_adapt.py that this command sets.
OWN_OPTIONS = ("--input", "--output", "--results_dir", "--volume_only")
# So many of a folder's files are named in a message.
MOST_NAMED = 20


def words_of(arguments: Sequence[str] | None) -> list[str]:
    """Return the words of the environment, then those of the command line."""
    said = os.environ.get(VARIABLE, "")
    try:
        before = shlex.split(said)
    except ValueError as error:
        raise InputError(f"{VARIABLE}={said}: {error}; expected options as on a command line") from error
    return before + command_words(arguments)


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of this command, and those for `test_adapt.py`."""
    parser = CommandParser(
        prog="python -m container.convert_subject", description=__doc__, formatter_class=HelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--input_dir", type=Path, default=Path("/input"), help="folder of one subject; it is only read")
    add("--output_dir", type=Path, default=Path("/output"), help="folder to write the CT to")
    add(
        "--pattern", nargs="+", default=[PATTERN], metavar="[NAME=]GLOB",
        help="the MR in --input_dir: a file or the folder of a DICOM series, . for --input_dir itself; for a model "
             "of several contrasts one NAME=GLOB each; ** matches folders at any depth",
    )  # fmt: skip
    add("--output_name", default="sct.nii.gz", metavar="NAME", help="name of the CT's file in --output_dir")
    add("--name", nargs="+", default=["wholebody"], help="the model's name, or several, as in test_adapt.py")
    add("--checkpoints_dir", type=Path, default=ModelChoice.checkpoints_dir, help="folder that holds all models")
    add("--with_page", action="store_true", help="write picture, page and report beside the CT")
    opt, others = parser.parse_known_args(words_of(arguments))
    if taken := [word for word in others if word.partition("=")[0] in OWN_OPTIONS]:
        raise InputError(f"{taken[0]}: use --pattern, --output_dir, --output_name and --with_page instead")
    if Path(opt.output_name).name != opt.output_name or opt.output_name == "..":
        raise InputError(f"--output_name {opt.output_name}: expected the name of a file; its folder is --output_dir")
    return opt, others


def main(arguments: Sequence[str] | None = None) -> int:
    """Find the subject's MR, and let `test_adapt.py` convert it; return its exit code."""
    opt, others = parse_arguments(arguments)
    names = read_inference_settings(opt.checkpoints_dir / opt.name[0]).contrasts
    given = [split_name(pattern) for pattern in opt.pattern]
    patterns = in_order("--pattern", given, names)
    words = ["--name", *opt.name, "--checkpoints_dir", str(opt.checkpoints_dir)]
    for name, pattern in zip(names, patterns, strict=True):
        words += ["--input", f"{name}={find_image(opt.input_dir, pattern)}"]
    words += ["--output", str(opt.output_dir / opt.output_name)]
    return test_adapt.main(words + ["--volume_only"] * (not opt.with_page) + others)


def find_image(folder: Path, pattern: str) -> Path:
    """Return the one volume file, or folder of DICOM slices, that a glob names below a folder.

    Raises:
        InputError: there is none, or more than one; it says what there is.
    """
    check_is_folder("--input_dir", folder)
    named = [Path()] if pattern == "." else glob_below(folder, pattern)
    found = sorted(path for relative in named if is_volume_or_series(path := folder / relative))
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"--pattern {pattern}: {len(found)} images in {folder}: {_listed(found, folder)}; expected one: narrow the "
            "pattern"
        )
    there = sorted(path for path in folder.rglob("*") if path.is_file())
    raise InputError(
        f"--pattern {pattern}: no volume file and no DICOM folder in {folder}, which holds "
        f"{_listed(there, folder) if there else 'no file'}; name the subject's MR by --pattern"
    )


def _listed(paths: Sequence[Path], folder: Path) -> str:
    return listed([str(path.relative_to(folder)) for path in paths], MOST_NAMED)


if __name__ == "__main__":
    run_command(main)
