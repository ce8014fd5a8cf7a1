"""Inference: HU and geometry through a generator whose output is known, and the weights' files."""

import json
import threading
import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import test_adapt
from data.errors import InputError
from data.values.intensity import AIR_HU, IntensityMap
from data.volumes.volume import Volume, read_volume, same_grid, write_volume
from models import test_model
from models.inference_settings import InferenceSettings, model_sha256, read_inference_settings
from models.networks import Architecture, build_generator
from models.precision import choose_precision
from models.solid_body import fill_air
from models.state_dicts import save_network_weights
from models.synthesis import Synthesiser, load_synthesiser, prepare_volume, synthesize_volume
from models.test_model import TestModel, is_out_of_memory
from scripts import import_generator

CPU = torch.device("cpu")
SETTINGS = InferenceSettings(
    generator=Architecture("resnet_6blocks", ngf=4, norm="instance", upsample="resize"), direction="AtoB", size=32,
    spacing_mm=2.0, slice_mm=None, mr_window=(0.0, 500.0), typical_mr=IntensityMap.window(0, 800),
    ct=IntensityMap.window(-1000, 1400), versions={},
)  # fmt: skip


SETTINGS_16 = replace(SETTINGS, generator=Architecture("resnet_6blocks", ngf=16))


class Known(torch.nn.Module):
    """A generator of known output: the negative of its input."""

    def forward(self, x):
        assert x.dtype == torch.float32 and x.abs().max() <= 1
        assert not torch.is_grad_enabled() and not self.training
        return -x


def known_synthesiser(tmp_path, **changes) -> Synthesiser:
    settings = replace(SETTINGS, **changes)
    path = tmp_path / "latest_net_G_A.pth"
    save_network_weights(build_generator(Architecture("resnet_6blocks", ngf=4, upsample="resize")), path)
    model = TestModel(settings, path, CPU)
    model.netG = Known().eval()
    return Synthesiser(settings, model)


def ramp_mr(spacing=(2.0, 2.0, 5.0), shape=(6, 24, 20)) -> Volume:
    direction = tuple(Rotation.from_euler("xyz", [0.1, 0.2, -0.1]).as_matrix().ravel())
    array = np.linspace(0, 500, int(np.prod(shape))).reshape(shape).astype(np.float32)
    return Volume(array, spacing, (-10.5, 20.25, 3.0), direction)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_known_network_known_hu_on_the_mr_s_grid(tmp_path, batch_size):
    mr = ramp_mr()
    body = np.ones(mr.array.shape, bool)
    ct = synthesize_volume(mr, known_synthesiser(tmp_path), body, batch_size)
    assert ct.array.dtype == np.int16
    assert same_grid(ct, mr, tolerance=1e-6)
    # 0 .. 500 goes to -1 .. 1, its negative is decoded as 1400 .. -1000 HU.
    np.testing.assert_allclose(ct.array, 1400 - mr.array * 4.8, atol=0.51)


@pytest.mark.parametrize("window", [(-1000, 1400), (-160, 240), (-1024, 3000)])
def test_voxels_outside_the_frame_are_air(tmp_path, caplog, window):
    mr = ramp_mr(shape=(4, 24, 40))
    body = np.ones(mr.array.shape, bool)
    body[:, :, :4] = body[:, :, -4:] = False
    ct = synthesize_volume(mr, known_synthesiser(tmp_path, ct=IntensityMap.window(*window)), body)
    assert np.all(ct.array[:, :, :4] == AIR_HU) and np.all(ct.array[:, :, -4:] == AIR_HU)
    low, high = window
    inside = mr.array[:, :, 4:-4]
    np.testing.assert_allclose(ct.array[:, :, 4:-4], high - inside / 500 * (high - low), atol=0.51)
    assert not caplog.text


