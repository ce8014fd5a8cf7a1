"""The shape extractor as a training method: cross entropy and Dice on CT slices and masks, validated by patient."""

import logging
import math
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ct_segmentation.image_masks import write_masks
from ct_segmentation.predict import segment_slices
from ct_segmentation.scoring import dice_by_class, mean_by_class
from ct_segmentation.training_data import (
    ImageCase,
    ResizedImages,
    ShapeSampler,
    ShapeSlices,
    count_classes,
    split_images,
)
from data.commands import python_command
from data.errors import InputError
from data.files import hash_files, write_json
from data.loading.batches import LoadedBatches
from data.loading.settings import DataSettings
from data.loading.slices import ImageFolderSlices
from data.loading.unaligned_dataset import say_resized
from data.prepared.arrays import read_case
from data.prepared.manifest import Case, read_manifest
from data.prepared.splits import split_by_patient
from data.settings.declaration import Nature, option, redeclare
from data.settings.values import positive_int, positive_share
from models.base_model import BaseModel, MethodSettings, OptimiserSettings, Place
from models.inference_settings import InferenceSettings
from models.initialisation import initialise
from models.shape_extractor import (
    FILE_NAME,
    FOLDER_NAME,
    ExtractorSettings,
    ShapeExtractor,
    label_channels,
    load_extractor,
    save_extractor,
    software_versions,
)

log = logging.getLogger(__name__)

VALIDATION_NAME = "validation.json"


@dataclass(frozen=True, kw_only=True)
class ExtractorOptions:
    """shape extractor."""

    width: int = option(
        64, nature=Nature.FIXED, parse=positive_int, first=True, help="features at full resolution of the U-Net"
    )
    val_share: float = option(
        0.2,
        nature=Nature.FIXED,
        parse=positive_share,
        help="fraction of the patients kept for validation",
    )


@dataclass(frozen=True, kw_only=True)
class ShapeExtractorSettings(ExtractorOptions, MethodSettings):
    """shape extractor."""

    lr: float = redeclare(OptimiserSettings, "lr", 1e-3)
    beta1: float = redeclare(OptimiserSettings, "beta1", 0.9)

    @property
    def uses_batch_norm(self) -> bool:
        """Whether batch norm is used."""
        return True


class ShapeData(NamedTuple):
    """What an extractor learns from.

    Attributes:
        slices: those that train, augmented.
        train, validation: the volumes, or sets of images, that train and that validate.
        read: returns the slices (N, H, W), in HU, and the labels of one of them.
        n_classes: labels that the masks have.
        size, spacing_mm, view: of the slices; spacing_mm is None for images.
        described: what the extractor's file says of them.
    """

    slices: ShapeSlices
    train: Sequence[Case | ImageCase]
    validation: Sequence[Case | ImageCase]
    read: Callable[[Any], tuple[np.ndarray, np.ndarray]]
    n_classes: int
    size: int
    spacing_mm: float | None
    described: Mapping[str, Any]
    view: str = "axial"


