"""What inference needs to know of a trained model beside its weights: architecture, frame and intensities."""

import hashlib
import json
import logging
import math
import reprlib
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Self

from data.commands import python_command
from data.errors import InputError, did_you_mean
from data.files import hash_files, read_json, write_json
from data.prepared.training_statistics import TrainingStatistics
from data.settings.declaration import check_types
from data.values.attenuation import LINES
from data.values.intensity import MR_RULES, IntensityMap
from data.values.mr_rules import Rule, rules_in_order
from data.volumes.contrasts import ONLY_CONTRAST, is_name
from data.volumes.slice_frame import VIEWS
from models.networks import Architecture
from models.shape_extractor import FILE_NAME as EXTRACTOR_NAME

log = logging.getLogger(__name__)

FILE_NAME = "inference.json"
FORMAT_VERSION = 2
# What version 1 said of the generator, among the rest.
_GENERATOR_1 = ("netG", "ngf", "norm", "use_dropout", "upsample")
# What a network's weights are bound to.
_NETWORK = ("generator", "direction", "ct", "slab")
_ARCHITECTURE = tuple(field.name for field in fields(Architecture))
# Beyond what any model has: a damaged number must not ask for all memory there is.
_GREATEST_NGF, _GREATEST_SIZE, _GREATEST_SLAB = 4096, 8192, 99


# Of slices (..., H, W): along which axes each is mirrored before the network, and its output back.
MIRRORINGS: dict[str, tuple[tuple[int, ...], ...]] = {
    "": ((),), "x": ((), (-1,)), "y": ((), (-2,)), "xy": ((), (-2,), (-1,), (-2, -1)),
}  # fmt: skip


@dataclass(frozen=True)
class InferenceSettings:
    """How to run a trained generator on a volume.

    Attributes:
        generator: its architecture.
        direction: 'AtoB' makes CT from MR, 'BtoA' MR from CT.
        size, spacing_mm, slice_mm: the frame (see `SliceFrame`); spacing_mm is None if the training images had none.
        contrasts: names of the MR's contrasts in the order of channels (`data.loading.channels`).
        mr_window: 'percentile' or 'tissue' (each volume's own) or fixed (low, high) in MR units: one rule for all
            contrasts, or one for each by name.
        bias_correction: whether MR is corrected for its bias field first, as the training set's was.
        typical_mr: MR map of the training set, the units of a synthetic MR; None if the training images had none.
        ct: CT map, in HU.
        versions: packages that trained the model.
        training: what the training set looked like; None for models trained on images or by an earlier version.
        mirrored: axes along which slices are also converted mirrored: '' (none), 'x', 'y' or 'xy', as in training
            (--flip). What comes out is the mean of two, for 'xy' of four. Takes the network two or four times as long.
        solid_body: whether what comes out as air inside the MR's body mask becomes tissue (`fill_air`): for limbs,
            which hold no air; not for trunk or head, and not with direction 'BtoA'.
        slab: neighbouring slices that the network takes and gives at a time, odd.
        view: how its slices lie in the body, of `data.volumes.slice_frame.VIEWS`.
        steps: for how many steps the latest weights were trained, from random ones on, and others at most; None if that
            is not known.
        hu_curve: knots (x, y) in HU, chosen after training: what the network gives as x becomes y (`ct_out`).
        caution: a warning that stands with every result, such as what the model is no use for; '' for none.
        unfinished: where its training stood when the latest weights were saved, in words; '' once it was over, or if
            that is not known.
        ct_kvp: tube voltage of the CT that it was trained on, of `data.values.attenuation.LINES`; None if not known.
    """

    generator: Architecture
    direction: str
    size: int
    spacing_mm: float | None
    slice_mm: float | None
    mr_window: Rule | Mapping[str, Rule]
    typical_mr: IntensityMap | None
    ct: IntensityMap
    versions: dict[str, str]
    training: TrainingStatistics | None = None
    mirrored: str = ""
    solid_body: bool = False
    slab: int = 1
    bias_correction: bool = False
    contrasts: tuple[str, ...] = (ONLY_CONTRAST,)
    view: str = "axial"
    steps: int | None = None
    hu_curve: tuple[tuple[float, float], ...] = ()
    caution: str = ""
    ct_kvp: int | None = None
    unfinished: str = ""

    @property
    def ct_out(self) -> IntensityMap:
        """The map of a synthetic CT: that of the training, then the HU curve."""
        return self.ct.corrected(self.hu_curve) if self.hu_curve else self.ct

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of the generator's input and output: contrasts x slices of the slab, a CT being one contrast."""
        mr, ct = len(self.contrasts) * self.slab, self.slab
        return (mr, ct) if self.direction == "AtoB" else (ct, mr)

    @property
    def views(self) -> int:
        """Number of outputs for one slice: those of the slabs that hold it, times its mirrorings."""
        return self.slab * len(MIRRORINGS[self.mirrored])

    @property
    def mr_units(self) -> IntensityMap | None:
        """The units of a synthetic MR: typical ones of the training set, else a fixed window's; None: not known."""
        rule = rules_in_order(self.mr_window, self.contrasts)[0]
        fixed = None if isinstance(rule, str) else IntensityMap.window(*rule)
        return self.typical_mr or fixed

    def turned(self) -> Self:
        """Return how the generator back, `G_B`, is run.

        Raises:
            InputError: it would make MR of several contrasts.
        """
        if len(self.contrasts) > 1:
            raise InputError(f"makes MR of one contrast; the model has {', '.join(self.contrasts)}")
        g = self.generator
        return replace(
            self, generator=replace(g, input_nc=g.output_nc, output_nc=g.input_nc),
            direction="BtoA" if self.direction == "AtoB" else "AtoB", training=None, solid_body=False,
            hu_curve=(),
        )  # fmt: skip

    def use_command(self, folder: Path, epoch: str = "latest") -> str:
        """Return the command that uses the model in a folder, as a shell takes it."""
        words = ["--name", folder.name]
        words += [] if folder.parent == Path("checkpoints") else ["--checkpoints_dir", str(folder.parent)]
        words += [] if epoch == "latest" else ["--epoch", epoch]
        if self.spacing_mm is None:
            return python_command("test_pipeline.py", *words, "--input_dir", "IMAGES")
        source = "MR.nii.gz" if self.direction == "AtoB" else "CT.nii.gz"
        inputs = [source] if len(self.contrasts) == 1 else [f"{name}={name}.nii.gz" for name in self.contrasts]
        words += [word for path in inputs for word in ("--input", path)]
        return python_command("test_adapt.py", *words)

    def of_epoch(self, epoch: str) -> Self:
        """Return the settings without what is true of the latest weights alone, for the weights of another epoch.

        `steps` stays: others were trained for at most as many.
        """
        return self if epoch == "latest" else replace(self, unfinished="")

    def write(self, folder: Path) -> Path:
        """Write `inference.json` into a run's folder, atomically."""
        data = asdict(self) | {"ct": self.ct.to_dict(), "typical_mr": self.typical_mr and self.typical_mr.to_dict()}
        return write_json(folder / FILE_NAME, {"format_version": FORMAT_VERSION, **data})


