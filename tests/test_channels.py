"""Channels of training samples: contrasts x neighbouring slices, in one order, under one transform."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import InputError
from data.loading.augmentation import Augmentation
from data.loading.channels import middle_channel
from data.loading.single_dataset import SingleDataset
from data.loading.slices import mr_windows
from data.loading.unaligned_dataset import Draw, open_unaligned
from data.prepared.manifest import Case, FurtherContrast, Manifest, read_manifest
from data.simulation.contrasts import contrasts_to_simulate, shown_alike
from data.simulation.simulated_mr import SimulatedPairs
from data.values.intensity import IntensityMap
from data.values.mr_rules import parse_mr_rules, rules_in_order
from data.volumes.slice_frame import SliceFrame
from data.volumes.volume import Volume
from tests.test_datasets import CT_MAP, SIZE, make_case
from tests.test_simulated_mr import limb

FAT = FurtherContrast("fat", "m_fat.nii.gz", "f", None, percentiles=(0.0, 1000.0), mr_median=5.0, fat_level=500.0)
FRAME = SliceFrame((SIZE, SIZE, 5), (1.0, 1.0, 3.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0), SIZE, 1.0)


def write_dataroot(root: Path, spacings=(3.0, 3.0)) -> Path:
    """Write an MR of two contrasts and a CT of 5 slices, 3 of them with body; values tell slice and contrast."""
    frames = [replace(FRAME, source_spacing=(1.0, 1.0, mm)).to_dict() for mm in spacings]
    mr = replace(make_case("m", "A"), frame=frames[0], contrast="in_phase", further=(FAT,))
    ct = replace(make_case("c", "B"), frame=frames[1])
    for case in (mr, ct):
        for c, file in enumerate((*case.image_files, case.mask_file)):
            values = (np.arange(5.0) + 100 * c)[:, None, None] * np.ones((1, SIZE, SIZE))
            values[:, :, 0] += 50  # a column that mirroring moves
            (root / file).parent.mkdir(exist_ok=True, parents=True)
            kind = np.uint8 if file == case.mask_file else np.float32 if case.domain == "A" else np.int16
            np.save(root / file, values.astype(kind))
    Manifest(SIZE, 1.0, None, (mr, ct), {}).write(root)
    return root


def open_slabs(root: Path, slab: int = 1, rule="percentile", **more):
    return open_unaligned(root, rule, CT_MAP, Augmentation(flip=more.pop("flip", "")), True, 5, slab=slab, **more)


def in_units(case: Case, image) -> np.ndarray:
    """Return an image (C, S, H, W) of network values in MR units."""
    windows = mr_windows(case, "percentile")
    return np.stack([window.to_physical(np.asarray(part)) for window, part in zip(windows, image, strict=True)])


def test_channels_are_contrast_major_and_the_ends_repeat_the_last_slice(tmp_path):
    dataset = open_slabs(write_dataroot(tmp_path), slab=3)
    assert (dataset.slab, dataset.contrasts, dataset.slice_mm) == (3, ("in_phase", "fat"), 3.0)
    assert len(dataset.a) == 3
    case = read_manifest(tmp_path).select("train", "A")[0]
    for index, slices in enumerate([(1, 1, 2), (1, 2, 3), (2, 3, 3)]):
        item = dataset.a.read(index, with_mask=True)
        assert (item.image.shape, item.mask.shape) == ((6, SIZE, SIZE), (3, SIZE, SIZE))
        found = in_units(case, item.image.reshape(2, 3, SIZE, SIZE))[..., 1, 1]
        np.testing.assert_allclose(found, [slices, np.add(slices, 100)], atol=1e-3)
        assert item.mask[:, 1, 1].tolist() == [z + 200 for z in slices]
        assert item.origin == f"m:{index + 1}"
        assert item.origin == f"m:{slices[middle_channel(3)]}"
        assert CT_MAP.to_physical(dataset.b.read(index, False).image[:, 1, 1]) == pytest.approx(slices, abs=1e-3)


def test_all_channels_and_masks_go_through_one_transform(tmp_path):
    dataset = open_slabs(write_dataroot(tmp_path), slab=3, flip="x")
    sides = set()
    for position in range(8):
        sample = dataset[Draw(1, position, 1, 1)]
        assert (sample["A"].shape, sample["B"].shape, sample["mask_A"].shape) == tuple(
            (channels, SIZE, SIZE) for channels in (6, 3, 3)
        )
        bright = [sample[key].float()[..., [0, -1]].argmax(-1) for key in ("A", "mask_A")]
        side = set(torch.cat([planes.flatten() for planes in bright]).tolist())
        assert len(side) == 1
        sides |= side
    assert sides == {0, 1}


def test_use_stacks_channels_in_the_order_of_training(tmp_path):
    """What `SingleDataset` makes of the body's slices is what training reads."""
    dataset = open_slabs(write_dataroot(tmp_path), slab=3)
    windows = mr_windows(read_manifest(tmp_path).select("train", "A")[0], "percentile")
    volume = [np.load(tmp_path / file)[1:4] for file in ("trainA/m.npy", "trainA/fat/m.npy")]
    slices = np.stack([window.to_network(v) for window, v in zip(windows, volume, strict=True)], axis=1)
    slabs = SingleDataset(slices, 3)
    for index in range(3):
        np.testing.assert_array_equal(slabs[index], dataset.a.read(index, False).image)


