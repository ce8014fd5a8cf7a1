"""Training slices: values, masks under the same transform, order from the seed alone."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.errors import InputError
from data.loading.augmentation import Augmentation
from data.loading.batches import collate, load_batches
from data.loading.single_dataset import SingleDataset
from data.loading.slices import ImageFolderSlices, PreparedSlices, Slice
from data.loading.unaligned_dataset import Draw, UnalignedSampler, open_unaligned
from data.prepared.manifest import Case, Manifest, read_manifest
from data.values.intensity import IntensityMap

CT_MAP = IntensityMap.window(-1000, 1400)
SIZE = 16


def make_case(name: str, domain: str, body_slices=(1, 4), split="train") -> Case:
    return Case(
        name=name, patient=name, split=split, domain=domain, source=f"{name}.nii.gz", source_sha256=name,
        mask_source_sha256=None, extent_mm=10.0, in_plane_mm=1.0,
        percentiles=(0.0, 100.0) if domain == "A" else None, slices=5, body_slices=body_slices,
    )  # fmt: skip


def write_dataroot(folder):
    """Write two MR of 3 + 3 body slices whose voxel values tell case and slice, and three CT of 2 body slices each."""
    cases = [make_case("m1", "A"), make_case("m2", "A")]
    cases += [make_case(f"c{k}", "B", (2, 4)) for k in range(3)]
    for k, case in enumerate(cases):
        values = (k * 10 + np.arange(5))[:, None, None] * np.ones((1, SIZE, SIZE))
        values[:, :, 0] = 50  # a column that flipping moves
        mask = (values == 50).astype(np.uint8)
        array = values.astype(np.float32 if case.domain == "A" else np.int16)
        for file, data in ((case.image_file, array), (case.mask_file, mask)):
            (folder / file).parent.mkdir(exist_ok=True)
            np.save(folder / file, data)
    Manifest(SIZE, 1.0, None, tuple(cases), {}).write(folder)
    return folder


@pytest.fixture
def dataroot(tmp_path):
    return write_dataroot(tmp_path)


def open_plain(dataroot, **augmentation):
    return open_unaligned(dataroot, "percentile", CT_MAP, Augmentation(**augmentation), masks=True, seed=5)


def test_slices_are_the_body_s_in_their_windows(dataroot):
    dataset = open_plain(dataroot)
    assert (len(dataset.a), len(dataset.b), len(dataset)) == (6, 6, 6)
    found = [(dataset.a.read(k, True).origin, float(dataset.a.read(k, True).image[0, 0, 1])) for k in range(6)]
    origins = ["m1:1", "m1:2", "m1:3", "m2:1", "m2:2", "m2:3"]
    values = np.array([1, 2, 3, 11, 12, 13]) / 50 - 1  # window 0 .. 100
    assert [origin for origin, _ in found] == origins
    np.testing.assert_allclose([value for _, value in found], values, atol=1e-6)
    hu = [CT_MAP.to_physical(dataset.b.read(k, False).image[0, 0, 1]) for k in range(6)]
    np.testing.assert_allclose(hu, [22, 23, 32, 33, 42, 43], atol=1e-3)


def test_a_sample_has_the_declared_shapes_and_ranges(dataroot):
    sample = open_plain(dataroot)[Draw(1, 0, 2, 3)]
    assert sample["A"].shape == sample["B"].shape == sample["mask_A"].shape == (1, SIZE, SIZE)
    assert (sample["A"].dtype, sample["mask_A"].dtype) == (torch.float32, torch.uint8)
    assert (sample["origin_A"], sample["origin_B"]) == ("m1:3", "c1:3")
    torch.testing.assert_close(sample["mask_A"].bool(), (sample["A"] == 0.0))  # value 50 of 0 .. 100


@pytest.mark.parametrize("options", [{"preprocess": "crop", "crop_size": 11}, {"preprocess": "none"}])
def test_slice_and_mask_go_through_the_same_transform(options):
    image = np.random.default_rng(0).random((SIZE, SIZE)).astype(np.float32)
    item = Slice(image[None], (image > 0.5).astype(np.uint8)[None], "x")
    augmentation = Augmentation(**options, flip="x")
    seen = set()
    for seed in range(40):
        transformed, mask = augmentation(item, np.random.default_rng(seed))
        torch.testing.assert_close(mask.bool(), transformed > 0.5)
        places = [(f, y, x) for f in (False, True) for y in range(6) for x in range(6)
                  if transformed.shape[-1] + x <= SIZE and transformed.shape[-1] + y <= SIZE
                  and np.array_equal(crop(image, y, x, transformed.shape[-1], f), transformed[0].numpy())]  # fmt: skip
        assert len(places) == 1  # a true window of the slice, flipped or not
        seen.add(places[0])
    assert {flipped for flipped, _, _ in seen} == {False, True}
    if options["preprocess"] == "crop":
        assert {y for _, y, _ in seen} == {x for _, _, x in seen} == set(range(6))


def crop(image, y, x, size, flipped):
    window = image[y : y + size, x : x + size]
    return window[:, ::-1] if flipped else window


def test_flip_is_off_unless_asked_for(dataroot):
    dataset = open_plain(dataroot)
    for position in range(30):
        assert float(dataset[Draw(1, position, 0, 0)]["A"][0, 0, 0]) == 0.0  # the marked column stays at the left


def test_resizing_keeps_mask_and_slice_together():
    image = np.full((SIZE, SIZE), -1.0, np.float32)
    image[4:12, 6:10] = 1.0
    item = Slice(image[None], (image > 0).astype(np.uint8)[None], "x")
    transformed, mask = Augmentation("resize_and_crop", load_size=32, crop_size=32)(item, np.random.default_rng(0))
    assert mask.shape == transformed.shape == (1, 32, 32)
    torch.testing.assert_close(mask.bool(), transformed > 0)
    assert int(mask.sum()) == 16 * 8


def test_impossible_crops_are_refused(dataroot):
    with pytest.raises(InputError, match="--crop_size 300 is larger than --load_size 286"):
        Augmentation("resize_and_crop", load_size=286, crop_size=300)
    dataset = open_plain(dataroot, preprocess="crop", crop_size=20)
    for threads in (0, 2):
        with pytest.raises(InputError, match="m1:1: slice of 16 x 16 pixels, --crop_size 20 is larger"):
            next(load_batches(dataset, [Draw(1, 0, 0, 0)], 1, threads))


def draws(dataset, epoch, start=0, seed=5, limit=None):
    sampler = UnalignedSampler(dataset, seed, limit)
    sampler.set_epoch(epoch, start)
    assert len(list(sampler)) == len(sampler)
    return list(sampler)


def test_every_slice_is_drawn_equally_often(dataroot):
    dataset = open_plain(dataroot)
    dataset.b = PreparedSlices(dataroot, [make_case("c0", "B", (0, 15))], [(CT_MAP,)])
    order = draws(dataset, epoch=1)
    assert sorted(draw.index_B for draw in order) == list(range(15))
    counts = np.bincount([draw.index_A for draw in order], minlength=6)
    assert set(counts) == {2, 3}
    assert len(draws(dataset, epoch=1, limit=4)) == 4


def test_serial_batches_take_both_domains_in_their_own_order(dataroot):
    dataset = open_plain(dataroot)
    dataset.b = PreparedSlices(dataroot, [make_case("c0", "B", (0, 15))], [(CT_MAP,)])
    sampler = UnalignedSampler(dataset, seed=5, serial=True)
    for epoch in (1, 2):
        sampler.set_epoch(epoch, 4)
        assert list(sampler) == [Draw(epoch, k, k % len(dataset.a), k) for k in range(4, 15)]


def test_order_derives_from_seed_and_epoch_and_resumes_in_mid_epoch(dataroot):
    dataset = open_plain(dataroot)
    first = draws(dataset, epoch=3)
    assert draws(dataset, epoch=3) == first
    assert draws(dataset, epoch=3, start=4) == first[4:]
    assert draws(dataset, epoch=4) != [draw._replace(epoch=4) for draw in first]
    assert draws(dataset, epoch=3, seed=6) != first
    # A and B are not drawn in lockstep: the pairs differ from epoch to epoch.
    pairs = [{(d.index_A, d.index_B) for d in draws(dataset, epoch)} for epoch in range(1, 9)]
    assert len(set.union(*pairs)) > 20


class Lengths:
    """All that a sampler asks of a data set."""

    def __init__(self, a, b):
        self.a, self.b = range(a), range(b)

    def __len__(self):
        return max(len(self.a), len(self.b))


def test_the_order_is_that_of_whole_permutations_from_seed_and_epoch():
    """As runs that were begun earlier have it."""
    found = draws(Lengths(13, 5), epoch=4, seed=9)
    rng = np.random.default_rng([9, 4])
    order_a, order_b = rng.permutation(13), np.concatenate([rng.permutation(5) for _ in range(3)])[:13]
    assert [draw.index_A for draw in found] == order_a.tolist()
    assert [draw.index_B for draw in found] == order_b.tolist()
    assert [draw.position for draw in found] == list(range(13))


def test_the_order_takes_eight_bytes_a_slice():
    tracemalloc.start()
    try:
        order = iter(UnalignedSampler(Lengths(200_000, 70_000), seed=5))
        next(order)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / 200_000 == pytest.approx(8, rel=0.1)


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(dataroot, workers):
    def batches(num_workers):
        dataset = open_plain(dataroot, preprocess="crop", crop_size=9, flip="x")
        sampler = UnalignedSampler(dataset, seed=5)
        found = list(load_batches(dataset, sampler, 2, num_workers))
        assert [len(batch["origin_A"]) for batch in found] == [2, 2, 2]
        return found

    for plain, parallel in zip(batches(0), batches(workers), strict=True):
        for key in ("A", "B", "mask_A"):
            assert torch.equal(plain[key], parallel[key])
        assert plain["origin_A"] == parallel["origin_A"]


def save_image(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def image_folder(tmp_path):
    ramp = np.arange(SIZE * SIZE).reshape(SIZE, SIZE)
    save_image(tmp_path / "trainA/mr_01.png", ramp.astype(np.uint8))
    save_image(tmp_path / "maskA/mrmask_01.png", ((ramp > 100) * 255).astype(np.uint8))
    save_image(tmp_path / "trainA/mr_02.png", np.full((SIZE, SIZE), 255, np.uint8))
    save_image(tmp_path / "maskA/mr_02.png", np.full((SIZE, SIZE), 255, np.uint8))
    save_image(tmp_path / "trainB/ct.png", (ramp * 257).astype(np.uint16))
    return tmp_path


def test_plain_image_folders_of_8_and_16_bits_are_read(image_folder):
    dataset = open_plain(image_folder)
    sample = dataset[Draw(1, 0, 0, 0)]
    expected = torch.arange(SIZE * SIZE).reshape(1, SIZE, SIZE) / 255 * 2 - 1
    torch.testing.assert_close(sample["A"], expected)
    torch.testing.assert_close(sample["B"], expected)
    torch.testing.assert_close(sample["mask_A"], (torch.arange(256).reshape(1, SIZE, SIZE) > 100).to(torch.uint8))
    # A constant, all-foreground mask stays all foreground.
    assert int(dataset[Draw(1, 0, 1, 0)]["mask_A"].sum()) == SIZE * SIZE


def test_only_the_prefix_of_a_published_name_becomes_a_mask_s(tmp_path):
    save_image(tmp_path / "trainA/mr_ct_01.png", np.zeros((4, 4), np.uint8))
    save_image(tmp_path / "maskA/mrmask_ct_01.png", np.zeros((4, 4), np.uint8))
    images = ImageFolderSlices(tmp_path / "trainA", tmp_path / "maskA", with_masks=True)
    assert images.masks == [tmp_path / "maskA/mrmask_ct_01.png"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"])
def test_gray_of_every_common_mode_is_read(tmp_path, mode):
    steps = np.array([[0, 255], [255, 0]], np.uint8)
    (tmp_path / "trainA").mkdir()
    deep = mode.startswith("I")
    suffix = "tif" if deep else "png"
    image = Image.fromarray(steps.astype({"I": np.int32, "I;16": np.uint16}[mode]) * 257 if deep else steps)
    (image if deep else image.convert(mode)).save(tmp_path / f"trainA/a.{suffix}")
    read = ImageFolderSlices(tmp_path / "trainA", tmp_path, with_masks=False).read(0, False).image
    np.testing.assert_allclose(read, steps[None] / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((4, 4), 0.5, np.float32), "pixels of mode F"),
        (np.full((4, 4), 70000, np.int32), r"values 70000 \.\. 70000"),
        (np.full((4, 4), -5, np.int32), r"values -5 \.\. -5"),
    ],
)
def test_images_without_a_known_range_are_refused(tmp_path, pixels, reason):
    save_image(tmp_path / "trainA/a.tif", pixels)
    with pytest.raises(InputError, match=rf"a\.tif: {reason}.*scripts\.prepare_dataset"):
        ImageFolderSlices(tmp_path / "trainA", tmp_path, with_masks=False).read(0, False)


def test_image_folder_errors_name_the_file(image_folder):
    (image_folder / "maskA/mr_02.png").unlink()
    with pytest.raises(InputError, match=r"no mask for mr_02\.png; expected mr_02\.png or mrmask_02\.png"):
        open_plain(image_folder)
    with pytest.raises(InputError, match=r"nowhere.*no such folder"):
        open_plain(image_folder / "nowhere")
    (image_folder / "trainB/ct.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"ct\.png: cannot be read as an image"):
        ImageFolderSlices(image_folder / "trainB", image_folder, with_masks=False).read(0, False)
    (image_folder / "trainB/ct.png").unlink()
    with pytest.raises(InputError, match="no image"):
        ImageFolderSlices(image_folder / "trainB", image_folder, with_masks=False)


def test_slices_of_different_sizes_do_not_make_a_batch():
    samples = [{"A": torch.zeros(1, s, s), "origin_A": f"s{s}"} for s in (8, 9)]
    with pytest.raises(InputError, match=r"different sizes in one batch \(s8, s9\)"):
        collate(samples)


def test_single_dataset_keeps_order():
    slices = np.random.default_rng(0).random((5, 3, 4)).astype(np.float32)
    batches = list(DataLoader(SingleDataset(slices), 2))
    np.testing.assert_array_equal(torch.cat(batches)[:, 0].numpy(), slices)


def test_the_manifest_refuses_what_would_spoil_results(dataroot):
    manifest = read_manifest(dataroot)
    assert manifest.select("train", "A")[0] == make_case("m1", "A")
    path = dataroot / "manifest.json"
    with pytest.raises(InputError, match="is in both train and test: m1"):
        leaking = [*manifest.cases, replace(make_case("t1", "A", split="test"), patient="m1")]
        replace(manifest, cases=tuple(leaking)).write(dataroot)
        read_manifest(dataroot)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(InputError, match="format version 99, expected 1"):
        read_manifest(dataroot)
    path.write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_manifest(dataroot)


def test_a_prepared_file_that_is_gone_or_damaged_is_named(dataroot):
    (dataroot / "trainA/m1.npy").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"m1\.npy: cannot be read"):
        open_plain(dataroot)[Draw(1, 0, 0, 0)]
    (dataroot / "trainA/m1.npy").unlink()
    with pytest.raises(InputError, match=r"m1\.npy: no such file, but the manifest names it"):
        open_plain(dataroot)


def test_arrays_of_another_frame_are_refused(dataroot):
    case = replace(make_case("m1", "A"), frame={"size": SIZE, "spacing_mm": 1.0, "slice_mm": None})
    window = IntensityMap.window(0, 100)
    assert len(PreparedSlices(dataroot, [case], [(window,)])) == 3
    for wrong in (replace(case, slices=6), replace(case, frame=case.frame | {"size": SIZE + 4})):
        with pytest.raises(InputError, match=r"m1\.npy: array of shape \(5, 16, 16\), the manifest says"):
            PreparedSlices(dataroot, [wrong], [(window,)])
    np.save(dataroot / case.mask_file, np.zeros((5, SIZE, SIZE + 1), np.uint8))
    with pytest.raises(InputError, match="maskA"):
        PreparedSlices(dataroot, [case], [(window,)])


def test_body_crops_show_body_wherever_it_is():
    """A body of one pixel in a corner or in the middle: every crop holds it, in its middle where there is room."""
    augment = Augmentation(preprocess="body_crop", crop_size=8)
    for place, expected in (((1, 2), (1, 2)), ((15, 20), (4, 4)), ((30, 38), (6, 6))):
        image = np.full((32, 40), -1, np.float32)
        image[place] = 1
        item = Slice(image[None], (image > 0).astype(np.uint8)[None], "x")
        for seed in range(5):
            crop, mask = augment(item, np.random.default_rng(seed))
            assert crop.shape == mask.shape == (1, 8, 8)
            assert tuple(np.argwhere(crop[0].numpy() == 1)[0]) == expected
    empty = Slice(np.full((1, 32, 40), -1, np.float32), np.zeros((1, 32, 40), np.uint8), "x")
    assert augment(empty, np.random.default_rng(0))[0].shape == (1, 8, 8)


def test_turning_and_zooming_move_slice_and_mask_alike_and_bring_in_air():
    y, x = np.mgrid[:64, :64]
    disc = np.hypot(y - 20, x - 40) < 8
    item = Slice(np.where(disc, 1, -1).astype(np.float32)[None], disc.astype(np.uint8)[None], "x")
    turned = Augmentation(rotate_deg=30)
    radius = np.hypot(20 - 31.5, 40 - 31.5)
    angles = []
    for seed in range(20):
        image, mask = turned(item, np.random.default_rng(seed))
        assert np.mean((image[0].numpy() > 0) != (mask[0].numpy() > 0)) < 0.01
        centre = np.argwhere(mask[0].numpy()).mean(axis=0) - 31.5
        assert np.hypot(*centre) == pytest.approx(radius, abs=0.6)
        angles.append(np.degrees(np.arctan2(*centre) - np.arctan2(20 - 31.5, 40 - 31.5)))
        assert image[0, 0, 0] == -1
    assert -30.5 < min(angles) < -15
    assert 15 < max(angles) < 30.5
    areas = [
        float(Augmentation(zoom=0.25)(item, np.random.default_rng(seed))[1].sum()) / disc.sum() for seed in range(40)
    ]
    assert 0.8**2 * 0.95 < min(areas) < 0.75
    assert 1.35 < max(areas) < 1.25**2 * 1.05


def test_images_are_turned_and_resized_by_interpolation():
    """A ramp stays a ramp: pixels that come to lie between others get values between theirs."""
    step = 1.8 / 31
    item = Slice(np.tile(np.arange(32) * step - 0.9, (1, 32, 1)).astype(np.float32), None, "x")
    larger, _ = Augmentation("resize_and_crop", load_size=64, crop_size=64)(item, np.random.default_rng(0))
    expected = ((np.arange(4, 60) + 0.5) / 2 - 0.5) * step - 0.9
    np.testing.assert_allclose(larger[0, :, 4:60].numpy(), np.tile(expected, (64, 1)), atol=1e-5)
    turned, _ = Augmentation(rotate_deg=30)(item, np.random.default_rng(0))
    rows, columns = np.gradient(turned[0, 10:22, 10:22].numpy())
    assert abs(rows.mean()) > 0.1 * step
    assert np.hypot(rows.mean(), columns.mean()) == pytest.approx(step, rel=1e-3)
    assert rows.std() < 0.01 * step and columns.std() < 0.01 * step


def test_simulated_pairs_come_with_the_sample(dataroot):
    plain = open_plain(dataroot)[Draw(1, 0, 2, 3)]
    args = (dataroot, "percentile", CT_MAP, Augmentation(), False, 5)
    sample = open_unaligned(*args, simulate_mr=True)[Draw(1, 0, 2, 3)]
    assert sample.keys() == {"A", "B", "origin_A", "origin_B", "simulated_A", "simulated_B"}
    assert torch.equal(sample["B"], plain["B"])
    seen = sample["simulated_B"] != -1
    assert torch.equal(sample["simulated_B"][seen], sample["B"][seen])
    again = open_unaligned(*args, simulate_mr=True)[Draw(1, 0, 2, 3)]
    assert torch.equal(sample["simulated_A"], again["simulated_A"])
    other = open_unaligned(*args, simulate_mr=True)[Draw(2, 0, 2, 3)]
    assert not torch.equal(sample["simulated_A"], other["simulated_A"])


def test_mr_is_not_simulated_from_images_without_units(image_folder):
    with pytest.raises(InputError, match="--warm_start none"):
        open_unaligned(image_folder, (0, 400), CT_MAP, Augmentation(), masks=False, seed=0, simulate_mr=True)


def test_slices_are_read_alone_and_no_file_stays_open(dataroot):
    source = open_plain(dataroot).a
    for k in range(len(source)):
        source.read(k, with_mask=True)
    mapped = Path("/proc/self/maps")
    assert not mapped.exists() or str(dataroot) not in mapped.read_text()
    before = Path(dataroot, "trainA/m1.npy")
    values = np.load(before) + 1
    np.save(before, values)  # a file that is replaced is read anew
    assert source.read(0, False).image[0, 0, 1] == pytest.approx(2 / 50 - 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "not a complete array"),
        (lambda path: path.write_bytes(b"\x93NUMPY\x09\x00" + path.read_bytes()[8:]), "cannot be read"),
        (lambda path: path.write_text("no array"), "cannot be read"),
        (lambda path: np.save(path, np.asfortranarray(np.load(path))), "not a complete array"),
        (lambda path: np.save(path, np.array([[[None]]]), allow_pickle=True), "not a complete array"),
    ],
)
def test_a_damaged_array_is_named(dataroot, damage, message):
    path = dataroot / "trainA/m1.npy"
    damage(path)
    with pytest.raises(InputError, match=message) as error:
        open_plain(dataroot).a.read(0, False)
    assert str(path) in str(error.value)


def test_an_array_cut_off_while_training_is_named(dataroot):
    source, path = open_plain(dataroot).a, dataroot / "trainA/m1.npy"
    source.read(0, False)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="ends before slice 3"):
        source.read(2, False)
