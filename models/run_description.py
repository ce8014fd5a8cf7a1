"""What inference must know of a training, from its data: how `inference.json` comes about."""

from dataclasses import replace

from data.errors import InputError
from data.loading.settings import DataSettings
from data.loading.slices import typical_mr_window
from data.loading.unaligned_dataset import UnalignedDataset
from data.prepared.manifest import Manifest
from data.prepared.training_statistics import describe_training_set
from models.inference_settings import InferenceSettings, package_versions
from models.networks import Architecture


def describe_prepared(
    data: DataSettings,
    architecture: Architecture,
    manifest: Manifest,
    contrasts: tuple[str, ...],
    slice_mm: float | None,
    direction: str = "AtoB",
) -> InferenceSettings:
    """Return what inference must know about a generator that is trained on a prepared data set.

    A run on resized slices learns another pixel spacing: its frame is the resized one.

    Args:
        data: the options of the data.
        architecture: the generator's.
        manifest: the volumes that are trained on.
        contrasts: names of the MR's contrasts that the generator takes or makes.
        slice_mm: distance of the slices of slabs; None where slices are converted as far apart as they were prepared.
        direction: 'AtoB' or 'BtoA'.

    Raises:
        InputError: the data set is damaged.
    """
    size, spacing_mm = manifest.size, manifest.spacing_mm
    if data.preprocess == "resize_and_crop":
        spacing_mm = spacing_mm * size / data.augmentation.load_size
    return InferenceSettings(
        generator=architecture, direction=direction, size=_frame_size(data, size, architecture), spacing_mm=spacing_mm,
        slice_mm=slice_mm or manifest.slice_mm, mr_window=data.mr_window, typical_mr=None, ct=data.ct_map,
        versions=package_versions(), training=describe_training_set(data.dataroot, manifest), slab=data.slab,
        bias_correction=manifest.bias_corrected, contrasts=contrasts, view=manifest.view,
    )  # fmt: skip


def describe_unaligned(
    data: DataSettings, architecture: Architecture, direction: str, dataset: UnalignedDataset
) -> InferenceSettings:
    """Return what inference must know about a generator that is trained on unpaired slices.

    Raises:
        InputError: a folder of images, and the MR window that they were written with is not said; MR of several
            contrasts to be made from CT; or a damaged data set.
    """
    if len(dataset.contrasts) > 1 and direction == "BtoA":
        raise InputError(
            f"--direction BtoA: makes MR of one contrast; {data.dataroot} has {', '.join(dataset.contrasts)}: prepare "
            "a data set with the one you want"
        )
    if manifest := dataset.manifest:
        described = describe_prepared(data, architecture, manifest, dataset.contrasts, dataset.slice_mm, direction)
        return replace(described, typical_mr=typical_mr_window(manifest, data.mr_window))
    if isinstance(data.mr_window, str) or data.ct_transfer:
        raise InputError(
            f"{data.dataroot}: images do not carry their units; give the windows that they were "
            "written with: --mr_window LO HI (published: 0 400) and --ct_window LO HI (published: -1000 1400)"
        )
    size = max(dataset.a.read(0, False).image.shape[-2:])
    return InferenceSettings(
        generator=architecture, direction=direction, size=_frame_size(data, size, architecture), spacing_mm=None,
        slice_mm=None, mr_window=data.mr_window, typical_mr=None, ct=data.ct_map, versions=package_versions(),
    )  # fmt: skip


def _frame_size(data: DataSettings, size: int, architecture: Architecture) -> int:
    """Return the side of the frame in use, in pixels: that of the training slices, or the next one possible."""
    if data.preprocess == "resize_and_crop":
        size = data.augmentation.load_size
    return architecture.frame_size(size)
