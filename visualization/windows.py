"""How values are shown: display windows, colours and round ticks, the same in every picture, page and figure."""

import math
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator

from data.errors import InputError

MR_WHITE_PERCENTILE = 99.5
GRAYS = "gray"
DIFFERENCE_HU = 400.0  # at the ends of the colours
DIFFERENCE_COLOURS = "berlin"  # diverging, dark in the middle, perceptually uniform (Crameri)
UNCERTAINTY_COLOURS = "inferno"  # from black on, perceptually uniform
UNCERTAINTY_REACHES = (10, 25, 50, 100, 200, 400, 800)  # up to which HU they may reach
UNCERTAINTY_TITLE = "uncertainty (standard deviation)"
MARK_COLOUR = "#ffd75e"  # of letters and outlines on images, with a black edge: legible on any tissue
# Of larger volumes every second voxel along each axis, every third, ... says what is white.
_SAMPLE_VOXELS = 20_000_000


@dataclass(frozen=True)
class DisplayWindow:
    """A CT window as radiologists name it: `level` HU is mid-gray, `width` HU lie between black and white."""

    level: float
    width: float

    @property
    def range(self) -> tuple[float, float]:
        """HU shown black and white."""
        return self.level - self.width / 2, self.level + self.width / 2

    def __str__(self) -> str:
        """Return e.g. `L 40 W 400`."""
        return f"L {self.level:g} W {self.width:g}"


# The default shows soft tissue and bone together: -360 .. 440 HU.
CT_WINDOWS = {
    "default": DisplayWindow(40, 800),
    "soft_tissue": DisplayWindow(40, 400),
    "bone": DisplayWindow(400, 1800),
    "lung": DisplayWindow(-600, 1500),
    "wide": DisplayWindow(200, 2400),
}


def parse_display_window(words: list[str]) -> DisplayWindow:
    """Return the window that the words of `--display_window` mean: a name, LEVEL WIDTH in HU, or a window's own text.

    Raises:
        InputError: neither.
    """
    if len(words) == 1 and words[0] in CT_WINDOWS:
        return CT_WINDOWS[words[0]]
    try:
        level, width = (float(word) for word in words if word not in ("L", "W"))
        if math.isfinite(level) and 0 < width < math.inf:
            return DisplayWindow(level, width)
    except ValueError:
        pass
    raise InputError(f"{' '.join(words)}: expected {', '.join(CT_WINDOWS)}, or LEVEL WIDTH in HU with WIDTH above 0")


def gray(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return values as uint8: `low` and below black (0), `high` and above white (255)."""
    scaled = (np.asarray(values, dtype=np.float32) - low) * (255 / max(high - low, 1e-6))
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)


def coloured(values: np.ndarray, low: float, high: float, colours: str) -> np.ndarray:
    """Return values (H, W) as uint8 (H, W, 3) in the colours of a map from `low` to `high`."""
    return colour_table(colours)[gray(values, low, high)]


def colour_table(colours: str) -> np.ndarray:
    """Return the 256 colours of a map, uint8 (256, 3)."""
    return matplotlib.colormaps[colours](np.arange(256), bytes=True)[:, :3]


def round_ticks(low: float, high: float) -> list[float]:
    """Return up to six round values from `low` to `high`, for the bar of a scale."""
    values = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(value) for value in values if low <= value <= high]


def mr_display_range(mr: np.ndarray) -> tuple[float, float]:
    """Return the MR values shown black and white: its background, and a percentile of the voxels above it.

    The background, zero or the minimum of an MR, fills most of many volumes; counting it would blind the percentile.
    """
    background = min(0.0, float(mr.min()))
    step = math.ceil((mr.size / _SAMPLE_VOXELS) ** (1 / mr.ndim))
    sample = mr[(slice(None, None, max(1, step)),) * mr.ndim]
    seen = sample[sample > background]
    white = float(np.percentile(seen, MR_WHITE_PERCENTILE)) if seen.size else background
    return background, max(white, background + 1e-6)


def uncertainty_reach(deviation: np.ndarray) -> float:
    """Return up to which HU colours show an uncertainty: of `UNCERTAINTY_REACHES` the one that holds 98 % of it."""
    given = deviation[deviation > 0]
    most = float(np.quantile(given, 0.98)) if given.size else 0.0
    return float(next((reach for reach in UNCERTAINTY_REACHES if reach >= most), UNCERTAINTY_REACHES[-1]))
