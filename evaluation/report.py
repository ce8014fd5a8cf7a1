"""Scoring of a case and of a cohort, as a table and as JSON."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError
from data.files import write_json
from data.masks.body_mask import ct_body_mask
from data.values.modality import check_ct, in_hu, kind_of
from data.volumes.volume import Volume, describe_difference, read_volume, resampling, same_grid
from evaluation import metrics
from evaluation.cases import ScoredCase, read_reference

log = logging.getLogger(__name__)

# What compares two volumes inside the scoring mask. The Dice of bodies is not among them: it compares masks.
MASKED_METRICS = {
    "mae": metrics.mae,
    "psnr": metrics.psnr,
    "ssim": metrics.ssim,
    "ms_ssim": metrics.ms_ssim,
    "dice_bone": metrics.dice_bone,
    "mae_bone": metrics.mae_bone,
}
# Key of a score: column title, decimals.
COLUMNS = {
    "mae": ("MAE [HU]", 1),
    "psnr": ("PSNR [dB]", 2),
    "ssim": ("SSIM", 4),
    "ms_ssim": ("MS-SSIM", 4),
    "dice_body": ("Dice body", 3),
    "dice_bone": ("Dice bone", 3),
    "mae_bone": ("MAE bone [HU]", 1),
}

# What tables of cases show: beside scores what is known without a true CT.
FIGURES = COLUMNS | {
    "uncertainty_mean_hu": ("uncertainty [HU]", 1),
    "body_l": ("body [l]", 2),
    "soft_hu": ("median of soft tissue [HU]", 0),
    "bone_percent": ("bone [%]", 1),
    "body_dice": ("body Dice MR, CT", 3),
    "unseen_percent": ("unusual slices [%]", 0),
}

# A label map that was resampled has fewer values than this, an image more.
_MOST_IN_A_MASK = 200

# An MR of which a larger share lies below 0, by more than this share of its intensities, was standardised.
STANDARDISED_SHARE, NEAR_ZERO = 0.1, 0.01

# Of fewer values a standard deviation says next to nothing.
FEWEST_FOR_STD = 3

# Those of which the highest value is the worst one.
WORST_HIGHEST = ("mae", "mae_bone", "uncertainty_mean_hu", "unseen_percent")

# Those that cannot be above 1.
UP_TO_ONE = ("ssim", "ms_ssim", "dice_body", "dice_bone", "body_dice")

# What each of them is, in one sentence with its unit.
EXPLANATIONS = {
    "mae": "Mean absolute error of the synthetic CT in the body, in HU; lower is better.",
    "psnr": "Peak signal-to-noise ratio in the body, in dB; higher is better.",
    "ssim": "Structural similarity to the true CT in the body, without a unit; 1 is identical.",
    "ms_ssim": "Structural similarity on several scales in the body, without a unit; 1 is identical.",
    "dice_body": "Overlap (Dice) of the bodies in synthetic and true CT, without a unit; 1 is complete.",
    "dice_bone": "Overlap (Dice) of bone, above 250 HU, in synthetic and true CT, without a unit; 1 is complete.",
    "mae_bone": "Mean absolute error in the bone of the true CT, above 250 HU, in HU; lower is better.",
    "uncertainty_mean_hu": "Mean standard deviation between the models or mirrorings in the body, in HU.",
    "body_l": "Volume of the body in the field of view, in litres.",
    "soft_hu": "Median of the body between -200 and 200 HU in the synthetic CT, in HU: low where most of it is fat.",
    "bone_percent": "Share of the body above 250 HU in the synthetic CT, in %.",
    "body_dice": "Overlap (Dice) of the bodies in MR and synthetic CT, without a unit; low where the outline is lost.",
    "unseen_percent": "Slices whose body is larger, smaller or darker than in training, in %; above 25: a warning.",
}


def score_case(
    pred: Volume,
    ref: Volume,
    mask: Volume | None = None,
    mr: Volume | None = None,
    called: str = "prediction",
    covered: np.ndarray | None = None,
) -> dict[str, float]:
    """Score a synthetic CT against the true CT on the same grid.

    Everything but the Dice of bodies is taken inside the scoring mask: where `mask` is non-zero, or the body
    of `ref` if there is no `mask`; with an `mr` only where that has signal as well (`seen_voxels`: outside the
    MR's field of view nothing can be predicted), and only where the true CT is known. The Dice of bodies compares the
    bodies found in `pred` and in `ref`, where these two hold: 0 where a failed model drew none, undefined where `ref`
    shows none.

    Args:
        pred: synthetic CT in HU.
        ref: true CT in HU on the grid of `pred`; what lies below -1024 HU, a padding, counts as -1024 HU.
        mask: where to score (non-zero), on that grid.
        mr: the MR that `pred` was made from, on that grid.
        called: what warnings call `pred`.
        covered: where the true CT is known, bool (z, y, x); None: everywhere.

    Returns:
        The keys of `COLUMNS`. A score that the case leaves undefined is NaN; PSNR of equal volumes is
        infinite.

    Raises:
        InputError: grids differ, `ref` is no CT in HU, there is neither a `mask` nor a body in `ref`, or nothing
            is left to score.
    """
    for name, volume in (("reference", ref), ("mask", mask), ("MR", mr)):
        if volume is not None and not same_grid(volume, pred):
            raise InputError(
                f"the {name} is not on the result's grid: {describe_difference(volume, pred)}; resample it: "
                f"{resampling(name.upper(), 'RESULT')}"
            )
    try:
        check_ct(ref)
    except InputError as error:
        raise InputError(f"reference: {error}") from error
    ref = in_hu(ref)
    ref_body = _find_body(ref, "reference", needed=mask is None)
    seen = np.ones(ref.array.shape, bool) if mr is None else seen_voxels(mr)
    if covered is not None:
        seen &= covered
    inside = seen & (ref_body if mask is None else mask.array != 0)
    scores = {name: metric(pred.array, ref.array, inside) for name, metric in MASKED_METRICS.items()}
    pred_body = _find_body(pred, called, needed=False, synthetic=True)
    scores["dice_body"] = metrics.dice(pred_body, ref_body, seen) if ref_body.any() else math.nan
    return {name: scores[name] for name in COLUMNS}


def seen_voxels(mr: Volume) -> np.ndarray:
    """Return where an MR has signal, bool (z, y, x): above 0, or above its minimum if it was standardised.

    That has its background at its minimum, and so much of it below 0. A few voxels below 0 come from interpolation.
    """
    reach = np.percentile(mr.array, 99)
    standardised = np.mean(mr.array < -NEAR_ZERO * abs(reach)) > STANDARDISED_SHARE
    return mr.array > (mr.array.min() if standardised else 0)


def _find_body(ct: Volume, name: str, needed: bool, synthetic: bool = False) -> np.ndarray:
    """Return the body mask of a CT; empty where none is found, unless it is needed."""
    try:
        return ct_body_mask(ct, synthetic)
    except InputError as error:
        if needed:
            raise InputError(f"{name}: {error}") from error
        log.warning("warning: %s: %s", name, error)
        return np.zeros(ct.array.shape, bool)


def describe_mask(with_mask: bool, with_mr: bool) -> str:
    """Return in words where `score_case` scores."""
    where = "given mask (non-zero)" if with_mask else "body of the reference CT"
    return f"{where}, where MR > 0" if with_mr else where


def score_cohort(
    cases: Sequence[ScoredCase], resample_reference: bool = False, any_values: bool = False
) -> dict[str, Any]:
    """Score cases one after the other; one of several that cannot be scored is put on record, and costs no other.

    Args:
        cases: one or more.
        resample_reference: whether a reference on another grid is resampled.
        any_values: whether a prediction is scored whatever its values look like.

    Returns:
        ``cases``: one dict a case, ``case`` (its name) and the scores of `score_case`; ``failed``: a dict of
        ``case`` and ``reason`` for each that could not be scored; ``mean``, ``std`` (of a sample, divisor n - 1;
        NaN for fewer than `FEWEST_FOR_STD` cases) and ``n`` by score, over the cases in which it is defined.

    Raises:
        InputError: no case can be read and scored; the message starts with the name of the first.
    """
    rows: list[dict] = []
    failed: list[dict] = []
    for case in cases:
        log.info("scoring %s", case.name)
        try:
            rows.append({"case": case.name, **_scores(case, resample_reference, any_values)})
        except InputError as error:
            failed.append({"case": case.name, "reason": str(error)})
    if not rows:
        more = len(failed) - 1
        others = f" ({more} more case{'s' * (more > 1)} cannot be scored either)" if more else ""
        raise InputError(f"case {failed[0]['case']}: {failed[0]['reason']}{others}")
    return {"cases": rows, "failed": failed, **summarise(rows)}


def _scores(case: ScoredCase, resample_reference: bool, any_values: bool) -> dict[str, float]:
    """Read and score a case, as in `score_cohort`."""
    pred = read_volume(case.pred)
    if not any_values:
        try:
            check_ct(pred, synthetic=True)
        except InputError as error:
            raise InputError(
                f"{case.pred}: {error}; --pred takes the synthetic CT (--any_values scores this all the same)"
            ) from error
    ref = read_reference(case.ref, pred, resample_reference, "result", case.pred)
    mask, mr = (None if path is None else read_volume(path) for path in (case.mask, case.mr))
    for name, other in (("--ref", ref.ct), ("--pred", pred)):
        if mr is not None and np.array_equal(mr.array, other.array):
            raise InputError(f"--mr {case.mr}: has the values of {name}; expected the MR that the result was made from")
    if mask is not None and _is_image(mask):
        raise InputError(f"--mask {case.mask}: looks like an image; expected a mask, 0 outside the region to score")
    return score_case(pred, ref.ct, mask, mr, str(case.pred), ref.covered)


def _is_image(mask: Volume) -> bool:
    """Tell whether what is given as a mask has the many values of a CT or MR; one of shares ends at 1."""
    sample = mask.array[:: max(1, len(mask.array) // 16)]
    return sample.max() > 1 and kind_of(mask) != "labels" and len(np.unique(sample)) > _MOST_IN_A_MASK


def summarise(rows: list[dict], names: Iterable[str] = COLUMNS) -> dict[str, dict[str, float]]:
    """Return mean, sample standard deviation and number of the defined (not NaN) values of every score in `names`.

    One infinite value makes the mean infinite and the deviation NaN; fewer than `FEWEST_FOR_STD` values leave the
    deviation NaN, too.
    """
    mean: dict[str, float] = {}
    std: dict[str, float] = {}
    count: dict[str, float] = {}
    for name in names:
        values = [row[name] for row in rows if not math.isnan(row[name])]
        spread = len(values) >= FEWEST_FOR_STD and np.isfinite(values).all()
        mean[name] = float(np.mean(values)) if values else math.nan
        std[name] = float(np.std(values, ddof=1)) if spread else math.nan
        count[name] = len(values)
    return {"mean": mean, "std": std, "n": count}


def format_table(rows: Iterable[Mapping]) -> str:
    """Return a Markdown table, aligned to be read as plain text; '-' for an undefined score.

    Args:
        rows: ``case`` (first column) and scores by the keys of `COLUMNS`.
    """
    lines = [["case", *(title for title, _ in COLUMNS.values())]]
    for row in rows:
        lines.append([str(row["case"]), *(_cell(row[name], digits) for name, (_, digits) in COLUMNS.items())])
    return markdown_table(lines)


def markdown_table(lines: list[list[str]]) -> str:
    """Return cells, the titles first, as a Markdown table aligned to be read as plain text; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        f"| {line[0].ljust(widths[0])} | "
        + " | ".join(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        + " |"
        for line in [lines[0], rule, *lines[1:]]
    )


def format_report(report: Mapping) -> str:
    """Return the table of `score_cohort`'s report: its cases and, where there are several, mean and std.

    A line below it says which means leave cases out, because a score is undefined in them.
    """
    rows = list(report["cases"])
    if len(rows) == 1:
        return format_table(rows)
    summary = [{"case": "mean", **report["mean"]}, {"case": "std", **report["std"]}]
    partial = [
        f"{title} over {report['n'][name]} of {len(rows)} cases"
        for name, (title, _) in COLUMNS.items()
        if report["n"][name] < len(rows)
    ]
    table = format_table([*rows, *summary])
    return f"{table}\nundefined (-) in some cases: {', '.join(partial)}" if partial else table


def write_report(report: Mapping, path: str | Path) -> Path:
    """Write a report as JSON; the file appears whole or not at all.

    JSON knows neither NaN nor infinity: an undefined score and an infinite PSNR both become null. They can be
    told apart, because PSNR is infinite only where both volumes agree (MAE is 0, or all errors lie beyond the
    clipping range) and is never undefined.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    return write_json(path, _finite(report))


def _cell(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _finite(value: object) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
