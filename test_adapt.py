"""Turn one patient's MR into a synthetic CT: `python test_adapt.py --name NAME --input MR [--reference CT]`.

A model of several contrasts takes each by name, in any order: `--input in_phase=MR1 --input fat=MR2`.
"""

import logging
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from data.errors import InputError, run_command
from data.masks.body_mask import read_mask
from data.outputs import check_free, volume_targets
from data.prepared.manifest import read_json
from data.prepared.sources import name_cases
from data.volumes.contrasts import describe_paths, in_order, selector, shown_name, without_name
from data.volumes.volume import Volume, read_volume, volume_stem, write_volume
from evaluation.cases import read_reference
from evaluation.report import COLUMNS, describe_mask, format_table, score_case, write_report
from models.synthesis import load_synthesiser, synthesize_volume
from options import test_options
from visualization.case_page import write_case_page
from visualization.panels import save_preview

log = logging.getLogger(__name__)


class Results(NamedTuple):
    """Where the results of one patient go: the synthetic volume, its picture, its page (a folder) and its report."""

    volume: Path
    picture: Path
    page: Path
    report: Path

    @classmethod
    def beside(cls, volume: Path) -> "Results":
        """Name them after the volume."""
        stem = volume_stem(volume)
        return cls(volume, *(volume.with_name(f"{stem}{end}") for end in (".png", "_page", ".json")))

    @property
    def targets(self) -> list[Path]:
        """All files and folders that are written."""
        return [*volume_targets(self.volume), self.picture, self.page, self.report]


def main(arguments: list[str] | None = None) -> int:
    """Read, synthesise, write, score where a reference is given, and show all in a picture and on a page.

    Returns:
        1 where the volume is there and something beside it is not, else 0.

    Raises:
        InputError: there is no volume.
    """
    opt = test_options.parse(arguments)
    folder = opt.checkpoints_dir / opt.name
    synthesiser = load_synthesiser(folder, opt.epoch, opt.device, opt.precision, opt.spacing_mm)
    names = synthesiser.settings.contrasts
    paths = dict(zip(names, in_order("--input", opt.input, names), strict=True))
    case = case_of(paths)
    results = Results.beside(opt.output or opt.results_dir / opt.name / f"{case}.nii.gz")
    made = made_before(results, paths, opt.overwrite)
    refuse_to_replace(results, made, paths, opt)
    source, *further = (read_volume(path, opt.series_uid, contrast=selector(name)) for name, path in paths.items())
    body = read_mask(opt.mask, source) if opt.mask else None
    to_ct = synthesiser.settings.direction == "AtoB"
    if opt.reference and not to_ct:
        raise InputError(
            "--reference: the model makes MR from CT, and MR in arbitrary units is not scored; leave it out"
        )
    reference = read_reference(opt.reference, source) if opt.reference else None
    try:
        synthetic = synthesize_volume(source, synthesiser, body, opt.batch_size, further)
    except InputError as error:
        raise InputError(f"{describe_paths(paths)}: {error}") from error
    refuse_to_replace(results, made, paths, opt)  # again: somebody may have written there meanwhile
    row = {"case": case, "input": identity(paths), "model": str(folder), "epoch": opt.epoch}
    row["made"] = sorted({*made, *(path.name for path in results.targets)})
    write_claimed(synthetic, results, row, made)
    log.info("volume: %s", results.volume)
    mr, ct = (source, synthetic) if to_ct else (synthetic, source)
    kind, contrast = "CT" if to_ct else "MR", shown_name(names)

    def picture() -> None:
        save_preview(mr, ct, reference, results.picture, kind, contrast)

    def report() -> None:
        if reference is not None:
            scores = score_case(synthetic, reference, mr=source)
            row.update({"scored_in": describe_mask(with_mask=False, with_mr=True), **scores})
            log.info("scored in: %s\n%s", row["scored_in"], format_table([{"case": case, **scores}]))
        write_report(row, results.report)

    def page() -> None:
        taken = describe_paths(paths)
        details = {"input": taken, "model": folder, "epoch": opt.epoch, "scored in": row.get("scored_in")}
        scores = {name: row[name] for name in COLUMNS if name in row}
        write_case_page(
            results.page, case, mr, ct, reference, scores, synthetic=kind, body=body, details=details, contrast=contrast
        )

    parts = {results.picture: picture, results.report: report, results.page / "index.html": page}
    written = [make_beside(results.volume, path, make) for path, make in parts.items()]
    return 0 if all(written) else 1


def make_beside(volume: Path, path: Path, make: Callable[[], None]) -> bool:
    """Make what belongs to a volume that is written, and say where it is, or why it is not; return which."""
    name = make.__name__
    try:
        make()
    except Exception as error:  # whatever it is, the volume is there, and stays
        log.warning("warning: no %s: %s; the volume is there: %s", name, str(error) or type(error).__name__, volume)
        return False
    log.info("%s: %s", name, path)
    return True


def case_of(paths: Mapping[str, Path]) -> str:
    """Name a patient by its file, or by its folder too where files or series have the same names for all patients.

    Of several contrasts it is the first's, without the contrast's name; where nothing else is left, the folder's.
    """
    contrast, path = next(iter(paths.items()))
    (name,) = name_cases([path])
    if len(paths) > 1:
        name = without_name(name, contrast) or path.absolute().parent.name
    return f"{path.absolute().parent.name}_{name}" if path.is_dir() else name


def identity(paths: Mapping[str, Path]) -> str:
    """Return what a report says of its input: whose result it is."""
    return describe_paths({name: path.resolve() for name, path in paths.items()})


def made_before(results: Results, paths: Mapping[str, Path], overwrite: bool) -> set[str]:
    """Return the names of what this command made there of the same input, as its report says; none without one."""
    try:
        report = read_json(results.report)
        names, earlier = report["made"], report["input"]
    except (InputError, KeyError, TypeError):
        return set()
    if not (isinstance(names, list) and isinstance(earlier, str)):  # no report of this command
        return set()
    made = {name for name in names if isinstance(name, str)}
    if earlier == identity(paths):
        return made
    if overwrite:
        return set()
    raise InputError(
        f"{results.volume}: is the result of {earlier}; say where this patient's goes by --output, or replace it by "
        "--overwrite"
    )


def refuse_to_replace(results: Results, made: set[str], paths: Mapping[str, Path], opt: Namespace) -> None:
    """Refuse to write over an input, or over what this command did not make of this patient."""
    inputs = [path for path in (*paths.values(), opt.mask, opt.reference) if path]
    for path in inputs:
        if not path.exists():  # nor can a link in circles be resolved
            raise InputError(f"{path}: no such file or folder")
    own = [results.volume.parent / name for name in made]  # a name that is none is that of no target
    check_free(results.targets, "--output", inputs, own, opt.overwrite)


def write_claimed(synthetic: Volume, results: Results, row: dict, made: set[str]) -> None:
    """Write the volume, after a report that says whose it is: what a killed run leaves is then known to be its own."""
    if not made >= set(row["made"]):
        write_report(row, results.report)
    try:
        write_volume(synthetic, results.volume)
    except InputError:
        if not made:
            results.report.unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    run_command(main)
