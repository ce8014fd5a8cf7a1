"""Pictures of slices side by side, with captions, as 8-bit images for display only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data.loading.channels import middle_channel
from data.values.intensity import IntensityMap
from visualization.preview import mr_title
from visualization.windows import CT_WINDOWS, DIFFERENCE_COLOURS, DIFFERENCE_HU, GRAYS, DisplayWindow, coloured, gray

GAP_PX = 4
# The page of a training shows a sheet 950 pixels wide in a window of 1400. Letters are this share of a sheet's width,
# so that they are as large as the page's own there, and no smaller than this in a small sheet.
_FONT_SHARE, _FONT_PX = 1 / 60, 14
_SMALLEST = 0.6  # share of that, of titles that would not fit otherwise
_TILE_PX = 192
_SCALE_PX = 8


class Tile(NamedTuple):
    """A picture with its title, and for CT and differences the HU at the ends of `colours`: a bar below shows them."""

    title: str
    picture: Image.Image
    limits: tuple[float, float] | None = None
    colours: str = GRAYS


class _Visual(NamedTuple):
    """An image of a training: of the source domain (A), the target domain (B), or a mask in [0, 1]; its titles."""

    kind: str
    if_mr: str
    if_ct: str


def _titled(kind: str, title: str) -> _Visual:
    return _Visual(kind, title.format("MR"), title.format("CT"))


def _pair_row(name: str, mr: str) -> dict[str, _Visual]:
    return {
        f"{name}_A": _Visual("A", mr, "true CT"),
        f"from_{name}_A": _titled("B", "{} made from it"),
        f"{name}_B": _Visual("B", mr, "true CT"),
        f"from_{name}_B": _Visual("A", "MR made from the true CT", "CT made from the MR"),
    }


# By name, in rows of images that belong together; those that a run does not have are left out.
_PAIRS = ("simulated", "paired")
_ROWS = (
    {
        "real_A": _titled("A", "real {}"),
        "fake_B": _titled("B", "{} made from it"),
        "rec_A": _titled("A", "and back to {}"),
        "idt_B": _titled("A", "identity: {0} from {0}"),
    },
    {
        "real_B": _titled("B", "real {}"),
        "fake_A": _titled("A", "{} made from it"),
        "rec_B": _titled("B", "and back to {}"),
        "idt_A": _titled("B", "identity: {0} from {0}"),
    },
    _pair_row("simulated", "MR simulated from CT"),
    _pair_row("paired", "real MR"),
    {
        "image_B": _titled("B", "{}"),
        "mask_B": _titled("mask", "its body mask"),
        "found_B": _titled("mask", "the mask as it is found"),
    },
    {"mask": _titled("mask", "body mask of the MR"), "shape": _titled("mask", "body of the CT made from it")},
)
_VISUALS = {name: visual for row in _ROWS for name, visual in row.items()}


@dataclass(frozen=True)
class VisualsStyle:
    """How the images of a training are shown: in [-1, 1] they are MR in their window, and CT under the map `ct`.

    `slab`: slices of an image; `contrast`: what the first of several contrasts is called.
    """

    ct: IntensityMap
    window: DisplayWindow = CT_WINDOWS["default"]
    direction: str = "AtoB"
    columns: int = 4
    slab: int = 1
    contrast: str | None = None

    def title(self, name: str) -> str:
        """Return e.g. 'CT made from it' for 'fake_B', of an MR with its contrast where it is one of several."""
        visual = _VISUALS[name]
        if self.modality(name) == "MR":
            return visual.if_mr.replace("MR", mr_title(self.contrast), 1)
        return visual.if_ct

    def modality(self, name: str) -> str:
        """Return 'MR', 'CT' or 'mask'."""
        kind = _VISUALS[name].kind
        if kind == "mask":
            return kind
        return "MR" if (kind == "A") == (self.direction == "AtoB") else "CT"

    def plane(self, name: str, images: Tensor) -> np.ndarray:
        """Return what is shown of images (N, C, H, W): of the first one the slab's middle slice, first contrast.

        CT is in HU.
        """
        channel = middle_channel(self.slab)
        if self.modality(name) == "mask":  # the classes of a slice stand together
            channel *= images.shape[1] // self.slab
        image = images[0, channel].cpu().float().numpy()
        return self.ct.to_physical(image) if self.modality(name) == "CT" else image

    def tile(self, name: str, plane: np.ndarray) -> Tile:
        """Return a `plane` (H, W) with its title."""
        modality = self.modality(name)
        if modality == "CT":
            return ct_tile(self.title(name), plane, self.window.range)
        return Tile(self.title(name), _enlarged(gray(plane, 0 if modality == "mask" else -1, 1)))


@dataclass(frozen=True)
class ValidationSlice:
    """A slice of a volume that validates, all images (H, W).

    Attributes:
        name: the volume's and the slice's number.
        mr: MR in [-1, 1]; simulated: of the CT that should come out.
        synthetic: synthetic CT in HU.
        ct: the CT that should come out, in HU; None if it is not known.
    """

    name: str
    mr: np.ndarray
    synthetic: np.ndarray
    ct: np.ndarray | None
    simulated: bool = False


def validation_sheet(slices: Sequence[ValidationSlice], style: VisualsStyle) -> Image.Image:
    """Return slices on one sheet with titles, a row each: MR, synthetic CT, and the CT that should come out."""
    rows = []
    for shown in slices:
        kind = "MR simulated from CT" if shown.simulated else "MR"
        row = [Tile(f"{shown.name}: {kind}", _enlarged(gray(shown.mr, -1, 1)))]
        row += [ct_tile("CT made from it", shown.synthetic, style.window.range)]
        if shown.ct is not None:
            row += [ct_tile("true CT", shown.ct, style.window.range), _difference_tile(shown.synthetic, shown.ct)]
        rows.append(row)
    return arrange(rows)


def ct_tile(title: str, hu: np.ndarray, limits: tuple[float, float]) -> Tile:
    """Return a slice in HU (H, W) with its title."""
    return Tile(title, _enlarged(gray(hu, *limits)), limits)


def _difference_tile(made: np.ndarray, true: np.ndarray) -> Tile:
    limits = (-DIFFERENCE_HU, DIFFERENCE_HU)
    picture = coloured(made - true.astype(np.float32), *limits, DIFFERENCE_COLOURS)
    return Tile("CT made - true [HU]", _enlarged(picture), limits, DIFFERENCE_COLOURS)


def _enlarged(picture: np.ndarray) -> Image.Image:
    """Return a picture (H, W) or (H, W, 3); small slices need no magnifying glass, nor cut titles."""
    larger = max(1, -(-_TILE_PX // picture.shape[1]))
    return Image.fromarray(picture.repeat(larger, axis=0).repeat(larger, axis=1))


def training_sheet(
    visuals: dict[str, Tensor], style: VisualsStyle, fixed: dict[str, Tensor] | None = None
) -> Image.Image:
    """Return a slice of each tensor's first image (N, C, H, W) on one sheet with titles, `style.columns` in a row.

    `fixed`: images of slices that are the same on every sheet of the run; they come first, under a heading.
    """
    rows = _rows(visuals, style)
    if fixed:
        rows = [_heading("fixed slices, the same in every picture"), *_rows(fixed, style),
                _heading("last training step"), *rows]  # fmt: skip
    return arrange(rows)


def _rows(visuals: dict[str, Tensor], style: VisualsStyle) -> list[list[Tile]]:
    rows = []
    for row in _ROWS:
        planes = {name: style.plane(name, visuals[name]) for name in row if name in visuals}
        tiles = [style.tile(name, plane) for name, plane in planes.items()]
        if compared := _made_and_true(planes, style):
            tiles.insert(3, _difference_tile(*compared))  # beside the true CT of most runs
        rows += [tiles[k : k + style.columns] for k in range(0, len(tiles), style.columns)]
    return rows


def _made_and_true(planes: dict[str, np.ndarray], style: VisualsStyle) -> list[np.ndarray] | None:
    """Return the CT made from the MR of a pair, and the true one, both in HU; None if they are not both there."""
    source, target = ("A", "B") if style.direction == "AtoB" else ("B", "A")
    for pair in _PAIRS:
        names = (f"from_{pair}_{source}", f"{pair}_{target}")
        if all(name in planes for name in names):
            return [planes[name] for name in names]
    return None


def _heading(text: str) -> list[Tile]:
    return [Tile(text, Image.new("L", (1, 1)))]


def hu_scale(low: float, high: float, width: int, font_px: int, colours: str = GRAYS) -> Image.Image:
    """Return a bar of `colours` from `low` to `high` HU, `width` pixels long, with its values below it."""
    scale = Image.new("RGB", (width, _SCALE_PX + _line_px(font_px)))
    ramp = np.linspace(low, high, width)[None].repeat(_SCALE_PX, axis=0)
    scale.paste(Image.fromarray(gray(ramp, low, high) if colours == GRAYS else coloured(ramp, low, high, colours)))
    draw, font = ImageDraw.Draw(scale), ImageFont.load_default(font_px)
    texts = ((f"{low:g}", 0, "la"), (f"{(low + high) / 2:g} HU", width // 2, "ma"), (f"{high:g}", width - 1, "ra"))
    for text, x, anchor in texts:
        draw.text((x, _SCALE_PX + 2), text, fill="white", font=font, anchor=anchor)
    return scale


def caption_px(width: int) -> int:
    """Return the height of a line of text on a sheet of a width, both in pixels."""
    return _line_px(_font_px(width))


def _font_px(width: int) -> int:
    return max(_FONT_PX, round(width * _FONT_SHARE))


def _line_px(font_px: int) -> int:
    return round(1.5 * font_px)


def arrange(rows: list[list[Tile]]) -> Image.Image:
    """Return captioned images in rows on black, CT above their bars; columns are as wide as their widest image.

    The sheet is gray ('L') if all of them are, else 'RGB'. The title of a row of one image may be as wide as the sheet.
    """
    columns = max(map(len, rows))
    widths = [max(row[c].picture.width for row in rows if c < len(row)) for c in range(columns)]
    width = sum(widths) + GAP_PX * (columns - 1)
    line_px, bar_px = caption_px(width), GAP_PX + _SCALE_PX + caption_px(width)
    heights = [max(tile.picture.height + (bar_px if tile.limits else 0) for tile in row) for row in rows]
    gray_alone = all(tile.picture.mode == "L" for row in rows for tile in row)
    sheet = Image.new("L" if gray_alone else "RGB", (width, sum(heights) + line_px * len(rows)))
    draw = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            x, y = sum(widths[:c]) + GAP_PX * c, sum(heights[:r]) + line_px * r
            room = (width if len(row) == 1 else widths[c]) - 2
            title, font = _fitted(tile.title, room, _font_px(width))
            draw.text((x + 2, y + 2), title, fill="white", font=font)
            sheet.paste(tile.picture, (x, y + line_px))
            if tile.limits:  # the bar is shorter than the picture: numbers of neighbours stay apart
                bar = hu_scale(*tile.limits, tile.picture.width - 2 * GAP_PX, _font_px(width), tile.colours)
                sheet.paste(bar, (x + GAP_PX, y + line_px + tile.picture.height + GAP_PX))
    return sheet


def _fitted(text: str, width: int, font_px: int) -> tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """Return a text that fits into `width` pixels, and its font, from `font_px` down to `_SMALLEST` of it.

    Words beyond that are left out; the first one is kept whatever its width.
    """
    for size in range(font_px, round(_SMALLEST * font_px) - 1, -1):
        font = ImageFont.load_default(size)
        if font.getlength(text) <= width:
            return text, font
    words = text.split()
    while len(words) > 1 and font.getlength(" ".join(words)) > width:
        words.pop()
    return " ".join(words), font
