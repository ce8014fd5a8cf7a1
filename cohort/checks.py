"""Check a synthetic CT as a physicist would before using it: figures, and warnings where they are unusual.

The limits are meant to be crossed seldom by a model that does its work on data like those it was trained on.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import numpy as np
from scipy import ndimage

from cohort.findings import Findings
from cohort.isolated_bone import LEAST_ML, MAX_SHARE, TRUE_SHARE, isolated_bone
from cohort.missing_bone import missing_bone
from cohort.mr_contrast import below_skin, check_contrast
from cohort.outside_tissue import outside_tissue
from data.commands import python_command
from data.errors import InputError
from data.masks.body_mask import ct_body_mask
from data.prepared.training_statistics import (
    SECTION_QUANTILES,
    Range,
    TrainingStatistics,
    cross_sections,
    relative_median,
    slice_distances,
)
from data.values.intensity import mr_percentiles
from data.volumes.slice_frame import view_order
from data.volumes.volume import Volume
from evaluation.metrics import BONE_ABOVE_HU, dice
from models.inference_settings import InferenceSettings
from models.synthesis import SPACING_FACTOR, VolumePlan

log = logging.getLogger(__name__)

# Dice of the bodies of MR and synthetic CT: that of two discs whose radii differ by a tenth.
MIN_BODY_DICE = 0.9
# HU of soft tissue, fat to muscle, lie within this of 0.
SOFT_WITHIN_HU = 200
# Share of body voxels at either end of the CT window: beyond it something was cut off, or the network is saturated.
MAX_END_SHARE = 0.05
# Slices beyond the training set's limit: in every training patient 5 % may be, by the limit's definition.
MAX_ODD_SLICES = 0.05
# Share of body voxels that lie outside the MR window; a percentile window leaves out 1 %, one set by fat up to 1.7 % of
# 30 real MR.
MAX_CLIPPED_SHARE = 0.05
MAX_ABOVE_FAT = 0.025
# MR intensities may leave the training set's range by this factor, spacings by `SPACING_FACTOR`, medians by this much.
INTENSITY_FACTOR = 2.0
MEDIAN_MARGIN = 0.1
# The body's cross-sections may be larger or smaller than those of the training CT by this factor, and darker by this
# share of the body, which is what cortical bone and tendons take: they are dark in MR and no gas in CT.
SECTION_FACTOR = 1.25
DARK_MARGIN = 0.1
# Slices beyond that: at the end of a volume a limb grows thin, and a body part that was trained on becomes another.
MAX_UNSEEN_SLICES = 0.25
# What is dark in an MR lies in the lowest tenth between its percentiles inside the body.
DARK_BELOW = 0.1
NO_STATISTICS = (
    "HU histogram, MR intensities, spacing and body region against the training set: the model's inference.json "
    "lacks its values (written by an earlier version, or trained on images)"
)
NO_SECTIONS = (
    "body region against the training set: the model's inference.json, written by an earlier version, lacks its "
    f"values; add them with {python_command('-m', 'scripts.export_model')} --dataroot"
)
NO_MR = "MR intensities against the training set: the model was trained on CT alone, whose MR is simulated"
TAKEN_FOR_FAT = (
    ", which was set by the fat that was found: a body with little fat, where muscle is taken for it, or a "
    "bias field that was not corrected; bone and fat will be wrong"
)
WHICH_MODEL = "docs/which_model.md says what each shipped model is for"
# Slices of a training are tilted by a few degrees at most. The limit is set by hand: at 20 degrees a generated body
# lost bone in a trial.
MAX_TILT_DEG = 15.0
# A network that was trained for fewer steps has hardly learnt what a CT looks like.
FEW_STEPS = 1000
OF_CT_ALONE = "HU, body and MR intensities: the units of a synthetic MR are arbitrary and cannot be checked"


class Check:
    """Checks one synthetic CT against its MR and the training set; of a synthetic MR only the geometry.

    It gets the network's slices one by one, and then their volume. Whatever goes wrong in a check is said in `findings`
    and costs no volume.
    """

    def __init__(
        self,
        plan: VolumePlan,
        training: TrainingStatistics | None,
        steps: int | None = None,
        caution: str = "",
        unfinished: str = "",
        air_outside: bool = False,
    ) -> None:
        """Begin.

        Args:
            plan: how the MR goes through the network.
            training: what the training set is like; None leaves out what needs it.
            steps: for how many the model was trained, if that is known.
            caution: a warning that the model gives with every result, '' for none.
            unfinished: where the model's training stood, in words; '' if it was over.
            air_outside: whether tissue outside the body is set to air afterwards: then no warning is needed.
        """
        self.plan, self.training, self.body = plan, training, plan.body
        self.air_outside = air_outside
        self.findings = Findings()
        if caution:
            self.findings.warnings.append(caution)
        if steps is not None and steps < FEW_STEPS:
            self.findings.warnings.append(f"the model was trained for {steps} steps only: expect a poor CT")
        if unfinished:
            self.findings.notes.append(f"the training of the model is not finished; it stood at {unfinished}")
        self._distances: list[float] = []
        self._sections: list[tuple[float, float]] = []
        self._below_skin: list[float] = []
        self._at_ends, self._counted = [0, 0], 0
        self._looks = plan.to_ct and self._do(self._begin)

    @classmethod
    def of_model(cls, plan: VolumePlan, settings: InferenceSettings, air_outside: bool = False) -> Self:
        """Return the check of a result of the model with these settings."""
        return cls(plan, settings.training, settings.steps, settings.caution, settings.unfinished, air_outside)

    def add(self, translated: np.ndarray) -> None:
        """Look at the next slice that comes from the network, (size, size) in [-1, 1]."""
        self._looks = self._looks and self._do(lambda: self._add(self.plan.target_map.to_physical(translated)))

    def finish(self, volume: Volume) -> None:
        """Look at the volume that the slices became, in HU, before air in it is filled: see `findings`."""
        self._do(lambda: self._finish(volume))

    def _do(self, act: Callable[[], None]) -> bool:
        try:
            act()
        except Exception as error:
            log.debug("a check", exc_info=True)
            self.findings.warnings.append(f"not checked: {str(error) or type(error).__name__}")
            return False
        return True

    def _begin(self) -> None:
        frame, source = self.plan.frame, self.plan.source
        self._used = iter(self.plan.used)
        self._masks, self._mr = frame.labels_of(source.with_array(self.plan.body)), frame.labels_of(source)
        # True wherever the source has voxels, in no memory.
        self._seen = frame.labels_of(source.with_array(np.broadcast_to(np.True_, source.array.shape)))
        # Now, while there is no result yet that takes memory.
        self._mr_figures = _mr_figures(self.plan)
        low, high = self._mr_figures["mr_low"], self._mr_figures["mr_high"]
        self._dark_below = low + DARK_BELOW * (high - low)

    def _add(self, hu: np.ndarray) -> None:
        index = next(self._used)
        mask = self._masks[index]
        # Without the outermost pixel: there, MR and CT may differ in what is body and what is air.
        inner = hu[ndimage.binary_erosion(mask)]
        self._counted += inner.size
        for k, end in enumerate(self.plan.target_map.range):
            self._at_ends[k] += int(np.count_nonzero(np.abs(inner - end) < 0.5))
        if self.training is not None:
            reference, window = self.training.hu_histogram, self.plan.target_map.range
            self._distances += slice_distances(hu[None], mask[None], reference, window).tolist()
        mr = self._mr[index]
        if self.plan.t1_in_phase:
            self._below_skin.append(below_skin(mr, mask, self._seen[index], self.plan.frame.spacing_mm))
        dark = mask & (mr < self._dark_below)
        self._sections += zip(*cross_sections(mask[None], dark[None], self.plan.frame.spacing_mm), strict=True)

    def _finish(self, volume: Volume) -> None:
        findings, plan, training = self.findings, self.plan, self.training
        self._do(lambda: _check_width(findings, plan))
        if not plan.to_ct:
            findings.unchecked.append(OF_CT_ALONE)
        else:
            self._do(lambda: _check_body(findings, plan, volume))
            self._do(lambda: _check_outside(findings, plan, volume, self.air_outside))
            self._do(lambda: check_bone(findings, volume, plan.body))
        if self._looks:
            self._do(lambda: _check_window(findings, self._at_ends, self._counted, plan.target_map.range))
            if training is None:
                findings.unchecked.append(NO_STATISTICS)
            else:
                self._do(lambda: _check_histograms(findings, np.array(self._distances), training))
            self._do(lambda: _check_mr(findings, plan, self._mr_figures, training))
            if plan.t1_in_phase:
                self._do(lambda: check_contrast(findings, plan, np.array(self._below_skin)))
            areas, dark = np.array(self._sections).reshape(-1, 2).T
            self._do(lambda: _check_region(findings, areas, dark, training))
        self._do(lambda: _check_tilt(findings, plan))
        self._do(lambda: _check_spacing(findings, plan, training))


def hu_statistics(synthetic: Volume, body: np.ndarray) -> dict[str, float]:
    """Return figures of a CT (int16 HU) in the body.

    Mean, standard deviation and percentiles; `soft`, the median of what lies from -200 to 200 HU, if anything does;
    `bone_share`, above 250 HU; `body_l`, the body's volume in litres.
    """
    hu = np.arange(-(2**15), 2**15)  # all that int16 holds
    counts = np.zeros(hu.size, np.int64)
    for plane, inside in zip(synthetic.array, body, strict=True):  # one by one: all would take much memory
        counts += np.bincount(plane[inside].astype(np.int64) + 2**15, minlength=hu.size)
    voxels, upto = counts.sum(), counts.cumsum()
    mean = (counts * hu).sum() / voxels
    figures = {"mean": mean, "std": np.sqrt((counts * (hu - mean) ** 2).sum() / voxels)}
    for name, percent in {"p01": 1, "p25": 25, "p50": 50, "p75": 75, "p99": 99}.items():
        at = percent / 100 * (voxels - 1)
        low, high = hu[np.searchsorted(upto, [np.floor(at), np.ceil(at)], side="right")]
        figures[name] = low + (high - low) * (at % 1)
    soft = np.where(np.abs(hu) <= SOFT_WITHIN_HU, counts, 0).cumsum()
    if soft[-1]:
        figures["soft"] = hu[np.searchsorted(soft, soft[-1] / 2)]
    figures["bone_share"] = counts[hu > BONE_ABOVE_HU].sum() / voxels
    figures["body_l"] = voxels * np.prod(synthetic.spacing) / 1e6
    return {name: round(float(value), 4) for name, value in figures.items()}


def shown_figures(hu: Mapping[str, float | None], checks: Mapping[str, float | None]) -> dict[str, float]:
    """Return what pages show without a true CT, by the keys of `evaluation.report.FIGURES`."""
    bone, unseen = hu.get("bone_share"), checks.get("unseen_slices_share")
    found = {
        "uncertainty_mean_hu": checks.get("uncertainty_mean_hu"),
        "body_l": hu.get("body_l"),
        "soft_hu": hu.get("soft"),
        "bone_percent": None if bone is None else 100 * bone,
        "body_dice": checks.get("body_dice"),
        "unseen_percent": None if unseen is None else 100 * unseen,
    }
    return {name: value for name, value in found.items() if value is not None}


def finite(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return figures for JSON: None for what is not finite, others rounded to six digits."""
    return {
        name: float(f"{value:.6g}") if value is not None and math.isfinite(value) else None
        for name, value in figures.items()
    }


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
        findings.warnings.append(
            f"the body in the synthetic CT differs from that in the MR: Dice {overlap:.3f}, below {MIN_BODY_DICE}"
        )


