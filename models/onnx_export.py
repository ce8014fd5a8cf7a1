"""Export a generator as an ONNX file for other software, checked against torch, with a description in JSON.

The packages onnx, onnxruntime and onnxscript are needed for it, and for nothing else.
"""

import importlib
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data.errors import InputError
from data.files import hash_files, whole_file, write_json
from data.values.intensity import MR_PERCENTILES, TISSUE_REACH
from data.values.mr_rules import Rule, rules_in_order
from models.inference_settings import InferenceSettings

FORMAT_VERSION = 1
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
FILE_NAME, DESCRIPTION_NAME = "model.onnx", "model.json"
# Of outputs in [-1, 1]: 1.2 HU of the published window. Rounding alone leaves about 1e-5.
LARGEST_DIFFERENCE = 1e-3
# Slices at a time, height and width in the least steps that a network takes, with which a file is checked.
CHECKED = ((1, 3, 5), (3, 6, 4))


def require_packages() -> None:
    """Refuse to begin without the packages.

    Raises:
        InputError: it names the missing ones and how they are installed.
    """
    missing = []
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise InputError(f"--onnx: {', '.join(missing)} cannot be imported; pip install {' '.join(PACKAGES)}")


def export_onnx(net: nn.Module, settings: InferenceSettings, folder: Path) -> float:
    """Write `model.onnx` and `model.json` into a folder; return the greatest difference from torch, of [-1, 1].

    Batch, height and width of the file's input are free.

    Args:
        net: the generator, float32 on the CPU, with its weights.
        settings: how it is used.
        folder: where to.

    Raises:
        InputError: onnxruntime gives another output than torch; nothing is written.
    """
    source, target = ("mr", "ct") if settings.direction == "AtoB" else ("ct", "mr")
    multiple, channels = settings.generator.multiple, settings.channels[0]
    net.eval()
    path = folder / FILE_NAME
    with whole_file(path) as scratch:
        _save(net, torch.zeros(2, channels, 3 * multiple, 4 * multiple), multiple, (source, target), scratch)
        checked = [(batch, channels, rows * multiple, columns * multiple) for batch, rows, columns in CHECKED]
        difference = max(_difference(net, scratch, shape) for shape in checked)
        if not difference <= LARGEST_DIFFERENCE:  # NaN is none either
            raise InputError(
                f"{path}: onnxruntime's output differs from torch's by {difference:.2g}; expected "
                f"{LARGEST_DIFFERENCE:g} at most, of [-1, 1]: not written"
            )
    check = {
        "onnxruntime": importlib.import_module("onnxruntime").__version__,
        "torch": torch.__version__,
        "inputs": checked,
        "max_difference": difference,
    }
    described = describe(settings, (source, target)) | {"sha256": hash_files([path]), "checked_against_torch": check}
    write_json(folder / DESCRIPTION_NAME, described)
    return difference


