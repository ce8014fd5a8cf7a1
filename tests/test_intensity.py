"""The intensity map: known values, inverses, clipping, and clear errors."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import InputError
from data.values.intensity import (
    CT_TRANSFERS,
    CT_WINDOW_HU,
    IntensityMap,
    mr_percentiles,
    mr_window,
    parse_ct_transfer,
)


def test_the_published_window():
    window = IntensityMap.window(*CT_WINDOW_HU)
    np.testing.assert_allclose(window.to_network(np.array([-1000, 200, 1400])), [-1, 0, 1])
    np.testing.assert_allclose(window.to_network(np.array([-3024, 3000])), [-1, 1])
    np.testing.assert_allclose(window.to_physical(np.array([-1, 0, 1])), [-1000, 200, 1400])


@given(st.lists(st.integers(-1000, 1400), min_size=1), st.sampled_from(["window", *CT_TRANSFERS]))
def test_there_and_back_inside_the_range(values, name):
    curve = IntensityMap.window(*CT_WINDOW_HU) if name == "window" else parse_ct_transfer(name)
    curve = IntensityMap.from_dict(json.loads(json.dumps(curve.to_dict())))
    values = np.array(values, np.int16)
    network = curve.to_network(values)
    assert network.dtype == np.float32
    assert np.abs(network).max() <= 1 + 1e-6
    np.testing.assert_allclose(curve.to_physical(network), values, atol=2e-3)


def test_a_curve_goes_through_its_knots_like_numpy_s_interpolation():
    curve = parse_ct_transfer("-1000:-1,-250:-0.6,250:0.5,1400:1")
    assert curve == parse_ct_transfer("soft_tissue")
    hu = np.linspace(-1200, 1600, 701)
    expected = np.interp(hu, [-1000, -250, 250, 1400], [-1, -0.6, 0.5, 1])
    np.testing.assert_allclose(curve.to_network(hu), expected, atol=1e-6)
    # Fat to muscle: 0.125 of the linear window's range of 2, and 0.33 of this one's.
    fat, muscle = curve.to_network(np.array([-100, 50]))
    assert muscle - fat == pytest.approx(0.33)


def test_a_corrected_map_gives_back_what_the_curve_makes_of_the_values():
    curve, soft = [(130, 130), (200, 250), (1000, 1130)], parse_ct_transfer("soft_tissue")
    corrected = soft.corrected(curve)
    assert corrected.range == soft.range
    hu = np.array([-1000, -250, 0, 130, 165, 200, 250, 600, 1000, 1200, 1400])
    expected = [-1000, -250, 0, 130, 190, 250, 305, 690, 1130, 1265, 1400]
    np.testing.assert_allclose(corrected.to_physical(soft.to_network(hu)), expected, atol=0.01)
    np.testing.assert_allclose(soft.corrected([]).to_physical(soft.to_network(hu)), hu, atol=0.01)


@pytest.mark.parametrize("curve", [[(200, 100), (300, 90)], [(200, 250), (150, 300)], [(1400, 1400)], [(0, 1500)]])
def test_a_curve_that_does_not_rise_within_the_window_is_refused(curve):
    with pytest.raises(InputError, match="expected values that rise within -1000 to 1400"):
        parse_ct_transfer("soft_tissue").corrected(curve)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bone", "expected a name"),
        ("-1000:-1", "two or more"),
        ("-1000:-1,0:0.5,0:0.7,1400:1", "rising"),
        ("-1000:-1,0:0.5,100:0.4,1400:1", "rising"),
        ("-1000:-0.9,1400:1", "first must map to -1"),
        ("-1000:-1,nan:0,1400:1", "finite"),
        ("-1000,1400", "expected a name"),
    ],
)
def test_curves_that_cannot_be_inverted_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_ct_transfer(text)


def test_mr_window_is_of_the_body_alone():
    mr = np.concatenate([np.zeros(5000), np.linspace(100, 1100, 1001)])
    body = mr > 0
    percentiles = mr_percentiles(mr, body)
    np.testing.assert_allclose(percentiles, (105, 1095))
    assert mr_window("percentile", percentiles).range == pytest.approx((105, 1095))
    assert mr_window((0, 400), percentiles).range == (0, 400)
    with pytest.raises(InputError, match="constant inside the body"):
        mr_window("percentile", (7.0, 7.0))
