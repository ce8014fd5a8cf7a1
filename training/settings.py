"""Options of a training run, and all settings of a run together."""

import argparse
import os
import re
import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.commands import program, python_command
from data.errors import InputError
from data.loading.settings import DataSettings
from data.prepared.splits import VAL_SHARE
from data.settings.declaration import (
    HelpFormatter,
    Nature,
    Need,
    add_options,
    check_needs,
    from_namespace,
    given_options,
    natures,
    option,
    options_of,
    plain_values,
    redeclare,
)
from data.settings.devices import add_gpu_ids, settle_gpu_ids
from data.settings.parser import CommandParser, command_words, show_first
from data.settings.values import nonnegative_int, positive_int, positive_share, run_name
from evaluation.criteria import CRITERIA, DEFAULT_CRITERION
from models.base_model import BaseModel, MethodSettings
from models.model_settings import ModelSettings
from models.schedules import POLICIES
from visualization.settings import DisplaySettings


@dataclass(frozen=True)
class SaveRhythm:
    """How often a training state is saved within an epoch: every N steps, or every N minutes."""

    steps: int | None
    minutes: int | None

    def __str__(self) -> str:
        """Return what `save_rhythm` reads."""
        return f"{self.minutes}min" if self.steps is None else str(self.steps)

    def due(self, iteration: int, saved_at: float) -> bool:
        """Tell whether it is time after an epoch's step `iteration`, the last state being of `time.monotonic()`."""
        if self.steps:
            return iteration % self.steps == 0
        assert self.minutes is not None, "one of the two is given"
        return time.monotonic() - saved_at >= 60 * self.minutes