def test_each_contrast_has_its_own_window(tmp_path):
    case = read_manifest(write_dataroot(tmp_path)).select("train", "A")[0]
    ranges = [
        [w.range for w in mr_windows(case, rule)]
        for rule in ("percentile", {"fat": (3.0, 9.0), "in_phase": "percentile"})
    ]
    assert ranges == [[(0, 100), (0, 1000)], [(0, 100), (3, 9)]]
    assert mr_windows(case, {"in_phase": (0.0, 1.0), "fat": "tissue"})[1].range == pytest.approx((0, 500 * 1200 / 950))
    with pytest.raises(InputError, match="--mr_window: no fat; expected in_phase, fat"):
        mr_windows(case, {"in_phase": "percentile"})
    with pytest.raises(InputError, match=r"--mr_window water=\.\.\.: no such contrast"):
        mr_windows(case, {"in_phase": "percentile", "fat": "percentile", "water": "percentile"})


def test_rules_by_name_are_parsed():
    assert (parse_mr_rules(["percentile"]), parse_mr_rules(["0", "400"])) == ("percentile", (0.0, 400.0))
    rules = parse_mr_rules(["in_phase=tissue", "fat=-5:400"])
    assert rules == {"in_phase": "tissue", "fat": (-5.0, 400.0)}
    assert rules_in_order(rules, ["fat", "in_phase"]) == [(-5.0, 400.0), "tissue"]
    assert rules_in_order((0.0, 1.0), ["a", "b"]) == [(0.0, 1.0)] * 2
    for words, message in (
        (["a=tissue", "a=percentile"], "a is given twice"), (["a=wide"], "expected NAME=percentile, NAME=tissue"),
        (["a=4:1"], "LO below HI"), (["a=tissue", "percentile"], "expected NAME=percentile"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            parse_mr_rules(words)


def test_slabs_need_one_spacing_between_slices(tmp_path):
    with pytest.raises(InputError, match=r"slices of m lie 3 mm apart, those of c 5 mm; .*--slice_mm"):
        open_slabs(write_dataroot(tmp_path, (3.0, 5.0)), slab=3)
    assert open_slabs(tmp_path).slice_mm is None
    assert open_slabs(write_dataroot(tmp_path / "near", (3.0, 3.2)), slab=3).slice_mm == pytest.approx(3.1)


def test_images_have_no_neighbours(tmp_path):
    with pytest.raises(InputError, match=r"--slab 3: .* holds images"):
        open_slabs(tmp_path, slab=3)


def test_a_contrast_whose_file_is_gone_is_named(tmp_path):
    write_dataroot(tmp_path)
    (tmp_path / "trainA/fat/m.npy").unlink()
    with pytest.raises(InputError, match=r"trainA/fat/m\.npy: no such file"):
        open_slabs(tmp_path)


def test_contrasts_are_simulated_where_it_is_known_what_they_show():
    assert contrasts_to_simulate(("fat", "in_phase")) == ("fat", "in_phase")
    assert contrasts_to_simulate(("mr",)) == contrasts_to_simulate(("flair",)) == ("mr",)
    assert contrasts_to_simulate(("in_phase", "flair")) is None
    assert shown_alike(("mr",), ("in_phase",)) and shown_alike(("flair",), ("mr",))
    assert not shown_alike(("water",), ("mr",)) and not shown_alike(("in_phase", "fat"), ("fat", "in_phase"))


def test_other_contrasts_are_not_simulated(tmp_path):
    root = write_dataroot(tmp_path)
    manifest = (root / "manifest.json").read_text()
    (root / "manifest.json").write_text(manifest.replace('"fat"', '"flair"'))
    (root / "trainA/fat").rename(root / "trainA/flair")
    with pytest.raises(InputError, match="contrasts in_phase, flair; those that can be simulated are in_phase"):
        open_slabs(root, simulate_mr=True)


def test_simulated_slabs_are_one_scan():
    """Contrast and bias are one for all slices of a slab, noise is each slice's own; the single slice is as before."""
    ct_map = IntensityMap.window(-1000, 1400)
    plane = limb(96, (48, 48))[0]
    ct = torch.from_numpy(np.stack([ct_map.to_network(plane)] * 3))
    apart, between = [], []
    for seed in range(6):
        mr, target = SimulatedPairs(ct_map, 1.0, 3.0)(ct, np.random.default_rng(seed))
        assert mr.shape == target.shape == ct.shape
        seen = target[0] != -1
        assert torch.equal(target[0], target[2])
        apart.append((mr[0] - mr[1])[seen].abs().mean())
        between.append(mr[1][seen].mean())
        assert apart[-1] > 0
    assert max(apart) < 0.2
    assert np.std(between) > 0.05
    single = SimulatedPairs(ct_map, 1.0)(ct[:1], np.random.default_rng(0))[0]
    assert single.shape == (1, 96, 96)


def test_the_middle_channel_is_the_slabs_own_slice():
    volume = Volume(np.arange(4.0, dtype=np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32))
    slab = SingleDataset(volume.array, 5)[2]
    assert slab[middle_channel(5), 0, 0] == 2