def _check_outside(findings: Findings, plan: VolumePlan, synthetic: Volume, cleared: bool) -> None:
    """Check how much tissue lies in the air around the body; `cleared`: whether it is set to air afterwards."""
    found = outside_tissue(synthetic, plan.body)
    findings.figures["outside_tissue_ml"] = found.ml
    if not cleared and (text := found.describe()):
        findings.warnings.append(text)


def check_bone(findings: Findings, synthetic: Volume, body: np.ndarray) -> None:
    """Note slices without bone and small pieces that lie apart; warn where these are more than in any true CT."""
    found = isolated_bone(synthetic, body)
    findings.figures |= {
        "isolated_bone_pieces": found.pieces, "isolated_bone_ml": found.ml, "isolated_bone_share": found.share,
    }  # fmt: skip
    if found.share > MAX_SHARE and found.ml >= LEAST_ML:
        known = f"at most {100 * TRUE_SHARE:g} % in true CT"
        findings.warnings.append(
            f"{found.describe()}; {known}: probably false spots, or bone that was drawn in fragments"
        )
    elif found.pieces:
        findings.notes.append(f"{found.describe()}: look at it, it may be false")
    missing = missing_bone(synthetic, body)
    findings.figures["slices_without_bone"] = len(missing.slices)
    if gaps := missing.describe_gaps():
        findings.warnings.append(gaps)
    if note := missing.describe():
        findings.notes.append(note)


