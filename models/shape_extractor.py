"""The shape extractor E_B: its file, and the conversion of a CT slice to its input.

The generators speak [-1, 1] under the CT intensity map of their own run; an extractor was trained under one too, and
perhaps on another range (published ones on [0, 1]). A file therefore records both, and `ShapeExtractor.to_input` is the
only place where they meet, in training, in prediction and inside the shape losses alike.

Ge et al., "Unpaired whole-body MR to CT synthesis with correlation coefficient constrained adversarial learning", SPIE
Medical Imaging 2019, and "Unpaired MR to CT synthesis with explicit structural constrained adversarial learning",
ISBI 2019.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from data.commands import python_command
from data.errors import InputError
from data.files import hash_files
from data.loading.images import list_images
from data.prepared.manifest import MANIFEST_NAME, read_manifest
from data.values.curve import curve, inverse
from data.values.intensity import IntensityMap
from data.volumes.slice_frame import VIEWS
from models.state_dicts import load_checkpoint, load_network_weights, save_atomically
from unet.unet_model import UNet

log = logging.getLogger(__name__)

FILE_NAME = "extractor.pth"
# Where the extractor of a data set is, below the data set's folder.
FOLDER_NAME = "shape_extractor"
FORMAT_VERSION = 1
CLASS_NAMES = ("body", "bone")


@dataclass(frozen=True)
class ExtractorSettings:
    """What a file says of its extractor beside the weights.

    Attributes:
        width, wide_up: see `UNet`.
        n_classes: channels of the output: 0 is the body, k the label k + 1 inside it (1: bone).
        ct: CT map to [-1, 1] that the extractor was trained under, in HU.
        input_range: what the network takes for -1 and 1 of that map.
        size, spacing_mm: pixels of a slice's side and their spacing in training; spacing_mm is None for images.
        view: how those slices lie in the body, of `data.volumes.slice_frame.VIEWS`.
        versions: packages that trained it.
        training: what it was trained on: `dataset` (a name), the numbers of `ct`, `patients` and `slices`, and
            `sources`, SHA-256 of every CT; None if that was not recorded.
    """

    width: int
    n_classes: int
    ct: IntensityMap
    size: int
    spacing_mm: float | None
    input_range: tuple[float, float] = (-1.0, 1.0)
    wide_up: bool = False
    view: str = "axial"
    versions: Mapping[str, str] | None = None
    training: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse values that no extractor can have."""
        if not isinstance(self.training, Mapping | None):
            raise InputError(f"shape extractor trained on {self.training!r}: expected a mapping")
        low, high = self.input_range
        known = self.spacing_mm is None or self.spacing_mm > 0
        if self.view not in VIEWS:
            raise InputError(f"shape extractor of {self.view!r} slices: expected {', '.join(VIEWS)}")
        if not (low < high and self.size >= 1 and known and self.width >= 1 and self.n_classes >= 1):
            raise InputError(
                f"shape extractor of width {self.width}, {self.n_classes} classes, {self.size} pixels of "
                f"{self.spacing_mm} mm, input range {low} .. {high}: expected positive numbers and a rising range"
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for every channel of the output."""
        return tuple(CLASS_NAMES[k] if k < len(CLASS_NAMES) else f"label{k + 1}" for k in range(self.n_classes))

    def to_dict(self) -> dict[str, Any]:
        """Return a form of plain values."""
        return asdict(self) | {"ct": self.ct.to_dict(), "input_range": list(self.input_range)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ExtractorSettings":
        """Return the settings that `to_dict` wrote."""
        low, high = data["input_range"]
        return cls(**{**data, "ct": IntensityMap.from_dict(data["ct"]), "input_range": (float(low), float(high))})


class ShapeExtractor(nn.Module):
    """A U-Net together with the conversion of its input."""

    def __init__(self, settings: ExtractorSettings, ct_map: IntensityMap | None = None) -> None:
        """Build an untrained extractor.

        Args:
            settings: what the network is and takes.
            ct_map: CT map of the images that `forward` gets, a generator's; None: the extractor's own.
        """
        super().__init__()
        self.settings, self.ct_map = settings, ct_map or settings.ct
        self.net = UNet(1, settings.n_classes, settings.width, settings.wide_up)
        self.frozen = False

    def to_input(self, images: Tensor) -> Tensor:
        """Return images (N, 1, H, W) in [-1, 1] under `ct_map` as the network takes them; gradients flow through.

        Maps that differ are converted by way of HU; equal ones are left alone.
        """
        settings = self.settings
        if self.ct_map != settings.ct:
            hu = curve(images, inverse(self.ct_map.knots))
            images = curve(hu, settings.ct.knots)
        low, high = settings.input_range
        return images if (low, high) == (-1.0, 1.0) else low + (high - low) / 2 * (images + 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, n_classes, H, W) of CT slices (N, 1, H, W) in [-1, 1] under `ct_map`; any H and W."""
        return self.net(self.to_input(images))

    def freeze(self) -> Self:
        """Make it a constant: evaluation mode for good, no gradients of parameters; the input still gets its own."""
        self.frozen = True
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; a frozen extractor stays in evaluation whatever its owner is set to."""
        return super().train(mode and not self.frozen)


def label_channels(masks: Tensor, n_classes: int) -> Tensor:
    """Return label maps (N, 1, H, W) as float32 channels (N, n_classes, H, W) of 0 and 1.

    Channel 0 is the body, any non-zero label; channel k is the label k + 1, so that label 2 (bone) is in both.
    """
    return torch.cat([masks > 0, *(masks == k + 1 for k in range(1, n_classes))], dim=1).float()


def channel_labels(probabilities: np.ndarray) -> np.ndarray:
    """Return probabilities (n_classes, ...) as uint8 labels (...): the inverse of `label_channels`, split at 0.5.

    What lies outside the body has no label.
    """
    body = probabilities[0] > 0.5
    labels = body.astype(np.uint8)
    for k in range(1, len(probabilities)):
        labels[body & (probabilities[k] > 0.5)] = k + 1
    return labels


def software_versions() -> dict[str, str]:
    """Return the versions of the packages that train an extractor."""
    return {package: metadata.version(package) for package in ("torch", "torchvision", "numpy")}


def save_extractor(extractor: ShapeExtractor, path: str | Path, validation: Mapping[str, Any] | None = None) -> None:
    """Write an extractor's file, whole or not at all; `validation`: plain values on how well it did."""
    weights = {key: value.detach().cpu() for key, value in extractor.net.state_dict().items()}
    content = {"format_version": FORMAT_VERSION, "settings": extractor.settings.to_dict(), "weights": weights}
    save_atomically(content | {"validation": dict(validation or {})}, path)


def extractor_file(path: str | Path) -> Path:
    """Return the file of an extractor that is named by it, or by the folder of the run that trained it.

    A path that does not exist is taken for a file if it has a suffix, else for a folder.
    """
    path = Path(path)
    is_run = path.is_dir() or not (path.exists() or path.suffix)
    return path / FILE_NAME if is_run else path


def load_extractor(
    path: str | Path, device: torch.device | str = "cpu", ct_map: IntensityMap | None = None
) -> ShapeExtractor:
    """Return a trained extractor, frozen.

    Args:
        path: an extractor's file, or the folder of the run that trained it.
        device: where it is to run.
        ct_map: CT map of the images that it will get, a generator's; None: the extractor's own.

    Raises:
        InputError: there is no such file, it is damaged or of another version, or it does not say what input it takes.
    """
    path = extractor_file(path)
    content = load_checkpoint(path)
    version = content.get("format_version")
    if version is None and content and all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(
            f"{path}: holds weights without a description of their input; make an extractor of them with "
            f"{python_command('-m', 'ct_segmentation.import_extractor')}"
        )
    if version != FORMAT_VERSION:
        raise InputError(f"{path}: not a shape extractor of format version {FORMAT_VERSION} (found {version})")
    try:
        extractor = ShapeExtractor(ExtractorSettings.from_dict(content["settings"]), ct_map)
        load_network_weights(extractor.net, content["weights"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: damaged ({error}); train the extractor again or restore the file") from error
    return extractor.to(device).freeze()


def open_extractor(
    path: Path,
    dataroot: Path,
    device: torch.device,
    ct_map: IntensityMap,
    spacing_mm: float | None,
    view: str = "axial",
) -> ShapeExtractor:
    """Return the frozen shape extractor at `path` for a training on `dataroot`.

    What it was trained on is said; where that is none of the CT of this data set, in a warning.

    Args:
        path: its file, or the folder of the run that trained it.
        dataroot: the data set.
        device: where it runs.
        ct_map: the intensity map of the CT that it will see, spacing_mm: their pixel spacing, view: how they lie.

    Raises:
        InputError: there is none, it cannot be used, or it knows slices that lie otherwise.
    """
    file = extractor_file(path)
    training_command = python_command("-m", "ct_segmentation.train", "--dataroot", dataroot)
    if not file.exists():
        raise InputError(
            f"{file}: no such file: the shape constraint needs an extractor trained on this anatomy; train one with "
            f"{training_command}, name one of the same anatomy with "
            "--shape_extractor, or train without the constraint: --lambda_shape 0 --lambda_shape_gan 0"
        )
    extractor = load_extractor(path, device, ct_map)
    if extractor.settings.view != view:
        raise InputError(
            f"{file}: was trained on {extractor.settings.view} slices, but {dataroot} has {view} ones; train one on "
            f"them with {training_command}"
        )
    learnt_mm = extractor.settings.spacing_mm
    if spacing_mm and learnt_mm and not 0.75 <= learnt_mm / spacing_mm <= 1.25:  # the scales that it was augmented with
        log.warning(
            "warning: the shape extractor was trained on pixels of %g mm, these are %g mm", learnt_mm, spacing_mm
        )
    training = extractor.settings.training
    if training is None:
        log.warning(
            "warning: %s: does not record what it was trained on; it must have been the anatomy of %s", path, dataroot
        )
        return extractor
    known = str(training.get("dataset"))
    if "patients" in training:  # of weights that were taken over nobody knows
        known = f"{training.get('ct')} CT of {training['patients']} patients ({known})"
    if _knows_ct_of(dataroot, training):
        log.info("shape extractor: %s, trained on %s", path, known)
    else:
        log.warning(
            "warning: %s: was trained on %s, %s %s; it must be the same anatomy",
            path,
            known,
            "none of them in" if training.get("sources") else "and does not record whether these are in",
            dataroot,
        )
    return extractor


def _knows_ct_of(dataroot: Path, training: Mapping[str, Any]) -> bool:
    """Tell whether an extractor was trained on some CT, or image of a CT, that a data set trains on too."""
    known = set(training.get("sources") or ())
    if not (dataroot / MANIFEST_NAME).exists():
        return any(hash_files([image]) in known for image in list_images(dataroot / "trainB"))
    return not known.isdisjoint(case.source_sha256 for case in read_manifest(dataroot).select("train", "B"))
