"""Options from files: a config file (`--config`), and the `opt.json` of a run that resumes.

Both hold options by name. A command line wins over a config file, and that over a run's own options.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data.errors import InputError, did_you_mean
from data.files import check_regular, read_json
from data.settings.declaration import options_of, read_value
from models.base_model import BaseModel
from models.run_folder import OPTIONS_NAME, STARTING_OPTIONS, check_state, has_state
from training.settings import SHARED_GROUPS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OptionFiles:
    """Options from the files of a command line: values by name, and which file they are from."""

    config: Mapping[str, Any] = field(default_factory=dict)
    config_path: Path | None = None
    run: Mapping[str, Any] = field(default_factory=dict)
    run_path: Path | None = None

    @property
    def method(self) -> str | None:
        """The training method in the files; None if there is none."""
        return self.config.get("model", self.run.get("model"))

    def values(self, method: type[BaseModel]) -> dict[str, Any]:
        """Return the values of a method's options.

        Raises:
            InputError: an option of the config file is unknown, or a value of either file is not one of its option's.
        """
        known = _fields(method)
        _check_names(self.config, self.config_path, known)
        if gone := sorted(self.run.keys() - known.keys() - {"model"}):
            log.warning("warning: %s: ignoring options that this method lacks: %s", self.run_path, ", ".join(gone))
        values = _read(_available(self.run, known), self.run_path, known)
        return values | _read(self.config, self.config_path, known)

    def given(self, method: type[BaseModel]) -> set[str]:
        """Return which options the config file sets to other values than the defaults."""
        known, said = _fields(method), _read(self.config, self.config_path, _fields(method))
        return {name for name, value in said.items() if value != method.defaults.get(name, known[name].default)}


def read_option_files(
    config: Path | None, folder_of: Callable[[Mapping[str, Any]], Path | None], complete: bool
) -> OptionFiles:
    """Return the options of a config file, if there is one, and of the run that resumes, if one does.

    Args:
        config: the file.
        folder_of: from what it says to the folder of the run that resumes.
        complete: whether the command line is one without the run's options too: the training then says that there is
            no state.

    Raises:
        InputError: a file cannot be read, or the folder holds no state to resume from.
    """
    said = read_config(config) if config else {}
    folder = folder_of(said)
    if folder is None or (complete and not has_state(folder)):
        return OptionFiles(said, config)
    check_state(folder)
    path = folder / OPTIONS_NAME
    try:
        own = read_json(path)
    except InputError as error:
        log.warning("warning: %s; the run resumes with the options of the command line only", error)
        return OptionFiles(said, config)
    return OptionFiles(said, config, {name: own[name] for name in own if name not in STARTING_OPTIONS}, path)


def read_config(path: Path) -> dict[str, Any]:
    """Return the options of a config file: YAML, or JSON if its name ends in .json.

    Raises:
        InputError: it cannot be read, says an option twice, or is no list of names with values.
    """
    try:
        check_regular(path)
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            values = json.loads(text, object_pairs_hook=_once)
        else:
            values = _Loader(text).get_single_data()
    except FileNotFoundError as error:
        raise InputError(f"--config {path}: no such file") from error
    except InputError as error:
        raise InputError(f"--config {path}: {error}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"--config {path}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise InputError(f"--config {path}: expected options by name, a line each, as in: ngf: 64")
    return values


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        _once([(key, None) for key in keys])
        return super().construct_mapping(node, deep)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise InputError(f"{', '.join(map(str, twice))}: given twice; give each option once")
    return dict(pairs)


def _fields(method: type[BaseModel]) -> dict[str, Field]:
    groups = (*SHARED_GROUPS, method.settings_type)
    return {field.name: field for group in groups for field, _ in options_of(group)}


# Of the command line alone, where they set other options.
_INSTEAD = {"gpu_ids": "; give the device, as in device: cuda:0, or device: cpu"}


def _check_names(values: Mapping[str, Any], path: Path | None, known: Mapping[str, Field]) -> None:
    names = [*known, "model"]
    for name in values:
        if name not in names:
            meant = _INSTEAD.get(name) or did_you_mean(name, names) or "; train.py --help_all lists them"
            raise InputError(f"{path}: {name}: no such option{meant}")


def _available(values: Mapping[str, Any], known: Mapping[str, Field]) -> dict[str, Any]:
    """Return a run's own options; a device that this machine lacks is replaced."""
    values = {name: value for name, value in values.items() if name in known}
    if "device" in values:
        try:
            read_value(known["device"], values["device"])
        except InputError as error:
            log.warning("warning: %s; the run resumes on another device", error)
            del values["device"]
    return values


def _read(values: Mapping[str, Any], path: Path | None, known: Mapping[str, Field]) -> dict[str, Any]:
    try:
        return {name: read_value(known[name], value) for name, value in values.items() if name in known}
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