class ShapeExtractorModel(BaseModel):
    """The shape extractor: draws the body, or its classes, in a CT slice."""

    settings_type = ShapeExtractorSettings
    settings: ShapeExtractorSettings
    defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 8, "n_epochs": 20, "n_epochs_decay": 0, "lr_policy": "cosine", "save_epoch_freq": 1000,
        "val_freq": 1,
    }  # fmt: skip
    validates_itself = True
    unused_options = (
        "preprocess", "flip", "rotate", "zoom", "slab", "mr_window", "max_dataset_size", "ema", "sync_batch_norm",
    )  # fmt: skip
    memory_options = "--width"
    fixed_facts = ("patients to train on", "patients to validate with", "classes")

    def __init__(self, settings: ShapeExtractorSettings, extractor: ShapeExtractor, place: Place) -> None:
        """Train an extractor whose initial weights are set."""
        super().__init__(settings, place.device, place.processes)
        self.extractor = extractor.to(self.device)
        self.networks["E"] = self.extractor
        self.optimisers["G"] = self._adam(self.extractor)
        self._wrap_networks()

    @classmethod
    def check(cls, settings: ShapeExtractorSettings, data: DataSettings) -> None:
        """Refuse options of the data that an extractor does not follow.

        Raises:
            InputError: it names them.
        """
        plain = vars(cls.settings_type()) | vars(DataSettings(dataroot=data.dataroot))
        now = vars(settings) | vars(data)
        if changed := [name for name in cls.unused_options if now[name] != plain[name]]:
            raise InputError(
                f"--{changed[0]} does nothing to the shape extractor: it takes all slices and augments them its own way"
            )

    @classmethod
    def open_data(
        cls, settings: ShapeExtractorSettings, data: DataSettings, leave_out: Collection[str] = ()
    ) -> ShapeData:
        """Open the CT and masks of a prepared data set or of a folder of images, and split its patients."""
        if data.of_images:
            return _open_images(settings, data)
        root, manifest = data.dataroot, read_manifest(data.dataroot).without(leave_out)
        train, validation = split_by_patient(manifest.select("train", "B"), settings.val_share, settings.seed)
        slices = ShapeSlices.prepared(root, train, data.ct_map, settings.seed)
        described = {
            "ct": len(train),
            "patients": len(patients_of(train)),
            "sources": sorted(case.source_sha256 for case in train),
        }
        return ShapeData(
            slices, train, validation, partial(read_case, root), count_classes(root, [*train, *validation]),
            manifest.size, manifest.spacing_mm, described, manifest.view,
        )  # fmt: skip

    @classmethod
    def from_data(cls, settings: ShapeExtractorSettings, data: DataSettings, dataset: ShapeData, place: Place) -> Self:
        """Build the extractor for the classes of the masks; the same seed gives the same weights."""
        log.info(
            "training on %d CT (%d slices), validating on %d", len(dataset.train), len(dataset.slices),
            len(dataset.validation),
        )  # fmt: skip
        described = ExtractorSettings(
            width=settings.width, n_classes=dataset.n_classes, ct=data.ct_map, size=dataset.size,
            spacing_mm=dataset.spacing_mm, view=dataset.view, versions=software_versions(),
            training={
                "dataset": data.dataroot.resolve().name, "slices": len(dataset.slices), **dataset.described,
            },
        )  # fmt: skip
        extractor = ShapeExtractor(described)
        initialise(extractor, "kaiming", generator=torch.Generator().manual_seed(settings.seed))
        return cls(settings, extractor, place)

    @classmethod
    def batches(
        cls, settings: ShapeExtractorSettings, data: DataSettings, dataset: ShapeData, place: Place
    ) -> LoadedBatches:
        """Return the batches of CT slices and masks."""
        sampler = ShapeSampler(len(dataset.slices), settings.seed, data.batch_size, place.rank, place.processes)
        return LoadedBatches(dataset.slices, sampler, data.num_threads, pin_memory=place.device.type == "cuda")

    def describe(self, data: DataSettings, dataset: ShapeData) -> None:
        """Return nothing: an extractor's file describes its own use."""

    def next_command(self, folder: Path, epoch: str, described: InferenceSettings | None, data: DataSettings) -> str:
        """Return the training that takes this extractor; it finds that of its own data set by itself."""
        own = folder.resolve() == (data.dataroot / FOLDER_NAME).resolve()
        words = [
            "--dataroot",
            str(data.dataroot),
            "--name",
            "NAME",
            *([] if own else ["--shape_extractor", str(folder)]),
        ]
        return python_command("train.py", *words)

    def facts(self, data: DataSettings, dataset: ShapeData) -> dict[str, str]:
        """Return which patients train and validate: those that were trained on must not validate later."""
        return {
            "patients to train on": " ".join(patients_of(dataset.train)),
            "patients to validate with": " ".join(patients_of(dataset.validation)),
            "classes": str(dataset.n_classes),
        }

    def step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Update the extractor on `image` (N, 1, H, W) in [-1, 1] and `mask`, labels; see `BaseModel.step`."""
        self.extractor.train()
        images = batch["image"].to(self.device, non_blocking=True)
        targets = label_channels(batch["mask"].to(self.device, non_blocking=True), self.extractor.settings.n_classes)
        logits = self._run(self.extractor, images)
        losses = {"segmentation": segmentation_loss(logits, targets)}
        total = self._update("G", losses, batch)
        self.scaler.update()
        self.visuals = {"image_B": images, "mask_B": targets, "found_B": logits.detach().sigmoid()}
        return {name: loss.detach() for name, loss in ({"G": total} | losses).items()}

    def check_init_from(self, name: str, folder: Path, data: DataSettings, dataset: ShapeData) -> None:
        """Refuse weights of an extractor of another form, or that knows CT by another map; warn of another scale.

        Raises:
            InputError: it says what differs, or the run has no extractor.
        """
        there, here = load_extractor(folder).settings, self.extractor.settings
        differing = [
            f"{key}: {getattr(there, key)} there, {getattr(here, key)} here"
            for key in ("width", "wide_up", "n_classes", "input_range", "ct", "view")
            if getattr(there, key) != getattr(here, key)
        ]
        if differing:
            raise InputError(
                f"--init_from {name}: its weights were trained with other settings ({'; '.join(differing)})"
            )
        if there.spacing_mm != here.spacing_mm:
            log.warning(
                "warning: --init_from %s: spacing_mm: %s there, %s here", name, there.spacing_mm, here.spacing_mm
            )

    def open_validator(self, data: DataSettings, dataset: ShapeData) -> "DiceValidator":
        """Return the validation by Dice over whole patients."""
        return DiceValidator(dataset)

    def keep_best(self, folder: Path, validator: Any, values: Mapping[str, float]) -> None:
        """Write the extractor, and what it found in every case, as `extractor.pth` and `validation.json`."""
        dice = {
            case: {name: None if math.isnan(value) else value for name, value in row.items()}
            for case, row in validator.cases.items()
        }
        validation = {"dice": dice, "patients": validator.patients}
        save_extractor(self.extractor, folder / FILE_NAME, validation)
        write_json(folder / VALIDATION_NAME, validation)


class DiceValidator:
    """Dice of every class over the whole volumes of patients that do not train."""

    def __init__(self, dataset: ShapeData) -> None:
        """Validate with the `validation` cases of a data set."""
        self.dataset = dataset
        self.patients = {"train": patients_of(dataset.train), "validation": patients_of(dataset.validation)}
        self.cases: dict[str, dict[str, float]] = {}

    def measure(self, model: BaseModel) -> Generator[tuple[dict[str, float], list[Any]] | None]:
        """Yield None after each case, and at last the mean Dice of each class, if defined; there are no pictures."""
        extractor = model.networks["E"]
        assert isinstance(extractor, ShapeExtractor)
        self.cases = {}
        for case in self.dataset.validation:
            self.cases |= validate(extractor, self.dataset.read, [case])
            yield None
        means = {f"dice_{name}": value for name, value in mean_by_class(self.cases).items() if not math.isnan(value)}
        log.info("Dice of unseen patients: %s", ", ".join(f"{name[5:]} {value:.4f}" for name, value in means.items()))
        yield means, []

    def score(self, values: Mapping[str, float]) -> float:
        """Return 1 less the mean of the classes' Dice."""
        return 1 - sum(values.values()) / len(values) if values else math.inf


