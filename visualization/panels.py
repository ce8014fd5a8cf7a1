"""Pictures of slices side by side, with captions, as 8-bit images for display only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data.loading.channels import middle_channel
from data.values.intensity import IntensityMap
from visualization.preview import mr_title
from visualization.windows import CT_WINDOWS, DisplayWindow, gray

CAPTION_PX = 18
GAP_PX = 4
_CAPTION_FONT_PX = 12
_TILE_PX = 192
# Name of a visual: caption, and whether it belongs to the source domain (A), the target domain (B), or is a mask in
# [0, 1]. Images that a run does not have are left out.
_VISUALS = {
    "real_A": ("", "A"),
    "fake_B": ("synthetic", "B"),
    "rec_A": ("reconstructed", "A"),
    "idt_B": ("identity,", "A"),
    "real_B": ("", "B"),
    "fake_A": ("synthetic", "A"),
    "rec_B": ("reconstructed", "B"),
    "idt_A": ("identity,", "B"),
    "simulated_A": ("simulated pair,", "A"),
    "from_simulated_A": ("synthetic", "B"),
    "simulated_B": ("simulated pair,", "B"),
    "from_simulated_B": ("synthetic", "A"),
    "image_B": ("", "B"),
    "mask_B": ("body", "mask"),
    "found_B": ("body as it is found", "mask"),
    "mask": ("body of the MR", "mask"),
    "shape": ("body of the synthetic CT", "mask"),
}


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

    def caption(self, name: str) -> str:
        """Return e.g. 'fake_B: synthetic CT', of an MR with its contrast where it is one of several."""
        what, kind = _VISUALS[name]
        shown = "mask_A" if name == "mask" else name
        modality = self._modality(kind)
        modality = mr_title(self.contrast) if modality == "MR" else modality
        return f"{shown}: {what} {modality}".replace("  ", " ").strip()

    def plane(self, name: str, images: Tensor) -> np.ndarray:
        """Return what is shown of images (N, C, H, W): of the first one the slab's middle slice, first contrast."""
        channel = middle_channel(self.slab)
        if _VISUALS[name][1] == "mask":  # the classes of a slice stand together
            channel *= images.shape[1] // self.slab
        return images[0, channel].cpu().float().numpy()

    def gray(self, name: str, image: np.ndarray) -> np.ndarray:
        """Return the uint8 picture of one image (H, W) as the networks see it."""
        modality = self._modality(_VISUALS[name][1])
        if modality == "CT":
            return gray(self.ct.to_physical(image), *self.window.range)
        return gray(image, 0 if modality == "" else -1, 1)

    def _modality(self, kind: str) -> str:
        if kind == "mask":
            return ""
        return "MR" if (kind == "A") == (self.direction == "AtoB") else "CT"


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
    """Return slices on one captioned sheet, a row each: MR, synthetic CT, and the CT that should come out."""
    rows = []
    for shown in slices:
        kind = "simulated MR" if shown.simulated else "MR"
        row = [(f"{shown.name}: {kind}", gray(shown.mr, -1, 1))]
        row += [("synthetic CT", gray(shown.synthetic, *style.window.range))]
        if shown.ct is not None:
            row += [("true CT", gray(shown.ct, *style.window.range))]
        rows.append([(caption, _enlarged(picture)) for caption, picture in row])
    return arrange(rows)


def _enlarged(picture: np.ndarray) -> Image.Image:
    """Return a picture; small slices need no magnifying glass, nor cut captions."""
    larger = max(1, -(-_TILE_PX // picture.shape[1]))
    return Image.fromarray(np.kron(picture, np.ones((larger, larger), np.uint8)))


def training_sheet(
    visuals: dict[str, Tensor], style: VisualsStyle, fixed: dict[str, Tensor] | None = None
) -> Image.Image:
    """Return a slice of each tensor's first image (N, C, H, W) on one captioned sheet, `style.columns` in a row.

    `fixed`: images of slices that are the same on every sheet of the run; they come first, under a heading.
    """
    rows = _rows(visuals, style)
    if fixed:
        rows = [_heading("always the same slices"), *_rows(fixed, style), _heading("slices of this step"), *rows]
    return arrange(rows)


def _rows(visuals: dict[str, Tensor], style: VisualsStyle) -> list[list[tuple[str, Image.Image]]]:
    names = [name for name in _VISUALS if name in visuals]
    tiles = [(style.caption(name), _enlarged(style.gray(name, style.plane(name, visuals[name])))) for name in names]
    return [tiles[k : k + style.columns] for k in range(0, len(tiles), style.columns)]


def _heading(text: str) -> list[tuple[str, Image.Image]]:
    return [(text, Image.new("L", (1, 1)))]


def arrange(rows: list[list[tuple[str, Image.Image]]]) -> Image.Image:
    """Return captioned gray images in rows on black; columns are as wide as their widest image."""
    columns = max(map(len, rows))
    widths = [max(row[c][1].width for row in rows if c < len(row)) for c in range(columns)]
    heights = [max(image.height for _, image in row) for row in rows]
    width = sum(widths) + GAP_PX * (columns - 1)
    sheet = Image.new("L", (width, sum(heights) + CAPTION_PX * len(rows)))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_CAPTION_FONT_PX)
    for r, row in enumerate(rows):
        for c, (caption, image) in enumerate(row):
            corner = (sum(widths[:c]) + GAP_PX * c, sum(heights[:r]) + CAPTION_PX * r)
            draw.text((corner[0] + 2, corner[1] + 2), _fitted(caption, widths[c] - 2, font), fill=255, font=font)
            sheet.paste(image, (corner[0], corner[1] + CAPTION_PX))
    return sheet


def _fitted(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return the words of a text that fit into `width` pixels; the first one is kept whatever its width."""
    words = text.split()
    while len(words) > 1 and font.getlength(" ".join(words)) > width:
        words.pop()
    return " ".join(words)