def read_inference_settings(folder: Path) -> InferenceSettings:
    """Read a run's `inference.json`.

    Raises:
        InputError: it is missing, damaged, of another format version, or holds a setting or value that is not known
            here, as a newer version may write.
    """
    path = folder / FILE_NAME
    if not path.exists():
        raise InputError(_no_model(folder))
    data = read_json(path)
    try:
        version = data.pop("format_version", None)
        if version is True or version not in (1, FORMAT_VERSION):
            raise InputError(
                f"{path}: format version {version}, expected 1 or {FORMAT_VERSION}; update the software if a newer "
                "version made the model, else restore the file"
            )
        data["generator"] = _architecture_1(data) if version == 1 else Architecture(**data["generator"])
        data["ct"] = IntensityMap.from_dict(data["ct"])
        data["typical_mr"] = data["typical_mr"] and IntensityMap.from_dict(data["typical_mr"])
        data["mr_window"] = _as_rule(data["mr_window"])
        if "contrasts" in data:
            data["contrasts"] = tuple(data["contrasts"])
        if isinstance(data.get("mirrored"), bool):  # in earlier versions all four mirrorings, or none
            data["mirrored"] = "xy" if data["mirrored"] else ""
        data["hu_curve"] = tuple((x, y) for x, y in data.get("hu_curve", ()))
        if data.get("training"):
            data["training"] = TrainingStatistics.from_dict(data["training"])
        settings = InferenceSettings(**data)
        if problems := _problems(settings):
            raise ValueError(", ".join(problems))
        return settings
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        found = str(error) if type(error) is ValueError else repr(error)
        raise InputError(
            f"{path}: damaged, or the model was made by a newer version of this software ({found}); restore the file, "
            "update the software or train the model again"
        ) from error