def _check_window(findings: Findings, at_ends: Sequence[int], voxels: int, window: Range) -> None:
    """Check how many of the body's voxels lie within half a HU of the CT window's ends."""
    for name, end, count in zip(("low", "high"), window, at_ends, strict=True):
        share = findings.figures[f"{name}_end_share"] = count / max(1, voxels)
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
    if median > median_limit:
        findings.warnings.append(
            f"HU histograms differ from those of the training CT: half of the slices by {median:.1f} HU or more, in "
            f"training {median_limit:.1f} HU at most. Look at the result. Common reasons: a part of the body that the "
            "model does not know, much bone, much fat"
        )
    elif odd / distances.size > MAX_ODD_SLICES:  # said already, where half of all slices are odd
        findings.warnings.append(
            f"{odd} of {distances.size} slices have an HU histogram that is more than {limit:.0f} HU from that of the "
            "training CT"
        )


def _mr_figures(plan: VolumePlan) -> dict[str, float]:
    """Return figures of the MR's intensities in the body."""
    values = plan.source.array[plan.body]
    low, high = mr_percentiles(plan.source.array, plan.body)
    window = plan.source_map.range
    below = 0 if plan.own_scale else np.count_nonzero(values < window[0])  # noise; what fat sets ends above it
    clipped = below + np.count_nonzero(values > window[1])
    median = relative_median(float(np.median(values)), (low, high))
    return {"mr_low": low, "mr_high": high, "mr_median": median, "mr_clipped_share": clipped / values.size}


