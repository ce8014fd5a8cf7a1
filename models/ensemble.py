"""Combine several models, and measure how much they differ: an uncertainty in HU for each voxel.

The synthetic CT is the mean, or the median, of the models'. They may know slices of different views: axial, coronal and
sagittal ones put together are the multi-view learning of Ge et al., SPIE Medical Imaging 2019. The variance is the mean
of the models' own (their overlapping slabs and mirrorings) and that between them (law of total variance). It knows
nothing of errors that all of them share.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data.errors import InputError
from data.loading.single_dataset import SlabSpread, Slices
from data.progress import shown_progress
from data.volumes.slice_frame import RestoredVolume
from data.volumes.volume import Volume
from models.inference_settings import InferenceSettings, model_sha256
from models.synthesis import (
    Look,
    Synthesiser,
    TrainedGenerator,
    VolumePlan,
    prepare_volume,
    progress_title,
    restore_volume,
)

FUSIONS = ("mean", "median")


def check_ensemble(
    names: Sequence[str], models: Sequence[InferenceSettings], uncertainty: bool, fusion: str | None = None
) -> None:
    """Refuse models that do not match, and an uncertainty or fusion that needs more models.

    Raises:
        InputError: names the model.
    """
    if fusion and len(names) == 1:
        raise InputError(f"--fusion {fusion}: {names[0]} is one model; name several (--name A B C)")
    if fusion == "median" and len(names) == 2:
        raise InputError(
            f"--fusion median: for two models, {' and '.join(names)}, the median is the mean; name three or more"
        )
    first = models[0]
    for name, one in zip(names, models, strict=True):
        theirs = (one.direction, one.contrasts)
        if theirs != (first.direction, first.contrasts):
            raise InputError(
                f"--name {name}: makes {theirs[0]} of {', '.join(theirs[1])}; {names[0]} makes {first.direction} of "
                f"{', '.join(first.contrasts)}: models of one ensemble must have the same input and output"
            )
    if first.direction != "AtoB" and len(models) > 1:
        raise InputError(f"--name {' '.join(names)}: they make MR from CT; expected a single model")
    if uncertainty and len(models) == 1 and first.views == 1:
        raise InputError(
            f"--uncertainty: {names[0]} computes each voxel once, without overlapping slabs or mirroring; name several "
            "models (--name A B C)"
        )


def mixed_air(names: Sequence[str], models: Sequence[InferenceSettings], fusion: str | None = None) -> str | None:
    """Return a warning for models of which only some fill the air inside the body; None for others."""
    filling = [name for name, one in zip(names, models, strict=True) if one.solid_body]
    leaving = [name for name, one in zip(names, models, strict=True) if not one.solid_body]
    if not (filling and leaving):
        return None
    if fusion == "median":
        effect = "the median keeps gas and lungs only where most models leave them"
    else:
        share = len(leaving) / len(names)
        effect = f"in the mean, gas is about {-1000 * share:.0f} HU instead of -1000 HU, and lungs are too dense"
    return (
        f"the models treat air inside the body differently: filled with tissue by {', '.join(filling)}, left as it is "
        f"by {', '.join(leaving)}; {effect}; for a trunk leave out {', '.join(filling)}, or use test_adapt.py with "
        "--no_solid_body"
    )


def called(names: Sequence[str], generators: Sequence[TrainedGenerator]) -> str:
    """Return what models are called together, in the name of the results' folder."""
    return "+".join(name + one.suffix for name, one in zip(names, generators, strict=True))


def ensemble_sha256(models: Sequence[tuple[InferenceSettings, Path]], fusion: str | None = None) -> str:
    """Return the hash of everything in the models that affects results: settings, weights, and how they become one.

    That of one model is its own.

    Raises:
        InputError: weights cannot be read.
    """
    parts = [model_sha256(*model) for model in models]
    parts += [fusion] if fusion not in (None, "mean") else []
    return parts[0] if len(parts) == 1 else hashlib.sha256(" ".join(parts).encode()).hexdigest()


