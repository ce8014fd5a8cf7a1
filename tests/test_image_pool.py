"""Image pool: the filling phase, the statistics of the exchange, and exact restoring."""

import pytest
import torch
from torch import Tensor

from data.errors import InputError
from models.image_pool import ImagePool
from models.state_dicts import load_checkpoint, save_atomically


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(*numbers: int) -> Tensor:
    """Images of one value each, by which they are known again."""
    return torch.tensor(numbers, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 3).contiguous()


def values(images: Tensor) -> list[int]:
    assert images.shape[1:] == (1, 2, 3)
    assert (images == images[:, :, :1, :1]).all()
    return images[:, 0, 0, 0].int().tolist()


def test_pool_of_size_0_lets_images_pass():
    pool = ImagePool(0, seeded())
    for i in range(20):
        assert values(pool.query(numbered(i))) == [i]
    assert pool.images is None


def test_negative_size_is_refused():
    with pytest.raises(InputError, match="size is -1"):
        ImagePool(-1, seeded())


def test_filling_returns_the_images_themselves():
    pool = ImagePool(5, seeded())
    assert values(pool.query(numbered(0, 1, 2))) == [0, 1, 2]
    assert values(pool.query(numbered(3, 4))) == [3, 4]
    assert values(pool.images) == [0, 1, 2, 3, 4]


def test_every_image_is_returned_or_stored_and_none_twice():
    pool = ImagePool(4, seeded())
    pool.query(numbered(0, 1, 2, 3))
    out = [value for i in range(4, 104, 2) for value in values(pool.query(numbered(i, i + 1)))]
    # After filling, an image leaves once, whether at once or later; filling has returned 0 to 3 besides.
    assert sorted(out + values(pool.images)) == list(range(104))


def test_half_come_from_the_pool_and_any_place_in_it():
    size, queries = 10, 4000
    pool = ImagePool(size, seeded())
    pool.query(numbered(*range(size)))
    from_pool, places = 0, [0] * size
    for i in range(size, size + queries):
        before = values(pool.images)
        (value,) = values(pool.query(numbered(i)))
        after = values(pool.images)
        changed = [j for j in range(size) if after[j] != before[j]]
        if value == i:
            assert changed == []
        else:
            (place,) = changed
            assert value == before[place]
            assert after[place] == i
            from_pool += 1
            places[place] += 1
    # Four standard deviations of the binomial counts.
    assert abs(from_pool - queries / 2) < 4 * (queries / 4) ** 0.5
    assert all(abs(count - from_pool / size) < 4 * (from_pool / size) ** 0.5 for count in places)


def test_answers_have_no_gradient_and_stored_images_are_copies():
    pool = ImagePool(1, seeded())
    image = numbered(7).requires_grad_()
    out = pool.query(image * 1)
    assert not out.requires_grad
    pool = ImagePool(1, seeded())
    for i in range(1, 20):
        fake = numbered(i)
        pool.query(fake)
        fake.zero_()
        assert (pool.images[0] > 0).all()
    assert not ImagePool(0, seeded()).query(image * 1).requires_grad


def test_restored_pool_resumes_exactly(tmp_path):
    pool = ImagePool(3, seeded())
    for i in range(10):
        pool.query(numbered(i))
    save_atomically(pool.state_dict(), tmp_path / "pool.pth")
    ahead = [values(pool.query(numbered(i))) for i in range(10, 60)]

    restored = ImagePool(3, seeded(99))
    restored.load_state_dict(load_checkpoint(tmp_path / "pool.pth"))
    assert [values(restored.query(numbered(i))) for i in range(10, 60)] == ahead

    images_only = ImagePool(3, seeded(99))
    images_only.images = load_checkpoint(tmp_path / "pool.pth")["images"]
    assert [values(images_only.query(numbered(i))) for i in range(10, 60)] != ahead


def test_state_is_not_changed_by_later_queries():
    pool = ImagePool(2, seeded())
    pool.query(numbered(0, 1))
    state = pool.state_dict()
    kept = state["images"].clone(), state["generator"].clone()
    for i in range(2, 20):
        pool.query(numbered(i))
    assert torch.equal(state["images"], kept[0])
    assert torch.equal(state["generator"], kept[1])


def test_half_filled_pool_is_restored_and_resumes_filling():
    pool = ImagePool(3, seeded())
    pool.query(numbered(0))
    restored = ImagePool(3, seeded(1))
    restored.load_state_dict(pool.state_dict())
    assert values(restored.query(numbered(1, 2))) == [1, 2]
    assert len(pool.images) == 1


def test_restoring_does_not_tie_the_pool_to_the_state():
    pool = ImagePool(3, seeded())
    pool.query(numbered(0))
    state = pool.state_dict()
    pool.load_state_dict(state)
    pool.query(numbered(1))
    assert len(state["images"]) == 1


def test_state_of_another_size_is_refused():
    with pytest.raises(InputError, match="has size 2, this one 3"):
        ImagePool(3, seeded()).load_state_dict(ImagePool(2, seeded()).state_dict())


def test_answers_have_the_type_of_the_query():
    pool = ImagePool(1, seeded())
    pool.query(numbered(0))
    for i in range(1, 20):
        assert pool.query(numbered(i).double()).dtype == torch.float64


def test_images_of_one_query_may_be_swapped_with_each_other_as_if_they_came_one_by_one():
    """The second of a query may get the first back from the place that it was just stored in."""
    whole, single = ImagePool(1, seeded()), ImagePool(1, seeded())
    whole.query(numbered(0))
    single.query(numbered(0))
    seen = set()
    for i in range(1, 200, 2):
        before = values(whole.images)[0]
        first, second = values(whole.query(numbered(i, i + 1)))
        kept = values(whole.images)[0]
        seen.add((first == i, second == i + 1, second == i))
        # Of the three there were, each is given out or kept, none twice.
        assert sorted([first, second, kept]) == [before, i, i + 1]
    assert len(seen) == 4  # given out themselves or not, and the first one back with the second


def test_images_move_as_indexing_by_a_list_would_move_them_bit_for_bit(monkeypatch):
    pool, stored = ImagePool(5, seeded()), torch.empty(0, 1, 4, 4)
    exchange, decisions = pool._exchange, []
    monkeypatch.setattr(pool, "_exchange", lambda *counts: decisions.append(exchange(*counts)) or decisions[-1])
    source = seeded(1)
    for n in (1, 2, 3, 4) * 25:
        images = torch.randn(n, 1, 4, 4, generator=source)
        out = pool.query(images)
        given, kept = decisions[-1]
        everything = torch.cat([stored, images])
        stored = everything[kept]
        assert torch.equal(out, everything[given]) and torch.equal(pool.images, stored)
    assert len({place for given, _ in decisions for place in given}) > 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_not_waited_for_and_gives_what_the_cpu_gives():
    here, there = ImagePool(5, seeded()), ImagePool(5, seeded())
    there.query(numbered(0).cuda())  # whatever is set up once
    here.query(numbered(0))
    pairs = [(numbered(k, k + 1), numbered(k, k + 1).cuda()) for k in range(1, 101, 2)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        answers = [there.query(images) for _, images in pairs]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (images, _), answer in zip(pairs, answers, strict=True):
        assert torch.equal(here.query(images), answer.cpu())
    assert torch.equal(here.images, there.images.cpu())