def _check_mr(
    findings: Findings, plan: VolumePlan, figures: Mapping[str, float], training: TrainingStatistics | None
) -> None:
    """Check the MR's intensities in the body, as `_mr_figures` has them."""
    high, median, clipped = (figures[name] for name in ("mr_high", "mr_median", "mr_clipped_share"))
    window = plan.source_map.range
    findings.figures |= figures
    if clipped > (MAX_ABOVE_FAT if plan.own_scale else MAX_CLIPPED_SHARE):
        findings.warnings.append(
            f"{100 * clipped:.1f} % of the body's MR intensities lie outside the model's window of "
            f"{window[0]:g} to {window[1]:g}{TAKEN_FOR_FAT if plan.own_scale else ''}"
        )
    if training is None:
        return
    if training.mr_high is None or training.mr_median is None:
        findings.unchecked.append(NO_MR)
        return
    reach = training.mr_high
    if not plan.own_scale and not reach[0] / INTENSITY_FACTOR <= high <= reach[1] * INTENSITY_FACTOR:
        findings.warnings.append(
            f"MR intensities reach {high:.4g} in the body; those of the training set {_range(reach)}: another scanner, "
            "sequence or scaling"
        )
    if not training.mr_median[0] - MEDIAN_MARGIN <= median <= training.mr_median[1] + MEDIAN_MARGIN:
        findings.warnings.append(
            f"MR contrast differs from that of the training set: inside the body, the median lies at "
            f"{median:.2f} of the intensity range, but at {_range(training.mr_median)} in the training set: "
            "another sequence, or too few MR in the training set"
        )


