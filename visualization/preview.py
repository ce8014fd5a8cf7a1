"""The picture beside a result: MR, CT and difference in three planes, drawn like figures for papers but fast."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.files import whole_file
from data.volumes.volume import Volume
from visualization.planes import PLANES, Plane, patient_order
from visualization.windows import (
    CT_WINDOWS,
    DIFFERENCE_COLOURS,
    DIFFERENCE_HU,
    GRAYS,
    MARK_COLOUR,
    UNCERTAINTY_COLOURS,
    UNCERTAINTY_TITLE,
    coloured,
    mr_display_range,
    round_ticks,
    uncertainty_reach,
)

# The widest plane of a volume is this wide, whatever its voxels; a tall one is no higher than that.
_WIDE_PX, _HIGH_PX = 320, 640
_GAP_PX, _TITLE_PX, _BAR_PX, _BAR_WIDE_PX = 6, 28, 14, 92
_FONT_PX, _NAME_FONT_PX, _LINE_PX = 15, 17, 22
_COMPRESSION = 2  # the default takes five times as long for a tenth less
_THUMBNAIL_PX = 128


class _Column(NamedTuple):
    """What a column shows: an array, or the difference of two, its range and colours, and the title of its scale."""

    title: str
    arrays: Sequence[np.ndarray]
    limits: tuple[float, float]
    colours: str = GRAYS
    scale: str = ""


def mr_title(contrast: str | None) -> str:
    """Return the title of an MR in pictures: with its contrast's name, if it is one of several."""
    return f"MR ({contrast})" if contrast else "MR"


def model_names(model: object) -> str:
    """Return the names of models, given as a report has them: their folders, with " + " between them."""
    return " + ".join(Path(folder).name for folder in str(model).split(" + "))


def heading(case: str, model: object, scores: Mapping[str, float], synthetic: str = "CT") -> list[str]:
    """Return the lines above a picture: the case, what the picture is, and two of its `scores`, where it has them.

    `model`: as in `model_names`, None where it is not known; `synthetic`: as in `preview`.
    """
    kind = f"synthetic {synthetic}, not for clinical use"
    shown = (("mae", "MAE {:.1f} HU"), ("dice_bone", "bone Dice {:.3f}"))
    known = [text.format(scores[name]) for name, text in shown if math.isfinite(scores.get(name, math.nan))]
    return [case, kind if model is None else f"{kind}; model: {model_names(model)}", *filter(None, [", ".join(known)])]


def preview(
    mr: Volume, ct: Volume, reference: Volume | None, synthetic: str = "CT", contrast: str | None = None,
    lines: Sequence[str] = (), uncertainty: Volume | None = None,
) -> Image.Image:  # fmt: skip
    """Return MR and CT through the middle of the three planes, in true proportions.

    True CT, difference and `uncertainty`, a standard deviation in HU, follow where they are given.

    `synthetic` says which of the two, CT or MR, was made from the other, `contrast` which one of several the MR is, and
    `lines` what stands above: a `heading`. All volumes are on one grid. Windows, colours and bars in HU are those of
    `visualization.windows`.
    """
    titles = {"MR": mr_title(contrast), "CT": "CT"}
    titles[synthetic] = f"synthetic {titles[synthetic]}"
    hu = CT_WINDOWS["default"].range
    columns = [_Column(titles["MR"], [mr.array], mr_display_range(mr.array)),
               _Column(titles["CT"], [ct.array], hu, scale="CT [HU]")]  # fmt: skip
    if reference is not None:
        title = f"{titles['CT']} \N{MINUS SIGN} true CT"
        columns += [
            _Column("true CT", [reference.array], hu, scale="CT [HU]"),
            _Column(title, [ct.array, reference.array], (-DIFFERENCE_HU, DIFFERENCE_HU), DIFFERENCE_COLOURS,
                    "difference [HU]"),
        ]  # fmt: skip
    if uncertainty is not None:
        limits = (0.0, uncertainty_reach(uncertainty.array))
        columns.append(_Column(UNCERTAINTY_TITLE, [uncertainty.array], limits, UNCERTAINTY_COLOURS, "uncertainty [HU]"))
    rows = [[_tile(column, plane, mr) for column in columns] for plane in PLANES]
    scales = {column.scale: column for column in columns if column.scale}
    return _headed(_sheet(rows, [column.title for column in columns], list(scales.values())), lines)


