"""Validation in training: values in closed form, always the same, and no trace of it in the training."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from data.errors import InputError
from data.prepared.manifest import Case, Manifest, read_manifest
from data.prepared.splits import validation_cases
from data.prepared.training_statistics import TrainingStatistics, hu_histogram
from data.values.intensity import IntensityMap
from data.volumes.slice_frame import SliceFrame
from data.volumes.volume import Volume
from evaluation.metrics import ssim
from models.cycle_gan_model import CycleGANModel, CycleGANSettings
from models.inference_settings import InferenceSettings
from models.networks import Architecture
from models.synthesis import Synthesiser, synthesize_volume
from models.test_model import LARGEST_BATCH, Translator
from tests.test_cycle_gan_model import NO_SHAPE
from tests.test_simulated_pairs import read_only_copy
from training import validation as validation_module
from training.validation import Validation, _around, _box

SIZE, SLICES, MM = 32, 12, 8.0
CPU = torch.device("cpu")
CT_MAP = IntensityMap.window(-1000, 1400)


def body_ct(radius=12.0, bone=700) -> tuple[np.ndarray, np.ndarray]:
    """CT of a cylinder of muscle in fat with a bone in it, and its mask."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    r = np.broadcast_to(np.hypot(x, y), (SLICES, SIZE, SIZE))
    ct = np.select([r < 3, r < radius - 2, r < radius], [bone, 40, -100], -1000).astype(np.int16)
    return ct, (r < radius).astype(np.uint8)


def trained_on(ct: np.ndarray, mask: np.ndarray) -> TrainingStatistics:
    """What a model remembers of a training on one CT."""
    return TrainingStatistics(tuple(hu_histogram(ct[mask > 0]).tolist()), (10.0, 20.0), None, None, (MM, MM), (10, 10))


SETTINGS = InferenceSettings(
    generator=Architecture("resnet_6blocks", ngf=2, upsample="resize"), direction="AtoB", size=SIZE,
    spacing_mm=MM, slice_mm=None, mr_window=(0.0, 100.0), typical_mr=None, ct=CT_MAP, versions={},
    training=trained_on(*body_ct()),
)  # fmt: skip


def as_mr(ct: np.ndarray) -> np.ndarray:
    """The MR whose window 0 .. 100 shows to the networks what the CT's window does: the identity translates it."""
    return (CT_MAP.to_network(ct) + 1) * 50


def write_case(root, name, domain, split, patient, **anatomy) -> Case:
    ct, mask = body_ct(**anatomy)
    array = as_mr(ct) if domain == "A" else ct
    frame = SliceFrame.of(Volume(ct, (MM, MM, 10.0)), SIZE, MM)
    case = Case(
        name=name, patient=patient, split=split, domain=domain, source=name, source_sha256=name + domain,
        mask_source_sha256=None, extent_mm=200.0, in_plane_mm=MM, percentiles=(0.0, 100.0) if domain == "A" else None,
        mr_median=50.0 if domain == "A" else None, slices=SLICES, body_slices=(0, SLICES), frame=frame.to_dict(),
        hu_histogram=None if domain == "A" else tuple(hu_histogram(ct[mask > 0]).tolist()),
        hu_slice_spread=None if domain == "A" else (10.0, 20.0),
    )  # fmt: skip
    for file, data in ((case.image_file, array), (case.mask_file, mask)):
        (root / file).parent.mkdir(exist_ok=True, parents=True)
        np.save(root / file, data)
    return case


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two patients to train on in each domain; to test on, one with MR and CT, and one of each without the other."""
    root = tmp_path_factory.mktemp("set")
    cases = [write_case(root, f"{domain}{k}", domain, "train", f"{domain}{k}") for domain in "AB" for k in range(2)]
    cases += [write_case(root, "both", domain, "test", "both") for domain in "AB"]
    cases += [write_case(root, "mr", "A", "test", "mr", radius=10.0), write_case(root, "ct", "B", "test", "ct")]
    Manifest(SIZE, MM, None, tuple(cases), {}).write(root)
    return root


def validation(root, settings=SETTINGS, seed=0, **more) -> Validation:
    return Validation(root, validation_cases(read_manifest(root), None, 0), settings, seed, CPU, **more)


class Shift(nn.Module):
    """Adds a number to what it is given."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by
        self.batches: list[int] = []

    def forward(self, images):
        self.batches.append(len(images))
        return (images + self.by).clamp(-1, 1)


