"""From an MR volume to a synthetic CT volume: the only inference path."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from data.body_mask import ct_body_mask, mr_body_mask, remove_couch
from data.errors import InputError
from data.intensity import AIR_HU, IntensityMap, mr_percentiles, mr_window
from data.slice_frame import SliceFrame
from data.volume import Volume
from models.experiment import weights_path
from models.inference_settings import InferenceSettings, read_inference_settings
from models.test_model import TestModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Synthesiser:
    """A trained model, ready to turn volumes of its source domain into volumes of its target domain."""

    settings: InferenceSettings
    model: TestModel


def load_synthesiser(
    folder: Path, epoch: str, device: torch.device, precision: str = "fp32", spacing_mm: float | None = None
) -> Synthesiser:
    """Load the run in `folder`.

    Args:
        folder: `checkpoints/NAME`.
        epoch: 'latest' or a number of a saved epoch.
        device: where to run.
        precision: key of `models.cycle_gan_model.PRECISIONS`.
        spacing_mm: pixel spacing, for a model that was trained on images without one.

    Raises:
        InputError: the run is missing, damaged, its weights do not fit, or its pixel spacing is unknown.
    """
    settings = read_inference_settings(folder)
    if settings.spacing_mm is None:
        if spacing_mm is None:
            raise InputError(f"{folder}: trained on images without a pixel spacing; say it with --spacing_mm")
        settings = replace(settings, spacing_mm=spacing_mm)
    elif spacing_mm is not None:
        raise InputError(f"--spacing_mm {spacing_mm:g}: the model in {folder} has its own, {settings.spacing_mm:g} mm")
    return Synthesiser(settings, TestModel(settings, weights_path(folder, epoch, "G_A"), device, precision))


def synthesize_volume(
    source: Volume, synthesiser: Synthesiser, body: np.ndarray | None = None, batch_size: int = 8
) -> Volume:
    """Return the synthetic CT of an MR, int16 in HU on the MR's own grid; voxels outside the frame are air, -1000 HU.

    A model trained with `--direction BtoA` takes a CT and returns an MR, float32, in the training set's typical units.

    Args:
        source: the MR.
        synthesiser: the model.
        body: body mask on the MR's grid, bool (z, y, x); computed if None.
        batch_size: slices in one pass of the network.

    Raises:
        InputError: no body is found, or the MR is constant inside it.
    """
    settings = synthesiser.settings
    if body is None:
        body = (mr_body_mask if settings.direction == "AtoB" else ct_body_mask)(source)
    source_map, target_map = intensity_maps(settings, source, body)
    frame = SliceFrame.of(source, settings.size, settings.spacing_mm, settings.slice_mm)
    lost = frame.outside(body)
    if lost:
        share = 100 * lost / np.count_nonzero(body)
        log.warning(
            "warning: %d body voxels (%.1f %%) lie outside the model's frame of %d x %g mm and become air: the body "
            "needs %.0f mm; train on a larger --size or --spacing_mm",
            lost, share, settings.size, settings.spacing_mm, frame.body_extent_mm(body),
        )  # fmt: skip
    if settings.direction == "BtoA":
        source = remove_couch(source, body)
    slices = source_map.to_network(frame.prepare(source, fill=float(source.array.min())))
    translated = synthesiser.model.translate(slices, batch_size)
    del slices
    # Outside the frame nothing is known: air, whatever the window's lower end.
    fill = AIR_HU if settings.direction == "AtoB" else target_map.range[0]
    restored = frame.restore(target_map.to_physical(translated), fill)
    if settings.direction == "BtoA":
        return restored
    return restored.with_array(np.rint(restored.array, out=restored.array).astype(np.int16))


def intensity_maps(settings: InferenceSettings, source: Volume, body: np.ndarray) -> tuple[IntensityMap, IntensityMap]:
    """Return the maps of the source volume and of the model's output to [-1, 1]."""
    if settings.direction == "BtoA":
        if settings.typical_mr is None:
            raise InputError("the model makes MR, but was trained on images: no MR units are known")
        return settings.ct, settings.typical_mr
    return mr_window(settings.mr_window, mr_percentiles(source.array, body)), settings.ct
