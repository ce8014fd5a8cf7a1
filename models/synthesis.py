"""From an MR volume to a synthetic CT volume: the only inference path.

`synthesize_volume` is the whole way. Its three steps stand for themselves too, so that a pipeline can overlap them for
different patients: `prepare_volume`, `TestModel.translate` on the device, `restore_volume`. Slices are prepared when
the network asks for them, and restored as they come out of it: of a volume of any size a few are in memory.
"""

import logging
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import DTypeLike

from data.errors import InputError
from data.masks.body_mask import ct_body_mask, mr_body_mask, remove_couch
from data.values.bias_field import log_bias_field, without_field
from data.values.intensity import AIR_HU, IntensityMap, mr_percentiles, mr_window
from data.values.modality import check_ct, check_mr, in_hu
from data.values.mr_rules import Rule, rules_in_order
from data.values.mr_scale import check_starts_at_zero, fat_level
from data.volumes.contrasts import ONLY_CONTRAST, check_together
from data.volumes.slice_frame import FrameSlices, SliceFrame
from data.volumes.volume import Volume
from models.inference_settings import InferenceSettings, read_inference_settings
from models.run_folder import find_weights, weights_path
from models.solid_body import fill_air
from models.test_model import TestModel

log = logging.getLogger(__name__)

# To be raised when the same inputs and model come to give other voxels.
METHOD_VERSION = 6
# By which factor the spacing between slices may leave the model's before that is said.
SPACING_FACTOR = 1.5


@dataclass(frozen=True)
class Synthesiser:
    """A trained model, ready to turn volumes of its source domain into volumes of its target domain."""

    settings: InferenceSettings
    model: TestModel


@dataclass(frozen=True)
class VolumePlan:
    """How one volume goes through the network, and how what comes out becomes a volume.

    Attributes:
        source: the volume, an MR corrected for its bias field where the model asks for it; of several contrasts the
            first.
        body: its body mask, bool (z, y, x).
        frame: its slices. with_body: which of the N slices hold body, bool (N,); only those go through the network.
        source_map, target_map: intensities to [-1, 1].
        to_ct: whether CT comes out; else MR.
        solid_body: whether there is no air in the body.
        trained_px: width of the slices that the model was trained on.
        own_scale: whether the MR's window is set by its own fat, so that its scanner's scaling does not matter.
        t1_in_phase: whether the source is T1-weighted MR in phase, as far as the model's settings tell.
    """

    source: Volume
    body: np.ndarray
    frame: SliceFrame
    with_body: np.ndarray
    source_map: IntensityMap
    target_map: IntensityMap
    to_ct: bool
    solid_body: bool
    trained_px: int
    own_scale: bool = False
    t1_in_phase: bool = False

    @property
    def used(self) -> list[int]:
        """Numbers of the M slices that go through the network."""
        return np.flatnonzero(self.with_body).tolist()

    def describe_frame(self) -> str | None:
        """Return in words how much larger the slices are than those of the training; None if they are not."""
        if self.frame.size == self.trained_px:
            return None
        mm = self.frame.spacing_mm
        return (
            f"the body is {self.frame.body_extent_mm(self.body):.0f} mm wide: slices of {self.frame.size * mm:.0f} mm "
            f"are used; the model was trained on {self.trained_px * mm:.0f} mm"
        )

    def describe_spacing(self) -> str | None:
        """Return in words how far the slices' spacing is from the model's; None if near, or if the model takes any."""
        ours, models = self.frame.through_mm, self.frame.slice_mm
        if models is None or 1 / SPACING_FACTOR <= ours / models <= SPACING_FACTOR:
            return None
        return (
            f"slices lie {ours:.3g} mm apart, the model was trained on slices of {models:.3g} mm: they are "
            "interpolated to that and back"
        )


