"""Several models as one, and how far apart lies what they say: an uncertainty in HU for each voxel.

The synthetic CT is the mean, or the median, of the models'. They may know slices of different views: axial, coronal and
sagittal ones put together are the multi-view learning of Ge et al., SPIE Medical Imaging 2019. The variance is the mean
of the models' own (their overlapping slabs and mirrorings) and that between them (law of total variance). It knows
nothing of errors that all of them share.
"""

from collections.abc import Sequence

import numpy as np

from data.errors import InputError
from data.loading.single_dataset import SlabSpread
from data.volumes.volume import Volume
from models.synthesis import Look, Synthesiser, prepare_volume, restore_volume

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
            f"--uncertainty: {names[0]} says what a voxel is once: no overlapping slabs, no mirrorings; name several "
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
    look: Look | None = None,
) -> tuple[Volume, Volume]:
    """Return the mean of models' synthetic CT, int16 HU, and its standard deviation in HU, float32, on the MR's grid.

    With `fusion` 'median' the CT is each voxel's median; the deviation is that about the mean all the same. Of one
    model the CT is that of `synthesize_volume`. Outside of the slices that hold body, and of the frame, all models say
    air, and the deviation is 0. Arguments and errors as in `synthesize_volume`.
    """
    shape = source.array.shape
    mean, between, within = (np.zeros(shape, np.float32) for _ in range(3))
    kept = []
    for number, synthesiser in enumerate(synthesisers, start=1):
        slices, plan = prepare_volume(source, synthesiser.settings, body, further)
        body = plan.body  # found once for all models
        model = synthesiser.model
        spread = SlabSpread((len(slices), *slices.shape[-2:]), model.slab, plan.target_map.to_physical)
        translated = model.translate(slices, batch_size, spread, bar)
        made = restore_volume(translated, plan)
        if look is not None:
            look(synthesiser, plan, translated, made)
        ct = made.array
        variance = np.zeros((plan.frame.slices, plan.frame.size, plan.frame.size), np.float32)
        variance[plan.with_body] = spread.variance()
        within += np.maximum(plan.frame.restore(variance, 0).array, 0)
        if fusion == "median":
            kept.append(ct)
        away = ct - mean
        mean += away / number
        between += away * (ct - mean)
    count = len(synthesisers)
    deviation = np.sqrt((between + within) / count)
    fused = np.median(kept, axis=0) if kept else mean
    return source.with_array(np.rint(fused).astype(np.int16)), source.with_array(deviation)


def mean_uncertainty(deviation: Volume, body: np.ndarray) -> float:
    """Return the mean in HU of what `synthesize_ensemble` says inside a body, bool (z, y, x), to three decimals."""
    return round(float(deviation.array[body].mean(dtype=np.float64)), 3)
