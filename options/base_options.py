"""Options shared by the commands that use a model, the list of models, and the parsing of both."""

import argparse
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data.errors import InputError
from data.files import read_json
from data.settings.declaration import HelpFormatter, add_options, from_namespace, option, redeclare
from data.settings.devices import add_gpu_ids, settle_gpu_ids
from data.settings.parser import CommandParser, checked, command_words
from data.settings.published import Command, Recorded, translate
from data.settings.published_options import OPTIONS
from data.settings.values import positive_float, positive_int, run_name
from data.values.attenuation import DEFAULT_KVP, LINES, MuSettings
from data.volumes.volume import volume_suffix
from models.base_model import ComputingSettings
from models.ensemble import FUSIONS
from models.inference_settings import FILE_NAME, read_inference_settings, usable_models
from models.model_settings import ModelChoice, ModelSettings
from models.run_folder import OPTIONS_NAME

log = logging.getLogger(__name__)


def batch_size(text: str) -> int | None:
    """Return a number of slices, or None for 'auto'."""
    return None if text == "auto" else positive_int(text)


def model_name(text: str) -> str:
    """Return the name of a model, which is no volume file."""
    if volume_suffix(Path(text)):
        raise argparse.ArgumentTypeError(
            f"{text}: a volume file; expected the name of a model. An MR goes to --input of test_adapt.py, a folder of "
            "them to --input_dir of test_pipeline.py"
        )
    return run_name(text)


@dataclass(frozen=True, kw_only=True)
class UseSettings(ModelSettings):
    """use of the model."""

    # Without one the models that there are can be listed, so argparse does not require it.
    name: list[str] = redeclare(  # type: ignore[assignment]  # one or several
        ModelChoice, "name", None, nargs="+", metavar="NAME", parse=model_name,
        help="name of the model, a folder in --checkpoints_dir; several names: the mean of their results",
    )  # fmt: skip
    fusion: str | None = option(
        None, choices=FUSIONS,
        help="with several --name: how their results are combined, voxel by voxel (default: mean)",
    )  # fmt: skip
    precision: str = redeclare(
        ComputingSettings, "precision", "auto", first=False, help="number format of the networks"
    )
    results_dir: Path = option(Path("results"), parse=Path, first=True, help="folder for results")
    batch_size: int | None = option(
        "auto", parse=batch_size, aliases=("--batchSize",), metavar="N",
        help="slices in one pass; auto: as many as memory allows",
    )  # fmt: skip
    direction: str | None = option(
        None, choices=("AtoB", "BtoA"), aliases=("--which_direction",),
        help="AtoB: CT from MR; BtoA: MR from CT (default: as trained); the other direction uses the generator G_B, "
             "and its results folder is NAME_DIRECTION",
    )  # fmt: skip
    spacing_mm: float | None = option(
        None, parse=positive_float, help="pixel spacing in mm, for a model trained on plain images"
    )

    air_outside: bool = option(
        False, first=True,
        help="set tissue of the CT more than 10 mm outside the body found in the MR, or given by a mask, to air",
    )  # fmt: skip

    @property
    def folders(self) -> list[Path]:
        """The models' folders."""
        return [self.checkpoints_dir / name for name in self.name]

    @property
    def model_words(self) -> list[str]:
        """The words of a command line that choose the same weights, and what is made with them."""
        names = ("checkpoints_dir", "epoch", "fusion", "direction", "spacing_mm")
        chosen = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(UseSettings, name)}
        words = [str(word) for name, value in chosen.items() for word in (f"--{name}", value)]
        return ["--name", *self.name, *words, *(["--air_outside"] if self.air_outside else [])]

    @property
    def purpose(self) -> str | None:
        """What the models are for, as the titles of their cards say; None without cards."""
        return "; ".join(dict.fromkeys(filter(None, map(card_title, self.folders)))) or None

    def __post_init__(self) -> None:
        """Refuse a use of no model, or of one twice.

        Raises:
            InputError: it lists the models that there are, or names the one.
        """
        if not self.name:
            raise InputError(f"--name: expected a model. {list_models(self.checkpoints_dir)}")
        if len(set(self.name)) < len(self.name):
            raise InputError(f"--name {' '.join(self.name)}: a model is named twice; name each once")


@dataclass(frozen=True, kw_only=True)
class ReferenceChoice:
    """true CT."""

    resample_reference: bool = option(
        False, first=True, help="resample a true CT on another grid to the MR's grid, to score the result against it"
    )