def _check_region(findings: Findings, areas: np.ndarray, dark: np.ndarray, training: TrainingStatistics | None) -> None:
    """Check whether the model was trained on bodies as large as these slices', in cm2, and as full of air."""
    if not areas.size:
        findings.unchecked.append("body region: no slice with enough body")
        return
    findings.figures |= {
        "section_cm2": float(np.median(areas)),
        "dark_share": float(np.quantile(dark, SECTION_QUANTILES[1])),
    }
    if training is None:
        return
    if training.section_cm2 is None or training.gas_share is None:
        findings.unchecked.append(NO_SECTIONS)
        return
    _compare_sections(findings, areas, dark, training.section_cm2, training.gas_share)


def _compare_sections(findings: Findings, areas: np.ndarray, dark: np.ndarray, trained: Range, gas: float) -> None:
    """Compare slices (N,) with the training CT's areas in cm2 and its share of gas."""
    unseen = {
        "larger": areas > trained[1] * SECTION_FACTOR,
        "smaller": areas < trained[0] / SECTION_FACTOR,
        "darker": dark > gas + DARK_MARGIN,
    }
    findings.figures["unseen_slices_share"] = float(np.mean(np.any(list(unseen.values()), axis=0)))
    for what, slices in unseen.items():
        if slices.mean() <= MAX_UNSEEN_SLICES:
            continue
        found, known = f"{np.median(areas[slices]):.0f} cm2 of body", f"{trained[0]:.0f} to {trained[1]:.0f} cm2"
        if what == "darker":
            found = f"{100 * np.median(dark[slices]):.0f} % of the body dark (lungs, gas, or no signal)"
            known = f"{100 * gas:.0f} % gas at most"
        findings.warnings.append(
            f"a body region that the model was not trained on? {np.count_nonzero(slices)} of {areas.size} slices are "
            f"{what}: {found}; in the training CT {known} ({WHICH_MODEL})"
        )


def _check_tilt(findings: Findings, plan: VolumePlan) -> None:
    """Check whether the slices lie in the body as those of the training do."""
    frame = plan.frame
    through = 2 - view_order(frame.source_direction, frame.view)[0][0]  # the index axis from slice to slice
    normal = np.reshape(frame.source_direction, (3, 3))[:, through]
    tilt = float(np.degrees(np.arccos(min(1.0, np.abs(normal).max()))))
    findings.figures["tilt_deg"] = tilt
    if tilt > MAX_TILT_DEG:
        findings.warnings.append(
            f"the slices are tilted by {tilt:.0f} degrees against the {frame.view} planes that models learn from: "
            "expect less bone; if the result is poor, resample the MR to the patient's axes in other software first"
        )


def _check_spacing(findings: Findings, plan: VolumePlan, training: TrainingStatistics | None) -> None:
    spacings = {
        "in_plane_mm": (plan.frame.in_plane_mm, "in the plane"),
        "through_mm": (plan.frame.through_mm, "between slices"),
    }
    interpolated = plan.describe_spacing()
    if interpolated:
        findings.warnings.append(interpolated)
    for name, (found, where) in spacings.items():
        findings.figures[name] = float(found)
        if training is None or (name == "through_mm" and interpolated):  # once is enough
            continue
        low, high = getattr(training, name)
        if not low / SPACING_FACTOR <= found <= high * SPACING_FACTOR:
            findings.warnings.append(f"spacing of {found:.3g} mm {where}; in the training set {_range((low, high))} mm")


def _range(values: Range) -> str:
    low, high = (f"{value:.3g}" for value in values)
    return low if low == high else f"{low} to {high}"