def test_a_perfect_generator_has_perfect_values(prepared):
    values, _ = validation(prepared).run(nn.Identity(), nn.Identity())
    assert values["mae"] == pytest.approx(0, abs=0.01)
    assert values["dice_bone"] == values["ssim"] == 1
    assert values["cycle"] == 0
    assert values["body_dice"] == pytest.approx(1, abs=0.02)
    assert 0 < values["histogram"] < 30  # one of the two bodies is thinner than those that train
    assert 50 < values["simulated_mae"] < 1000
    assert set(values) == {
        "mae", "dice_bone", "ssim", "body_dice", "cycle", "histogram", "simulated_mae", "simulated_dice_bone",
    }  # fmt: skip


def test_errors_are_those_of_the_generator(prepared):
    values, _ = validation(prepared).run(Shift(0.05), Shift(0.05))
    assert values["mae"] == pytest.approx(0.05 * 1200, abs=0.5)  # half a window of 2400 HU a unit
    assert values["cycle"] == pytest.approx(0.1, abs=1e-6)
    air, _ = validation(prepared).run(Shift(-2.0), nn.Identity())
    ct, mask = body_ct()
    assert air["mae"] == pytest.approx(np.abs(ct[mask > 0] + 1000.0).mean())
    assert air["body_dice"] == air["dice_bone"] == air["simulated_dice_bone"] == 0
    x = [CT_MAP.to_network(body_ct(radius)[0]) for radius in (12.0, 10.0)]
    assert air["cycle"] == pytest.approx(np.mean([np.abs(slices + 1).mean() for slices in x]), abs=1e-6)
    # All at -1000 HU: the distance is what the training CT's histogram would have to move, in bins of 32 HU.
    pooled = np.array(hu_histogram(ct[mask > 0]))
    first = int(np.flatnonzero(hu_histogram(np.array([-1000])))[0])
    expected = 32 * (pooled * (np.arange(len(pooled)) - first)).sum() / pooled.sum()
    assert air["histogram"] == pytest.approx(expected)


def test_what_is_not_there_is_not_measured(prepared):
    values, _ = validation(prepared).run(nn.Identity())
    assert "cycle" not in values
    cases = validation_cases(read_manifest(prepared), None, 0)
    no_truth = replace(cases, ct=cases.ct[1:])
    values, _ = Validation(prepared, no_truth, SETTINGS, 0, CPU).run(nn.Identity())
    assert set(values) == {"body_dice", "histogram", "simulated_mae", "simulated_dice_bone"}


def test_a_value_that_no_volume_defines_is_left_out(tmp_path):
    cases = [write_case(tmp_path, f"{d}0", d, "train", f"{d}0") for d in "AB"]
    cases += [write_case(tmp_path, "t", domain, "test", "t", bone=40) for domain in "AB"]
    Manifest(SIZE, MM, None, tuple(cases), {}).write(tmp_path)
    values, _ = validation(tmp_path).run(nn.Identity())
    assert "dice_bone" not in values and values["mae"] == pytest.approx(0, abs=0.01)


def test_volumes_go_the_way_of_use(prepared):
    """The slices that are shown are those that `synthesize_volume` makes of the MR."""
    net = CycleGANModel(CycleGANSettings(**NO_SHAPE, netG="resnet_6blocks", ngf=2, netD="pixel", ndf=2), CPU).netG_A
    _, shown = validation(prepared).run(net)
    ct, mask = body_ct()
    source = Volume(as_mr(ct), (MM, MM, 10.0))
    used = synthesize_volume(source, Synthesiser(SETTINGS, Translator(net.eval(), 1, CPU)), mask > 0)
    name, z = shown[0].name.split(":")
    assert name == "both"
    np.testing.assert_array_equal(shown[0].synthetic, used.array[int(z)])
    np.testing.assert_array_equal(shown[0].ct, ct[int(z)])
    np.testing.assert_allclose(shown[0].mr, CT_MAP.to_network(ct[int(z)]), atol=1e-6)