class NetworkSlices:
    """The slices of a volume that go through the network, each made on demand.

    Its `shape` is (M, size, size), of C contrasts (M, C, size, size). An array of all is made by `np.asarray`.
    """

    def __init__(
        self, contrasts: Sequence[FrameSlices], maps: Sequence[IntensityMap], used: list[int], size: int, slab: int
    ) -> None:
        """Take the slices of each contrast, their maps, and which M of them are used; the last `slab` are kept."""
        self._contrasts, self._maps, self._used = contrasts, maps, used
        channels = (len(contrasts),) if len(contrasts) > 1 else ()
        self.shape = (len(self._used), *channels, size, size)
        self._slab, self._kept = slab, dict[int, np.ndarray]()

    def __len__(self) -> int:
        """Return M."""
        return len(self._used)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return one slice, float32 in [-1, 1]."""
        if index not in self._kept:
            if len(self._kept) >= self._slab:
                del self._kept[next(iter(self._kept))]  # the oldest
            self._kept[index] = self._made(index)
        return self._kept[index]

    def _made(self, index: int) -> np.ndarray:
        each = [to.to_network(one[self._used[index]]) for one, to in zip(self._contrasts, self._maps, strict=True)]
        return each[0] if len(each) == 1 else np.stack(each)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """Return all slices."""
        if copy is False:
            raise ValueError("slices are made when they are asked for: an array of them is a copy")
        slices = np.empty(self.shape, np.float32 if dtype is None else dtype)
        for index in range(len(self)):
            slices[index] = self._made(index)
        return slices


def read_settings(folder: Path, spacing_mm: float | None = None) -> InferenceSettings:
    """Read what inference must know of the run in `folder`; `spacing_mm` is for a model trained on images without one.

    Raises:
        InputError: the run is missing or damaged, or its pixel spacing is unknown, or must not be given.
    """
    settings = read_inference_settings(folder)
    if settings.spacing_mm is None:
        if spacing_mm is None:
            raise InputError(f"{folder}: trained on images without a pixel spacing; give it with --spacing_mm")
        return replace(settings, spacing_mm=spacing_mm)
    if spacing_mm is not None:
        raise InputError(f"--spacing_mm {spacing_mm:g}: the model in {folder} has its own, {settings.spacing_mm:g} mm")
    return settings


class Watch(Protocol):
    """Sees the slices that a network makes of a volume."""

    def add(self, translated: np.ndarray) -> None:
        """See a slice that comes from the network, (size, size) in [-1, 1]; they come in order."""

    def finish(self, volume: Volume) -> None:
        """See the volume that they became, before air in it is filled."""


# Gets a model, and how a volume goes through it; returns what then sees what comes out.
Look = Callable[[Synthesiser, VolumePlan], Watch]


class TrainedGenerator(NamedTuple):
    """A generator of a run: how it is used, the file of its weights, and what its results' name adds to the run's."""

    settings: InferenceSettings
    weights: Path
    suffix: str = ""


def find_generator(
    folder: Path, epoch: str, spacing_mm: float | None = None, direction: str | None = None, for_images: bool = False
) -> TrainedGenerator:
    """Return the requested generator of the run in `folder`.

    Args:
        folder: `checkpoints/NAME`.
        epoch: 'latest', 'best' or the number of a saved epoch.
        spacing_mm: pixel spacing, for a model that was trained on images without one.
        direction: 'AtoB' makes CT from MR, 'BtoA' MR from CT. None: what the run was trained for, by `G_A`. The other
            one is that of `G_B`.
        for_images: whether it gets images, which need no pixel spacing.

    Raises:
        InputError: the run is missing or damaged, its pixel spacing is unknown, or it has no generator back.
    """
    settings = read_inference_settings(folder) if for_images else read_settings(folder, spacing_mm)
    if direction in (None, settings.direction):
        return TrainedGenerator(settings, find_weights(folder, epoch, "G_A"))
    weights = weights_path(folder, epoch, "G_B")
    if not weights.exists() and weights_path(folder, epoch, "G_A").exists():
        raise InputError(
            f"--direction {direction}: no {weights}: the model has no generator for that direction; --model cycle_gan "
            "trains one, and exported and shipped models leave it out: use the folder of a training"
        )
    try:
        return TrainedGenerator(settings.turned(), weights, f"_{direction}")
    except InputError as error:
        raise InputError(f"--direction {direction}: {folder}: {error}") from error


def load_synthesiser(
    folder: Path,
    epoch: str,
    device: torch.device,
    precision: str = "fp32",
    spacing_mm: float | None = None,
    direction: str | None = None,
    off: Collection[str] = (),
) -> Synthesiser:
    """Load a generator of the run in `folder`.

    Args:
        folder, epoch, spacing_mm, direction: as in `find_generator`.
        device: where to run.
        precision: one of `models.precision.PRECISIONS`.
        off: settings that are turned off: 'mirrored', 'solid_body'.

    Raises:
        InputError: as `find_generator`, or the weights do not fit.
    """
    settings, weights, _ = find_generator(folder, epoch, spacing_mm, direction)
    settings = replace(
        settings.of_epoch(epoch), mirrored="" if "mirrored" in off else settings.mirrored,
        solid_body=settings.solid_body and "solid_body" not in off,
    )  # fmt: skip
    return Synthesiser(settings, TestModel(settings, weights, device, precision))


def synthesize_volume(
    source: Volume,
    synthesiser: Synthesiser,
    body: np.ndarray | None = None,
    batch_size: int | None = None,
    further: Sequence[Volume] = (),
    bar: bool = False,
    look: Look | None = None,
) -> Volume:
    """Return the synthetic CT of an MR, int16 in HU on the MR's own grid; outside the slices it is air, -1000 HU.

    Slices are as wide as those of the training, or wider where the body is; those without body are air. A model with
    `solid_body` leaves no other air inside the body (`fill_air`). A generator from CT to MR takes a CT and returns an
    MR, float32, in the training set's typical units, or in those of a fixed window.

    Args:
        source: the MR.
        synthesiser: the model.
        body: body mask on the MR's grid, bool (z, y, x); computed if None.
        batch_size: slices in one pass of the network; None chooses by the free memory.
        further: the MR's other contrasts on its grid, in the model's order.
        bar: whether progress over the slices is shown.
        look: gives what sees the slices and the volume as they are made, to check them.

    Raises:
        InputError: the source is of the other modality, no body is found, an MR is constant inside it, or does not
            start at 0 though the model takes its scale from fat or corrects bias fields, or contrasts are too few or
            many, on different grids or the same image.
    """
    slices, plan = prepare_volume(source, synthesiser.settings, body, further)
    watch = None if look is None else look(synthesiser, plan)
    title = progress_title(plan) if bar else ""
    return restore_volume(synthesiser.model.stream(slices, batch_size, bar=title), plan, watch)


def progress_title(plan: VolumePlan) -> str:
    """Return what is said of the slices that go through a network: they may be other, and fewer, than the volume's."""
    own = replace(plan.frame, slice_mm=None).slices
    changed = plan.frame.slice_mm is not None and own != plan.frame.slices
    resampled = f", {own} slices resampled to {plan.frame.slice_mm:.3g} mm" if changed else ""
    part = "" if plan.with_body.all() else ", where there is body"
    return f"converting{resampled}{part}"