@pytest.mark.parametrize("columns", [40, 41, 50])
@pytest.mark.parametrize("name", ["resnet_6blocks", "unet_128"])
def test_slices_grow_with_the_body_to_what_the_network_takes(tmp_path, columns, name):
    """A model of 32 pixels makes HU of every voxel of a wider body, also where it is resampled."""
    mr = ramp_mr(shape=(4, 24, columns))
    body = np.ones(mr.array.shape, bool)
    known = known_synthesiser(tmp_path)
    synthesiser = replace(known, settings=replace(SETTINGS, generator=Architecture(name, ngf=4)))
    _, plan = prepare_volume(mr, synthesiser.settings, body)
    step = {"resnet_6blocks": 4, "unet_128": 128}[name]
    assert plan.frame.size == -(-(columns + columns % 2) // step) * step
    ct = synthesize_volume(mr, synthesiser, body)
    np.testing.assert_allclose(ct.array, 1400 - mr.array * 4.8, atol=0.51)
    assert f"slices of {plan.frame.size * 2} mm are used; the model was trained on 64 mm" in plan.describe_frame()
    fine = replace(mr, spacing=(2.5, 2.5, 5.0))
    assert not prepare_volume(fine, synthesiser.settings, body)[1].frame.outside(body)


def test_percentile_window_makes_scanner_units_irrelevant(tmp_path):
    synthesiser = known_synthesiser(tmp_path, mr_window="percentile")
    mr = ramp_mr()
    body = mr.array > 100
    scaled = mr.with_array(mr.array * 37.5)
    results = [synthesize_volume(volume, synthesiser, body).array for volume in (mr, scaled)]
    assert np.abs(results[0].astype(int) - results[1]).max() <= 1
    low, high = np.percentile(mr.array[body], (0.5, 99.5))
    expected = 1400 - 2400 * ((mr.array - low) / (high - low)).clip(0, 1)
    expected[~body.any(axis=(1, 2))] = AIR_HU
    np.testing.assert_allclose(results[0], expected, atol=1)


class Position(torch.nn.Module):
    """A generator that puts out a function of the input and of where a pixel lies."""

    def forward(self, x):
        rows, columns = (torch.linspace(-0.5, 0.3, size) for size in x.shape[2:])
        return x**3 * rows[:, None] + x * columns + rows[:, None] * columns


@pytest.mark.parametrize("mirrored", ["", "x", "y", "xy"])
def test_mirrored_is_the_mean_over_mirrorings_and_undone(tmp_path, mirrored):
    """The mean of a position over the two mirrorings along its axis is its middle, -0.1."""
    x = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32)).astype(np.float32)
    model = known_synthesiser(tmp_path, mirrored=mirrored).model
    model.netG = Position().eval()
    rows, columns = (
        np.full(32, -0.1) if axis in mirrored else np.linspace(-0.5, 0.3, 32)  # as in Position
        for axis in "yx"
    )
    expected = x**3 * rows[:, None] + x * columns + rows[:, None] * columns
    for batch_size in (1, 3):
        np.testing.assert_allclose(model.translate(x, batch_size), expected, atol=1e-6)
    for axis, flip in {"x": np.fliplr, "y": np.flipud}.items():
        flipped = np.stack([flip(model.translate(flip(image)[None].copy())[0]) for image in x])
        assert np.allclose(flipped, expected, atol=1e-6) == (axis in mirrored)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_mirrored_model_is_the_plain_one_on_four_mirrored_slices(tmp_path, precision):
    path = tmp_path / "latest_net_G_A.pth"
    save_network_weights(build_generator(Architecture("resnet_6blocks", ngf=4, upsample="resize")), path)
    plain, mirrored = (TestModel(replace(SETTINGS, mirrored=m), path, CPU, precision) for m in ("", "xy"))
    x = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32)).astype(np.float32)
    each = [np.flip(plain.translate(np.flip(x, axes).copy()), axes) for axes in ((), (1,), (2,), (1, 2))]
    assert np.ptp(each, axis=0).max() > 0.01
    np.testing.assert_allclose(mirrored.translate(x), np.mean(each, axis=0), atol=1e-6)
    assert mirrored._bytes_of_a_slice(x[:1]) == plain._bytes_of_a_slice(x[:1])


@pytest.mark.parametrize(("slice_mm", "at_1"), [(4.0, 300), (7.0, -200)])
def test_air_in_a_solid_body_becomes_the_nearest_tissue_of_it_in_mm(slice_mm, at_1):
    hu = np.full((3, 3, 6), AIR_HU, np.int16)
    hu[1, 1] = [-300, -1000, -201, -200, 50, 700]
    hu[2, 1, 1] = 300  # a slice beside the air at index 1, which has tissue 6 mm beside it in its own
    hu[0, 1, 2] = 900  # nearer still to index 2, and not of the body
    body = np.zeros(hu.shape, bool)
    body[1, 1, 1:] = body[2, 1, 1] = True
    expected = hu.copy()
    expected[1, 1, 1:3] = [at_1, -200]
    assert fill_air(hu, body, (3.0, 3.0, slice_mm), smooth_mm=0) is hu
    np.testing.assert_array_equal(hu, expected)
    air = np.full_like(hu, AIR_HU)
    np.testing.assert_array_equal(fill_air(air, body, (1.0, 1.0, 1.0)), np.full_like(hu, AIR_HU))


