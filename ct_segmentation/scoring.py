"""Dice of whole patients, and the table that shows it."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.metrics import dice
from evaluation.report import markdown_table


def dice_by_class(labels: np.ndarray, reference: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """Return the Dice overlap of every class over all voxels of a patient together; NaN if neither has the class.

    Args:
        labels, reference: label maps of one shape; any non-zero label is body, k + 1 the class k.
        class_names: names of the classes; the first is the body.
    """
    scores = {class_names[0]: dice(labels > 0, reference > 0)}
    for k, name in enumerate(class_names[1:], start=1):
        scores[name] = dice(labels == k + 1, reference == k + 1)
    return scores


def mean_by_class(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the mean over cases of every class's Dice where it is defined; NaN if it never is."""
    names = list(next(iter(rows.values())))
    values = {name: [row[name] for row in rows.values() if not math.isnan(row[name])] for name in names}
    return {name: float(np.mean(found)) if found else math.nan for name, found in values.items()}


def format_scores(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return a Markdown table, aligned to be read as plain text: a line a case, and their mean where there are several.

    '-' stands for an undefined score.
    """
    names = list(next(iter(rows.values())))
    shown = dict(rows) | ({"mean": mean_by_class(rows)} if len(rows) > 1 else {})
    lines = [["case", *(f"Dice {name}" for name in names)]]
    lines += [
        [case, *("-" if math.isnan(row[name]) else f"{row[name]:.4f}" for name in names)] for case, row in shown.items()
    ]
    return markdown_table(lines)
