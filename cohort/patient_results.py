"""The files of one patient's conversion: where they go, what they may replace, and the report that claims them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from data.errors import InputError
from data.files import not_there
from data.outputs import check_free, check_writable, volume_targets
from data.prepared.manifest import read_json
from data.volumes.contrasts import describe_paths
from data.volumes.dicom_series import check_folder
from data.volumes.volume import volume_stem
from evaluation.report import write_report
from options.test_options import PatientSettings, is_file

# Options that say where the volume goes, and what is made beside it.
OUTPUT, DICOM, MU_MAP, UNCERTAINTY = "--output", "--dicom", "--mu_map", "--uncertainty"


class Results(NamedTuple):
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
    def beside(cls, main: Path, opt: PatientSettings) -> "Results":
        """Name them after the volume, but for what an option names."""
        stem = volume_stem(main) if is_file(main) else main.name
        paths = {DICOM: opt.dicom, MU_MAP: opt.mu_map, UNCERTAINTY: opt.uncertainty}
        extras = {option: path for option, path in paths.items() if path}
        picture, page, report = (main.with_name(f"{stem}{end}") for end in (".png", "_page", ".json"))
        return cls(main, extras, picture, page, report, alone=opt.volume_only)

    @property
    def folder(self) -> Path | None:
        """The folder of the DICOM series, None without one."""
        return self.extras.get(DICOM) if is_file(self.main) else self.main

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


def made_before(results: Results, paths: Mapping[str, Path], overwrite: bool) -> set[str]:
    """Return the names of files that this command made there from the same input, by its report."""
    if results.alone:
        return set()
    try:
        report = read_json(results.report)
        names, earlier = report["made"], report["input"]
    except (InputError, KeyError, TypeError):
        return set()
    if not (isinstance(names, list) and isinstance(earlier, str)):  # no report of this command
        return set()
    made = {name for name in names if isinstance(name, str) and "\0" not in name}
    if earlier == description_of(paths):
        return made
    if overwrite:
        return set()
    raise InputError(
        f"{results.main}: is the result of {earlier}; choose another --output for this patient, or replace it with "
        "--overwrite"
    )


def refuse_to_replace(results: Results, made: set[str], paths: Mapping[str, Path], opt: PatientSettings) -> None:
    """Refuse to replace an input or a file that this command did not make for this patient, and to write nowhere."""
    inputs = [path for path in (*paths.values(), opt.mask, opt.reference) if path]
    for path in inputs:
        if not path.exists():  # nor can a link in circles be resolved
            raise InputError(f"{path}: {not_there(path)}")
    # A name that is none is that of no target. Without a report there is no account of what was made.
    own = None if results.alone else [placed(results.main.parent / name) for name in made]
    for option, targets in results.targets.items():
        check_free([placed(target) for target in targets], option, inputs, own, opt.overwrite)
        check_writable(targets[0], option)
    if results.folder:
        check_folder(results.folder)


def write_claimed(write: Callable[[], None], results: Results, row: dict, made: set[str]) -> None:
    """Write the volume after a report that names its input, so that files of a killed run are known to be its own."""
    if not (results.alone or made >= set(row["made"])):
        write_report(row, results.report)
    try:
        write()
    except InputError:
        if not (results.alone or made):
            results.report.unlink(missing_ok=True)
        raise
