"""What the shape extractor learns from: the split by patient, labels, the order of slices, their augmentation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ct_segmentation import augmentation
from ct_segmentation.augmentation import add_couch, degrade, move
from ct_segmentation.training_data import ShapeSampler, ShapeSlices, SliceDraw, count_classes
from data.errors import InputError
from data.prepared.manifest import read_manifest
from data.prepared.splits import split_by_patient
from data.values.intensity import IntensityMap
from tests.shape_data import SIZE, write_prepared

CT_MAP = IntensityMap.window(-1000, 1400)
PATIENTS = [f"p{k}" for k in range(5)]


@pytest.fixture
def dataroot(tmp_path):
    write_prepared(tmp_path / "data", PATIENTS, cases_each=2)
    return tmp_path / "data"


def cases_of(dataroot):
    return read_manifest(dataroot).select("train", "B")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.01, 0.4, 0.99])
def test_no_patient_stands_on_both_sides(dataroot, seed, share):
    cases = cases_of(dataroot)
    training, validation = split_by_patient(cases, share, seed)
    sides = [{case.patient for case in side} for side in (training, validation)]
    assert not sides[0] & sides[1]
    assert sorted(case.name for case in training + validation) == sorted(case.name for case in cases)
    assert len(sides[1]) == {0.01: 1, 0.4: 2, 0.99: 4}[share]
    assert split_by_patient(cases[::-1], share, seed)[1] == validation[::-1]  # order does not matter


def test_split_depends_on_the_seed(dataroot):
    cases = cases_of(dataroot)
    assert len({split_by_patient(cases, 0.2, seed)[1][0].patient for seed in range(20)}) > 2


def test_unusable_splits_are_refused(dataroot):
    cases = cases_of(dataroot)
    with pytest.raises(InputError, match=r"1 CT patients .*expected 2 or more"):
        split_by_patient(cases[:2], 0.2, 0)
    twins = [replace(cases[0], name=p, patient=p) for p in "ab"]
    with pytest.raises(InputError, match="same volume under the patients"):
        split_by_patient(twins, 0.5, 0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [((0, 1), 1), ((0, 255), 1), ((0, 2), 1), ((0, 1, 2), 2), ((0, 1, 2, 3), 3)],
)
def test_number_of_classes(dataroot, values, expected):
    cases = cases_of(dataroot)
    for case in cases:
        np.save(dataroot / case.mask_file, np.resize(np.array(values, np.uint8), (6, SIZE, SIZE)))
    assert count_classes(dataroot, cases) == expected


@pytest.mark.parametrize("values", [(0,), (0, 1, 3), (0, 1, 255)])
def test_unclear_labels_are_refused(dataroot, values):
    cases = cases_of(dataroot)
    for case in cases:
        np.save(dataroot / case.mask_file, np.resize(np.array(values, np.uint8), (6, SIZE, SIZE)))
    with pytest.raises(InputError, match="CT masks have the labels"):
        count_classes(dataroot, cases)


def test_a_case_without_bone_label_is_named(dataroot, caplog):
    cases = cases_of(dataroot)
    array = np.load(dataroot / cases[3].mask_file)
    array[0, 10:12, 10:12] = 2
    np.save(dataroot / cases[3].mask_file, array)
    assert count_classes(dataroot, cases) == 2
    assert cases[0].name in caplog.text
    assert cases[3].name not in caplog.text


def test_every_slice_is_drawn_once_an_epoch_from_the_seed_alone(dataroot):
    slices = ShapeSlices.prepared(dataroot, cases_of(dataroot), CT_MAP, seed=3)
    assert len(slices) == 10 * 6  # those without body too
    sampler = ShapeSampler(len(slices), seed=3)
    draws = list(sampler)
    assert sorted(draw.index for draw in draws) == list(range(60))
    assert draws == list(sampler)
    sampler.set_epoch(2)
    assert [d.index for d in draws] != [d.index for d in sampler]
    assert [draw.position for draw in draws] == list(range(60))
    first, again = slices[SliceDraw(1, 7, 20)], slices[SliceDraw(1, 7, 20)]
    other = slices[SliceDraw(2, 7, 20)]
    assert all(torch.equal(first[name], again[name]) for name in ("image", "mask"))
    assert not torch.equal(first["image"], other["image"])


def disc(size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    body = ((rows - 28) ** 2 + (columns - 33) ** 2 < 15**2)[None]
    return torch.where(body, 0.2, -1.0), body.to(torch.uint8)


def test_move_takes_image_and_mask_alike_over_the_whole_range():
    image, mask = disc()
    areas, shifts = [], []
    for seed in range(200):
        moved, moved_mask = move(image, mask, np.random.default_rng(seed))
        assert set(moved_mask.unique().tolist()) <= {0, 1}
        # Linear and nearest interpolation may disagree on pixels of the outline only.
        assert int(((moved > -0.4) != (moved_mask > 0)).sum()) < 0.35 * 2 * np.pi * 15 * 1.3
        assert float(moved.min()) == pytest.approx(-1, abs=1e-5)
        assert float(moved.max()) < 0.2 + 1e-5
        areas.append(int(moved_mask.sum()) / int(mask.sum()))
        shifts.append(float((moved_mask[0].nonzero()[:, 1].float().mean() - 33) / 64))
    assert 0.75**2 - 0.05 < min(areas) < 0.62
    assert 1.45 < max(areas) < 1.25**2 + 0.05
    assert -0.15 < min(shifts) < -0.08
    assert 0.08 < max(shifts) < 0.15


def test_move_leaves_plain_air_plain():
    """No frame where the old edge of the image comes to lie."""
    air, mask = torch.full((1, 64, 64), -1.0), torch.zeros(1, 64, 64, dtype=torch.uint8)
    for seed in range(20):
        assert torch.equal(move(air, mask, np.random.default_rng(seed))[0], air)


def test_couch_is_painted_behind_the_body_and_never_on_it():
    image, mask = disc()
    seen = 0
    for seed in range(100):
        painted = add_couch(image, mask, np.random.default_rng(seed))
        changed = painted != image
        assert not (changed & (mask > 0)).any()
        for column in changed[0].any(dim=0).nonzero()[:, 0].tolist():
            body = mask[0, :, column].nonzero()[:, 0]
            if len(body):
                top = int(changed[0, :, column].nonzero()[0, 0])
                assert top > int(body.min())
        assert float(painted.min()) >= -1
        assert float(painted.max()) <= 0.4
        seen += bool(changed.any())
    assert seen > 90


def test_couch_without_a_body():
    image, mask = torch.full((1, 64, 64), -1.0), torch.zeros(1, 64, 64, dtype=torch.uint8)
    assert all((add_couch(image, mask, np.random.default_rng(seed)) > -1).any() for seed in range(10))


def test_degrading_keeps_the_range_and_draws_every_fault():
    image, _ = disc()
    results = [degrade(image, np.random.default_rng(seed))[0] for seed in range(80)]
    assert all(float(r.min()) >= -1 and float(r.max()) <= 1 for r in results)
    assert any(torch.equal(r, image[0]) for r in results)  # a share is left as it is
    inside = [r[20:36, 25:41] for r in results]
    spreads = [float(patch.std()) for patch in inside]
    values = [len((100 * patch).round().unique()) for patch in inside]
    assert sum(spread < 1e-5 for spread in spreads) > 10
    assert (
        sum(count == 2 and spread > 0.02 for count, spread in zip(values, spreads, strict=True)) > 3
    )  # a pattern alone
    assert sum(count > 10 for count in values) > 10  # noise
    flat = [k for k, spread in enumerate(spreads) if spread < 1e-5]
    contrasts = [float(inside[k].mean() - results[k][:8, :8].mean()) for k in flat]
    assert min(contrasts) < 0.9
    assert max(contrasts) > 1.3
    steepest = [
        float(results[k][28].diff().abs().max()) / contrast for k, contrast in zip(flat, contrasts, strict=True)
    ]
    assert min(steepest) < 0.6  # blur
    assert max(steepest) == pytest.approx(1, abs=1e-4)


def test_augmentation_moves_then_paints_couches_then_degrades(monkeypatch):
    image, mask = disc()
    couches = []
    monkeypatch.setattr(augmentation, "add_couch", lambda image, mask, rng: couches.append(mask) or image + 10)
    monkeypatch.setattr(augmentation, "degrade", lambda image, rng: 2 * image)
    for seed in range(200):
        moved, moved_mask = move(image, mask, np.random.default_rng(seed))
        before = len(couches)
        found, found_mask = augmentation.augment(image, mask, np.random.default_rng(seed))
        assert torch.equal(found_mask, moved_mask)
        assert torch.equal(found, 2 * (moved + 10 * (len(couches) - before)))
        assert all(torch.equal(couch, moved_mask) for couch in couches[before:])
    assert 0.35 * 200 < len(couches) < 0.65 * 200
