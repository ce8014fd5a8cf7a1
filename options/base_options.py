"""Options of the commands that use a model, and the models that there are."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from data.errors import InputError
from data.settings.declaration import HelpFormatter
from data.settings.published import Command, translate
from data.settings.published_options import OPTIONS
from data.settings.values import epoch_name, experiment_name, gpu_of_ids, protected_numbers, torch_device
from models.inference_settings import FILE_NAME, read_inference_settings
from models.precision import PRECISIONS


def base_parser(prog: str, description: str, precision: str = "fp32", several: bool = False) -> argparse.ArgumentParser:
    """Return a parser with the options that every command on a model has.

    `precision` is the default; `several`: whether several models may be named.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=HelpFormatter, allow_abbrev=False
    )
    run = parser.add_argument_group("run")
    more: dict = {"nargs": "+", "metavar": "NAME"} if several else {}
    what = "the model's name, or several: the mean of what they make" if several else "the model's name"
    run.add_argument("--name", type=experiment_name, help=f"{what}; its folder in --checkpoints_dir", **more)
    run.add_argument("--checkpoints_dir", type=Path, default=Path("checkpoints"), help="folder that holds all models")
    run.add_argument(
        "--epoch",
        "--which_epoch",
        type=epoch_name,
        default="latest",
        help="latest, best, or a saved epoch",
    )
    run.add_argument("--device", type=torch_device, default="auto", help="auto, cpu, cuda, cuda:1, ... or mps")
    run.add_argument(
        "--gpu_ids", metavar="IDS", help="as upstream: the GPU's number, -1 for the CPU; overrides --device"
    )
    run.add_argument("--precision", choices=PRECISIONS, default=precision, help="number format of the networks")
    return parser


def finish(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Parse, take published options for what they are here, and resolve `--gpu_ids` into `device`."""
    words, recorded = checked(parser, translate, protected_numbers(arguments), OPTIONS, Command(parser.prog))
    options = parser.parse_args(words)
    if options.name is None:
        parser.error(f"--name: expected a model. {list_models(options.checkpoints_dir)}")
    for name in options.name if isinstance(options.name, list) else [options.name]:
        checked(parser, _check_recorded, options.checkpoints_dir / name, recorded)
    if options.gpu_ids is not None:
        options.device = gpu_of_ids(parser, options.gpu_ids)
    del options.gpu_ids
    return options


def list_models(checkpoints_dir: Path) -> str:
    """Return in words which models a folder holds, each with what its card (README.md) says in its title."""
    models = sorted(file.parent for file in checkpoints_dir.glob("*/inference.json"))
    if not models:
        return f"There is none in {checkpoints_dir}: train one with train.py, or choose another --checkpoints_dir"
    lines = [f"  {folder.name:<20} {_title(folder)}".rstrip() for folder in models]
    return "\n".join([f"{checkpoints_dir} has:", *lines])


def _title(folder: Path) -> str:
    """Return what a model's card says that it is; nothing where it has no card."""
    try:
        lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    return lines[0].partition(": ")[2] if lines else ""


def _check_recorded(folder: Path, said: Mapping[str, tuple[str, str]]) -> None:
    """Refuse published options that say of a model what its record denies.

    Raises:
        InputError: it names the option, and what the record says.
    """
    if not said or not (folder / FILE_NAME).exists():  # no such model: the command says so
        return
    settings = read_inference_settings(folder)
    values = asdict(settings.generator) | {"direction": settings.direction}
    for option, (name, value) in said.items():
        if str(values[name]) != value:
            raise InputError(
                f"{option}: {folder} was trained with {name} {values[name]}, as its {FILE_NAME} says; leave it out"
            )


def checked(parser: argparse.ArgumentParser, build, *args):
    """Return `build(*args)`; its `InputError` ends the parsing."""
    try:
        return build(*args)
    except InputError as error:
        raise parser.error(str(error)) from error
