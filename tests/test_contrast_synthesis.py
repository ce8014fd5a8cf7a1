"""Models of several contrasts and slabs in use: channels in the model's order, every slice the mean of its slabs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cohort.checks import Check
from data.errors import InputError
from data.values.bias_field import log_bias_field
from data.values.intensity import IntensityMap
from data.volumes.volume import Volume
from models.inference_settings import InferenceSettings, read_inference_settings
from models.networks import Architecture, build_generator
from models.state_dicts import save_network_weights
from models.synthesis import Synthesiser, prepare_volume, synthesize_volume
from models.test_model import TestModel
from tests.test_contrast_preparation import fat_volume
from tests.test_preparation import mr_volume
from tests.test_slabs import assert_mean_of_slabs

CPU = torch.device("cpu")
SETTINGS = InferenceSettings(
    generator=Architecture("unet", 2, "batch", upsample="resize", input_nc=6, output_nc=3), direction="AtoB", size=64,
    spacing_mm=2.0, slice_mm=4.0, mr_window={"in_phase": (0.0, 1000.0), "fat": "percentile"}, typical_mr=None,
    ct=IntensityMap.window(-1000, 1400), versions={}, slab=3, contrasts=("in_phase", "fat"),
)  # fmt: skip


class Weighted(nn.Module):
    """Gives (a - b / 2) / 2 of the two contrasts' channels a and b."""

    def forward(self, x):
        assert x.shape[1] == 6
        return (x[:, :3] - x[:, 3:] / 2) / 2


def test_settings_are_written_and_read_with_names_order_and_windows(tmp_path):
    SETTINGS.write(tmp_path)
    assert read_inference_settings(tmp_path) == SETTINGS
    assert SETTINGS.channels == (6, 3)
    turned = replace(SETTINGS, contrasts=("fat", "in_phase"))
    turned.write(tmp_path)
    assert read_inference_settings(tmp_path).contrasts == ("fat", "in_phase")
    one = replace(SETTINGS, contrasts=("mr",), mr_window="percentile", direction="BtoA")
    assert one.channels == (3, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"contrasts": ()}, {"contrasts": ("in_phase", "in_phase")}, {"contrasts": ("in_phase", "../fat")},
        {"contrasts": ("in_phase", 3)}, {"contrasts": ("in_phase",)}, {"direction": "BtoA"},
        {"mr_window": {"in_phase": "tissue", "fat": (5.0, 1.0)}}, {"mr_window": {"in_phase": "tissue"}},
    ],
)  # fmt: skip
def test_impossible_contrasts_are_refused(tmp_path, changes):
    replace(SETTINGS, **changes).write(tmp_path)
    with pytest.raises(InputError, match="damaged"):
        read_inference_settings(tmp_path)


def test_channels_are_windowed_each_by_its_rule_in_the_models_order():
    mr, fat = mr_volume(), fat_volume()
    given, plan = prepare_volume(mr, SETTINGS, further=[fat])
    slices = np.asarray(given)
    assert slices.shape == given.shape == (6, 2, 64, 64)
    windows = [IntensityMap.window(0, 1000), IntensityMap.window(*np.percentile(fat.array[plan.body], (0.5, 99.5)))]
    for k, (volume, window) in enumerate(zip((mr, fat), windows, strict=True)):
        np.testing.assert_allclose(slices[:, k, 2:62, 2:62], window.to_network(volume.array), atol=1e-5)
    first, _ = prepare_volume(mr, replace(SETTINGS, contrasts=("in_phase",), mr_window=(0.0, 1000.0)))
    np.testing.assert_array_equal(first, slices[:, 0])


def test_every_slice_is_the_mean_of_all_slabs_that_hold_it(tmp_path):
    torch.manual_seed(0)
    save_network_weights(build_generator(SETTINGS.generator), tmp_path / "net.pth")
    model = TestModel(SETTINGS, tmp_path / "net.pth", CPU)
    slices = np.random.default_rng(1).uniform(-1, 1, (4, 2, 16, 16)).astype(np.float32)
    padded = np.concatenate([slices[:1], slices, slices[-1:]])
    with torch.inference_mode():
        slabs = [
            model.netG(torch.from_numpy(padded[k : k + 3].swapaxes(0, 1).reshape(1, 6, 16, 16)))[0].numpy()
            for k in range(4)
        ]
    assert_mean_of_slabs(model, slices, slabs)