def test_the_same_volumes_and_slices_every_time(prepared):
    first, again, other = validation(prepared), validation(prepared), validation(prepared, seed=1)
    net = Shift(0.1)
    values, shown = first.run(net, net)
    for repeated in (first, again):
        more, pictures = repeated.run(net, net)
        assert more == values
        assert [p.name for p in pictures] == [p.name for p in shown]
        for a, b in zip(pictures, shown, strict=True):
            np.testing.assert_array_equal(a.mr, b.mr)
    assert [p.name.split(":")[0] for p in shown] == ["both", "both", "mr", "both"]
    assert [p.simulated for p in shown] == [False, False, False, True]
    assert len({p.name for p in shown}) == 4
    changed = {name for name, value in other.run(net, net)[0].items() if value != values[name]}
    assert changed == {"simulated_mae"} | ({"simulated_dice_bone"} & changed)


def test_slabs_and_another_frame_come_back_to_the_volumes_grid(prepared):
    slabs, _ = validation(prepared, replace(SETTINGS, slab=3)).run(nn.Identity(), Shift(0.1))
    assert slabs["mae"] == pytest.approx(0, abs=0.01)
    assert slabs["cycle"] == pytest.approx(0.1, abs=1e-6)
    coarse, shown = validation(prepared, replace(SETTINGS, size=16, spacing_mm=16.0)).run(nn.Identity())
    assert 0 < coarse["mae"] < 150
    assert shown[0].synthetic.shape == (SIZE, SIZE)


def one_threaded_batches(monkeypatch) -> None:
    """Have a CPU take batches as a GPU does."""
    build = Translator.__init__

    def without_threads(self, *args):
        build(self, *args)
        self._threads = None

    monkeypatch.setattr(Translator, "__init__", without_threads)
    monkeypatch.setitem(LARGEST_BATCH, "cpu", 4)


def test_memory_is_bounded_by_the_batch(prepared, monkeypatch):
    one_threaded_batches(monkeypatch)
    net = Shift(0.1)
    validation(prepared, batch_size=5).run(net, net)
    assert max(net.batches) == 5 and set(net.batches) == {5, 2}


@pytest.mark.parametrize("batches", [False, True])
def test_training_is_the_same_bit_for_bit_with_and_without_validation(prepared, monkeypatch, batches):
    if batches:
        one_threaded_batches(monkeypatch)  # a DataLoader draws from torch's random numbers
    settings = CycleGANSettings(
        **NO_SHAPE, netG="resnet_6blocks", ngf=2, netD="pixel", ndf=2, norm="batch", use_dropout=True
    )

    def train(validate: Validation | None):
        torch.manual_seed(0)
        model = CycleGANModel(settings, CPU)
        for step in range(3):
            rng = np.random.default_rng(step)
            batch = {d: torch.from_numpy(rng.uniform(-1, 1, (2, 1, SIZE, SIZE)).astype(np.float32)) for d in "AB"}
            model.step(batch)
            if validate:
                validate.run(model.netG_A, model.netG_B)
        return model.state_dict(), torch.get_rng_state(), torch.rand(3)

    (plain, *random), (validated, *random_validated) = train(None), train(validation(prepared))
    for name, weights in plain["networks"].items():
        for key, value in weights.items():
            assert torch.equal(value, validated["networks"][name][key]), f"{name} {key}"
    for a, b in zip(random, random_validated, strict=True):
        assert torch.equal(a, b)


