"""What is said of synthetic CT without a true one, and the criteria that choose weights."""

import math

import numpy as np
import pytest

from data.errors import InputError
from data.volumes.volume import Volume
from evaluation.criteria import CRITERIA, score
from evaluation.unpaired import body_dice, mean_difference

MEASURED = {"mae": 80.0, "simulated_mae": 60.0, "histogram": 12.0, "cycle": 0.1, "body_dice": 0.9}


def cylinder(radius: float, hu: float = 40.0) -> tuple[Volume, np.ndarray]:
    """A cylinder in air, 10 slices of 60 x 60 pixels of 4 mm, and where it is."""
    y, x = np.mgrid[:60, :60] - 29.5
    inside = np.broadcast_to(np.hypot(x, y) < radius, (10, 60, 60)).copy()
    return Volume(np.where(inside, hu, -1000).astype(np.int16), (4.0, 4.0, 4.0)), inside


def test_the_body_of_a_synthetic_ct_is_held_against_that_of_its_mr():
    ct, inside = cylinder(20)
    assert body_dice(ct, inside) == pytest.approx(1, abs=0.01)
    _, half = cylinder(20)
    half[5:] = False  # 2 |half| / (|half| + |whole|) = 2/3
    assert body_dice(ct, half) == pytest.approx(2 / 3, abs=0.01)


@pytest.mark.parametrize("hu", [-1000.0, -600.0])
def test_a_synthetic_ct_without_a_body_has_no_overlap(hu):
    ct, inside = cylinder(20, hu)
    assert body_dice(ct, inside) == 0


def test_the_mean_difference_is_over_all_values():
    ones, twos = np.ones((2, 3)), np.full((4, 3), 2.0)
    assert mean_difference([(ones, ones), (twos, twos - 3)]) == pytest.approx(3 * 12 / 18)
    assert math.isnan(mean_difference([]))
    with pytest.raises(ValueError, match="shapes"):
        mean_difference([(ones, ones[:1])])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_less_is_better_by_every_criterion(criterion):
    better = 1.0 if CRITERIA[criterion].value == "body_dice" else MEASURED[CRITERIA[criterion].value] / 2
    assert score(MEASURED | {CRITERIA[criterion].value: better}, criterion) < score(MEASURED, criterion) < math.inf
    assert score(MEASURED | {CRITERIA[criterion].value: math.nan}, criterion) == math.inf


def test_scores_in_numbers():
    assert {name: score(MEASURED, name) for name in CRITERIA} == pytest.approx(MEASURED | {"body_dice": 0.1})


def test_a_criterion_that_nothing_was_measured_for_is_refused_with_those_that_are_possible():
    values = {name: value for name, value in MEASURED.items() if name != "mae"}
    with pytest.raises(InputError, match=r"--val_criterion mae: needs .*true CT.*simulated_mae, histogram"):
        score(values, "mae")
    with pytest.raises(InputError, match="none is possible here"):
        score({}, "histogram")
    with pytest.raises(InputError, match="'mea': expected one of mae"):
        score(values, "mea")