def prepare_volume(
    source: Volume, settings: InferenceSettings, body: np.ndarray | None = None, further: Sequence[Volume] = ()
) -> tuple[NetworkSlices, VolumePlan]:
    """Return the slices for the network, and the plan for its output.

    Arguments and errors as in `synthesize_volume`.
    """
    to_ct = settings.direction == "AtoB"
    volumes = [source, *further]
    check_sources(volumes, settings)
    if not to_ct:
        volumes = [in_hu(source)]
    if body is None:
        body = (mr_body_mask if to_ct else ct_body_mask)(volumes[0])
    if to_ct:
        _check_scales(volumes, body, settings)
    if to_ct and settings.bias_correction:
        field = log_bias_field(volumes[0], body)
        volumes = [without_field(volume, field) for volume in volumes]
    return plan_volume(volumes, body, intensity_maps(settings, volumes, body), settings)


def plan_volume(
    volumes: Sequence[Volume],
    body: np.ndarray,
    maps: tuple[Sequence[IntensityMap], IntensityMap],
    settings: InferenceSettings,
) -> tuple[NetworkSlices, VolumePlan]:
    """Return what `prepare_volume` does, of the contrasts of a source whose body and `intensity_maps` are known."""
    source, (source_maps, target_map) = volumes[0], maps
    to_ct = settings.direction == "AtoB"
    frame = _frame_around(body, source, settings)
    used = frame.slices_with(body)
    if settings.slab > 1:  # a slab's slices are neighbours
        used[used.argmax() : len(used) - used[::-1].argmax()] = True
    own_scale = rules_in_order(settings.mr_window, settings.contrasts)[0] == "tissue"
    t1_in_phase = own_scale and settings.contrasts[0] in (ONLY_CONTRAST, "in_phase")
    plan = VolumePlan(
        source, body, frame, used, source_maps[0], target_map, to_ct, settings.solid_body, settings.size, own_scale,
        t1_in_phase,
    )  # fmt: skip
    clean = volumes if to_ct else [remove_couch(source, body)]
    slices = [frame.slices_of(one, fill=float(given.array.min())) for one, given in zip(clean, volumes, strict=True)]
    return NetworkSlices(slices, source_maps, plan.used, frame.size, settings.slab), plan


