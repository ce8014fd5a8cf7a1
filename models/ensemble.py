"""Several models as one, and how far apart lies what they say: an uncertainty in HU for each voxel.

The synthetic CT is the mean, or the median, of the models'. They may know slices of different views: axial, coronal and
sagittal ones put together are the multi-view learning of Ge et al., SPIE Medical Imaging 2019. The variance is the mean
of the models' own (their overlapping slabs and mirrorings) and that between them (law of total variance). It knows
nothing of errors that all of them share.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from data.errors import InputError
from data.loading.single_dataset import SlabSpread
from data.volumes.slice_frame import RestoredVolume
from data.volumes.volume import Volume
from models.synthesis import Synthesiser, VolumePlan, prepare_volume, restore_volume, warn_of_plan

FUSIONS = ("mean", "median")


def check_ensemble(
    names: Sequence[str], synthesisers: Sequence[Synthesiser], uncertainty: bool, fusion: str | None = None
) -> None:
    """Refuse models that do not go together, an uncertainty of one model that says everything once, a fusion of few.

    Raises:
        InputError: names the model.
    """
    if fusion and len(names) == 1:
        raise InputError(f"--fusion {fusion}: {names[0]} is one model; name several (--name A B C)")
    if fusion == "median" and len(names) == 2:
        raise InputError(f"--fusion median: of two models, {' and '.join(names)}, it is the mean; name three or more")
    first = synthesisers[0].settings
    for name, one in zip(names, synthesisers, strict=True):
        theirs = (one.settings.direction, one.settings.contrasts)
        if theirs != (first.direction, first.contrasts):
            raise InputError(
                f"--name {name}: makes {theirs[0]} of {', '.join(theirs[1])}; {names[0]} makes {first.direction} of "
                f"{', '.join(first.contrasts)}: models of one ensemble take and make the same"
            )
    if first.direction != "AtoB" and len(synthesisers) > 1:
        raise InputError(f"--name {' '.join(names)}: they make MR from CT; expected one model of those")
    if uncertainty and len(synthesisers) == 1 and synthesisers[0].model.views == 1:
        raise InputError(
            f"--uncertainty: {names[0]} computes each voxel once, without overlapping slabs or mirroring; name several "
            "models (--name A B C)"
        )


def synthesize_ensemble(
    source: Volume,
    synthesisers: Sequence[Synthesiser],
    body: np.ndarray | None = None,
    batch_size: int | None = None,
    further: Sequence[Volume] = (),
    fusion: str = "mean",
    bar: bool = False,
) -> tuple[Volume, Volume]:
    """Return the mean of models' synthetic CT, int16 HU, and its standard deviation in HU, float32, on the MR's grid.

    With `fusion` 'median' the CT is each voxel's median; the deviation is that about the mean all the same. Of one
    model the CT is that of `synthesize_volume`. Outside of the slices that hold body, and of the frame, all models say
    air, and the deviation is 0. Arguments and errors as in `synthesize_volume`.
    """
    mean, between, within = (np.zeros(source.array.shape, np.float32) for _ in range(3))
    kept = []
    for number, synthesiser in enumerate(synthesisers, start=1):
        slices, plan = prepare_volume(source, synthesiser.settings, body, further)
        body = plan.body  # found once for all models
        warn_of_plan(plan)
        spread = SlabSpread(len(slices), synthesiser.model.slab, plan.target_map.to_physical)
        variance = plan.frame.restoring(0)
        translated = synthesiser.model.stream(slices, batch_size, spread, bar)
        ct = restore_volume(_with_variance(translated, plan, spread, variance), plan).array
        own = variance.finished()
        for z, plane in enumerate(ct):  # plane by plane, since there is little memory left for more arrays
            within[z] += np.maximum(own[z], 0)
            away = plane - mean[z]
            mean[z] += away / number
            between[z] += away * (plane - mean[z])
        if fusion == "median":
            kept.append(ct)
    count = len(synthesisers)
    between += within
    between /= count
    deviation = np.sqrt(between, out=between)
    fused = np.empty(mean.shape, np.int16)
    for z, plane in enumerate(mean):
        fused[z] = np.rint(np.median([ct[z] for ct in kept], axis=0) if kept else plane)
    return source.with_array(fused), source.with_array(deviation)


def _with_variance(
    translated: Iterable[np.ndarray], plan: VolumePlan, spread: SlabSpread, variance: RestoredVolume
) -> Iterator[np.ndarray]:
    """Yield the slices that come from a network, and add the variance of each to a volume."""
    for number, (index, one) in enumerate(zip(plan.used, translated, strict=True)):
        variance.add(index, spread.take(number))
        yield one
