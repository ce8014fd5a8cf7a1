"""The picture beside a result: proportions, windows, colours, round ticks, and letters that are legible."""

import math

import numpy as np
import pytest
from PIL import Image

from data.volumes.volume import Volume
from visualization.planes import PLANES
from visualization.preview import _font, heading, preview, save_preview, thumbnail, tile_size
from visualization.windows import (
    CT_WINDOWS,
    DIFFERENCE_COLOURS,
    MARK_COLOUR,
    UNCERTAINTY_COLOURS,
    colour_table,
    coloured,
    round_ticks,
)

SPACING = (1.0, 2.0, 4.0)
SHAPE = (5, 20, 30)  # 20 mm high, 40 mm deep, 30 mm wide
SIDE, GAP, TOP = 28, 6, 28  # pixels left of the images, between them, above them
LETTERS = 40  # at the images' sides


def constant(hu: float) -> Volume:
    return Volume(np.full(SHAPE, hu, np.int16), SPACING)


def tiles(pixels: np.ndarray, columns: int) -> dict[str, list[np.ndarray]]:
    """Return the images of each plane."""
    found, y, wide = {}, TOP, 320
    for plane in PLANES:
        width, height = tile_size(constant(0), plane)
        x = [SIDE + k * (wide + GAP) + (wide - width) // 2 for k in range(columns)]
        found[plane.name] = [pixels[y : y + height, left : left + width] for left in x]
        y += height + GAP
    return found


def test_all_planes_have_the_same_pixels_per_mm():
    sizes = {plane.name: tile_size(constant(0), plane) for plane in PLANES}
    assert sizes == {"axial": (240, 320), "coronal": (240, 160), "sagittal": (320, 160)}  # 8 pixels a mm
    tall = Volume(np.zeros((100, 10, 10), np.int16), (1.0, 1.0, 10.0))
    assert tile_size(tall, PLANES[1]) == (6, 640)


def test_a_preview_shows_hu_in_a_fixed_window_and_differences_in_colours():
    low, high = CT_WINDOWS["default"].range
    mr = Volume(np.tile(np.arange(30, dtype=np.float32), (5, 20, 1)), SPACING)
    pixels = np.array(preview(mr, constant(low), constant(high)))
    table = colour_table(DIFFERENCE_COLOURS)
    for images in tiles(pixels, 4).values():
        shown = [image[:, LETTERS:-LETTERS] for image in images]
        assert np.all(shown[1] == 0) and np.all(shown[2] == 255)  # the ends of the window
        assert np.all(shown[3] == table[0])  # -800 HU is below the colours' end
    axial = tiles(pixels, 4)["axial"][0][0].astype(int)
    assert np.all(np.diff(axial[:, 0]) >= 0) and axial[0, 0] == 0 and axial[-1, 0] == 255
    agree = np.array(preview(mr, constant(low), constant(low)))
    middle = tiles(agree, 4)["axial"][3][:, LETTERS:-LETTERS]
    assert np.all(middle == table[128])  # no difference
    assert middle.max() < 40  # and nearly black


def test_an_uncertainty_is_the_last_column_in_colours_with_a_bar_in_hu_of_its_own():
    deviation = np.full(SHAPE, 10.0, np.float32)
    deviation[2] = 40.0  # 98 % of it lie below 50 HU, the next end of the colours
    without = np.array(preview(constant(0), constant(0), constant(0)))
    pixels = np.array(preview(constant(0), constant(0), constant(0), uncertainty=Volume(deviation, SPACING)))
    assert pixels.shape[1] - without.shape[1] == 320 + GAP + 92  # an image, and a bar beside those of CT and difference
    axial = tiles(pixels, 5)["axial"][4]  # slice 2
    table = colour_table(UNCERTAINTY_COLOURS)
    assert np.all(axial[:, LETTERS:-LETTERS] == table[round(255 * 40 / 50)])
    bar = pixels[2 * TOP + 1 :, SIDE + 5 * (320 + GAP) + 2 * 92 + 7]  # below its upper edge
    assert np.all(bar[0] == table[255]) and np.any(np.all(bar == table[0], axis=1))


@pytest.mark.parametrize("hu", [-1000, 3000])
def test_letters_are_legible_on_black_and_on_white(hu):
    """In yellow with a black edge."""
    ct = constant(hu)
    mark = np.array([int(MARK_COLOUR[k : k + 2], 16) for k in (1, 3, 5)])
    for images in tiles(np.array(preview(ct, ct, None)), 2).values():
        for side in (images[1][:, :LETTERS], images[1][:, -LETTERS:]):
            yellow = np.all(side == mark, axis=2)
            assert yellow.sum() > 5
            rows, columns = np.nonzero(yellow)
            around = side[rows.min() - 1 : rows.max() + 2, columns.min() - 1 : columns.max() + 2].max(axis=2)
            assert (around == 0).sum() > 10


@pytest.mark.parametrize("flipped", [False, True])
def test_coronal_and_sagittal_planes_stand_upright(flipped):
    array = np.zeros(SHAPE, np.int16)
    array[0 if flipped else 4] = 400  # the head end
    volume = Volume(array, SPACING, direction=(1, 0, 0, 0, 1, 0, 0, 0, -1 if flipped else 1))
    for plane in ("coronal", "sagittal"):
        image = tiles(np.array(preview(volume, volume, None)), 2)[plane][1][:, LETTERS:-LETTERS]
        assert image[:10].min() > 200 > image[-10:].max()


def test_bars_have_round_values():
    assert round_ticks(-360, 440) == [-200, 0, 200, 400]
    assert round_ticks(-400, 400) == [-400, -200, 0, 200, 400]
    assert round_ticks(0, 25) == [0, 5, 10, 15, 20, 25]
    with_bars = np.array(preview(constant(0), constant(0), constant(0)))
    assert with_bars.shape[1] - np.array(preview(constant(0), constant(0), None)).shape[1] == 2 * (320 + GAP) + 92


def test_colours_run_from_low_to_high():
    values = np.array([[-500.0, -400.0, 0.0, 400.0, 500.0]])
    table = colour_table(DIFFERENCE_COLOURS)
    np.testing.assert_array_equal(coloured(values, -400, 400, DIFFERENCE_COLOURS)[0], table[[0, 0, 128, 255, 255]])


def test_a_thumbnail_is_one_legible_row():
    image = np.array(thumbnail(constant(50), constant(440)))
    assert image.shape == (128, 96 + GAP + 96 + GAP + 192, 3)
    assert np.all(image[:, 96 + GAP : 96 + GAP + 96] == 255)


@pytest.mark.parametrize(("shape", "width"), [((1, 256, 256), 128 + 128 + 256), ((256, 64, 256), 256 + 256 + 128)])
def test_a_thumbnail_is_as_high_as_every_other_and_no_wider_than_three_boxes(shape, width):
    volume = Volume(np.zeros(shape, np.int16))
    assert thumbnail(volume, volume).size == (width + 2 * 6, 128)


def test_a_heading_names_case_models_and_purpose_and_with_a_true_ct_two_scores():
    scores = {"mae": 68.24, "psnr": 30.0, "dice_bone": 0.7834}
    assert heading("STS_038", "checkpoints/recommended", scores) == [
        "STS_038",
        "synthetic CT, not for clinical use; model: recommended",
        "MAE 68.2 HU, bone Dice 0.783",
    ]
    assert heading("p", "runs/a + b", {"mae": 68.24, "dice_bone": math.nan}, "MR") == [
        "p", "synthetic MR, not for clinical use; model: a + b", "MAE 68.2 HU",
    ]  # fmt: skip
    assert heading("p", None, {"body_l": 60.0}) == ["p", "synthetic CT, not for clinical use"]


def test_a_heading_stands_above_the_picture_which_is_wide_enough_for_it(tmp_path):
    small = Volume(np.zeros((2, 3, 2), np.int16), (1.0, 1.0, 60.0))  # 6 x 640 pixels and the like
    lines = heading(
        "a patient's name \udcff\nof two lines", "checkpoints/" + "long" * 25, {"mae": 1.0, "dice_bone": 0.0}
    )
    plain, headed = np.array(preview(small, small, small)), np.array(preview(small, small, small, lines=lines))
    top = headed.shape[0] - plain.shape[0]
    assert top == 3 * 22 + GAP
    assert headed.shape[1] == max(plain.shape[1], math.ceil(_font().getlength(lines[1])) + 2 * GAP) > plain.shape[1]
    np.testing.assert_array_equal(headed[top:, : plain.shape[1]], plain)
    for line in np.split(headed[GAP:top], 3):
        dark = np.flatnonzero((line < 128).any(axis=(0, 2)))
        assert GAP <= dark[0] < 2 * GAP and dark[-1] < headed.shape[1] - GAP
    save_preview(small, small, small, tmp_path / "p.png", lines)
    with Image.open(tmp_path / "p.png") as image:
        np.testing.assert_array_equal(np.array(image), headed)
