"""Copy a model for use out of its run: `python -m scripts.export_model --name NAME --out DIR`.

Writes DIR/latest_net_G_A.pth, the generator in half precision (half the size; loaded as float32), and
DIR/inference.json, so that `test_adapt.py --checkpoints_dir DIR/..` finds a model there.

--onnx also writes DIR/model.onnx, for other software, and DIR/model.json, which describes its input and output. Its
weights are those of the .pth file, in float32.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from data.errors import InputError, run_command
from data.prepared.manifest import read_manifest
from data.prepared.training_statistics import TrainingStatistics, describe_training_set
from data.settings.declaration import add_options
from data.settings.parser import CommandParser
from data.values.attenuation import LINES
from data.volumes.outputs import check_free
from models import onnx_export
from models.inference_settings import FILE_NAME, MIRRORINGS, InferenceSettings, read_inference_settings
from models.model_settings import ModelChoice
from models.networks import build_generator
from models.onnx_export import PACKAGES, export_onnx, require_packages
from models.run_folder import find_weights, weights_path
from models.state_dicts import load_network_weights, save_atomically

log = logging.getLogger(__name__)

_WIDTH_TOLERANCE = 0.1
# What an exported model does in use that its training need not have known.
_WAYS = ("mirrored", "solid_body", "bias_correction")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="python -m scripts.export_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_options(parser, ModelChoice)
    add("--out", type=Path, required=True, help="folder to write to, which holds no model yet")
    add(
        "--mirrored", choices=[axes for axes in MIRRORINGS if axes],
        help="when the model is used, average over each slice as it is and mirrored (x: its columns, y: its rows; in "
             "axial slices left and right, front and back): better if trained with the same --flip; takes the network "
             "twice as long, with xy 4 times",
    )  # fmt: skip
    add(
        "--solid_body", action="store_true",
        help="when the model is used, replace air inside the MR's body mask by tissue: for limbs, not for "
             "body parts that hold air",
    )  # fmt: skip
    add(
        "--bias_correction", action="store_true",
        help="when the model is used, correct the MR's bias field (N4); not needed if the data set was "
             "prepared with --bias_correction",
    )  # fmt: skip
    add(
        "--hu_curve", nargs="+", type=parse_knot, metavar="HU:HU",
        help="when the model is used, map each first HU to the second, linearly in between, e.g. 130:130 200:250 "
             "1000:1130 if bone HU are too low; the ends of the CT window do not change",
    )  # fmt: skip
    add(
        "--caution",
        metavar="TEXT",
        help="warning to show with every result of the model, e.g. what the model must not be used for",
    )
    add(
        "--kvp", type=int, choices=tuple(LINES),
        help="tube voltage of the CT that the model was trained on, for mu-maps: attribute KVP (0018,0060) of that CT",
    )  # fmt: skip
    add(
        "--dataroot", type=Path, metavar="DIR",
        help="data set that the model was trained on: record again the values that results are checked against "
             "(models of earlier versions lack some). Volumes left out of the training count, too",
    )  # fmt: skip
    add("--float32", action="store_true", help="keep weights in float32")
    add(
        "--onnx", action="store_true",
        help=f"also write an ONNX file, checked against torch; needs {', '.join(PACKAGES)}",
    )  # fmt: skip
    add("--overwrite", action="store_true", help="replace an existing model")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Export."""
    opt = parse_arguments(arguments)
    folder = opt.checkpoints_dir / opt.name
    settings = read_inference_settings(folder)
    source = find_weights(folder, opt.epoch, "G_A")
    for name in ("solid_body", "bias_correction", "hu_curve", "kvp"):
        if getattr(opt, name) and settings.direction == "BtoA":
            raise InputError(f"{folder}: --{name} is for models that make CT; this one makes MR")
    if opt.hu_curve:
        try:
            settings.ct.corrected(opt.hu_curve)
        except InputError as error:
            raise InputError(f"--hu_curve: {error}") from error
    net = build_generator(settings.generator)
    load_network_weights(net, source)  # refuses what is not of this network
    weights = net.state_dict()
    target = weights_path(opt.out, "latest", "G_A")
    onnx_files = [opt.out / name for name in (onnx_export.FILE_NAME, onnx_export.DESCRIPTION_NAME)]
    if opt.onnx:
        require_packages()
    check_free([target, opt.out / FILE_NAME, *onnx_files], "--out", [source], overwrite=opt.overwrite)
    if not opt.float32:
        weights = {key: to_half(value, f"{source}: {key}") for key, value in weights.items()}
    training = training_figures(opt.dataroot, settings) if opt.dataroot else settings.training
    ways = {name: getattr(opt, name) or getattr(settings, name) for name in _WAYS}
    curve = tuple(opt.hu_curve or settings.hu_curve)
    caution = settings.caution if opt.caution is None else opt.caution
    exported = replace(
        settings.of_epoch(opt.epoch), training=training, hu_curve=curve, caution=caution,
        ct_kvp=opt.kvp or settings.ct_kvp, **ways,
    )  # fmt: skip
    if opt.onnx:  # first: where it fails, nothing is written
        net.load_state_dict(weights)
        difference = export_onnx(net, exported, opt.out)
        log.info("%s: differs from torch by %.1e at most, of [-1, 1]", opt.out / onnx_export.FILE_NAME, difference)
    elif old := [path for path in onnx_files if path.exists()]:
        for path in old:
            path.unlink()
        log.info("%s: removed, because it belonged to the earlier weights", " and ".join(map(str, old)))
    exported.write(opt.out)
    save_atomically(weights, target)
    log.info("%s: %.1f MB", target, target.stat().st_size / 1e6)
    log.info("next: %s", exported.use_command(opt.out))


def parse_knot(text: str) -> tuple[float, float]:
    """Return the two HU of `X:Y`."""
    try:
        x, y = map(float, text.split(":"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected two HU, as in 200:250") from error
    return x, y


def training_figures(dataroot: Path, settings: InferenceSettings) -> TrainingStatistics:
    """Return the statistics of the data set that a model was trained on.

    Raises:
        InputError: it has no figures, or slices of another view or width, so that it is another data set.
    """
    if settings.spacing_mm is None:
        raise InputError(f"--dataroot {dataroot}: the model was trained on images, which give no figures; leave it out")
    manifest = read_manifest(dataroot)
    width = manifest.size * manifest.spacing_mm
    trained = settings.size * settings.spacing_mm
    # A generator's slices are rounded up to a multiple of pixels.
    if manifest.view != settings.view or not abs(width / trained - 1) < _WIDTH_TOLERANCE:
        raise InputError(
            f"--dataroot {dataroot}: {manifest.view} slices of {width:.0f} mm; the model was trained on "
            f"{settings.view} ones of {trained:.0f} mm: name the data set that it was trained on"
        )
    if (found := describe_training_set(dataroot, manifest)) is None:
        raise InputError(
            f"--dataroot {dataroot}: no figures of its volumes: it was prepared by an earlier version; prepare it again"
        )
    return found


def to_half(values: Tensor, where: str) -> Tensor:
    """Return floating-point values in half precision, others as they are.

    Raises:
        InputError: a value is beyond what half precision holds.
    """
    if not values.is_floating_point():
        return values
    half = values.half()
    if not torch.isfinite(half).all():
        raise InputError(f"{where}: values beyond half precision ({values.abs().max():g}); export with --float32")
    return half


if __name__ == "__main__":
    run_command(main)
