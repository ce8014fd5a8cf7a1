"""Pictures: windows, proportions and captions' places; the training log's records are tested with train.py."""

import numpy as np
import torch
from PIL import Image

from data.volume import Volume
from visualization.panels import CT_DISPLAY_HU, save_preview, save_training_panel

CAPTION_PX = 14


def test_a_preview_shows_hu_in_a_fixed_window_and_true_proportions(tmp_path):
    spacing = (1.0, 2.0, 4.0)
    shape = (5, 20, 30)  # 20 mm high, 40 mm deep, 30 mm wide
    low, high = CT_DISPLAY_HU
    constant = {name: Volume(np.full(shape, hu, np.int16), spacing) for name, hu in (("low", low), ("high", high))}
    mr = Volume(np.tile(np.arange(30, dtype=np.float32), (5, 20, 1)), spacing)
    save_preview(mr, constant["low"], constant["high"], tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        pixels = np.array(image)
    axial, coronal, sagittal = (40, 30), (20, 30), (20, 40)
    widths = 40
    assert pixels.shape == (axial[0] + coronal[0] + sagittal[0] + 3 * CAPTION_PX, 4 * widths)
    first = pixels[CAPTION_PX : CAPTION_PX + axial[0]]
    assert first[20, 0] == 0 and first[20, 29] == 255  # MR between its percentiles
    assert np.all(first[:, widths : widths + 30] == 0)  # the synthetic CT at the window's lower end
    assert np.all(first[:, 2 * widths : 2 * widths + 30] == 255)  # the true CT at its upper end
    assert np.all(first[:, 3 * widths : 3 * widths + 30] == 0)  # -800 HU of difference is below -400


def test_coronal_and_sagittal_planes_stand_upright(tmp_path):
    array = np.zeros((6, 8, 8), np.int16)
    array[5] = 400  # the head end
    volume = Volume(array)
    save_preview(volume, volume, None, tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        pixels = np.array(image)
    top = 8 + 2 * CAPTION_PX  # the coronal row of images
    assert pixels[top, 8 + 4] > pixels[top + 5, 8 + 4]


def test_a_training_panel_maps_minus_one_and_one_to_black_and_white(tmp_path):
    images = {name: torch.full((2, 1, 16, 16), value) for name, value in (("real_A", -1.0), ("fake_B", 1.0))}
    save_training_panel(images | {"real_B": torch.zeros(2, 1, 16, 16)}, tmp_path / "samples/s.png")
    with Image.open(tmp_path / "samples/s.png") as image:
        pixels = np.array(image)
    assert pixels.shape == (2 * (16 + CAPTION_PX), 2 * 16)
    row = pixels[CAPTION_PX : CAPTION_PX + 16]
    assert np.all(row[:, :16] == 0) and np.all(row[:, 16:] == 255)
    assert np.all(pixels[-16:, :16] == 127)
