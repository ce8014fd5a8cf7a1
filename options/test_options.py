"""Options of `test_adapt.py`, and those that it shares with `test_pipeline.py`."""

import argparse
from pathlib import Path

from data.settings.values import positive_float, positive_int
from data.volumes.contrasts import split_name
from data.volumes.volume import WRITABLE_SUFFIXES, volume_suffix
from options.base_options import base_parser, finish


def inference_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of the commands that use a trained model."""
    parser = base_parser(prog, description, precision="auto")
    use = parser.add_argument_group("use of the model")
    use.add_argument("--results_dir", type=Path, default=Path("results"), help="where results go")
    use.add_argument(
        "--batch_size", "--batchSize", type=batch_size, default="auto", metavar="N",
        help="slices in one pass; auto: by the free memory",
    )  # fmt: skip
    use.add_argument("--spacing_mm", type=positive_float, help="pixel spacing, for a model trained on plain images")
    return parser


def batch_size(text: str) -> int | None:
    """Return a number of slices, or None for 'auto'."""
    return None if text == "auto" else positive_int(text)


def named_path(text: str) -> tuple[str | None, Path]:
    """Return the name of a contrast, None where none is said, and its path."""
    name, path = split_name(text)
    return name, Path(path)


def test_parser() -> argparse.ArgumentParser:
    """Return the parser of `test_adapt.py`."""
    parser = inference_parser("test_adapt.py", "Turn one patient's MR into a synthetic CT in HU on the MR's own grid.")
    patient = parser.add_argument_group("patient")
    patient.add_argument(
        "--input", type=named_path, action="append", required=True, metavar="[NAME=]PATH",
        help="MR volume, or folder of one DICOM series; of several contrasts one --input NAME=PATH each",
    )  # fmt: skip
    patient.add_argument("--series_uid", help="which DICOM series of the folder")
    patient.add_argument("--mask", type=Path, help="body mask on the MR's grid (default: computed)")
    patient.add_argument("--reference", type=Path, help="true CT on the MR's grid: the result is scored against it")
    patient.add_argument("--output", type=Path, help="the synthetic CT (default: RESULTS_DIR/NAME/<patient>.nii.gz)")
    patient.add_argument("--overwrite", action="store_true", help="replace files that this command did not make of it")
    return parser


test_parser.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the checked options; nothing changes them afterwards."""
    parser = test_parser()
    options = finish(parser, arguments)
    if options.output and volume_suffix(options.output) not in WRITABLE_SUFFIXES:
        parser.error(f"--output {options.output}: expected a file ending in {' '.join(WRITABLE_SUFFIXES)}")
    return options
