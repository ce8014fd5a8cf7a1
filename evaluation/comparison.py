"""Are these results better, or is it chance? Means of scores and their differences, with intervals over patients."""

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy

from data.errors import InputError
from data.files import check_regular, read_json
from evaluation.report import COLUMNS, describe_mask

# Scores by case, then by name. A score that a case leaves undefined is NaN.
Scores = dict[str, dict[str, float]]


CONFIDENCE = 0.95
RESAMPLES = 10_000
# Differences of fewer patients have one sign by chance in more than 5 % of cases: 2 / 2^5.
FEWEST_FOR_INTERVAL = 6


@dataclass(frozen=True)
class ScoredCases:
    """What a file of scores holds.

    Attributes:
        scores: by case, then by name.
        where: in which voxels they were taken, in words; None if the file does not say so.
    """

    scores: Scores
    where: str | None


@dataclass(frozen=True)
class Interval:
    """A mean over patients and its 95 % interval; NaN where there is none."""

    mean: float
    low: float = math.nan
    high: float = math.nan


def read_scores(path: Path) -> ScoredCases:
    """Return the scores in the JSON of `scripts.evaluate --json` or the `summary.csv` of `test_pipeline.py`.

    Cases that were not scored are left out.

    Raises:
        InputError: the file cannot be read, is neither of both, holds no scores, or a case twice.
    """
    report = {"cases": _csv_rows(path)} if path.suffix.lower() == ".csv" else read_json(path)
    # test_pipeline.py, whose summary.csv does not say it, takes them in one way.
    said = describe_mask(with_mask=False, with_mr=True) if path.suffix.lower() == ".csv" else report.get("mask")
    rows, where = report.get("cases"), said
    named = {"case", *COLUMNS}
    if not isinstance(rows, list) or not all(isinstance(row, dict) and named <= row.keys() for row in rows):
        raise InputError(
            f"{path}: no scores of cases; expected the JSON of scripts.evaluate --json, or the summary.csv of "
            "test_pipeline.py"
        )
    scores: Scores = {}
    for row in rows:
        case = row["case"]
        if not isinstance(case, str) or not case:
            raise InputError(f"{path}: expected the name of a case, found {case!r}")
        if case in scores:
            raise InputError(f"{path}: case {case} is listed twice")
        found = {name: _number(row[name], name, case, path) for name in COLUMNS}
        if not all(map(math.isnan, found.values())):
            scores[case] = found
    if not scores:
        raise InputError(
            f"{path}: no case has scores; give test_pipeline.py the true CT with --reference, or score the results "
            "with scripts.evaluate --json"
        )
    return ScoredCases(scores, where if isinstance(where, str) else None)


def _csv_rows(path: Path) -> list[dict]:
    try:
        check_regular(path)
        return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table: {error}") from error


def _number(value: object, name: str, case: str, path: Path) -> float:
    """Return a score; NaN for an empty cell, null and infinity (the PSNR of equal volumes, null in a JSON)."""
    if value in (None, ""):
        return math.nan
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{path}: {name} of case {case}: expected a number, found {value!r}") from None
    return number if math.isfinite(number) else math.nan


def values_of(results: Mapping[str, Scores], name: str) -> dict[str, np.ndarray]:
    """Return one score of every result, each over the same cases: those in which all of them define it."""
    cases = [
        case for case in next(iter(results.values()))
        if all(not math.isnan(scores.get(case, {}).get(name, math.nan)) for scores in results.values())
    ]  # fmt: skip
    return {label: np.array([scores[case][name] for case in cases]) for label, scores in results.items()}


def mean_interval(values: np.ndarray) -> Interval:
    """Return mean and 95 % interval of values (N,) of patients: percentiles of 10,000 bootstrap means.

    Patients are drawn with replacement (Efron, Ann Statist 1979), always with the same random numbers. The interval of
    differences of two results in the same patients is that of a paired comparison. Of few patients it is too narrow:
    of ten that are normally distributed, it holds the true mean in 91 % of cases. There is none of fewer than six.
    """
    if not len(values):
        return Interval(math.nan)
    if len(values) < FEWEST_FOR_INTERVAL:
        return Interval(float(values.mean()))
    found = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=0
    )
    return Interval(float(values.mean()), *map(float, found.confidence_interval))