def _frame_around(body: np.ndarray, source: Volume, settings: InferenceSettings) -> SliceFrame:
    """Return the frame of the training or, if it does not hold the body, the smallest that does and suits the network.

    The generators are convolutional: they take slices of any size that halves as often as they do.
    """
    assert settings.spacing_mm is not None, "`load_synthesiser` asks for it"
    frame = SliceFrame.of(source, settings.size, settings.spacing_mm, settings.slice_mm, settings.view)
    if not frame.outside(body):
        return frame
    step = math.lcm(2, settings.generator.multiple)  # even, as `body_extent_mm` counts
    return replace(frame, size=math.ceil(frame.body_extent_mm(body) / settings.spacing_mm / step) * step)


def check_sources(volumes: Sequence[Volume], settings: InferenceSettings) -> None:
    """Refuse volumes of the other modality, and contrasts that are not the model's or do not go together.

    Raises:
        InputError: names the contrast, where there are several.
    """
    names = settings.contrasts
    if len(volumes) != len(names):
        raise InputError(f"{len(volumes)} contrasts; the model takes {len(names)}: {', '.join(names)}")
    for name, volume in zip(names, volumes, strict=True):
        try:
            (check_mr if settings.direction == "AtoB" else check_ct)(volume)
        except InputError as error:
            raise InputError(f"{name}: {error}" if len(names) > 1 else str(error)) from error
    check_together(dict(zip(names, volumes, strict=True)))


def _check_scales(volumes: Sequence[Volume], body: np.ndarray, settings: InferenceSettings) -> None:
    """Refuse MR that do not start at 0 if fat sets their scale or their bias field is corrected."""
    rules = rules_in_order(settings.mr_window, settings.contrasts)
    for k, (rule, volume) in enumerate(zip(rules, volumes, strict=True)):
        if rule == "tissue" or (settings.bias_correction and k == 0):
            check_starts_at_zero(volume.array, body)


def restore_volume(translated: Iterable[np.ndarray], plan: VolumePlan, watch: Watch | None = None) -> Volume:
    """Return the network's output as the volume that `synthesize_volume` returns.

    Args:
        translated: the M slices (size, size) in [-1, 1], in order: an array, or as they come.
        plan: that of the volume.
        watch: sees the slices as they come, and the volume.
    """
    # Where nothing is known it is air, whatever the window's lower end.
    fill = AIR_HU if plan.to_ct else plan.target_map.range[0]
    restored = plan.frame.restoring(fill, np.int16 if plan.to_ct else np.float32)
    for index, one in zip(plan.used, translated, strict=True):
        restored.add(index, plan.target_map.to_physical(one))
        if watch is not None:
            watch.add(one)
    result = plan.source.with_array(restored.finished())
    if watch is not None:
        watch.finish(result)
    if plan.solid_body:
        fill_air(result.array, plan.frame.inside(plan.body), plan.source.spacing)
    return result


def intensity_maps(
    settings: InferenceSettings, volumes: Sequence[Volume], body: np.ndarray
) -> tuple[list[IntensityMap], IntensityMap]:
    """Return the maps of each source volume and of the model's output to [-1, 1]."""
    if settings.direction == "BtoA":
        if settings.mr_units is None:
            raise InputError(
                "the model makes MR, but no MR units are known: neither a training set's nor a fixed window"
            )
        return [settings.ct], settings.mr_units
    rules = rules_in_order(settings.mr_window, settings.contrasts)
    return [_mr_map(rule, volume, body) for rule, volume in zip(rules, volumes, strict=True)], settings.ct_out


def _mr_map(rule: Rule, mr: Volume, body: np.ndarray) -> IntensityMap:
    fat = fat_level(mr.array, body) if rule == "tissue" else None
    return mr_window(rule, mr_percentiles(mr.array, body) if rule == "percentile" else None, fat)