def test_every_part_of_a_network_has_its_mode_again(prepared, monkeypatch):
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sequential(nn.BatchNorm2d(1), nn.Tanh()))
    net[1].eval()  # a frozen part
    before = {name: module.training for name, module in net.named_modules()}
    parameters = {name: (p.requires_grad, p.detach().clone()) for name, p in net.named_parameters()}
    found = []
    net.register_forward_pre_hook(lambda module, _: found.append(any(m.training for m in module.modules())))
    validation(prepared).run(net)
    assert found and not any(found)
    monkeypatch.setattr(validation_module, "body_dice", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        validation(prepared).run(net)
    assert {name: module.training for name, module in net.named_modules()} == before
    for name, p in net.named_parameters():
        assert p.requires_grad == parameters[name][0] and torch.equal(p, parameters[name][1])
        assert p.grad is None


def test_what_lies_far_from_the_mask_does_not_count():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(0, 300, (14, 24, 26)) for _ in range(2))
    for box in ((slice(5, 9), slice(8, 15), slice(9, 12)), (slice(0, 4), slice(0, 24), slice(3, 20)), (slice(0, 14),)):
        mask = np.zeros(a.shape, bool)
        mask[box] = rng.random(mask[box].shape) > 0.3
        *cut, cut_mask = _around(mask, a, b)
        assert cut_mask.sum() == mask.sum() and cut_mask.size <= mask.size
        assert ssim(*cut, cut_mask) == pytest.approx(ssim(a, b, mask), rel=1e-12)


def test_what_cannot_validate_is_refused_before_the_training(prepared, tmp_path):
    with pytest.raises(InputError, match="--direction BtoA makes MR"):
        validation(prepared, replace(SETTINGS, direction="BtoA"))
    cases = [write_case(tmp_path, f"{d}0", d, "train", f"{d}0") for d in "AB"]
    cases += [write_case(tmp_path, "t", domain, "test", "t") for domain in "AB"]
    Manifest(SIZE, MM, None, tuple(cases), {}).write(tmp_path)
    np.save(tmp_path / "maskB/t.npy", np.zeros((SLICES, SIZE, SIZE), np.uint8))
    with pytest.raises(InputError, match="the MR t and that of its patient's CT t have no voxel in common"):
        validation(tmp_path)
    (tmp_path / "testA/t.npy").write_bytes(b"")
    with pytest.raises(InputError, match=r"testA/t.npy: cannot be read"):
        validation(tmp_path)


def test_simulated_mr_is_kept_between_runs(prepared, monkeypatch):
    validation(prepared)
    monkeypatch.setattr("data.simulation.simulation_set.simulation_volume", lambda *_: pytest.fail("computed again"))
    validation(prepared)


@pytest.mark.parametrize("content", [b"of somebody else", b""])
def test_files_of_others_where_simulated_mr_is_kept_stay(prepared, content):
    validation(prepared)
    path = prepared / "simulation/both.npz"
    own = path.read_bytes()
    try:
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"both.npz: exists already.*; choose another --dataroot, or move it away"):
            validation(prepared)
        assert path.read_bytes() == content
    finally:
        path.write_bytes(own)


def test_a_box_around_a_mask_stays_inside_the_image():
    mask = np.zeros((20, 30), bool)
    mask[3:9, 14:29] = True
    assert _box(mask, 4) == (slice(0, 13), slice(10, 33))
    assert mask[_box(mask, 4)].shape == (13, 20)


def test_pictures_show_the_body_and_little_around_it(tmp_path):
    small = {"radius": 5.0}
    cases = [write_case(tmp_path, f"{d}{k}", d, k, f"{d}{k}", **small) for d in "AB" for k in ("train", "test")]
    Manifest(SIZE, MM, None, tuple(cases), {}).write(tmp_path)
    _, shown = validation(tmp_path).run(nn.Identity())
    assert {one.synthetic.shape for one in shown} == {one.mr.shape for one in shown} == {(10 + 12, 10 + 12)}


def test_a_data_set_that_may_only_be_read_validates(prepared, tmp_path, monkeypatch, caplog):
    validation(prepared)  # what it keeps is there now, whichever tests ran before
    caplog.set_level(logging.INFO)
    values, _ = validation(prepared).run(nn.Identity())
    assert not caplog.text
    root = read_only_copy(prepared, tmp_path / "set", monkeypatch)
    assert validation(root).run(nn.Identity())[0] == values
    assert caplog.messages[0] == "preparing CT for the simulation of MR, once: 2 volumes"
    assert len(caplog.messages) == 2  # one for both CT
    assert "the simulation's maps of the CT cannot be stored" in caplog.text and "npz: cannot be written" in caplog.text
    assert not (root / "simulation").exists()
