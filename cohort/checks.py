"""What a physicist would look at before using a synthetic CT: figures, and warnings where they are unusual.

The limits are meant to be crossed seldom by a model that does its work on data like those it was trained on.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from scipy import ndimage

from data.errors import InputError
from data.masks.body_mask import ct_body_mask
from data.prepared.training_statistics import Range, TrainingStatistics, relative_median, slice_distances
from data.values.intensity import mr_percentiles
from data.volumes.volume import Volume
from evaluation.metrics import BONE_ABOVE_HU, dice
from models.synthesis import SPACING_FACTOR, VolumePlan, restore_volume

# Dice of the bodies of MR and synthetic CT: that of two discs whose radii differ by a tenth.
MIN_BODY_DICE = 0.9
# Share of body voxels at either end of the CT window: beyond it something was cut off, or the network is saturated.
MAX_END_SHARE = 0.05
# Slices beyond the training set's limit: in every training patient 5 % may be, by the limit's definition.
MAX_ODD_SLICES = 0.05
# Share of body voxels that lie outside the MR window, fixed or set by fat; a percentile window leaves out 1 %.
MAX_CLIPPED_SHARE = 0.05
# MR intensities may leave the training set's range by this factor, spacings by `SPACING_FACTOR`, medians by this much.
INTENSITY_FACTOR = 2.0
MEDIAN_MARGIN = 0.1
NO_STATISTICS = (
    "HU histogram, MR intensities and spacing against the training set: not in the model's inference.json, which was "
    "written by an earlier version, or by training on images"
)
OF_CT_ALONE = "HU, body and MR intensities: a synthetic MR is in no units that could be checked"


@dataclass
class Findings:
    """Figures by name, what is unusual, and what could not be checked."""

    figures: dict[str, float | None] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)


def check_conversion(
    plan: VolumePlan, translated: np.ndarray, synthetic: Volume, training: TrainingStatistics | None
) -> Findings:
    """Check one synthetic CT, against its MR and against the training set; of a synthetic MR the geometry alone.

    Args:
        plan: how the MR went through the network.
        translated: what came out, (M, size, size) in [-1, 1].
        synthetic: the volume that it became, in HU.
        training: None leaves out what needs it.
    """
    findings = Findings()
    _check_width(findings, plan)
    if not plan.to_ct:
        findings.unchecked.append(OF_CT_ALONE)
        _check_spacing(findings, plan, training)
        return findings
    # What the network made: a solid body has the MR's outline whatever that was.
    made = restore_volume(translated, replace(plan, solid_body=False)) if plan.solid_body else synthetic
    _check_body(findings, plan, made)
    hu = plan.target_map.to_physical(translated)
    masks = plan.frame.prepare_labels(plan.source.with_array(plan.body.astype(np.uint8)))[plan.with_body]
    # Without the outermost pixel: there, MR and CT may differ in what is body and what is air.
    inner = ndimage.binary_erosion(masks, ndimage.generate_binary_structure(2, 1)[None])
    _check_window(findings, hu[inner], plan.target_map.range)
    if training is None:
        findings.unchecked.append(NO_STATISTICS)
    else:
        _check_histograms(findings, slice_distances(hu, masks, training.hu_histogram, plan.target_map.range), training)
    _check_mr(findings, plan, training)
    _check_spacing(findings, plan, training)
    return findings


def hu_statistics(synthetic: Volume, body: np.ndarray) -> dict[str, float]:
    """Return mean, standard deviation and percentiles (HU) inside the body, and the share of it that is bone."""
    values = synthetic.array[body]
    figures = {"mean": values.mean(dtype=np.float64), "std": values.std(dtype=np.float64)}
    names = {"p01": 1, "p25": 25, "p50": 50, "p75": 75, "p99": 99}
    figures |= dict(zip(names, np.percentile(values, list(names.values())), strict=True))
    figures["bone_share"] = np.count_nonzero(values > BONE_ABOVE_HU) / values.size
    return {name: round(float(value), 4) for name, value in figures.items()}


def _check_width(findings: Findings, plan: VolumePlan) -> None:
    if wider := plan.describe_frame():
        findings.warnings.append(wider)
    findings.figures["slice_width_mm"] = plan.frame.size * plan.frame.spacing_mm


def _check_body(findings: Findings, plan: VolumePlan, synthetic: Volume) -> None:
    try:
        found = ct_body_mask(synthetic, synthetic=True)
    except InputError:
        findings.figures["body_dice"] = 0.0
        findings.warnings.append("no body in the synthetic CT")
        return
    overlap = findings.figures["body_dice"] = dice(found, plan.body)
    if overlap < MIN_BODY_DICE:
        findings.warnings.append(f"body of the synthetic CT unlike the MR's: Dice {overlap:.3f}, below {MIN_BODY_DICE}")


def _check_window(findings: Findings, hu: np.ndarray, window: Range) -> None:
    """Check how many body voxels, HU (N,), lie within half a HU of the CT window's ends."""
    for name, end in zip(("low", "high"), window, strict=True):
        share = np.count_nonzero(np.abs(hu - end) < 0.5) / max(1, hu.size)
        findings.figures[f"{name}_end_share"] = share
        if share > MAX_END_SHARE:
            findings.warnings.append(f"{100 * share:.1f} % of the body at the CT window's {name} end, {end:g} HU")