def test_filled_air_is_smooth_and_tissue_stays():
    hu = np.full((5, 20, 20), 40, np.int16)
    hu[:, :, 10:] = 240
    hu[:, 6:14, 6:14] = AIR_HU
    body = np.ones(hu.shape, bool)
    nearest, smooth = (fill_air(hu.copy(), body, (1.0, 1.0, 3.0), smooth_mm=mm) for mm in (0, 2))
    air = hu == AIR_HU
    np.testing.assert_array_equal(smooth[~air], hu[~air])
    assert np.abs(np.diff(nearest[2, 10])).max() == 200
    row = smooth[2, 10, 6:14]
    assert (np.diff(row) > 0).all() and np.diff(row).max() < 50
    assert row[0] + row[-1] == pytest.approx(280, abs=2)  # symmetrical about the step
    uniform = np.where(air, AIR_HU, 55).astype(np.int16)
    np.testing.assert_array_equal(fill_air(uniform, body, (1.0, 1.0, 3.0)), np.full_like(hu, 55))


def permute(volume: Volume) -> Volume:
    """Return the same volume stored otherwise: its x, y and z are now z (from the other end), x and y."""
    x, y, z = np.reshape(volume.direction, (3, 3)).T
    origin = volume.origin + x * volume.spacing[0] * (volume.size[0] - 1)
    array = np.ascontiguousarray(volume.array.transpose(2, 0, 1)[::-1])
    return Volume(array, np.roll(volume.spacing, -1), origin, np.stack([y, z, -x], axis=1).ravel())


def test_a_solid_body_is_filled_inside_the_frame_alone(tmp_path):
    mr = ramp_mr(
        shape=(4, 24, 40)
    )  # 40 columns, 32 of them in the frame: 1400 HU at the first voxel, -1000 at the last
    body = np.ones(mr.array.shape, bool)
    body[:, :4] = False
    body[:, :, :4] = body[:, :, -4:] = False
    plain, solid = (synthesize_volume(mr, known_synthesiser(tmp_path, solid_body=s), body).array for s in (False, True))
    framed = np.zeros_like(body)
    framed[:, :, 4:-4] = True
    filled = body & framed & (plain < -200)
    assert 400 < filled.sum() < 1500 and solid[filled].min() >= -200 and solid[filled].max() < 500
    np.testing.assert_array_equal(solid[~filled], plain[~filled])
    permuted = synthesize_volume(
        permute(mr), known_synthesiser(tmp_path, solid_body=True), permute(mr.with_array(body)).array
    )
    np.testing.assert_array_equal(permuted.array, permute(mr.with_array(solid)).array)
    assert (plain[~framed] == AIR_HU).all() and (plain[framed & ~body] < -200).any()


class Counting(torch.nn.Module):
    """A generator that has memory for `limit` slices at a time, and keeps how many it was given and held at a time."""

    def __init__(self, limit=100, error=None):
        super().__init__()
        self.layer, self.limit = torch.nn.Identity(), limit
        self.sizes, self.most, self._held, self._lock = [], 0, 0, threading.Lock()
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def forward(self, x):
        with self._lock:
            if self._held + len(x) > self.limit:
                raise self.error
            self._held += len(x)
            self.sizes.append(len(x))
            self.most = max(self.most, self._held)
        time.sleep(0.05)
        with self._lock:
            self._held -= len(x)
        return self.layer(-x)


def counting_synthesiser(tmp_path, net, **changes) -> Synthesiser:
    synthesiser = known_synthesiser(tmp_path, **changes)
    synthesiser.model.netG = net
    return synthesiser