def usable_models(checkpoints_dir: Path) -> list[Path]:
    """Return the folders below one that hold a generator and what its use must know, by name."""
    folders = [file.parent for file in sorted(checkpoints_dir.glob(f"*/{FILE_NAME}"))]
    return [folder for folder in folders if any(folder.glob("*_net_G_A.pth"))]


def _no_model(folder: Path) -> str:
    """Return what a folder is that is no model, and which models are beside it."""
    known = [model.name for model in usable_models(folder.parent)]
    there = f"Models in {folder.parent}: {', '.join(known) or 'none'}"
    if (folder / EXTRACTOR_NAME).exists():
        return (
            f"{folder}: a shape extractor, not a model that makes CT: it finds the body and its bones in CT slices. "
            f"{there}. For a training: train.py --shape_extractor {shlex.quote(str(folder))}"
        )
    what = f"{folder / FILE_NAME}: no such file" if folder.exists() else f"{folder}: no such model"
    return f"{what}{did_you_mean(folder.name, known) or '.'} {there}"


def _architecture_1(data: dict) -> Architecture:
    """Extract the architecture from a file of version 1, whose channels are the slices of a slab."""
    slab = data.get("slab", 1)
    return Architecture(**{name: data.pop(name) for name in _GENERATOR_1}, input_nc=slab, output_nc=slab)