def save_rhythm(text: str) -> SaveRhythm:
    """Return the value of `--save_latest_freq`: '5000' is steps, '10min' minutes."""
    found = re.fullmatch(r"\s*(\d+)\s*(min)?\s*", text)
    if not found or int(found[1]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of steps, or of minutes as in 10min")
    number = int(found[1])
    return SaveRhythm(None, number) if found[2] else SaveRhythm(number, None)


@dataclass(frozen=True, kw_only=True)
class RunSettings(ModelSettings):
    """run."""

    epoch: str = redeclare(
        ModelSettings, "epoch", help="weights of --init_from: latest, best, or a saved epoch", needs=Need("init_from")
    )
    continue_train: bool = option(
        False, nature=Nature.FREE, first=True, help="continue the run --name from its last saved state"
    )
    init_from: str | None = option(
        None,
        nature=Nature.FREE,
        parse=run_name,
        metavar="NAME",
        first=True,
        help="start a new run from the weights of this model",
    )

    def __post_init__(self) -> None:
        """Refuse two beginnings.

        Raises:
            InputError: it names the options.
        """
        if self.init_from and self.continue_train:
            raise InputError("--init_from and --continue_train: expected one of them; --init_from starts a new run")

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.checkpoints_dir / self.name

    def resume_command(self, processes: int, machines: int = 1) -> str:
        """Return the command that resumes the run with so many processes on each machine, as a shell takes it.

        Of several machines it says what torchrun starts: where they meet is not known here. A script that started the
        training gives its own command in the environment, RESUME_COMMAND.
        """
        if given := os.environ.get("RESUME_COMMAND"):
            return given
        words = ["train.py", "--continue_train", "--name", self.name]
        words += ["--checkpoints_dir", str(self.checkpoints_dir)] if self._is_elsewhere else []
        if machines > 1:
            return f"start torchrun on each of the {machines} machines as before, with: {shlex.join(words)}"
        if processes > 1:
            return shlex.join([program("torchrun"), "--standalone", f"--nproc_per_node={processes}", *words])
        return python_command(*words)

    @property
    def _is_elsewhere(self) -> bool:
        return self.checkpoints_dir != ModelSettings.checkpoints_dir


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """schedule."""

    n_epochs: int = option(
        100, nature=Nature.LENGTH, parse=nonnegative_int, aliases=("--niter",),
        first=True,
        help="epochs at the initial learning rate; with --lr_policy warmup_cosine the rate rises and falls over "
             "these epochs and those of --n_epochs_decay together",
        needs=Need("seconds", off=True),
    )  # fmt: skip
    n_epochs_decay: int = option(
        100, nature=Nature.LENGTH, parse=nonnegative_int, aliases=("--niter_decay",),
        first=True,
        help="number of epochs over which the learning rate then falls to zero", needs=Need("seconds", off=True),
    )  # fmt: skip
    lr_policy: str = option("linear", nature=Nature.FIXED, choices=POLICIES, help="learning-rate schedule")
    lr_decay_iters: int = option(
        50, nature=Nature.RESULT, parse=positive_int, help="with --lr_policy step: epochs between two reductions",
        needs=Need("lr_policy", ("step",)),
    )  # fmt: skip
    seconds: int | None = option(
        None, nature=Nature.LENGTH, parse=positive_int,
        first=True, help="train for this many seconds instead of a number of epochs; needs --lr_policy warmup_cosine",
    )  # fmt: skip
    save_latest_freq: SaveRhythm = option(
        SaveRhythm(5000, None), nature=Nature.FREE, parse=save_rhythm, metavar="N",
        first=True, help="save the training state every N steps, or every N minutes (10min)",
    )  # fmt: skip
    save_epoch_freq: int = option(
        5, nature=Nature.FREE, parse=positive_int, help="keep a copy of the weights every N epochs"
    )

    def __post_init__(self) -> None:
        """Refuse a training by the clock under a schedule that does not follow it.

        Raises:
            InputError: it names the option and what it needs.
        """
        if self.seconds and self.lr_policy != "warmup_cosine":
            raise InputError("--seconds needs --lr_policy warmup_cosine, which follows the clock")


@dataclass(frozen=True, kw_only=True)
class ValidationSettings:
    """validation on whole volumes of patients that are not trained on."""

    val: bool = option(
        False, nature=Nature.FIXED,
        first=True,
        help="validate on the prepared test patients, or else on a share of the training patients, which are then "
             "not trained on; keep the best weights as 'best'",
    )  # fmt: skip
    # Who validates is recorded, as a fact.
    val_patients: float | None = option(
        None, nature=Nature.FREE, parse=positive_share, metavar="SHARE",
        help="fraction of the training patients to validate on, if the data set has no test patients (default: "
             f"{VAL_SHARE})",
        needs=Need("val"),
    )  # fmt: skip
    val_freq: int = option(
        5, nature=Nature.RESULT, parse=positive_int, help="validate every N epochs", needs=Need("val")
    )
    val_criterion: str = option(
        DEFAULT_CRITERION, nature=Nature.RESULT, choices=tuple(CRITERIA), needs=Need("val"),
        first=True, help="value that chooses the best weights",
    )  # fmt: skip


@dataclass(frozen=True)
class TrainingSettings:
    """All settings of a run: of its method (`model`), and those that all methods share."""

    method: str
    model: MethodSettings
    run: RunSettings
    data: DataSettings
    schedule: ScheduleSettings
    validation: ValidationSettings
    display: DisplaySettings

    @property
    def groups(self) -> tuple[Any, ...]:
        """The objects that hold options."""
        return self.run, self.data, self.model, self.schedule, self.validation, self.display

    @property
    def epochs_warm(self) -> int:
        """Epochs before those that the schedule counts."""
        return self.model.warm_epochs

    @property
    def epochs(self) -> int | None:
        """Epochs of the whole run; None if the clock ends it."""
        if self.schedule.seconds:
            return None
        return self.epochs_warm + self.schedule.n_epochs + self.schedule.n_epochs_decay

    def values(self) -> dict[str, Any]:
        """Return all options by name, as JSON holds them."""
        values: dict[str, Any] = {"model": self.method}
        for group in self.groups:
            values |= plain_values(group)
        return values

    def natures(self) -> dict[str, Nature]:
        """Return what another value of each option, or of what follows from them, means on resume."""
        found = {"model": Nature.FIXED, "ct_map": Nature.FIXED}
        for group in self.groups:
            found |= natures(type(group))
        return found

    def record(self) -> dict[str, str]:
        """Return as text what a run's result depends on, for its state."""
        texts = {"model": self.method, "ct_map": str(self.data.ct_map)}
        for group in self.groups:
            texts |= {field.name: str(getattr(group, field.name)) for field, _ in options_of(type(group))}
        kinds = self.natures()
        return {name: text for name, text in texts.items() if kinds[name] != Nature.FREE}


# What a method does without that validates itself.
_OF_VALIDATION = {"val", "val_patients", "val_criterion"}
SHARED_GROUPS = (RunSettings, DataSettings, ScheduleSettings, ValidationSettings, DisplaySettings)


def training_parser(
    method: type[BaseModel], prog: str, description: str, values: Mapping[str, Any] | None = None
) -> CommandParser:
    """Return the parser of a method's training; its defaults are the method's own, or `values` from files."""
    parser = CommandParser(short_help=True, prog=prog, description=description, formatter_class=HelpFormatter)
    for group in (*SHARED_GROUPS[:2], method.settings_type, *SHARED_GROUPS[2:]):
        add_options(parser, group, {**method.defaults, **(values or {})})
    config = parser.add_argument(
        "--config", type=Path, metavar="FILE",
        help="file of options by name, in YAML or JSON, such as a run's opt.json; the command line wins over it",
    )  # fmt: skip
    show_first(config)
    add_gpu_ids(parser)
    unused = {*method.unused_options, *(_OF_VALIDATION if method.validates_itself else ())}
    for action in parser._actions:
        if action.dest in unused:
            action.help = argparse.SUPPRESS
    return parser


def parse_training(
    parser: argparse.ArgumentParser, name: str, method: type[BaseModel], arguments: Sequence[str] | None = None,
    from_file: Collection[str] = (),
) -> TrainingSettings:  # fmt: skip
    """Return the checked settings of a command line; nothing changes them afterwards.

    `from_file`: options that a config file gives, whose values are the parser's defaults.
    """
    words = command_words(arguments)
    options = parser.parse_args(words)
    names = [field.name for group in (*SHARED_GROUPS, method.settings_type) for field, _ in options_of(group)]
    given = given_options(parser, words, names)
    settle_gpu_ids(parser, options)
    # Curve and window exclude each other: one that is given replaces the other where that is a default or from a file.
    if "ct_transfer" in given and "ct_window" not in given:
        options.ct_window = None
    if options.ct_window and "ct_transfer" not in given and ("ct_window" in given or "ct_transfer" not in from_file):
        options.ct_transfer = None
    said = {option_name: getattr(options, option_name) for option_name in given}
    for option_name in method.settings_type.outdated(said, parser.get_default):
        setattr(options, option_name, None)
    if "n_epochs" in given and "seconds" not in given:
        options.seconds = None
    try:
        model: MethodSettings = from_namespace(method.settings_type, options)
        settings = TrainingSettings(
            name, model, from_namespace(RunSettings, options), from_namespace(DataSettings, options),
            from_namespace(ScheduleSettings, options), from_namespace(ValidationSettings, options),
            from_namespace(DisplaySettings, options),
        )  # fmt: skip
        _check_together(settings)
        _check_given(settings, method, given, from_file)
        method.check(model, settings.data)
    except InputError as error:
        parser.error(str(error))
    return settings


def _check_together(settings: TrainingSettings) -> None:
    """Refuse options of several groups that do not go together.

    Raises:
        InputError: it names them.
    """
    if settings.epochs == 0:
        raise InputError("--n_epochs and --n_epochs_decay: expected at least one epoch in all")
    if settings.schedule.seconds and settings.epochs_warm:
        raise InputError(
            "--seconds follows the clock, but a warm start counts epochs: make the warm start a run of its own, and "
            "start from its weights with --init_from"
        )
    if settings.model.sync_batch_norm and settings.run.device.type != "cuda":
        raise InputError(
            f"--sync_batch_norm: {settings.run.device} does not support it; it needs GPUs, one for each process of "
            "torchrun"
        )


def _check_given(
    settings: TrainingSettings, method: type[BaseModel], given: set[str], from_file: Collection[str]
) -> None:
    """Refuse options that were given and do nothing.

    Raises:
        InputError: it names one, and why.
    """
    unused = (given | set(from_file)) & _OF_VALIDATION
    if method.validates_itself and unused:
        raise InputError(f"--{min(unused)} does nothing with --model {settings.method}, which validates by itself")
    for group in settings.groups:
        if not (method.validates_itself and group is settings.validation):  # it takes --val_freq without --val
            check_needs(group, given, from_file)


def with_precision(settings: TrainingSettings, precision: str) -> TrainingSettings:
    """Return the settings with the precision that 'auto' stands for."""
    return replace(settings, model=replace(settings.model, precision=precision))