def known_synthesiser(folder: Path, settings: InferenceSettings) -> Synthesiser:
    save_network_weights(build_generator(settings.generator), folder / "n")
    model = TestModel(settings, folder / "n", CPU)
    model.netG = Weighted()
    return Synthesiser(settings, model)


def test_a_volume_of_two_contrasts_comes_out_in_hu_on_its_grid(tmp_path):
    fixed = replace(SETTINGS, mr_window=(0.0, 1000.0))
    mr, fat = mr_volume(), fat_volume()
    ct = synthesize_volume(mr, known_synthesiser(tmp_path, fixed), further=[fat])
    a, b = ((volume.array / 500 - 1).clip(-1, 1) for volume in (mr, fat))
    each = (a - b / 2) / 2
    # Weighted() acts on each slice alone, so that the mean of its slabs is itself.
    np.testing.assert_allclose(ct.array, np.rint(each * 1200 + 200), atol=1)
    assert (ct.spacing, ct.origin) == (mr.spacing, mr.origin)


def test_the_shading_of_the_first_contrast_is_taken_out_of_all(tmp_path):
    mr, fat = mr_volume(), fat_volume()
    settings = replace(SETTINGS, bias_correction=True, mr_window=(0.0, 1200.0))
    given, plan = prepare_volume(mr, settings, further=[fat])
    slices = np.asarray(given)
    log_field = log_bias_field(mr, plan.body)
    expected = IntensityMap.window(0, 1200).to_network(fat.array * np.exp(-log_field))
    np.testing.assert_allclose(slices[:, 1, 2:62, 2:62], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ([], "1 contrasts; the model takes 2: in_phase, fat"),
        ([fat_volume(), fat_volume(1)], "3 contrasts; the model takes 2"),
        ([mr_volume()], "in_phase and fat: the same image"),
        ([replace(fat_volume(), origin=(0.0, 0.0, 0.0))], "contrast fat: not on the grid of in_phase: origin "),
        (
            [fat_volume().with_array((fat_volume().array > 500).astype(np.float32))],
            "fat: not an MR .* looks like a mask",
        ),
    ],
)
def test_contrasts_that_do_not_go_together_are_refused(further, message):
    with pytest.raises(InputError, match=message):
        prepare_volume(mr_volume(), SETTINGS, further=further)


def test_contrast_images_are_not_needed_to_be_alike():
    """A fat image may be dark nearly everywhere: its body is the first contrast's."""
    fat = fat_volume()
    dark = fat.with_array(np.where(fat.array > 600, fat.array, fat.array / 20).astype(np.float32))
    assert isinstance(dark, Volume)
    _, plan = prepare_volume(mr_volume(), SETTINGS, further=[dark])
    _, alone = prepare_volume(mr_volume(), replace(SETTINGS, contrasts=("mr",), mr_window="percentile"))
    np.testing.assert_array_equal(plan.body, alone.body)


@pytest.mark.parametrize(("slice_mm", "said"), [(4.0, False), (3.0, False), (2.0, True), (8.0, True), (None, False)])
def test_slices_of_another_spacing_are_interpolated_and_that_is_said(tmp_path, slice_mm, said):
    settings = replace(SETTINGS, mr_window=(0.0, 1000.0), slice_mm=slice_mm)
    mr, fat = mr_volume(), fat_volume()  # slices of 4 mm
    checks = []

    def look(synthesiser, plan):
        checks.append(Check(plan, None))
        return checks[-1]

    ct = synthesize_volume(mr, known_synthesiser(tmp_path, settings), further=[fat], look=look)
    assert ct.array.shape == mr.array.shape
    text = f"slices lie 4 mm apart, the model was trained on slices of {slice_mm or 0:g} mm"
    assert any(text in warning for warning in checks[0].findings.warnings) == said
