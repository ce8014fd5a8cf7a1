"""Dice of body (and bone) masks against reference masks, patient by patient.

The masks are those of `--pred`, or `--model` makes them of the CT in `--input`. Every path is one volume or a folder of
cases. Cases are matched by name. A pattern shows where the name stands:

    python -m ct_segmentation.eval --model checkpoints/shape_extractor --input ct --ref masks \\
        --input_pattern '{case}_ct.nii.gz' --ref_pattern '{case}_mask.nii.gz'
"""

import argparse
import sys
from pathlib import Path

from ct_segmentation.predict import segment_volume
from ct_segmentation.scoring import dice_by_class, format_scores
from data.errors import InputError, one_by_one, run_command
from data.settings.devices import torch_device
from data.settings.parser import CommandParser
from data.volumes.outputs import check_free
from data.volumes.volume import Volume, describe_difference, read_volume, resampling, same_grid
from evaluation.case_folders import CaseVolumes
from evaluation.cases import ScoredCase, find_cases
from evaluation.report import write_report
from models.shape_extractor import CLASS_NAMES, load_extractor

_KINDS = {"pred": "mask", "input": "ct", "ref": "mask"}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command's options."""
    parser = CommandParser(
        prog="python -m ct_segmentation.eval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--pred", type=Path, help="label maps to score")
    given.add_argument("--input", type=Path, help="CT in HU, for --model")
    parser.add_argument("--model", type=Path, help="an extractor's file or the folder of its run")
    parser.add_argument("--ref", "--reference", type=Path, required=True, help="reference label maps: 1 body, 2 bone")
    for name, kind in _KINDS.items():
        parser.add_argument(
            f"--{name}_pattern",
            metavar="PATTERN",
            help=f"where a case lies below --{name}, e.g. '{{case}}/{kind}.nii.gz'",
        )
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="score these cases only")
    parser.add_argument(
        "--skip_missing", action="store_true", help="leave out cases without a reference, and name them"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores here")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --json")
    parser.add_argument("--device", type=torch_device, default="auto", help="auto, cpu, cuda, cuda:1, ... or mps")
    options = parser.parse_args(arguments)
    if (options.input is None) != (options.model is None):
        parser.error("--model and --input: expected both, or --pred instead")
    for name in ("pred", "input"):
        if getattr(options, f"{name}_pattern") is not None and getattr(options, name) is None:
            parser.error(f"--{name}_pattern needs --{name}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Score, print the table, write the JSON; return 1 where some cases could not be scored, else 0.

    Raises:
        InputError: cases do not match, or the only one cannot be scored.
    """
    opt = parse(arguments)
    extractor = load_extractor(opt.model, opt.device) if opt.model else None
    kind = "input" if extractor else "pred"
    predictions = CaseVolumes(f"--{kind}", getattr(opt, kind), getattr(opt, f"{kind}_pattern"), _KINDS[kind])
    names = extractor.settings.class_names if extractor else CLASS_NAMES
    references = CaseVolumes("--ref", opt.ref, opt.ref_pattern, _KINDS["ref"])
    cases = find_cases(predictions, references, names=opt.cases, skip_missing=opt.skip_missing)
    if opt.json is not None:
        inputs = [path for case in cases for path in (case.pred, case.ref)]
        check_free([opt.json], "--json", inputs, overwrite=opt.overwrite)
    rows, known = {}, {names[0]}

    def score(case: ScoredCase) -> None:
        labels, reference = read_volume(case.pred), read_volume(case.ref)
        _check_grids(case.name, labels, reference)
        if extractor:
            try:
                labels = segment_volume(extractor, labels)
            except InputError as error:
                raise InputError(f"{case.pred}: {error}") from error
        rows[case.name] = dice_by_class(labels.array, reference.array, names)
        known.update(name for k, name in enumerate(names[1:], start=1) if (reference.array == k + 1).any())

    code = one_by_one(cases, score)
    if not rows:
        return code
    # A class that no reference has was not drawn in any of them: there is nothing to score it by.
    rows = {case: {name: row[name] for name in names if name in known} for case, row in rows.items()}
    sys.stdout.write(f"{format_scores(rows)}\n")
    if opt.json is not None:
        write_report({"dice": rows}, opt.json)
    return code


def _check_grids(name: str, pred: Volume, ref: Volume) -> None:
    if not same_grid(pred, ref):
        raise InputError(
            f"case {name}: the prediction is not on the reference's grid: {describe_difference(pred, ref)}; "
            f"resample it: {resampling('PREDICTION', 'REFERENCE')}"
        )


if __name__ == "__main__":
    run_command(main)
