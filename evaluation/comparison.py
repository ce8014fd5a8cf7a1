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
from data.files import check_regular
from data.prepared.manifest import read_json
from evaluation.report import COLUMNS, FEWEST_FOR_STD

# Scores by case, then by name. A score that a case leaves undefined is NaN.
Scores = dict[str, dict[str, float]]

CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean over patients and its 95 % interval; bounds are NaN for fewer than three patients and infinite values."""

    mean: float
    low: float
    high: float
    n: int


def read_scores(path: Path) -> Scores:
    """Return the scores in the JSON of `scripts.evaluate --json` or the `summary.csv` of `test_pipeline.py`.

    Cases that were not scored are left out.

    Raises:
        InputError: the file cannot be read, is neither of both, holds no scores, or a case twice.
    """
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else read_json(path).get("cases")
    named = {"case", *COLUMNS}
    if not isinstance(rows, list) or not all(isinstance(row, dict) and named <= row.keys() for row in rows):
        raise InputError(
            f"{path}: no scores of cases; expected the JSON of scripts.evaluate --json, or the summary.csv of "
            "test_pipeline.py"
        )
    scores: Scores = {}
    for row in rows:
        if row["case"] in scores:
            raise InputError(f"{path}: case {row['case']} is listed twice")
        found = {name: _number(row[name], name, row["case"], path) for name in COLUMNS}
        if not all(map(math.isnan, found.values())):
            scores[row["case"]] = found
    if not scores:
        raise InputError(
            f"{path}: no case has scores; give test_pipeline.py the true CT with --reference, or score the results "
            "with scripts.evaluate --json"
        )
    return scores


def _csv_rows(path: Path) -> list[dict]:
    try:
        check_regular(path)
        return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table: {error}") from error


def _number(value: object, name: str, case: str, path: Path) -> float:
    """Return a score; NaN for an empty cell and null."""
    if value in (None, ""):
        return math.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InputError(f"{path}: {name} of case {case}: expected a number, found {value!r}") from None


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
    differences of two results in the same patients is that of a paired comparison.
    """
    if not len(values):
        return Interval(math.nan, math.nan, math.nan, 0)
    low = high = math.nan
    if len(values) >= FEWEST_FOR_STD and np.isfinite(values).all():
        found = scipy.stats.bootstrap(
            (values,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=0
        )
        low, high = map(float, found.confidence_interval)
    return Interval(float(values.mean()), low, high, len(values))
