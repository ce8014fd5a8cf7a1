"""Slabs: neighbouring slices through the network together, and the mean of all slabs that hold a slice."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from data.loading.single_dataset import SingleDataset, SlabMean, completed
from data.values.intensity import CT_TRANSFERS, IntensityMap
from models.inference_settings import InferenceSettings, read_inference_settings
from models.networks import Architecture, build_generator
from models.state_dicts import save_network_weights
from models.test_model import TestModel

SETTINGS = InferenceSettings(
    generator=Architecture("unet", 2, "batch", upsample="resize", input_nc=3, output_nc=3), direction="AtoB", size=16,
    spacing_mm=2.0, slice_mm=3.0, mr_window=(0.0, 1.0), typical_mr=None,
    ct=IntensityMap(CT_TRANSFERS["soft_tissue"]),
    versions={}, slab=3,
)  # fmt: skip


def test_a_slab_holds_the_neighbours_and_the_ends_repeat():
    slices = np.arange(5, dtype=np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32)
    slabs = SingleDataset(slices, 5, start=1)
    assert len(slabs) == 4
    assert [slabs[k][:, 0, 0].tolist() for k in range(4)] == [
        [0, 0, 1, 2, 3], [0, 1, 2, 3, 4], [1, 2, 3, 4, 4], [2, 3, 4, 4, 4],
    ]  # fmt: skip


def test_the_mean_weighs_the_middle_most():
    mean = SlabMean(4, 3)
    for centre in range(4):  # a slab's slices are called by its centre
        mean.add(centre, np.full((3, 1, 1), float(centre), np.float32))
    # Slice k: (1 (k - 1) + 2 k + 1 (k + 1)) / 4 = k inside; at the ends the slab beyond is missing.
    np.testing.assert_allclose([mean.take(k)[0, 0] for k in range(4)], [1 / 3, 1, 2, (2 + 2 * 3) / 3])


@pytest.mark.parametrize(("slab", "count"), [(1, 4), (3, 5), (5, 7), (5, 2), (7, 1)])
def test_a_slice_is_complete_with_the_last_slab_that_holds_it(slab, count):
    """Every slice comes once and in order, at the slab around the slice half a slab further, or at the last one."""
    come = [(index, centre) for centre in range(count) for index in completed(centre, slab, count)]
    assert come == [(index, min(index + slab // 2, count - 1)) for index in range(count)]


def test_single_slices_come_back_bit_for_bit():
    output = np.random.default_rng(0).normal(size=(1, 3, 3)).astype(np.float32)
    mean = SlabMean(1, 1)
    mean.add(0, output)
    np.testing.assert_array_equal(mean.take(0), output[0])


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    net = build_generator(SETTINGS.generator)
    save_network_weights(net, tmp_path / "net.pth")
    return TestModel(SETTINGS, tmp_path / "net.pth", torch.device("cpu"))


def assert_mean_of_slabs(model: TestModel, slices: np.ndarray, slabs: list[np.ndarray]) -> None:
    """Each of four slices must be the weighted mean of what the slabs of three give for it, one by one or together."""
    expected = [
        (2 * slabs[0][1] + slabs[1][0]) / 3,
        (slabs[0][2] + 2 * slabs[1][1] + slabs[2][0]) / 4,
        (slabs[1][2] + 2 * slabs[2][1] + slabs[3][0]) / 4,
        (slabs[2][2] + 2 * slabs[3][1]) / 3,
    ]
    np.testing.assert_allclose(model.translate(slices), expected, atol=1e-6)
    np.testing.assert_array_equal(model.translate(slices, 1), model.translate(slices, 4))


def test_a_model_of_slabs_gives_the_mean_of_its_slabs(model):
    slices = np.random.default_rng(1).uniform(-1, 1, (4, 16, 16)).astype(np.float32)
    padded = np.concatenate([slices[:1], slices, slices[-1:]])
    with torch.inference_mode():
        slabs = [model.netG(torch.from_numpy(padded[k : k + 3])[None])[0].numpy() for k in range(4)]
    assert_mean_of_slabs(model, slices, slabs)


def test_running_out_of_memory_in_the_middle_changes_nothing(model, monkeypatch):
    slices = np.random.default_rng(2).uniform(-1, 1, (6, 16, 16)).astype(np.float32)
    expected, run, calls = model.translate(slices), model._run, []
    model._fitting = 2

    def failing(batch):
        calls.append(len(batch))
        if len(calls) == 3:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        return run(batch)

    monkeypatch.setattr(model, "_run", failing)
    np.testing.assert_array_equal(model.translate(slices, 2), expected)


@pytest.mark.parametrize("slab", [0, 2, -1, 1.0, "3", 1001])
def test_settings_with_an_impossible_slab_are_refused(tmp_path, slab):
    replace(SETTINGS, slab=slab).write(tmp_path)
    with pytest.raises(ValueError, match="slab"):
        read_inference_settings(tmp_path)


def test_settings_of_before_slabs_are_of_single_slices(tmp_path):
    path = SETTINGS.write(tmp_path)
    written = json.loads(path.read_text())
    generator = written.pop("generator")
    del written["slab"]
    old = {name: generator[name] for name in ("netG", "ngf", "norm", "use_dropout", "upsample")}
    for slab in ({}, {"slab": 3}):
        path.write_text(json.dumps(written | old | slab | {"format_version": 1}))
        settings = read_inference_settings(tmp_path)
        assert settings == replace(
            SETTINGS, slab=slab.get("slab", 1),
            generator=replace(SETTINGS.generator, input_nc=slab.get("slab", 1), output_nc=slab.get("slab", 1)),
        )  # fmt: skip


def test_the_network_has_as_many_channels_as_a_slab(model):
    first = next(layer for layer in model.netG.modules() if isinstance(layer, nn.Conv2d))
    assert first.in_channels == 3