def save_preview(
    mr: Volume, ct: Volume, reference: Volume | None, path: Path, lines: Sequence[str], synthetic: str = "CT",
    contrast: str | None = None, uncertainty: Volume | None = None,
) -> None:  # fmt: skip
    """Write the `preview` below its `lines` to a PNG file."""
    with whole_file(path) as scratch:
        preview(mr, ct, reference, synthetic, contrast, lines, uncertainty).save(scratch, compress_level=_COMPRESSION)


def thumbnail(mr: Volume, ct: Volume) -> Image.Image:
    """Return the middle of MR and CT, axial, and of the CT, coronal, in one row without letters, for tables.

    Every tile fits a box of 128 x 256 pixels.
    """
    shown = [_Column("", [mr.array], mr_display_range(mr.array)), _Column("", [ct.array], CT_WINDOWS["default"].range)]
    tiles = [
        _image(column, plane, mr) for column, plane in zip([*shown, shown[1]], (*PLANES[:1], *PLANES[:2]), strict=True)
    ]
    scales = [min(_THUMBNAIL_PX / tile.height, 2 * _THUMBNAIL_PX / tile.width) for tile in tiles]
    tiles = [
        tile.resize((max(1, round(tile.width * scale)), max(1, round(tile.height * scale))))
        for tile, scale in zip(tiles, scales, strict=True)
    ]
    sheet = Image.new("RGB", (sum(tile.width for tile in tiles) + _GAP_PX * (len(tiles) - 1), _THUMBNAIL_PX), "white")
    x = 0
    for tile in tiles:
        sheet.paste(tile, (x, (_THUMBNAIL_PX - tile.height) // 2))
        x += tile.width + _GAP_PX
    return sheet


def tile_size(grid: Volume, plane: Plane) -> tuple[int, int]:
    """Return width and height in pixels of a plane of a volume: all planes have the same pixels per mm."""
    lie = patient_order(grid)
    mm = [count * spacing for count, spacing in zip(lie.array(grid.array).shape, lie.spacing_mm, strict=True)]
    sizes = {one.name: (mm[one.rows_and_columns[1]], mm[one.rows_and_columns[0]]) for one in PLANES}
    scale = min(_WIDE_PX / max(w for w, _ in sizes.values()), _HIGH_PX / max(h for _, h in sizes.values()))
    width, height = sizes[plane.name]
    return max(1, round(width * scale)), max(1, round(height * scale))


def _tile(column: _Column, plane: Plane, grid: Volume) -> Image.Image:
    """Return the picture of a column in a plane, with letters at its sides."""
    image = _image(column, plane, grid)
    left, right, *_ = plane.letters
    for letter, x, anchor in ((left, 4, "lm"), (right, image.width - 4, "rm")):
        draw_mark(image, (x, image.height / 2), letter, anchor)
    return image


def draw_mark(image: Image.Image, place: tuple[float, float], text: str, anchor: str) -> None:
    """Write letters on an image so that they are legible on any tissue; `anchor` as Pillow names them."""
    ImageDraw.Draw(image).text(place, text, MARK_COLOUR, _font(), anchor, stroke_width=2, stroke_fill="black")


def _image(column: _Column, plane: Plane, grid: Volume) -> Image.Image:
    lie = patient_order(grid)
    middle = lie.array(grid.array).shape[plane.axis] // 2
    cut, *less = (plane.cut(lie.array(array), middle).astype(np.float32) for array in column.arrays)
    image = Image.fromarray(coloured(cut - less[0] if less else cut, *column.limits, column.colours))
    return image.resize(tile_size(grid, plane), Image.Resampling.BILINEAR)


def _sheet(rows: list[list[Image.Image]], titles: Sequence[str], scales: Sequence[_Column]) -> Image.Image:
    """Return tiles under the titles of their columns, with the planes' names at the left and bars at the right."""
    wide = max([image.width for row in rows for image in row] + [round(_font().getlength(title)) for title in titles])
    high = sum(row[0].height + _GAP_PX for row in rows)
    across = _TITLE_PX + len(titles) * (wide + _GAP_PX)
    bar_high = min(max(high - 3 * _TITLE_PX, 120), _HIGH_PX)
    sheet = Image.new(
        "RGB", (across + len(scales) * _BAR_WIDE_PX, _TITLE_PX + max(high, bar_high + 3 * _TITLE_PX)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for c, title in enumerate(titles):
        x = _TITLE_PX + c * (wide + _GAP_PX)
        draw.text((x + wide / 2, _TITLE_PX / 2), title, "black", _font(), "mm")
        y = _TITLE_PX
        for row in rows:
            sheet.paste(row[c], (x + (wide - row[c].width) // 2, y))
            y += row[c].height + _GAP_PX
    y = _TITLE_PX
    for row, plane in zip(rows, PLANES, strict=True):
        name = Image.new("RGB", (round(_font().getlength(plane.name)) + 2, _TITLE_PX), "white")
        ImageDraw.Draw(name).text((1, _TITLE_PX / 2), plane.name, "black", _font(), "lm")
        name = name.rotate(90, expand=True)
        sheet.paste(name, (0, max(y, y + (row[0].height - name.height) // 2)))
        y += row[0].height + _GAP_PX
    for k, scale in enumerate(scales):
        _draw_bar(sheet, (across + k * _BAR_WIDE_PX, 2 * _TITLE_PX), bar_high, scale)
    return sheet


def _headed(sheet: Image.Image, lines: Sequence[str]) -> Image.Image:
    """Return a sheet below lines of text, the first one larger; it becomes wider where a line needs that."""
    if not lines:
        return sheet
    # A file name that is no UTF-8 is shown with question marks, and one of several lines in one.
    texts = [" ".join(line.encode(errors="replace").decode().split()) for line in lines]
    fonts = [_font(_NAME_FONT_PX), *(_font() for _ in texts[1:])]
    wide = max(math.ceil(font.getlength(text)) for text, font in zip(texts, fonts, strict=True)) + 2 * _GAP_PX
    top = _GAP_PX + _LINE_PX * len(texts)
    headed = Image.new("RGB", (max(sheet.width, wide), top + sheet.height), "white")
    headed.paste(sheet, (0, top))
    draw = ImageDraw.Draw(headed)
    for k, (text, font) in enumerate(zip(texts, fonts, strict=True)):
        draw.text((_GAP_PX, _GAP_PX + _LINE_PX * (k + 0.5)), text, "black", font, "lm")
    return headed


def _draw_bar(sheet: Image.Image, corner: tuple[int, int], height: int, scale: _Column) -> None:
    """Draw a bar of a scale's colours with round values, its title above."""
    (x, y), (low, high) = corner, scale.limits
    draw = ImageDraw.Draw(sheet)
    kind, unit = scale.scale.split()
    draw.text((x, y - 6), f"{kind}\n{unit}", "black", _font(), "ld")
    ramp = np.linspace(high, low, height, dtype=np.float32)[:, None].repeat(_BAR_PX, axis=1)
    sheet.paste(Image.fromarray(coloured(ramp, low, high, scale.colours)), (x, y))
    draw.rectangle((x, y, x + _BAR_PX - 1, y + height - 1), outline="black")
    for value in round_ticks(low, high):
        at = y + (high - value) / (high - low) * (height - 1)
        draw.line((x + _BAR_PX, at, x + _BAR_PX + 4, at), "black")
        draw.text((x + _BAR_PX + 7, at), f"{value:g}".replace("-", "\N{MINUS SIGN}"), "black", _font(), "lm")


@cache
def _font(size_px: int = _FONT_PX) -> ImageFont.FreeTypeFont:
    """Return the font of the figures."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size_px)