@pytest.mark.parametrize(
    ("slice_mm", "sent", "said"),
    [
        (None, 2, "converting, where there is body: 2 slices"),
        (2.5, 6, "converting, 6 slices resampled to 2.5 mm, where there is body: 6 slices"),
    ],
)
def test_slices_without_body_are_not_sent_and_become_air(tmp_path, caplog, slice_mm, sent, said):
    """Two of six slices 5 mm apart show body; slices of 2.5 mm within 5 mm of those are interpolated from them."""
    mr = ramp_mr().with_array(np.full((6, 24, 20), 250, np.float32))
    body = np.zeros(mr.array.shape, bool)
    body[2:4, 5:9, 5:9] = True
    net = Counting()
    caplog.set_level("INFO")
    ct = synthesize_volume(mr, counting_synthesiser(tmp_path, net, slice_mm=slice_mm), body, batch_size=4, bar=True)
    assert (sum(net.sizes), caplog.messages[-1]) == (sent, said)
    np.testing.assert_allclose(ct.array[2:4], 200, atol=1)  # the middle of both windows
    assert np.all(ct.array[[0, 5]] == AIR_HU)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("in_batches", [True, False])
def test_slices_at_a_time_are_halved_for_good_where_memory_ends(tmp_path, error, in_batches, caplog):
    caplog.set_level("INFO")
    net = Counting(limit=2, error=error)
    model = counting_synthesiser(tmp_path, net).model
    if in_batches:
        model._threads = None  # as on a GPU
    slices = np.random.default_rng(0).uniform(-1, 1, (7, 32, 32)).astype(np.float32)
    np.testing.assert_array_equal(model.translate(slices, 8), -slices)
    assert "out of memory with 8 slices at a time; continuing with 4" in caplog.text
    assert "out of memory with 4 slices at a time; continuing with 2" in caplog.text
    caplog.clear()
    net.sizes.clear()
    np.testing.assert_array_equal(model.translate(slices, 8), -slices)
    assert net.sizes == ([2, 2, 2, 1] if in_batches else [1] * 7) and net.most == 2 and not caplog.text
    model.translate(slices, 1)
    assert net.sizes[-7:] == [1] * 7
    net.limit = 0
    with pytest.raises(InputError, match="out of memory with one slice"):
        model.translate(slices, 8)


def test_what_torch_says_without_memory_is_understood_and_other_errors_come_out(tmp_path):
    with pytest.raises(RuntimeError) as failure:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_out_of_memory(failure.value)
    net = Counting(limit=0, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        counting_synthesiser(tmp_path, net).model.translate(np.zeros((1, 32, 32), np.float32), 1)


def test_slices_at_a_time_are_those_that_half_the_free_memory_holds(tmp_path, monkeypatch):
    """The layer of `Counting` puts out 32 x 32 x 4 bytes a slice."""
    slices = np.zeros((9, 32, 32), np.float32)
    for free, expected in ((2 * 3 * 4096, 3), (2 * 3 * 4096 - 1, 2), (1, 1), (2**40, 4)):
        monkeypatch.setattr(test_model, "free_memory", lambda device, free=free: free)
        net = Counting()
        model = counting_synthesiser(tmp_path, net).model
        model._threads = 4
        model.translate(slices)
        assert net.most == expected and len(net.sizes) == 9 + 1  # one was measured


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_cpu_no_voxel_depends_on_threads_or_batches(tmp_path, precision):
    path = tmp_path / "latest_net_G_A.pth"
    torch.manual_seed(0)
    save_network_weights(build_generator(Architecture("resnet_6blocks", ngf=16)), path)
    slices = np.random.default_rng(0).uniform(-1, 1, (3, 64, 64)).astype(np.float32)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            model = TestModel(SETTINGS_16, path, CPU, precision)
            results += [model.translate(slices), model.translate(slices, 2), model.translate(slices[1:], 1)]
    finally:
        torch.set_num_threads(before)
    for result in results:
        np.testing.assert_array_equal(result, results[0][-len(result) :])


def test_an_output_that_is_not_finite_is_an_error(tmp_path):
    net = Counting()
    net.layer = torch.nn.Threshold(0.0, float("nan"))
    with pytest.raises(InputError, match=r"not finite \(NaN or infinite\) in fp32; use other weights"):
        counting_synthesiser(tmp_path, net).model.translate(np.zeros((1, 32, 32), np.float32), 1)


@pytest.mark.parametrize("precision, limit", [("bf16", 0.05), ("fp16", 0.01)])
def test_half_precision_is_close_to_single(tmp_path, precision, limit):
    path = tmp_path / "latest_net_G_A.pth"
    torch.manual_seed(0)
    save_network_weights(build_generator(Architecture("resnet_6blocks", ngf=4, upsample="resize")), path)
    slices = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32)).astype(np.float32)
    exact, half = (TestModel(SETTINGS, path, CPU, name).translate(slices, 2) for name in ("fp32", precision))
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).mean() < limit * np.abs(exact).mean()


