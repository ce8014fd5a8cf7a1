"""What N4 leaves of a bias field is found from muscle and fat, which are alike everywhere."""

import numpy as np
import pytest
from numpy.polynomial.legendre import leggrid3d

from data.values import bias_field
from data.values.bias_field import log_bias_field
from data.volumes.volume import Volume
from tests.test_mr_scale import limb


def lopsided(amplitude: float) -> tuple[Volume, np.ndarray, np.ndarray]:
    """Return a body of fat on one side and muscle on the other, its mask, and the log of a field from side to side."""
    shape = (12, 48, 64)
    x = np.broadcast_to(np.linspace(-1, 1, shape[2]), shape)
    y = np.broadcast_to(np.linspace(-1, 1, shape[1])[:, None], shape)
    body = (np.abs(x) < 0.95) & (np.abs(y) < 0.95)
    clean = np.where(body, np.where(x < -0.4, 950.0, 250.0), 0.0)
    field = np.log(1 - amplitude * np.sin(np.pi / 2 * x))
    noise = np.random.default_rng(0).normal(0, 10, (2, *shape))
    array = np.hypot(clean * np.exp(field) + noise[0], noise[1]).astype(np.float32)
    return Volume(array, (2.0, 2.0, 4.0)), body, field


def left(mr: Volume, body: np.ndarray, field: np.ndarray) -> float:
    """Return the standard deviation of what is left of a log field in the body."""
    return float((log_bias_field(mr, body) - field)[body].std())


def test_what_n4_leaves_is_found(monkeypatch):
    """N4 that took only half of the field, as it does in real limbs."""
    mr, body, field = lopsided(0.4)
    assert field[body].std() == pytest.approx(0.28, abs=0.01)
    half = bias_field.without_field(mr, field / 2)
    blocks = np.where(body, half.array / 950, 0)[:, ::2, ::2]
    found = bias_field._left_field(blocks, body[:, ::2, ::2], [1, 2, 2], field.shape)
    assert (found - field / 2)[body].std() < 0.02


def test_where_there_is_no_field_none_is_found():
    mr, body, field = lopsided(0.0)
    assert left(mr, body, field) < 0.02


def test_one_tissue_alone_is_left_to_n4(monkeypatch):
    mr, body, field = limb(0.3)
    one = mr.with_array(np.where(body, 300 * field, 0).astype(np.float32))
    found = log_bias_field(one, body)
    monkeypatch.setattr(bias_field, "_left_field", lambda *_: 0.0)
    np.testing.assert_array_equal(found, log_bias_field(one, body))


SHAPE, FACTORS = (10, 20, 24), [1, 2, 3]


def two_tissues(field: np.ndarray) -> np.ndarray:
    """Return the field that is found in blocks of two levels, half of each, of which a tenth are of neither tissue."""
    rng = np.random.default_rng(2)
    tissue = np.where(rng.random(SHAPE) < 0.5, 1.0, 0.3) * np.exp(rng.normal(0, 0.08, SHAPE))
    tissue = np.where(rng.random(SHAPE) < 0.1, rng.uniform(0.1, 1.5, SHAPE), tissue)
    whole = tuple(size * factor for size, factor in zip(SHAPE, FACTORS, strict=True))
    found = bias_field._left_field(tissue * np.exp(field), np.ones(SHAPE, bool), FACTORS, whole)
    return np.broadcast_to(found, whole)[:, ::2, 1::3]  # middles of three voxels; of two the first, a quarter block off


def known_field(scale: float) -> np.ndarray:
    coefficients = np.zeros((4, 4, 4))
    coefficients[0, 0, 1], coefficients[0, 1, 0], coefficients[2, 0, 0], coefficients[0, 1, 2] = 0.3, -0.1, 0.05, 0.08
    return scale * leggrid3d(*(np.linspace(-1, 1, size) for size in SHAPE), coefficients)


def test_the_field_of_two_tissues_is_found_wherever_they_lie():
    """Closed form: a polynomial of third order."""
    field = known_field(0.9)
    assert 0.16 < field.std() < bias_field.LARGEST_LEFT
    off = two_tissues(field) - field
    assert np.abs(off - off.mean()).max() < 0.035


def test_a_larger_field_than_n4_leaves_is_not_believed():
    """One tissue was taken for the other, most likely."""
    field = known_field(1.3)
    assert field.std() > bias_field.LARGEST_LEFT
    assert not two_tissues(field).any()


def test_beyond_the_body_the_field_stays_at_its_edge():
    """A polynomial of third order would run away there."""
    mr, body, _ = lopsided(0.4)
    wide = Volume(np.pad(mr.array, ((0, 0), (0, 0), (0, 64))), mr.spacing)
    inside = np.pad(body, ((0, 0), (0, 0), (0, 64)))
    blocks = np.where(inside, wide.array / 950, 0)[:, ::2, ::2]
    found = bias_field._left_field(blocks, inside[:, ::2, ::2], [1, 2, 2], wide.array.shape)
    np.testing.assert_array_equal(found[..., 70:], found[..., 69:70].repeat(58, axis=2))


def test_it_is_the_same_every_time_and_at_any_scale():
    mr, body, _ = lopsided(0.3)
    first = log_bias_field(mr, body)
    np.testing.assert_array_equal(first, log_bias_field(mr, body))
    np.testing.assert_allclose(log_bias_field(mr.with_array(40 * mr.array), body), first, atol=2e-3)