@dataclass(frozen=True, kw_only=True)
class MuMapSettings:
    """PET."""

    mu_map: Path | bool | None = option(
        None,
        parse=Path,
        metavar="FILE",
        first=True,
        help="write the attenuation at 511 keV, in 1/cm, as a volume file",
    )
    kvp: int | None = option(
        None, parse=int, choices=tuple(LINES),
        help=f"tube voltage of the CT that the model was trained on (default: that which the model "
             f"records, else {DEFAULT_KVP})",
    )  # fmt: skip
    pet_fwhm_mm: float | None = option(
        None, parse=positive_float,
        help="smooth the mu-map to this PET resolution, the full width at half maximum in mm (default: no smoothing)",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse options that nothing would use.

        Raises:
            InputError: it names them and what they need.
        """
        if not self.mu_map and (self.kvp or self.pet_fwhm_mm):
            raise InputError("--kvp, --pet_fwhm_mm: they concern a mu-map; add --mu_map")

    def mu_settings(self, recorded: Iterable[int | None]) -> MuSettings | None:
        """Return how attenuation is computed; None: it is not.

        Args:
            recorded: tube voltages of the CT that the models were trained on; None for one that does not say.
        """
        if not self.mu_map:
            return None
        all_models = list(recorded)
        of_models = sorted({kvp for kvp in all_models if kvp})
        if self.kvp:
            chosen, why = self.kvp, "as --kvp says"
        elif len(of_models) == 1:
            records = "the model records" if all(all_models) else "one of the models records"
            chosen, why = of_models[0], f"as {records}; --kvp takes another"
        else:
            several = f"the models record {' and '.join(map(str, of_models))} kVp"
            found = several if of_models else "the model records no tube voltage"
            chosen, why = DEFAULT_KVP, f"because {found}; its card may say more, and --kvp takes another"
        log.info("attenuation: curve for CT of %d kVp, %s", chosen, why)
        return MuSettings(chosen, self.pet_fwhm_mm)


@dataclass(frozen=True, kw_only=True)
class DicomOutput:
    """DICOM series."""

    dicom: Path | bool | None = option(
        None, parse=Path, metavar="FOLDER", first=True, help="also write the synthetic CT as a DICOM series"
    )
    anonymous: bool = option(
        False, first=True, help="leave the MR's patient, study and source images out of the DICOM series"
    )


def use_parser(group: type[UseSettings], command: Command, needed: str, description: str) -> CommandParser:
    """Return the parser of a command that uses a model, with the options of `group`; its usage shows the `needed`."""
    parser = CommandParser(
        short_help=True,
        prog=command,
        usage=f"%(prog)s {needed} [options]",
        description=description,
        formatter_class=HelpFormatter,
    )
    add_options(parser, group)
    add_gpu_ids(parser)
    return parser


def parse_use[T: UseSettings](
    parser: argparse.ArgumentParser, group: type[T], command: Command, arguments: Sequence[str] | None
) -> T:
    """Return the settings of a command line that uses a model; published options count as what they are here."""
    words, recorded = checked(parser, translate, command_words(arguments), OPTIONS, command)
    options = parser.parse_args(words)
    settle_gpu_ids(parser, options)
    settings = checked(parser, from_namespace, group, options)
    for folder in settings.folders:
        checked(parser, _check_recorded, folder, recorded)
    return settings


def list_models(checkpoints_dir: Path) -> str:
    """Return in words which models a folder holds, each with the title of its card (README.md), or what is known."""
    models = usable_models(checkpoints_dir)
    if not models:
        return f"There is none in {checkpoints_dir}: train one with train.py, or choose another --checkpoints_dir"
    lines = [f"  {folder.name:<20} {card_title(folder) or _known_of(folder)}".rstrip() for folder in models]
    return "\n".join([f"{checkpoints_dir} has:", *lines])


def card_title(folder: Path) -> str:
    """Return the title of a model's card; nothing if it has no card."""
    try:
        lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    return lines[0].partition(": ")[2] if lines else ""


def _known_of(folder: Path) -> str:
    """Return what a model's files say of it: method, data set, steps and date of the weights."""
    options, settings = (_read_dict(folder / name) for name in (OPTIONS_NAME, FILE_NAME))
    method, dataroot, steps = options.get("model"), options.get("dataroot"), settings.get("steps")
    facts = [str(method)] if method else []
    facts += [f"trained on {dataroot}"] if dataroot else []
    facts += [f"{steps} steps"] if steps else []
    weights = [path.stat().st_mtime for path in folder.glob("*_net_G_*.pth")]
    return ", ".join([*facts, f"weights of {time.strftime('%Y-%m-%d', time.localtime(max(weights)))}"])


def _read_dict(path: Path) -> dict:
    try:
        return read_json(path)
    except InputError:
        return {}


def _check_recorded(folder: Path, said: Mapping[str, Recorded]) -> None:
    """Refuse published options that contradict the model's record.

    Raises:
        InputError: it names the option, and what the record says.
    """
    if not said or not (folder / FILE_NAME).exists():  # no such model: the command says so
        return
    settings = read_inference_settings(folder)
    values = asdict(settings.generator) | {"direction": settings.direction}
    for option_name, (name, value, otherwise) in said.items():
        if str(values[name]) != value:
            raise InputError(
                f"{option_name}: {folder} was trained with {name} {values[name]}, as its {FILE_NAME} says; {otherwise}"
            )