@pytest.mark.parametrize(
    "capabilities, expected",
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx512_f": True, "avx512_bf16": False}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_auto_precision_is_bf16_where_the_cpu_has_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert choose_precision("auto", CPU) == expected
    assert [choose_precision(name, CPU) for name in ("fp32", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]


@pytest.mark.parametrize("native, expected", [(True, "bf16"), (False, "fp16")])
def test_auto_precision_on_gpus(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    assert choose_precision("auto", torch.device("cuda")) == expected


def test_ct_to_mr_comes_back_in_the_training_sets_units(tmp_path):
    ct = ramp_mr().with_array(np.linspace(-1000, 1400, 6 * 24 * 20).reshape(6, 24, 20).astype(np.float32))
    mr = synthesize_volume(ct, known_synthesiser(tmp_path, direction="BtoA"), np.ones(ct.array.shape, bool))
    np.testing.assert_allclose(mr.array, 800 - (ct.array + 1000) / 3, atol=0.51)


def test_inference_changes_no_weight_and_does_not_depend_on_the_batch(tmp_path):
    path = tmp_path / "latest_net_G_A.pth"
    save_network_weights(build_generator(Architecture("resnet_6blocks", ngf=4, norm="batch", upsample="resize")), path)
    model = TestModel(replace(SETTINGS, generator=replace(SETTINGS.generator, norm="batch")), path, CPU)
    before = {key: value.clone() for key, value in model.netG.state_dict().items()}
    slices = np.random.default_rng(0).uniform(-1, 1, (5, 32, 32)).astype(np.float32)
    results = [model.translate(slices, batch_size) for batch_size in (1, 2, 5)]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-5)
    for key, value in model.netG.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_settings_survive_the_disk(tmp_path):
    percentile = replace(
        SETTINGS, mr_window="percentile", typical_mr=None, spacing_mm=None, mirrored="xy", solid_body=True
    )
    for settings in (SETTINGS, percentile):
        settings.write(tmp_path / "run")
        assert read_inference_settings(tmp_path / "run") == settings


def test_missing_and_damaged_models_are_named(tmp_path):
    SETTINGS.write(tmp_path / "good")
    with pytest.raises(InputError, match=r"bad: no such model\. Models in .*: none$"):  # weights are missing
        read_inference_settings(tmp_path / "bad")
    (tmp_path / "good/latest_net_G_A.pth").touch()
    with pytest.raises(InputError, match=r"god: no such model; did you mean good\? Models in .*: good$"):
        read_inference_settings(tmp_path / "god")
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes/extractor.pth").touch()
    with pytest.raises(InputError) as error:
        read_inference_settings(tmp_path / "shapes")
    assert str(error.value) == (
        f"{tmp_path}/shapes: a shape extractor, not a model that makes CT: it finds the body and its bones in CT "
        f"slices. Models in {tmp_path}: good. For a training: train.py --shape_extractor {tmp_path}/shapes"
    )
    with pytest.raises(InputError, match=r"7_net_G_A\.pth: no such file"):
        load_synthesiser(tmp_path / "good", "7", CPU)
    with pytest.raises(InputError, match=r"has its own, 2 mm"):
        load_synthesiser(tmp_path / "good", "latest", CPU, spacing_mm=1.0)
    replace(SETTINGS, spacing_mm=None).write(tmp_path / "images")
    with pytest.raises(InputError, match="give it with --spacing_mm"):
        load_synthesiser(tmp_path / "images", "latest", CPU)
    (tmp_path / "good/inference.json").write_text(json.dumps({"format_version": 1}))
    with pytest.raises(InputError, match="damaged"):
        read_inference_settings(tmp_path / "good")
    replace(SETTINGS, solid_body=True, direction="BtoA").write(tmp_path)
    with pytest.raises(InputError, match="solid_body of a model that makes MR: True is not a possible value"):
        read_inference_settings(tmp_path)
    replace(SETTINGS, hu_curve=((300.0, 200.0), (400.0, 100.0))).write(tmp_path)
    with pytest.raises(InputError, match=r"hu_curve: \(\(300\.0, 200\.0\), \(400.*\)\) is not a possible"):
        read_inference_settings(tmp_path)
    replace(SETTINGS, slab=3).write(tmp_path)
    with pytest.raises(InputError, match=r"channels of the generator: \(1, 1\) is not a possible value"):
        read_inference_settings(tmp_path)
    replace(SETTINGS, slab=4, solid_body=True, direction="AtoC").write(tmp_path)  # and no more than that
    with pytest.raises(
        InputError, match=r"software \(slab: 4 is not a possible value, direction: 'AtoC' is not a possible"
    ):
        read_inference_settings(tmp_path)
    for name, value in (("mirrored", "yes"), ("mirrored", None), ("solid_body", 1)):
        replace(SETTINGS, **{name: value}).write(tmp_path / "good")
        with pytest.raises(InputError) as error:
            read_inference_settings(tmp_path / "good")
        assert str(error.value) == (
            f"{tmp_path}/good/inference.json: damaged, or the model was made by a newer version of this software "
            f"({name}: {value!r} is not a possible value); restore the file, update the software or train the model "
            "again"
        )


def test_models_of_before_mirrored_and_solid_body_are_neither(tmp_path):
    path = SETTINGS.write(tmp_path)
    content = json.loads(path.read_text())
    del content["mirrored"], content["solid_body"]
    path.write_text(json.dumps(content))
    assert read_inference_settings(tmp_path) == SETTINGS


def test_mirrored_was_all_four_or_none_in_earlier_versions(tmp_path):
    path = SETTINGS.write(tmp_path)
    for old, axes in ((True, "xy"), (False, "")):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"mirrored": old}))
        assert read_inference_settings(tmp_path).mirrored == axes