def _check_histograms(findings: Findings, distances: np.ndarray, training: TrainingStatistics) -> None:
    if not distances.size:
        findings.unchecked.append("HU histogram: no slice with enough body")
        return
    median, (median_limit, limit) = float(np.median(distances)), training.hu_slice_limits
    odd = np.count_nonzero(distances > limit)
    findings.figures |= {
        "hu_distance": median,
        "hu_distance_limit": median_limit,
        "odd_slices_share": odd / distances.size,
    }
    if odd / distances.size > MAX_ODD_SLICES:
        findings.warnings.append(
            f"{odd} of {distances.size} slices have an HU histogram that is more than {limit:.0f} HU from that of the "
            "training CT"
        )
    if median > median_limit:
        findings.warnings.append(
            f"HU histograms unlike those of the training CT: half of the slices differ by {median:.0f} HU or more, in "
            f"training {median_limit:.0f} HU at most"
        )


def _check_mr(findings: Findings, plan: VolumePlan, training: TrainingStatistics | None) -> None:
    values = plan.source.array[plan.body]
    low, high = mr_percentiles(plan.source.array, plan.body)
    median = relative_median(float(np.median(values)), (low, high))
    window = plan.source_map.range
    clipped = np.count_nonzero((values < window[0]) | (values > window[1])) / values.size
    findings.figures |= {"mr_low": low, "mr_high": high, "mr_median": median, "mr_clipped_share": clipped}
    if clipped > MAX_CLIPPED_SHARE:
        findings.warnings.append(
            f"{100 * clipped:.1f} % of the body's MR intensities lie outside the model's window of "
            f"{window[0]:g} to {window[1]:g}"
        )
    if training is None:
        return
    reach = training.mr_high
    if not plan.own_scale and not reach[0] / INTENSITY_FACTOR <= high <= reach[1] * INTENSITY_FACTOR:
        findings.warnings.append(
            f"MR intensities reach {high:.4g} in the body; those of the training set {_range(reach)}: another scanner, "
            "sequence or scaling"
        )
    if not training.mr_median[0] - MEDIAN_MARGIN <= median <= training.mr_median[1] + MEDIAN_MARGIN:
        findings.warnings.append(
            f"MR contrast unlike the training set's: the median lies at {median:.2f} of the range in the body, in "
            f"training at {_range(training.mr_median)}: another sequence?"
        )


def _check_spacing(findings: Findings, plan: VolumePlan, training: TrainingStatistics | None) -> None:
    spacings = {
        "in_plane_mm": (plan.frame.in_plane_mm, "in the plane"),
        "through_mm": (plan.frame.through_mm, "between slices"),
    }
    for name, (found, where) in spacings.items():
        findings.figures[name] = float(found)
        if training is None:
            continue
        low, high = getattr(training, name)
        if not low / SPACING_FACTOR <= found <= high * SPACING_FACTOR:
            findings.warnings.append(f"spacing of {found:.3g} mm {where}; in the training set {_range((low, high))} mm")


def _range(values: Range) -> str:
    low, high = (f"{value:.3g}" for value in values)
    return low if low == high else f"{low} to {high}"