def _save(net: nn.Module, example: torch.Tensor, multiple: int, names: tuple[str, str], path: Path) -> None:
    """Trace a network and write it; any batch and multiples of `multiple` from twice that on are taken."""
    batch, rows, columns = (torch.export.Dim(name, min=least) for name, least in (("n", 1), ("h", 2), ("w", 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, to its developers
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            program = torch.onnx.export(
                net, (example,), dynamo=True, dynamic_shapes=({0: batch, 2: multiple * rows, 3: multiple * columns},),
                input_names=[names[0]], output_names=[names[1]], verbose=False,
            )  # fmt: skip
        finally:
            logging.disable(level)
    assert program is not None, "it is given back where no file is named"
    program.save(path)


def _difference(net: nn.Module, path: Path, shape: tuple[int, ...]) -> float:
    """Return by how much onnxruntime's output differs from torch's at most, for noise of a shape (N, C, H, W)."""
    onnxruntime = importlib.import_module("onnxruntime")
    images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: images})[0]
    with torch.inference_mode():
        expected = net(torch.from_numpy(images)).numpy()
    return float(np.abs(found - expected).max()) if found.shape == expected.shape else math.inf


def describe(settings: InferenceSettings, names: tuple[str, str]) -> dict[str, Any]:
    """Return what must be known to use the network without this software; `names`: of the file's input and output."""
    s, (source, target) = settings, names
    mr_window = {
        name: _describe_rule(rule)
        for name, rule in zip(s.contrasts, rules_in_order(s.mr_window, s.contrasts), strict=True)
    }
    ct, units = {"knots": s.ct_out.to_dict()["knots"], "unit": "HU"}, s.mr_units
    synthetic_mr = {"knots": units.to_dict()["knots"], "unit": "MR"} if units else None
    offsets = [k - s.slab // 2 for k in range(s.slab)]
    to_ct = s.direction == "AtoB"
    return {
        "format_version": FORMAT_VERSION,
        "file": FILE_NAME,
        "input": {
            "name": source,
            "shape": ["n", s.channels[0], "height", "width"],
            "channels": [
                {"image": name, "slice": offset} for name in (s.contrasts if to_ct else ["ct"]) for offset in offsets
            ],
            "intensity": mr_window if to_ct else {"ct": ct},
        },
        "output": {
            "name": target,
            "shape": ["n", s.channels[1], "height", "width"],
            "channels": [{"image": target, "slice": offset} for offset in offsets],
            "intensity": ct if to_ct else synthetic_mr,
        },
        "height_and_width_are_multiples_of": s.generator.multiple,
        "trained_height_and_width": s.size,
        "pixel_spacing_mm": s.spacing_mm,
        "slice_spacing_mm": s.slice_mm,
        "view": s.view,
        "slab": s.slab,
        "slab_weights": [s.slab // 2 + 1 - abs(offset) for offset in offsets],
        "mirrored": s.mirrored,
        "solid_body": s.solid_body,
        "bias_correction": s.bias_correction,
        "how": _how(settings),
    }


def _describe_rule(rule: Rule) -> dict[str, Any]:
    if rule == "percentile":
        return {"rule": rule, "percentiles": list(MR_PERCENTILES), "of": "the volume's voxels inside the body"}
    if isinstance(rule, str):
        return {"rule": rule, "low": 0, "high": f"{TISSUE_REACH:.6f} times the intensity of fat"}
    low, high = rule
    return {"rule": "fixed", "low": low, "high": high}


_MIRRORED = {
    "x": "The output is the mean of two: of the input, and of the input with its columns in reverse order, put back.",
    "y": "The output is the mean of two: of the input, and of the input with its rows in reverse order, put back.",
    "xy": "The output is the mean of four: of the input, and of the input with its rows, its columns, and both in "
          "reverse order, each put back.",
}  # fmt: skip


def _how(s: InferenceSettings) -> list[str]:
    """Return in sentences what is done to a volume before and after the network."""
    first = "row 0 is the most anterior" if s.view == "axial" else "row 0 is the one nearest to the head"
    column = "the most anterior" if s.view == "sagittal" else "the patient's right"
    slices = {"axial": "the most inferior", "coronal": "the most anterior", "sagittal": "the leftmost"}[s.view]
    spacing = f"slices {s.slice_mm:g} mm apart" if s.slice_mm else "the volume's own slices"
    air = "air" if s.direction == "AtoB" else "the lowest MR value"
    lines = [
        f"Slices are {s.view}: {first}, column 0 is {column}, slice 0 is {slices}; {spacing}, pixels of "
        f"{s.spacing_mm:g} mm, centred on the volume, by linear interpolation; where that is coarser than the volume, "
        "the triangle of the interpolation is as wide as the step, so that voxels are averaged."
        if s.spacing_mm
        else "The model was trained on images without a pixel spacing.",
        "A fixed window, percentiles or fat give low and high; value v becomes 2 (v - low) / (high - low) - 1, clipped "
        "to [-1, 1]. Knots are pairs of value and network value, joined by straight lines and clipped at both ends.",
        "Pixels beyond the volume have its lowest value. Where the body is wider than a trained slice, slices are "
        "larger.",
        f"Slices without body are not converted; they become {air}.",
    ]
    if s.slab > 1:
        lines.append(
            f"A slab is {s.slab} neighbouring slices, centred on each slice in turn. All slices between the first and "
            "the last with body are converted, and these two are repeated beyond the ends. A slice is the mean of what "
            "all slabs that hold it give, by slab_weights."
        )
    if s.direction == "BtoA":
        lines.append("The CT is -1000 HU everywhere but in the body and 2 mm around it: no couch.")
    if s.bias_correction:
        lines.append("The MR is divided by its bias field (N4, of the first contrast) first.")
    if s.mirrored:
        lines.append(_MIRRORED[s.mirrored])
    if s.solid_body:
        lines.append(
            "Afterwards what is below -200 HU inside the body becomes the nearest other tissue of the body, smoothed "
            "by 2 mm."
        )
    return lines
