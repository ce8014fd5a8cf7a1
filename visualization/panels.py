"""Pictures of slices, side by side, as 8-bit PNG files for eyes only."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from data.volume import Volume

# Rows of the training panel and the value of black; images that a run does not have are left out.
TRAINING_ROWS = (
    (("real_A", "fake_B", "rec_A", "idt_B"), -1),
    (("real_B", "fake_A", "rec_B", "idt_A"), -1),
    (("mask", "shape"), 0),
)
# Display window of CT: level 40, width 800 HU shows soft tissue and bone together.
CT_DISPLAY_HU = (-360.0, 440.0)
DIFFERENCE_HU = (-400.0, 400.0)
_CAPTION_PX = 14


def save_training_panel(visuals: dict[str, Tensor], path: Path) -> None:
    """Save the first image of each tensor (N, C, H, W): rows A and B in [-1, 1], and the shapes in [0, 1]."""
    rows = []
    for names, low in TRAINING_ROWS:
        row = [(name, _gray(visuals[name][0, 0].cpu().float().numpy(), low, 1)) for name in names if name in visuals]
        rows += [row] if row else []
    save_grid(rows, path)


def save_preview(mr: Volume, ct: Volume, reference: Volume | None, path: Path, synthetic: str = "CT") -> None:
    """Save MR and CT (and true CT and difference) through the middle of the three planes, in true proportions.

    `synthetic` says which of the two, CT or MR, was made from the other. All volumes are on one grid. CT is shown from
    -360 to 440 HU, the difference from -400 (black) to 400 HU (white).
    """
    titles = {modality: f"synthetic {modality}" if modality == synthetic else modality for modality in ("MR", "CT")}
    columns = [
        (titles["MR"], mr.array, tuple(np.percentile(mr.array, (0.5, 99.5)))),
        (titles["CT"], ct.array, CT_DISPLAY_HU),
    ]
    if reference is not None:
        difference = ct.array.astype(np.float32) - reference.array
        columns += [("true CT", reference.array, CT_DISPLAY_HU), ("difference", difference, DIFFERENCE_HU)]
    rows = []
    for axis, name in enumerate(("z", "y", "x")):
        middle = mr.array.shape[axis] // 2
        rows.append([
            (f"{title}, {name} = {middle}", _in_proportion(np.take(array, middle, axis), mr, axis, *limits))
            for title, array, limits in columns
        ])  # fmt: skip
    save_grid(rows, path)


def save_grid(rows: list[list[tuple[str, Image.Image]]], path: Path) -> None:
    """Save captioned images in rows; columns are as wide as their widest image."""
    columns = max(map(len, rows))
    widths = [max(row[c][1].width for row in rows if c < len(row)) for c in range(columns)]
    heights = [max(image.height for _, image in row) + _CAPTION_PX for row in rows]
    sheet = Image.new("L", (sum(widths), sum(heights)))
    draw = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        for c, (caption, image) in enumerate(row):
            corner = (sum(widths[:c]), sum(heights[:r]))
            draw.text((corner[0] + 2, corner[1] + 1), caption, fill=255)
            sheet.paste(image, (corner[0], corner[1] + _CAPTION_PX))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _gray(image: np.ndarray, low: float, high: float) -> Image.Image:
    scaled = (image.astype(np.float32) - low) / max(high - low, 1e-6) * 255
    return Image.fromarray(scaled.clip(0, 255).astype(np.uint8))


def _in_proportion(plane: np.ndarray, grid: Volume, axis: int, low: float, high: float) -> Image.Image:
    """Return a plane of a volume with square pixels of the volume's finest spacing; z runs upwards."""
    spacing = [s for a, s in zip("zyx", grid.spacing[::-1], strict=True) if a != "zyx"[axis]]
    finest = min(grid.spacing)
    size = (round(plane.shape[1] * spacing[1] / finest), round(plane.shape[0] * spacing[0] / finest))
    return _gray(plane if axis == 0 else plane[::-1], low, high).resize(size, Image.Resampling.BILINEAR)
