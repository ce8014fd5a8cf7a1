"""Bias fields: what N4 finds, and what it leaves and two tissues show."""

import numpy as np
import pytest
from numpy.polynomial.legendre import leggrid3d

from data.errors import InputError
from data.values import bias_field
from data.values.bias_field import log_bias_field, without_field
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
    return Volume(array, (2.0, 2.5, 4.0)), body, field


def left(mr: Volume, body: np.ndarray, field: np.ndarray) -> float:
    """Return the standard deviation of what is left of a log field in the body."""
    return float((log_bias_field(mr, body) - field)[body].std())


def test_a_smooth_bias_field_is_found():
    mr, body, field = limb(0.4)
    found = log_bias_field(mr, body)
    assert found.dtype == np.float32 and found.shape == mr.array.shape
    assert found[body & (mr.array > 0)].mean() == pytest.approx(0, abs=1e-4)  # the scale stays
    assert np.log(field[body]).std() > 0.2
    assert left(mr, body, np.log(field)) < 0.06
    np.testing.assert_allclose(log_bias_field(mr.with_array(3 * mr.array), body), found, atol=1e-3)


def test_dividing_by_a_field_undoes_it():
    mr, _, field = limb(0.4)
    divided = without_field(mr, np.log(field))
    np.testing.assert_allclose(divided.array * field, mr.array, rtol=1e-5)
    assert divided.array.dtype == np.float32 and divided.origin == mr.origin


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("tissues", [True, False], ids=["with what two tissues show", "N4 alone"])
def test_the_order_of_the_voxels_does_not_matter(axes, tissues, monkeypatch):
    """Their numbers are no multiples of a block's, so parts of the outermost blocks lie outside the image."""
    if not tissues:
        monkeypatch.setattr(bias_field, "_add_left_field", lambda *_: None)
    whole, _, _ = limb(0.4)
    part = Volume(whole.array[1:, 3:, 1:].copy(), (1.1, 1.1, 2.0))  # blocks of 4 or 5, 2 or 3
    body = part.array > 60
    turned = part.with_array(np.flip(part.array, axes).copy())
    found = np.flip(log_bias_field(turned, np.flip(body, axes).copy()), axes)
    np.testing.assert_allclose(found, log_bias_field(part, body), atol=4e-3)


def test_without_a_field_little_is_found():
    mr, body, _ = limb(0.0)
    assert log_bias_field(mr, body)[body].std() < 0.03


def test_what_n4_leaves_is_found(monkeypatch):
    """N4 is stopped early, so that it leaves nearly the whole field."""
    mr, body, field = lopsided(0.25)
    monkeypatch.setattr(bias_field, "N4_ITERATIONS", (10,))
    assert left(mr, body, field) < 0.01
    monkeypatch.setattr(bias_field, "_add_left_field", lambda *_: None)
    assert left(mr, body, field) > 0.15


def test_where_there_is_no_field_none_is_found():
    mr, body, field = lopsided(0.0)
    assert left(mr, body, field) < 0.02


def test_one_tissue_alone_is_left_to_n4(monkeypatch):
    mr, body, field = limb(0.3)
    one = mr.with_array(np.where(body, 300 * field, 0).astype(np.float32))
    found = log_bias_field(one, body)
    monkeypatch.setattr(bias_field, "_add_left_field", lambda *_: None)
    np.testing.assert_array_equal(found, log_bias_field(one, body))


SHAPE, FACTORS = (10, 20, 24), [1, 2, 3]


def two_tissues(field: np.ndarray) -> np.ndarray:
    """Return the field that is found in blocks of two levels, half of each, of which a tenth are of neither tissue."""
    rng = np.random.default_rng(2)
    shape = field.shape
    tissue = np.where(rng.random(shape) < 0.5, 1.0, 0.3) * np.exp(rng.normal(0, 0.08, shape))
    tissue = np.where(rng.random(shape) < 0.1, rng.uniform(0.1, 1.5, shape), tissue)
    found = np.zeros([size * factor for size, factor in zip(shape, FACTORS, strict=True)], np.float32)
    bias_field._add_left_field(found, tissue * np.exp(field), np.ones(shape, bool), FACTORS, [0, 0, 0])
    return found[:, ::2, 1::3]  # middles of three voxels; of two the first, a quarter of a block off


def known_field(scale: float, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    coefficients = np.zeros((4, 4, 4))
    coefficients[0, 0, 1], coefficients[0, 1, 0], coefficients[2, 0, 0], coefficients[0, 1, 2] = 0.3, -0.1, 0.05, 0.08
    return scale * leggrid3d(*(np.linspace(-1, 1, size) for size in shape), coefficients)


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


def test_few_blocks_show_no_field():
    """A body of a few centimetres: noise alone would look like a field."""
    few = (8, 10, 12)
    assert np.prod(few) < bias_field.FEWEST_BLOCKS
    assert not two_tissues(known_field(0.9, few)).any()


def test_as_many_blocks_as_count_are_enough(monkeypatch):
    """Of more, those that count are drawn over the whole body."""
    monkeypatch.setattr(bias_field, "MOST_BLOCKS", 2_000)
    field = known_field(0.9)
    off = two_tissues(field) - field
    assert np.abs(off - off.mean()).max() < 0.06


def test_a_body_thinner_than_a_block_is_left_to_n4():
    thin = np.zeros((4, 16, 16), np.float32)
    thin[1:3, 7, 7] = 500
    assert np.isfinite(log_bias_field(Volume(thin, (1.0, 1.0, 4.0)), thin > 0)).all()


def test_a_single_slice_is_refused():
    mr, body, _ = limb(0.1)
    with pytest.raises(InputError, match=r"the bias field of 56 x 56 x 1 voxels cannot be corrected: give several"):
        log_bias_field(Volume(mr.array[:1], mr.spacing), body[:1])


def test_beyond_the_body_the_field_stays_at_its_edge():
    """A polynomial of third order would run away there."""
    mr, body, _ = lopsided(0.4)
    wide = np.pad(mr.array, ((0, 0), (0, 0), (0, 64)))
    inside = np.pad(body, ((0, 0), (0, 0), (0, 64)))
    found = np.zeros(wide.shape, np.float32)
    blocks = np.where(inside, wide / 950, 0)[:, ::2, ::2]
    bias_field._add_left_field(found, blocks, inside[:, ::2, ::2], [1, 2, 2], [0, 0, 0])
    assert found.std() > 0.05
    np.testing.assert_array_equal(found[..., 70:], found[..., 69:70].repeat(58, axis=2))


def test_it_is_the_same_every_time_and_at_any_scale():
    mr, body, _ = lopsided(0.3)
    first = log_bias_field(mr, body)
    np.testing.assert_array_equal(first, log_bias_field(mr, body))
    np.testing.assert_allclose(log_bias_field(mr.with_array(40 * mr.array), body), first, atol=1e-3)


@pytest.mark.parametrize("size", range(4, 40))
@pytest.mark.parametrize("mm", [0.5, 0.98, 1.5, 3.0, 9.0])
def test_blocks_are_whole_and_lie_evenly(size, mm):
    factor, margin = bias_field._blocks(size, mm)
    assert (size + 2 * margin) % factor == 0 and margin < factor
    assert factor - max(1, min(round(4.5 / mm), size // 4)) in (0, 1)
