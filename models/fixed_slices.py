"""A slice of real MR for the pictures of a training that reads none."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.errors import InputError
from data.loading.single_dataset import SingleDataset
from data.loading.slices import mr_windows
from data.loading.whole_slices import centred
from data.prepared.arrays import read_contrasts
from data.prepared.manifest import Case, Manifest, read_manifest
from data.prepared.slice_spacing import through_mm
from data.simulation.contrasts import shown_alike
from data.volumes.slice_frame import view_direction
from data.volumes.volume import Volume
from models.inference_settings import InferenceSettings
from models.synthesis import plan_volume


def real_mr_slab(dataroot: Path, settings: InferenceSettings) -> Tensor | None:
    """Return the slab in the middle of a prepared MR as the model will get it in use, (1, C S, H, W) in [-1, 1].

    It is of the first MR by name, if possible of a training patient. None if there is no MR, or none that the model
    could take: of other contrasts, without the scale that `settings.mr_window` asks for, or one that cannot be read.
    """
    manifest = read_manifest(dataroot)
    if not shown_alike(manifest.contrasts, settings.contrasts):
        return None
    cases = [case for case in manifest.cases if case.domain == "A" and case.has_body]
    for case in sorted(cases, key=lambda case: (case.split != "train", case.name)):
        try:
            return _middle_slab(dataroot, manifest, case, settings)
        except InputError:
            continue
    return None


def _middle_slab(dataroot: Path, manifest: Manifest, case: Case, settings: InferenceSettings) -> Tensor:
    images, mask = read_contrasts(dataroot, case)
    first, last = case.body_slices
    middle = (first + last) // 2
    between_mm = manifest.slice_mm or through_mm(case)
    # Slices of the model's spacing are made of these.
    reach = math.ceil((settings.slab // 2 + 1) * (settings.slice_mm or between_mm) / between_mm)
    around = slice(max(middle - reach, first), min(middle + reach + 1, last))
    spacing = (manifest.spacing_mm, manifest.spacing_mm, between_mm)
    volumes = [Volume(np.array(image[around]), spacing, direction=view_direction(manifest.view)) for image in images]
    body = np.array(mask[around]) > 0
    maps = (mr_windows(case, settings.mr_window), settings.ct)
    slices, _ = plan_volume(volumes, body, maps, settings)
    slab = SingleDataset(slices, settings.slab)[len(slices) // 2]
    shown = torch.from_numpy(body[middle - around.start])
    return centred(slab, shown, settings.generator.multiple, outside=-1.0)[None]