def validate(
    extractor: ShapeExtractor,
    read: Callable[[Any], tuple[np.ndarray, np.ndarray]],
    cases: Sequence[Case | ImageCase],
) -> dict[str, dict[str, float]]:
    """Return the Dice of every class in every case, over all slices of the case together; `read`: see `ShapeData`."""
    scores = {}
    for case in cases:
        slices, reference = read(case)
        scores[case.name] = dice_by_class(segment_slices(extractor, slices), reference, extractor.settings.class_names)
    return scores


def _open_images(settings: ShapeExtractorSettings, data: DataSettings) -> ShapeData:
    """Open the CT images of a folder at the size of training; missing masks are computed.

    Raises:
        InputError: they cannot be used, or their gray values are said to be those of a curve.
    """
    if data.ct_transfer:
        raise InputError(
            f"--ct_transfer: images need a linear window; give that of {data.dataroot} by --ct_window LO HI"
        )
    folder, masks, size = data.dataroot / "trainB", data.dataroot / "maskB", data.augmentation.load_size
    if not masks.exists():
        write_masks(folder, masks, data.ct_map)
    images = ImageFolderSlices(folder, masks, with_masks=True)
    say_resized(folder, images, size)
    train, validation = split_images(images, settings.val_share, settings.seed)
    trained = [index for case in train for index in case.indices]

    def read(case: ImageCase) -> tuple[np.ndarray, np.ndarray]:
        source = ResizedImages(images, case.indices, size)
        items = [source.read(k, with_mask=True) for k in range(len(source))]
        hu = data.ct_map.to_physical(np.concatenate([item.image for item in items]))
        return hu, np.concatenate([item.mask for item in items if item.mask is not None])

    sources = sorted(hash_files([images.files[index]]) for index in trained)
    slices = ShapeSlices(ResizedImages(images, trained, size), settings.seed)
    return ShapeData(slices, train, validation, read, 1, size, None, {"sources": sources})


def segmentation_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return binary cross entropy plus soft Dice loss, a scalar.

    Mean over classes of 1 - (2 sum p t + 1) / (sum p + sum t + 1) with sums over the batch's pixels, after Milletari et
    al., "V-Net", 3DV 2016, without squares; the ones keep slices without a body from dividing by 0.

    Args:
        logits: (N, K, H, W).
        targets: 0 or 1, of the same shape.
    """
    probabilities = logits.sigmoid()
    overlap = 2 * (probabilities * targets).sum(dim=(0, 2, 3)) + 1
    dice = overlap / ((probabilities + targets).sum(dim=(0, 2, 3)) + 1)
    return F.binary_cross_entropy_with_logits(logits, targets) + (1 - dice).mean()


def patients_of(cases: Sequence[Case | ImageCase]) -> list[str]:
    """Return the patients of cases, by name."""
    return sorted({case.patient for case in cases})
