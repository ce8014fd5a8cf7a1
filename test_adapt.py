"""Turn one patient's MR into a synthetic CT: `python test_adapt.py --name NAME --input MR [--reference CT]`."""

import json
import logging
from argparse import Namespace
from pathlib import Path

from data.body_mask import read_mask
from data.errors import InputError, run_command
from data.sources import name_cases
from data.volume import read_volume, volume_stem, write_volume
from evaluation.cases import read_reference
from evaluation.report import COLUMNS, describe_mask, format_table, score_case, write_report
from models.synthesis import load_synthesiser, synthesize_volume
from options import test_options
from visualization.case_page import write_case_page
from visualization.panels import save_preview

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    """Read, synthesise, write, picture, score where a reference is given, and show all on a page."""
    opt = test_options.parse(arguments)
    case = case_of(opt.input)
    output = opt.output or opt.results_dir / opt.name / f"{case}.nii.gz"
    report = output.with_name(f"{volume_stem(output)}.json")
    check_free(output, report, opt)
    source = read_volume(opt.input, opt.series_uid)
    body = read_mask(opt.mask, source) if opt.mask else None
    folder = opt.checkpoints_dir / opt.name
    synthesiser = load_synthesiser(folder, opt.epoch, opt.device, opt.precision, opt.spacing_mm)
    to_ct = synthesiser.settings.direction == "AtoB"
    if opt.reference and not to_ct:
        raise InputError(
            "--reference: the model makes MR from CT, and MR in arbitrary units is not scored; leave it out"
        )
    reference = read_reference(opt.reference, source) if opt.reference else None
    try:
        synthetic = synthesize_volume(source, synthesiser, body, opt.batch_size)
    except InputError as error:
        raise InputError(f"{opt.input}: {error}") from error
    write_volume(synthetic, output)
    log.info("volume: %s", output)
    picture = output.with_name(f"{volume_stem(output)}.png")
    mr, ct = (source, synthetic) if to_ct else (synthetic, source)
    save_preview(mr, ct, reference, picture, synthetic="CT" if to_ct else "MR")
    log.info("picture: %s", picture)
    row = {"case": case, "input": str(opt.input.resolve()), "model": str(folder), "epoch": opt.epoch}
    if reference is not None:
        scores = score_case(synthetic, reference, mr=source)
        row |= {"scored_in": describe_mask(with_mask=False, with_mr=True), **scores}
        log.info("scored in: %s\n%s", row["scored_in"], format_table([{"case": case, **scores}]))
    log.info("report: %s", write_report(row, report))
    details = {"input": opt.input, "model": folder, "epoch": opt.epoch, "scored in": row.get("scored_in")}
    scores = {name: row[name] for name in COLUMNS if name in row}
    page = output.with_name(f"{volume_stem(output)}_page")
    made = "CT" if to_ct else "MR"
    try:
        write_case_page(page, case, mr, ct, reference, scores, synthetic=made, body=body, details=details)
    except Exception as error:  # whatever it is, the result is there, and stays
        log.warning("warning: no results page: %s", str(error) or type(error).__name__)
    else:
        log.info("page: %s", page / "index.html")


def case_of(path: Path) -> str:
    """Name a patient by its file, or by its folder too where files or series have the same names for all patients."""
    (name,) = name_cases([path])
    return f"{path.absolute().parent.name}_{name}" if path.is_dir() else name


def check_free(output: Path, report: Path, opt: Namespace) -> None:
    """Refuse to write over an input, or by default over another patient's result."""
    inputs = [path for path in (opt.input, opt.mask, opt.reference) if path]
    for path in inputs:
        if not path.exists():  # nor can a link in circles be resolved
            raise InputError(f"{path}: no such file or folder")
    if output.resolve() in {path.resolve() for path in inputs}:
        raise InputError(f"--output {output}: is one of the inputs; choose another file")
    if opt.output is None and output.exists() and report.exists():
        earlier = json.loads(report.read_text()).get("input")
        if earlier != str(opt.input.resolve()):
            raise InputError(f"{output}: is the result of {earlier}; say where this patient's goes by --output")


if __name__ == "__main__":
    run_command(main)
