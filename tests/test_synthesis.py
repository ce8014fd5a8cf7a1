"""Inference: HU and geometry through a generator whose output is known, and the weights' files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import test_adapt
from data.errors import InputError
from data.intensity import AIR_HU, IntensityMap
from data.volume import Volume, read_volume, same_grid, write_volume
from models.inference_settings import InferenceSettings, read_inference_settings
from models.networks import build_generator
from models.state_dicts import save_network_weights
from models.synthesis import Synthesiser, load_synthesiser, synthesize_volume
from models.test_model import TestModel
from scripts import import_weights

CPU = torch.device("cpu")
SETTINGS = InferenceSettings(
    netG="resnet_6blocks", ngf=4, norm="instance", use_dropout=False, upsample="resize", direction="AtoB", size=32,
    spacing_mm=2.0, slice_mm=None, mr_window=(0.0, 500.0), typical_mr=IntensityMap.window(0, 800),
    ct=IntensityMap.window(-1000, 1400), versions={},
)  # fmt: skip


class Known(torch.nn.Module):
    """A generator of known output: the negative of its input."""

    def forward(self, x):
        assert x.dtype == torch.float32 and x.abs().max() <= 1
        assert not torch.is_grad_enabled() and not self.training
        return -x


def known_synthesiser(tmp_path, **changes) -> Synthesiser:
    settings = replace(SETTINGS, **changes)
    path = tmp_path / "latest_net_G_A.pth"
    save_network_weights(build_generator("resnet_6blocks", ngf=4, upsample="resize"), path)
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
def test_voxels_outside_the_frame_are_air_and_reported(tmp_path, caplog, window):
    mr = ramp_mr(shape=(4, 24, 40))
    body = np.ones(mr.array.shape, bool)
    ct = synthesize_volume(mr, known_synthesiser(tmp_path, ct=IntensityMap.window(*window)), body)
    assert np.all(ct.array[:, :, :4] == AIR_HU) and np.all(ct.array[:, :, -4:] == AIR_HU)
    low, high = window
    inside = mr.array[:, :, 4:-4]
    np.testing.assert_allclose(ct.array[:, :, 4:-4], high - inside / 500 * (high - low), atol=0.51)
    assert f"{4 * 24 * 8} body voxels (20.0 %)" in caplog.text


def test_percentile_window_makes_scanner_units_irrelevant(tmp_path):
    synthesiser = known_synthesiser(tmp_path, mr_window="percentile")
    mr = ramp_mr()
    body = mr.array > 100
    scaled = mr.with_array(mr.array * 37.5)
    results = [synthesize_volume(volume, synthesiser, body).array for volume in (mr, scaled)]
    assert np.abs(results[0].astype(int) - results[1]).max() <= 1
    low, high = np.percentile(mr.array[body], (0.5, 99.5))
    expected = 1400 - 2400 * ((mr.array - low) / (high - low)).clip(0, 1)
    np.testing.assert_allclose(results[0], expected, atol=1)


def test_ct_to_mr_comes_back_in_the_training_sets_units(tmp_path):
    ct = ramp_mr().with_array(np.linspace(-1000, 1400, 6 * 24 * 20).reshape(6, 24, 20).astype(np.float32))
    mr = synthesize_volume(ct, known_synthesiser(tmp_path, direction="BtoA"), np.ones(ct.array.shape, bool))
    np.testing.assert_allclose(mr.array, 800 - (ct.array + 1000) / 3, atol=0.51)


def test_inference_changes_no_weight_and_does_not_depend_on_the_batch(tmp_path):
    path = tmp_path / "latest_net_G_A.pth"
    save_network_weights(build_generator("resnet_6blocks", ngf=4, norm="batch", upsample="resize"), path)
    model = TestModel(replace(SETTINGS, norm="batch"), path, CPU)
    before = {key: value.clone() for key, value in model.netG.state_dict().items()}
    slices = np.random.default_rng(0).uniform(-1, 1, (5, 32, 32)).astype(np.float32)
    results = [model.translate(slices, batch_size) for batch_size in (1, 2, 5)]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-5)
    for key, value in model.netG.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_settings_survive_the_disk(tmp_path):
    for settings in (SETTINGS, replace(SETTINGS, mr_window="percentile", typical_mr=None, spacing_mm=None)):
        settings.write(tmp_path / "run")
        assert read_inference_settings(tmp_path / "run") == settings


def test_missing_and_damaged_models_are_named(tmp_path):
    SETTINGS.write(tmp_path / "good")
    with pytest.raises(InputError, match=r"bad.inference\.json: no such file; models in .*: good"):
        read_inference_settings(tmp_path / "bad")
    with pytest.raises(InputError, match=r"7_net_G_A\.pth: no such file"):
        load_synthesiser(tmp_path / "good", "7", CPU)
    with pytest.raises(InputError, match=r"has its own, 2 mm"):
        load_synthesiser(tmp_path / "good", "latest", CPU, spacing_mm=1.0)
    replace(SETTINGS, spacing_mm=None).write(tmp_path / "images")
    with pytest.raises(InputError, match="say it with --spacing_mm"):
        load_synthesiser(tmp_path / "images", "latest", CPU)
    (tmp_path / "good/inference.json").write_text(json.dumps({"format_version": 1}))
    with pytest.raises(InputError, match="damaged"):
        read_inference_settings(tmp_path / "good")


def test_published_weights_are_taken_over_and_used(tmp_path):
    net = build_generator("resnet_6blocks", ngf=4)
    stale = dict(net.state_dict()) | {"model.2.running_mean": torch.zeros(4), "model.2.running_var": torch.ones(4)}
    torch.save(stale, tmp_path / "published.pth")
    where = ["--checkpoints_dir", str(tmp_path / "checkpoints")]
    arguments = ["--weights", str(tmp_path / "published.pth"), "--name", "published", *where, "--ngf", "4"]
    frame = ["--size", "32", "--spacing_mm", "2.0"]
    with pytest.raises(InputError, match="does not fit ResnetGenerator"):
        import_weights.main([*arguments, *frame])
    import_weights.main([*arguments, *frame, "--netG", "resnet_6blocks"])
    mr = ramp_mr()
    write_volume(mr, tmp_path / "mr.mha")
    write_volume(mr.with_array(np.ones(mr.array.shape, np.uint8)), tmp_path / "mask.mha")
    output = tmp_path / "out/ct.nrrd"
    test_adapt.main([
        "--name", "published", *where, "--input", str(tmp_path / "mr.mha"), "--mask", str(tmp_path / "mask.mha"),
        "--output", str(output), "--device", "cpu",
    ])  # fmt: skip
    ct = read_volume(output)
    assert same_grid(ct, mr, tolerance=1e-6)
    slices = IntensityMap.window(0, 400).to_network(np.pad(mr.array, ((0, 0), (4, 4), (6, 6))))
    with torch.inference_mode():
        expected = net.eval()(torch.from_numpy(slices)[:, None])[:, 0].numpy()[:, 4:-4, 6:-6]
    np.testing.assert_allclose(ct.array, IntensityMap.window(-1000, 1400).to_physical(expected), atol=0.6)
