"""The files of one patient's conversion: where they go, what they may replace, and the report that claims them."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from data.errors import InputError
from data.files import not_there, read_json, remove
from data.volumes.contrasts import describe_paths
from data.volumes.dicom_series import check_folder
from data.volumes.outputs import check_free, check_writable, volume_targets
from data.volumes.volume import volume_stem
from evaluation.report import write_report
from options.test_options import PatientSettings, is_volume_file
from visualization.case_page import remove_case_page

# Options that say where the volume goes, and what is made beside it.
OUTPUT, DICOM, MU_MAP, UNCERTAINTY = "--output", "--dicom", "--mu_map", "--uncertainty"
MODELS_JOINED = " + "  # between the folders of several models, in a report


class PatientResults(NamedTuple):
    """Where the results of one patient go.

    Attributes:
        main: the synthetic volume: a file, or the folder of a DICOM series.
        extras: what is asked for beside it, by the option that says where it goes.
        picture, page, report: its picture, its page (a folder) and its report.
        alone: whether those three are not made.
    """

    main: Path
    extras: dict[str, Path]
    picture: Path
    page: Path
    report: Path
    alone: bool = False

    @classmethod
    def beside(cls, main: Path, opt: PatientSettings) -> "PatientResults":
        """Name them after the volume, but for what an option names."""
        stem = volume_stem(main) if is_volume_file(main) else main.name
        paths = {DICOM: opt.dicom, MU_MAP: opt.mu_map, UNCERTAINTY: opt.uncertainty}
        extras = {option: path for option, path in paths.items() if path}
        picture, page, report = (main.with_name(f"{stem}{end}") for end in (".png", "_page", ".json"))
        return cls(main, extras, picture, page, report, alone=opt.volume_only)

    @property
    def folder(self) -> Path | None:
        """The folder of the DICOM series, None without one."""
        return self.extras.get(DICOM) if is_volume_file(self.main) else self.main

    @property
    def targets(self) -> dict[str, list[Path]]:
        """All files and folders that are written, by the option that says where they go."""
        beside = [] if self.alone else [self.picture, self.page, self.report]
        return {OUTPUT: [*volume_targets(self.main), *beside]} | {
            option: volume_targets(path) for option, path in self.extras.items()
        }

    def names(self) -> set[str]:
        """Return what the report calls the targets: their names, or their paths where they lie elsewhere."""
        return {
            target.name if target.parent == self.main.parent else str(placed(target))
            for targets in self.targets.values()
            for target in targets
        }


def placed(target: Path) -> Path:
    """Return where a target lies, however its folder was said; a link stays a link."""
    return target.parent.resolve() / target.name


def description_of(paths: Mapping[str, Path]) -> str:
    """Return what a report says of its input."""
    return describe_paths({name: path.resolve() for name, path in paths.items()})


class Account(NamedTuple):
    """What a report says of its results: the names of the files, the input as `description_of` says it, and the models.

    `models`: their names.
    """

    made: set[str]
    input: str
    models: list[str]


def account_in(report: Path) -> Account | None:
    """Return the account in a report of `test_adapt.py`; None where there is none."""
    try:
        said = read_json(report)
        names, source, models = said["made"], said["input"], said["model"]
    except (InputError, KeyError, TypeError):
        return None
    if not (isinstance(names, list) and isinstance(source, str) and isinstance(models, str)):
        return None
    made = {name for name in names if isinstance(name, str) and "\0" not in name}
    return Account(made, source, [Path(model).name for model in models.split(MODELS_JOINED)])


def made_before(
    results: PatientResults, paths: Mapping[str, Path], models: Collection[Path], overwrite: bool
) -> set[str]:
    """Return the names of files that this command made there from the same input with the same models, by its report.

    Raises:
        InputError: they are another patient's or other models', and `overwrite` is not set.
    """
    account = account_in(results.report)
    if account is None:
        return set()
    of_input = account.input == description_of(paths)
    if overwrite or (of_input and account.models == [model.name for model in models]):
        return account.made if of_input and not results.alone else set()
    if of_input:
        earlier, what = f"the model {MODELS_JOINED.join(account.models)}", "model"
    else:
        earlier, what = account.input, "patient"
    raise InputError(
        f"{results.main}: is the result of {earlier}; choose another --output for this {what}, or replace it with "
        "--overwrite"
    )


def refuse_to_replace(results: PatientResults, made: set[str], paths: Mapping[str, Path], opt: PatientSettings) -> None:
    """Refuse to replace an input or a file that this command did not make for this patient, or one result by another.

    Raises:
        InputError: it would, or a result cannot be written where it is to go.
    """
    inputs = [path for path in (*paths.values(), opt.mask, opt.reference) if path]
    for path in inputs:
        if not path.exists():  # nor can a link in circles be resolved
            raise InputError(f"{path}: {not_there(path)}")
    # A name that is none is that of no target. Without a report there is no account of what was made.
    own = None if results.alone else [placed(results.main.parent / name) for name in made]
    wanted: dict[Path, str] = {}
    for option, targets in results.targets.items():
        for target in map(placed, targets):
            if target in wanted:
                raise InputError(
                    f"{target}: {wanted[target]} and {option} would both be written there; choose another {option}"
                )
            wanted[target] = option
        check_free([placed(target) for target in targets], option, inputs, own, opt.overwrite)
        check_writable(targets[0], option)
    if results.folder:
        check_folder(results.folder)


def write_claimed(
    write: Callable[[], None], results: PatientResults, row: dict, made: set[str], overwrite: bool
) -> None:
    """Write the volume after a report that names its input, so that files of a killed run are known to be its own.

    Of a volume that it replaces (`overwrite`) the picture, page and report are removed, where they are not made again.
    """
    replaced = account_in(results.report) if results.alone and overwrite and results.main.exists() else None
    if not (results.alone or made >= set(row["made"])):
        write_report(row, results.report)
    try:
        write()
    except InputError:
        if not (results.alone or made):
            results.report.unlink(missing_ok=True)
        raise
    if replaced and results.main.name in replaced.made:
        if results.page.name in replaced.made:
            remove_case_page(results.page)
        for file in (results.picture, results.report):
            if file.name in replaced.made:
                remove(file)