def stream_with_variance(
    synthesiser: Synthesiser, slices: Slices, plan: VolumePlan, batch_size: int | None = None, bar: str = ""
) -> tuple[Iterator[np.ndarray], RestoredVolume]:
    """Return the slices that come from a network, and the volume of their variances, which fills as these are taken.

    The variance is that of all outputs that say what a voxel is, in HU squared.
    """
    spread = SlabSpread(len(slices), synthesiser.model.slab, plan.target_map.to_physical)
    variance = plan.frame.restoring(0)

    def stream() -> Iterator[np.ndarray]:
        translated = synthesiser.model.stream(slices, batch_size, spread, bar)
        for number, (index, one) in enumerate(zip(plan.used, translated, strict=True)):
            variance.add(index, spread.take(number))
            yield one

    return stream(), variance


class Fusion:
    """The synthetic CT of a volume by several models, added one after the other, as one; its standard deviation.

    It goes plane by plane, since large volumes leave little memory for more arrays.
    """

    def __init__(self, source: Volume, fusion: str | None = None, deviates: bool = True) -> None:
        """Begin with nothing; `fusion`: of `FUSIONS`, None for the mean; `deviates`: whether a deviation is wanted."""
        self.source, self.fusion = source, fusion
        self.count = 0
        self.kept: list[np.ndarray] = []
        shape = source.array.shape
        self.mean = np.zeros(shape, np.float32)
        self.squares = np.zeros(shape, np.float32) if deviates else None

    def add(self, made: Volume, variance: RestoredVolume | None) -> None:
        """Add a model's CT, and the variance within the model."""
        self.count += 1
        own = None if variance is None else variance.finished()
        for z, plane in enumerate(made.array):
            away = plane - self.mean[z]
            self.mean[z] += away / self.count
            if self.squares is not None:
                self.squares[z] += away * (plane - self.mean[z])
                if own is not None:
                    self.squares[z] += np.maximum(own[z], 0)
        if self.fusion == "median":
            self.kept.append(made.array)

    def result(self) -> tuple[Volume, Volume | None]:
        """Return the CT, int16 HU, and the standard deviation in HU, float32: that about the mean also of a median."""
        fused = np.empty(self.mean.shape, np.int16)
        for z, plane in enumerate(self.mean):
            fused[z] = np.rint(np.median([ct[z] for ct in self.kept], axis=0) if self.kept else plane)
        if self.squares is None:
            return self.source.with_array(fused), None
        self.squares /= self.count
        return self.source.with_array(fused), self.source.with_array(np.sqrt(self.squares, out=self.squares))


def synthesize_ensemble(
    source: Volume,
    synthesisers: Sequence[Synthesiser],
    body: np.ndarray | None = None,
    batch_size: int | None = None,
    further: Sequence[Volume] = (),
    fusion: str | None = None,
    bar: bool = False,
    look: Look | None = None,
    uncertainty: bool = True,
) -> tuple[Volume, Volume | None]:
    """Return the mean of models' synthetic CT, int16 HU, and its standard deviation in HU, float32, on the MR's grid.

    Without `uncertainty` there is no deviation.

    With `fusion` 'median' the CT is each voxel's median; the deviation is that about the mean all the same. Of one
    model the CT is that of `synthesize_volume`. Outside of the slices that hold body, and of the frame, all models say
    air, and the deviation is 0. Arguments and errors as in `synthesize_volume`.
    """
    together = Fusion(source, fusion, uncertainty)
    each: Iterable[Synthesiser] = synthesisers
    if bar and len(synthesisers) > 1:  # one progress of all, not one each
        each, bar = shown_progress(synthesisers, len(synthesisers), "converting", "model", leave=False), False
    for synthesiser in each:
        slices, plan = prepare_volume(source, synthesiser.settings, body, further)
        body = plan.body  # found once for all models
        variance, title = None, progress_title(plan) if bar else ""
        if uncertainty:
            translated, variance = stream_with_variance(synthesiser, slices, plan, batch_size, title)
        else:
            translated = synthesiser.model.stream(slices, batch_size, bar=title)
        watch = None if look is None else look(synthesiser, plan)
        together.add(restore_volume(translated, plan, watch), variance)
    return together.result()


def mean_uncertainty(deviation: Volume, body: np.ndarray) -> float:
    """Return the mean deviation in HU inside a body, bool (z, y, x), to three decimals; see `synthesize_ensemble`."""
    return round(float(deviation.array.mean(where=body, dtype=np.float64)), 3)
