"""The shape extractor: one input conversion in training and use, frozen for real, its file, its labels."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ct_segmentation.method import ShapeExtractorModel, ShapeExtractorSettings
from ct_segmentation.predict import segment_slices, segment_volume
from data.errors import InputError
from data.values.intensity import CT_TRANSFERS, IntensityMap
from data.volumes.volume import Volume
from models.base_model import Place
from models.initialisation import initialise
from models.shape_extractor import (
    FILE_NAME,
    ExtractorSettings,
    ShapeExtractor,
    channel_labels,
    label_channels,
    load_extractor,
    save_extractor,
)
from models.state_dicts import load_checkpoint, save_atomically, save_network_weights

OWN_MAP = IntensityMap.window(-1000, 1400)
OTHER_MAPS = [
    IntensityMap.window(-1000, 2000),
    IntensityMap.window(-400, 600),
    IntensityMap(CT_TRANSFERS["soft_tissue"]),
]
SETTINGS = ExtractorSettings(width=4, n_classes=2, ct=OWN_MAP, size=32, spacing_mm=2.0, versions={"torch": "0"})


def make(settings: ExtractorSettings = SETTINGS, ct_map: IntensityMap | None = None) -> ShapeExtractor:
    """An extractor with drawn weights and statistics that no batch of slices would give."""
    extractor = ShapeExtractor(settings, ct_map)
    generator = torch.Generator().manual_seed(3)
    initialise(extractor, "kaiming", generator=generator)
    for name, value in extractor.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0.0, 0.3, generator=generator)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2.0, generator=generator)
    return extractor


def images(count: int = 3, size: int = 32) -> Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(4)) * 2 - 1


def inputs_of(extractor: ShapeExtractor) -> list[Tensor]:
    """All that the network inside gets from now on."""
    seen: list[Tensor] = []
    extractor.net.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    return seen


@pytest.mark.parametrize("ct_map", OTHER_MAPS)
@pytest.mark.parametrize("input_range", [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)])
def test_conversion_goes_through_hu(ct_map, input_range):
    extractor = make(replace(SETTINGS, input_range=input_range), ct_map)
    values = images()
    low, high = input_range
    network = OWN_MAP.to_network(ct_map.to_physical(values.numpy()))
    expected = low + (high - low) * (network.astype(float) + 1) / 2
    np.testing.assert_allclose(extractor.to_input(values).numpy(), expected, rtol=0, atol=2e-6 * (high - low))


def test_conversion_of_equal_maps_is_the_identity():
    values = images()
    assert make(ct_map=IntensityMap.window(-1000.0, 1400.0)).to_input(values) is values
    scaled = make(replace(SETTINGS, input_range=(0.0, 255.0))).to_input(torch.tensor([-1.0, 0.0, 1.0]))
    assert scaled.tolist() == [0.0, 127.5, 255.0]


def test_gradient_of_the_conversion_is_its_slope():
    values = torch.tensor([-0.9, -0.7, 0.0, 0.4, 0.6, 0.99], dtype=torch.float64, requires_grad=True)
    make(ct_map=IntensityMap(CT_TRANSFERS["soft_tissue"])).to_input(values).sum().backward()
    slopes_hu = [750 / 0.4, 750 / 0.4, 500 / 1.1, 500 / 1.1, 1150 / 0.5, 1150 / 0.5]
    np.testing.assert_allclose(values.grad.numpy(), [slope * 2 / 2400 for slope in slopes_hu], rtol=1e-6)


@pytest.mark.parametrize("ct_map", OTHER_MAPS)
def test_the_same_hu_give_the_same_shape_under_every_map(ct_map):
    hu = np.random.default_rng(0).uniform(-390, 590, (2, 32, 32)).astype(np.float32)  # inside every window
    own, other = make().eval(), make(ct_map=ct_map).eval()
    with torch.inference_mode():
        expected = own(torch.from_numpy(OWN_MAP.to_network(hu))[:, None])
        found = other(torch.from_numpy(ct_map.to_network(hu))[:, None])
        wrong = own(torch.from_numpy(ct_map.to_network(hu))[:, None])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert float((wrong - expected).abs().max()) > 1e-2  # what a forgotten conversion would do


@pytest.mark.parametrize("ct_map", [OWN_MAP, *OTHER_MAPS])
def test_training_prediction_and_losses_feed_the_network_alike(ct_map):
    settings = replace(SETTINGS, input_range=(0.0, 1.0), spacing_mm=1.0)
    hu = np.random.default_rng(1).uniform(-390, 590, (2, 32, 32)).astype(np.float32)
    expected = torch.from_numpy((hu + 1000) / 2400)[:, None]
    extractor = make(settings, ct_map)
    seen = inputs_of(extractor)
    batch = torch.from_numpy(ct_map.to_network(hu))[:, None]
    # In training,
    learner = ShapeExtractorModel(ShapeExtractorSettings(lr=1e-30), extractor, Place(torch.device("cpu")))
    learner.step({"image": batch, "mask": torch.ones(2, 1, 32, 32, dtype=torch.uint8), "origin_B": ["a", "b"]})
    # in prediction of slices and of volumes,
    segment_slices(extractor, hu)
    segment_volume(extractor, Volume(hu))
    # and as the constant inside a loss.
    extractor.freeze()(batch)
    assert len(seen) == 4
    for fed in seen:
        torch.testing.assert_close(fed, expected, rtol=0, atol=1e-5)


def test_frozen_extractor_is_a_constant_that_gradients_pass_through():
    extractor = make(ct_map=OTHER_MAPS[0]).freeze()
    owner = torch.nn.ModuleDict({"E_B": extractor, "G": torch.nn.Conv2d(1, 1, 3, padding=1)})
    before = copy.deepcopy(extractor.state_dict())
    optimiser = torch.optim.Adam(owner["G"].parameters(), 0.1)
    for _ in range(2):
        owner.train()
        fake = owner["G"](images()).tanh()
        fake.retain_grad()
        extractor(fake).sigmoid().mean().backward()
        assert float(fake.grad.abs().sum()) > 0
        optimiser.step()
    assert owner["G"].training
    assert not any(module.training for module in extractor.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in extractor.parameters())
    after = extractor.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_unfrozen_extractor_trains():
    """The other side: without freezing, the same passes do change buffers and give parameters gradients."""
    extractor = make().train()
    before = copy.deepcopy(extractor.state_dict())
    extractor(images()).sum().backward()
    after = extractor.state_dict()
    assert not torch.equal(after["net.inc.conv.conv.1.running_mean"], before["net.inc.conv.conv.1.running_mean"])
    assert extractor.net.outc.conv.weight.grad is not None
    assert not extractor.eval().training


def test_each_sample_is_judged_by_itself():
    extractor = make().freeze()
    batch = images(4)
    together = extractor(batch)
    for k in range(4):
        torch.testing.assert_close(extractor(batch[k : k + 1]), together[k : k + 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("as_folder", [True, False])
def test_file_round_trip(tmp_path, as_folder):
    settings = replace(SETTINGS, input_range=(0.0, 1.0), wide_up=True, ct=OTHER_MAPS[2])
    extractor = make(settings)
    save_extractor(extractor, tmp_path / FILE_NAME, {"dice": 0.5})
    loaded = load_extractor(tmp_path if as_folder else tmp_path / FILE_NAME, "cpu")
    assert loaded.settings == settings
    assert loaded.ct_map == OTHER_MAPS[2]
    assert loaded.frozen
    assert not loaded.training
    assert loaded.state_dict().keys() == extractor.state_dict().keys()
    torch.testing.assert_close(loaded(images()), extractor.eval()(images()), rtol=0, atol=0)
    assert load_extractor(tmp_path, "cpu", OWN_MAP).ct_map == OWN_MAP
    weights = load_checkpoint(tmp_path / FILE_NAME)["weights"]
    assert "down1.mpconv.1.conv.0.weight" in weights  # published names, without a prefix


def test_unusable_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=f"{FILE_NAME}: no such file"):
        load_extractor(tmp_path)
    with pytest.raises(InputError, match=f"run/{FILE_NAME}: no such file"):
        load_extractor(tmp_path / "run")
    with pytest.raises(InputError, match=r"typo\.pth: no such file"):
        load_extractor(tmp_path / "typo.pth")
    save_network_weights(make().net, tmp_path / "bare.pth")
    with pytest.raises(InputError, match=r"weights without a description.*ct_segmentation\.import_extractor"):
        load_extractor(tmp_path / "bare.pth")
    save_extractor(make(), tmp_path / FILE_NAME)
    good = load_checkpoint(tmp_path / FILE_NAME)
    broken = {
        "version": good | {"format_version": 2},
        "no settings": {key: value for key, value in good.items() if key != "settings"},
        "no range": good | {"settings": {k: v for k, v in good["settings"].items() if k != "input_range"}},
        "unknown": good | {"settings": good["settings"] | {"colour": 1}},
        "width": good | {"settings": good["settings"] | {"width": 8}},
        "empty range": good | {"settings": good["settings"] | {"input_range": [1.0, 1.0]}},
        "curve": good | {"settings": good["settings"] | {"ct": {"knots": [[0.0, -1.0], [0.0, 1.0]]}}},
    }
    for name, content in broken.items():
        save_atomically(content, tmp_path / f"{name}.pth")
        with pytest.raises(InputError, match=rf"{name}\.pth: "):
            load_extractor(tmp_path / f"{name}.pth")


def test_label_channels():
    masks = torch.tensor([[[[0, 1, 2, 3, 255]]]], dtype=torch.uint8)
    assert label_channels(masks, 1).tolist() == [[[[0, 1, 1, 1, 1]]]]
    channels = label_channels(masks, 3)
    assert channels.dtype == torch.float32
    assert channels[0, :, 0].tolist() == [[0, 1, 1, 1, 1], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]


def test_channel_labels():
    body, bone = np.array([0.2, 0.6, 0.9, 0.4]), np.array([0.1, 0.4, 0.8, 0.9])
    assert channel_labels(np.stack([body, bone])).tolist() == [0, 1, 2, 0]  # no bone outside the body
    assert channel_labels(body[None]).dtype == np.uint8


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_labels_survive_channels(labels):
    masks = torch.tensor(labels, dtype=torch.uint8)[None, None, None]
    found = channel_labels(label_channels(masks, 3)[0].numpy())
    assert found[0].tolist() == labels


def test_class_names():
    assert replace(SETTINGS, n_classes=1).class_names == ("body",)
    assert replace(SETTINGS, n_classes=3).class_names == ("body", "bone", "label3")
