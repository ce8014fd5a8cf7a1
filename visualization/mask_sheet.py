"""A volume's slices with the outline of its body mask on one sheet, to see at a glance whether the mask is right."""

import numpy as np
from PIL import Image, ImageColor
from scipy import ndimage

from data.volumes.volume import Volume
from visualization.planes import PLANES, Plane, patient_order
from visualization.preview import draw_mark
from visualization.windows import CT_WINDOWS, MARK_COLOUR, gray, mr_display_range

_BOX_PX, _GAP_PX = 200, 4
_ROWS, _COLUMNS = 2, 4  # of the axial slices; coronal and sagittal stand at their left, as high as both rows
_STEP_PX = _BOX_PX + _GAP_PX
_TALL_PX = _ROWS * _STEP_PX - _GAP_PX
SHEET_SIZE = ((2 + _COLUMNS) * _STEP_PX - _GAP_PX, _TALL_PX)
"""Width and height of every sheet in pixels."""


def sheet_slices(count: int) -> list[int]:
    """Return which of `count` axial slices a sheet shows: up to eight, evenly spaced, from the head down.

    They are indices, counted from the feet.
    """
    shown = min(count, _ROWS * _COLUMNS)
    return [int((k + 0.5) * count / shown) for k in reversed(range(shown))]


def mask_sheet(volume: Volume, mask: np.ndarray, domain: str) -> Image.Image:
    """Return the middle coronal and sagittal plane of a volume, and axial slices with their numbers, on black.

    Args:
        volume: MR or CT in HU.
        mask: outlined on it, bool (z, y, x) on its grid.
        domain: 'A' (MR) or 'B' (CT).
    """
    lie = patient_order(volume)
    limits = mr_display_range(volume.array) if domain == "A" else CT_WINDOWS["default"].range
    image, inside = lie.array(volume.array), lie.array(mask)
    sheet = Image.new("RGB", SHEET_SIZE)

    def place(plane: Plane, index: int, title: str, corner: tuple[int, int], high: int) -> None:
        shown = gray(plane.cut(image, index), *limits)
        size = fitted(shown.shape, tuple(lie.spacing_mm[axis] for axis in plane.rows_and_columns), (_BOX_PX, high))
        tile = outlined(shown, plane.cut(inside, index), size)
        sheet.paste(tile, (corner[0] + (_BOX_PX - tile.width) // 2, corner[1] + (high - tile.height) // 2))
        draw_mark(sheet, (corner[0] + 3, corner[1] + 2), title, "la")

    for column, plane in enumerate(PLANES[1:]):
        place(plane, image.shape[plane.axis] // 2, plane.name, (column * _STEP_PX, 0), _TALL_PX)
    for k, index in enumerate(sheet_slices(image.shape[0])):
        row, column = divmod(k, _COLUMNS)
        place(PLANES[0], index, f"slice {index + 1}", ((2 + column) * _STEP_PX, row * _STEP_PX), _BOX_PX)
    return sheet


def fitted(shape: tuple[int, ...], spacing_mm: tuple[float, ...], box: tuple[int, int]) -> tuple[int, int]:
    """Return width and height in pixels of a slice (rows, columns) that fills a box, as many a mm down as across."""
    height_mm, width_mm = (count * mm for count, mm in zip(shape, spacing_mm, strict=True))
    scale = min(box[0] / width_mm, box[1] / height_mm)
    return max(1, round(width_mm * scale)), max(1, round(height_mm * scale))


def outlined(shown: np.ndarray, inside: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Return a slice, uint8 (H, W), of so many pixels with the outline of a mask (H, W) on it, also at its border.

    The mask's outermost pixels have the colour of marks, and those around it are black.
    """
    pixels = np.array(Image.fromarray(shown).resize(size, Image.Resampling.BILINEAR).convert("RGB"))
    mask = np.array(Image.fromarray(inside).resize(size, Image.Resampling.NEAREST))
    pixels[ndimage.binary_dilation(mask) & ~mask] = 0
    pixels[mask & ~ndimage.binary_erosion(mask)] = ImageColor.getrgb(MARK_COLOUR)
    return Image.fromarray(pixels)