def _as_rule(value: object) -> object:
    """Return JSON's form of a rule, or of rules by name, with tuples for lists."""
    if isinstance(value, dict):
        return {name: _as_rule(rule) for name, rule in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _is_rule(rule: object) -> bool:
    pair = isinstance(rule, tuple) and len(rule) == 2 and all(map(_is_number, rule)) and rule[0] < rule[1]
    return rule in MR_RULES or pair


def _problems(settings: InferenceSettings) -> list[str]:
    """Return which settings no model can have, with their values: what uses them trusts types and sizes."""
    s, g, window = settings, settings.generator, settings.mr_window
    channels = (g.input_nc, g.output_nc)
    rules = window if isinstance(window, Mapping) else dict.fromkeys(s.contrasts, window)
    makes_mr, wrong_types = s.direction == "BtoA", check_types(g)
    odd_slab = type(s.slab) is int and s.slab in range(1, _GREATEST_SLAB, 2)  # True is an int too
    checks = {
        "ngf": (g.ngf, type(g.ngf) is not int or 0 < g.ngf <= _GREATEST_NGF),  # another type: see `wrong_types`
        "slab": (s.slab, odd_slab),
        "size": (s.size, type(s.size) is int and 0 < s.size <= _GREATEST_SIZE),
        "training": (s.training, s.training is None or s.training.is_sound()),
        "spacing_mm": (s.spacing_mm, _is_length(s.spacing_mm)),
        "slice_mm": (s.slice_mm, _is_length(s.slice_mm)),
        "direction": (s.direction, s.direction in ("AtoB", "BtoA")),
        "view": (s.view, s.view in VIEWS),
        "steps": (s.steps, s.steps is None or (type(s.steps) is int and s.steps >= 0)),
        "contrasts": (s.contrasts, 0 < len(set(s.contrasts)) == len(s.contrasts) and all(map(is_name, s.contrasts))),
        "contrasts of a model that makes MR": (s.contrasts, not makes_mr or len(s.contrasts) == 1),
        "mr_window": (window, rules.keys() == set(s.contrasts) and all(map(_is_rule, rules.values()))),
        "bias_correction": (s.bias_correction, isinstance(s.bias_correction, bool)),
        "channels of the generator": (channels, not odd_slab or channels == s.channels),
        "mirrored": (s.mirrored, isinstance(s.mirrored, str) and s.mirrored in MIRRORINGS),
        "solid_body": (s.solid_body, isinstance(s.solid_body, bool)),
        "solid_body of a model that makes MR": (s.solid_body, not (makes_mr and s.solid_body)),
        "hu_curve": (s.hu_curve, all(_is_number(value) for knot in s.hu_curve for value in knot) and _rises(s)),
        "hu_curve of a model that makes MR": (s.hu_curve, not (makes_mr and s.hu_curve)),
        "caution": (s.caution, isinstance(s.caution, str)),
        "unfinished": (s.unfinished, isinstance(s.unfinished, str)),
        "ct_kvp": (s.ct_kvp, s.ct_kvp is None or (type(s.ct_kvp) is int and s.ct_kvp in LINES)),
    }
    found = [f"generator: {text}" for text in wrong_types]
    found += [f"{name}: {reprlib.repr(value)}" for name, (value, fine) in checks.items() if not fine]
    return [f"{text} is not a possible value" for text in found]


def _rises(settings: InferenceSettings) -> bool:
    try:
        return bool(settings.ct_out)
    except InputError:
        return False


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_length(value: float | None) -> bool:
    return value is None or (_is_number(value) and value > 0)


# What is recorded of a model that changes no voxel of its results.
_NOT_OF_RESULTS = ("versions", "training", "steps", "caution", "ct_kvp", "unfinished")


def model_sha256(settings: InferenceSettings, weights: Path) -> str:
    """Return the hash of all of a model that its results depend on: the file `weights` and the settings.

    Raises:
        InputError: the weights cannot be read.
    """
    used = {key: value for key, value in asdict(settings).items() if key not in _NOT_OF_RESULTS}
    if settings.view == "axial":  # as it was before there were others
        del used["view"]
    if not settings.hu_curve:  # as above
        del used["hu_curve"]
    if settings.mirrored in ("", "xy"):  # as it was before one axis could be chosen
        used["mirrored"] = settings.mirrored == "xy"
    digest = hashlib.sha256(json.dumps(used, sort_keys=True).encode())
    digest.update(hash_files([weights]).encode())
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that make and run a model."""
    return {package: metadata.version(package) for package in ("torch", "numpy", "SimpleITK")}


def check_compatible(name: str, old: InferenceSettings, new: InferenceSettings) -> None:
    """Refuse to start a run from weights that know other images or are of another network; warn of another scale.

    Raises:
        InputError: architecture, direction or CT map differ.
    """
    # Of one contrast the name says nothing that the weights depend on.
    several = ("contrasts",) if len(new.contrasts) > 1 else ()
    if different := differing(old, new, (*_NETWORK, *several)):
        raise InputError(
            f"--init_from {name}: its weights were trained with other settings ({'; '.join(different)}); give the same "
            "options as that training"
        )
    for text in differing(old, new, ("view", "spacing_mm", "mr_window", "bias_correction")):
        log.warning(
            "warning: --init_from %s: %s: the weights know other images than this data set has; prepare it with the "
            "same options, or train for longer", name, text,
        )  # fmt: skip


def check_continued(folder: Path, old: InferenceSettings, new: InferenceSettings, learns_from_mr: bool = True) -> None:
    """Refuse to resume a run on images of another frame or in other units; warn of other intensities it learns from.

    Raises:
        InputError: what inference knows of the run in `folder` would not be true any more.
    """
    # Earlier versions recorded sizes that the generator does not take.
    old = replace(old, size=old.generator.frame_size(old.size))
    keys = (*_NETWORK, "contrasts", "view", "size", "spacing_mm", "slice_mm", "mr_window", "bias_correction")
    if different := differing(old, new, keys):
        raise InputError(
            f"{folder}: the run was started on other images ({'; '.join(different)}); resume it on those, or start a "
            "new run from its weights with --init_from"
        )
    learnt = ("typical_mr", "training") if old.training else ("typical_mr",)  # an older version kept no statistics
    if old.training and new.training:
        kept = set() if learns_from_mr else {"mr_high", "mr_median"}
        kept |= set() if old.training.section_cm2 else {"section_cm2", "gas_share"}  # an older version
        kept |= {"in_plane_mm", "through_mm"} if kept else set()  # in both cases perhaps of the MR alone
        new = replace(new, training=replace(new.training, **{name: getattr(old.training, name) for name in kept}))
    if differing(old, new, learnt):
        log.warning(
            "warning: %s: the run resumes on volumes of other intensities than before, or was started by an earlier "
            "version, which also counted volumes that were not trained on", folder,
        )  # fmt: skip


def differing(old: InferenceSettings, new: InferenceSettings, keys: Iterable[str]) -> list[str]:
    """Return in words which of the settings, those of the generator among them, two models do not share."""
    there, here = _flat(old), _flat(new)
    names = [name for key in keys for name in (_ARCHITECTURE if key == "generator" else (key,))]
    return [f"{name}: {there[name]} there, {here[name]} here" for name in names if there[name] != here[name]]


def _flat(settings: InferenceSettings) -> dict[str, object]:
    """Return the settings by name, those of the generator among them."""
    return vars(settings) | vars(settings.generator)