def test_the_hash_of_a_model_is_that_of_version_1_0_0(tmp_path):
    """Cohorts that were converted by 1.0.0, where all four mirrorings or none were averaged, are up to date."""
    weights = tmp_path / "latest_net_G_A.pth"
    weights.write_bytes(b"weights")
    hashes = [model_sha256(replace(SETTINGS, mirrored=axes), weights) for axes in ("", "xy", "x", "y")]
    assert [digest[:12] for digest in hashes[:2]] == ["a2b516e1bd83", "ad78cdbff919"]
    assert len(set(hashes)) == 4


def test_published_weights_are_taken_over_and_used(tmp_path):
    net = build_generator(Architecture("resnet_6blocks", ngf=4))
    stale = dict(net.state_dict()) | {"model.2.running_mean": torch.zeros(4), "model.2.running_var": torch.ones(4)}
    torch.save(stale, tmp_path / "published.pth")
    where = ["--checkpoints_dir", str(tmp_path / "checkpoints")]
    arguments = ["--weights", str(tmp_path / "published.pth"), "--name", "published", *where, "--ngf", "4"]
    frame = ["--size", "32", "--spacing_mm", "2.0"]
    with pytest.raises(InputError, match="does not fit ResnetGenerator"):
        import_generator.main([*arguments, *frame])
    import_generator.main([*arguments, *frame, "--netG", "resnet_6blocks"])
    mr = ramp_mr()
    write_volume(mr, tmp_path / "mr.mha")
    write_volume(mr.with_array(np.ones(mr.array.shape, np.uint8)), tmp_path / "mask.mha")
    output = tmp_path / "out/ct.nrrd"
    test_adapt.main([
        "--name", "published", *where, "--input", str(tmp_path / "mr.mha"), "--mask", str(tmp_path / "mask.mha"),
        "--output", str(output), "--device", "cpu", "--precision", "fp32",
    ])  # fmt: skip
    ct = read_volume(output)
    assert same_grid(ct, mr, tolerance=1e-6)
    slices = IntensityMap.window(0, 400).to_network(np.pad(mr.array, ((0, 0), (4, 4), (6, 6))))
    with torch.inference_mode():
        expected = net.eval()(torch.from_numpy(slices)[:, None])[:, 0].numpy()[:, 4:-4, 6:-6]
    np.testing.assert_allclose(ct.array, IntensityMap.window(-1000, 1400).to_physical(expected), atol=0.6)
