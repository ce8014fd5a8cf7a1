"""Turn one patient's MR into a synthetic CT: `python test_adapt.py --name NAME --input MR [--reference CT]`."""

import logging

from data.body_mask import read_mask
from data.errors import InputError, run_command
from data.volume import describe_grid, read_volume, same_grid, volume_stem, write_volume
from evaluation.report import describe_mask, format_table, score_case, write_report
from models.synthesis import load_synthesiser, synthesize_volume
from options import test_options
from visualization.panels import save_preview

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    """Read, synthesise, write, picture, and score where a reference is given."""
    opt = test_options.parse(arguments)
    output = opt.output or opt.results_dir / opt.name / f"{volume_stem(opt.input)}.nii.gz"
    if output.resolve() in {path.resolve() for path in (opt.input, opt.mask, opt.reference) if path}:
        raise InputError(f"--output {output}: is one of the inputs; choose another file")
    mr = read_volume(opt.input, opt.series_uid)
    body = read_mask(opt.mask, mr) if opt.mask else None
    reference = read_volume(opt.reference) if opt.reference else None
    if reference is not None and not same_grid(reference, mr):
        found, expected = describe_grid(reference), describe_grid(mr)
        raise InputError(f"{opt.reference}: not on the MR's grid: {found}; the MR has {expected}; resample it first")
    folder = opt.checkpoints_dir / opt.name
    synthesiser = load_synthesiser(folder, opt.epoch, opt.device, opt.precision, opt.spacing_mm)
    synthetic = synthesize_volume(mr, synthesiser, body, opt.batch_size)
    write_volume(synthetic, output)
    log.info("volume: %s", output)
    picture = output.with_name(f"{volume_stem(output)}.png")
    save_preview(mr, synthetic, reference, picture)
    log.info("picture: %s", picture)
    if reference is not None:
        row = {"case": volume_stem(opt.input), **score_case(synthetic, reference, mr=mr)}
        scores = write_report(row, output.with_name(f"{volume_stem(output)}.json"))
        log.info("scores: %s (%s)\n%s", scores, describe_mask(False, True), format_table([row]))


if __name__ == "__main__":
    run_command(main)
