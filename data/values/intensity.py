"""The intensity map: physical units (HU, or a scanner's MR units) to the networks' [-1, 1] and back.

A map is a monotone piecewise-linear curve through knots; a linear window is the curve with two knots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data.errors import InputError

AIR_HU = -1000.0
# The window of the published work.
CT_WINDOW_HU = (-1000.0, 1400.0)
# By `tissue` an MR window runs from 0 to so many times the level of fat: that of 0 to 1200 where fat lies at 950.
TISSUE_REACH = 1200 / 950
# An MR window per volume runs between these percentiles of its voxels inside the body.
MR_PERCENTILES = (0.5, 99.5)
# How `--mr_window` takes a window from the volume itself.
MR_RULES = ("percentile", "tissue")
# Named curves for --ct_transfer: (HU, network value) knots. `soft_tissue` gives fat to muscle 1/6 of the range.
CT_TRANSFERS = {"soft_tissue": ((-1000.0, -1.0), (-250.0, -0.6), (250.0, 0.5), (1400.0, 1.0))}


@dataclass(frozen=True)
class IntensityMap:
    """A strictly increasing piecewise-linear map through ``(physical value, network value)`` knots.

    Values beyond the first and last knot are clipped, so `to_physical(to_network(x))` is `x` inside the knots' range
    and the nearest end outside it.
    """

    knots: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        """Refuse knots that do not make an invertible map of [-1, 1]."""
        knots = tuple((float(x), float(y)) for x, y in self.knots)
        object.__setattr__(self, "knots", knots)
        rising = all(b[0] > a[0] and b[1] > a[1] for a, b in pairwise(knots))
        if len(knots) < 2 or not np.all(np.isfinite(knots)) or not rising:
            raise InputError(f"intensity knots {knots}: expected two or more, finite, rising in value and in output")
        if (knots[0][1], knots[-1][1]) != (-1.0, 1.0):
            raise InputError(f"intensity knots {knots}: the first must map to -1 and the last to 1")

    @classmethod
    def window(cls, low: float, high: float) -> "IntensityMap":
        """Return the linear map of [low, high] to [-1, 1]."""
        if not low < high:
            raise InputError(f"intensity window {low} .. {high}: the first number must be below the second")
        return cls(((low, -1.0), (high, 1.0)))

    @property
    def range(self) -> tuple[float, float]:
        """Physical values that map to -1 and 1."""
        return self.knots[0][0], self.knots[-1][0]

    def to_network(self, values: np.ndarray) -> np.ndarray:
        """Map physical values of any shape to float32 in [-1, 1]."""
        return self._curve(np.asarray(values, dtype=np.float32), self.knots)

    def to_physical(self, values: np.ndarray) -> np.ndarray:
        """Map network values of any shape to float32 physical values; the inverse of `to_network`."""
        return self._curve(np.asarray(values, dtype=np.float32), tuple((y, x) for x, y in self.knots))

    def corrected(self, curve: Sequence[tuple[float, float]]) -> "IntensityMap":
        """Return this map with its physical values sent through a curve: what came back as x comes back as y.

        Args:
            curve: knots (x, y) between the ends of the range, which stay where they are; linear between knots.

        Raises:
            InputError: x or y does not rise from one end of the range to the other.
        """
        low, high = self.range
        x, y = np.array([(low, low), *curve, (high, high)], float).T
        if not (np.all(np.diff(x) > 0) and np.all(np.diff(y) > 0)):
            raise InputError(f"curve {list(curve)}: expected values that rise within {low:g} to {high:g} on both sides")
        physical, network = np.array(self.knots).T
        places = np.union1d(x, physical)
        knots = zip(np.interp(places, x, y), np.interp(places, physical, network), strict=True)
        return IntensityMap(tuple((float(value), float(out)) for value, out in knots))

    def to_dict(self) -> dict:
        """Return a JSON-ready form."""
        return {"knots": [list(knot) for knot in self.knots]}

    @classmethod
    def from_dict(cls, data: dict) -> "IntensityMap":
        """Return the map that `to_dict` wrote."""
        return cls(tuple((x, y) for x, y in data["knots"]))

    @staticmethod
    def _curve(values: np.ndarray, knots: tuple[tuple[float, float], ...]) -> np.ndarray:
        # A sum of clipped ramps: for a window this is one clip and one multiplication, far faster than np.interp.
        ramps = ((x1, x2, (y2 - y1) / (x2 - x1)) for (x1, y1), (x2, y2) in pairwise(knots))
        total = np.full_like(values, knots[0][1])
        for x1, x2, slope in ramps:
            total += (values.clip(x1, x2) - np.float32(x1)) * np.float32(slope)
        return total.clip(knots[0][1], knots[-1][1], out=total)  # rounding must not leave the range


def parse_ct_transfer(text: str) -> IntensityMap:
    """Return the map named by `--ct_transfer`: a name in `CT_TRANSFERS`, or knots as ``HU:VALUE,HU:VALUE,...``."""
    if text in CT_TRANSFERS:
        return IntensityMap(CT_TRANSFERS[text])
    try:
        knots = tuple((float(hu), float(value)) for hu, value in (knot.split(":") for knot in text.split(",")))
    except ValueError as error:
        names = ", ".join(CT_TRANSFERS)
        raise InputError(f"CT transfer {text!r}: expected a name ({names}) or HU:VALUE,HU:VALUE,... knots") from error
    return IntensityMap(knots)


def parse_window(words: list[str], expected: str = "LO HI") -> tuple[float, float]:
    """Return the two numbers of a window, the first below the second.

    Raises:
        InputError: they are not; it says what is `expected`.
    """
    try:
        low, high = map(float, words)
        if low < high:
            return low, high
    except ValueError:
        pass
    raise InputError(f"expected {expected} with LO below HI")


def parse_mr_window(words: list[str]) -> str | tuple[float, float]:
    """Return what the words of `--mr_window` mean: one of `MR_RULES`, or (low, high).

    Raises:
        InputError: neither.
    """
    if len(words) == 1 and words[0] in MR_RULES:
        return words[0]
    return parse_window(words, f"{', '.join(MR_RULES)} or LO HI")


def mr_percentiles(mr: np.ndarray, body: np.ndarray) -> tuple[float, float]:
    """Return the `MR_PERCENTILES` of the MR's voxels inside the body mask (arrays of one shape)."""
    low, high = np.percentile(mr[body], MR_PERCENTILES)
    return float(low), float(high)


def mr_window(
    rule: str | tuple[float, float], percentiles: tuple[float, float] | None, fat_level: float | None = None
) -> IntensityMap:
    """Return one MR volume's window.

    Args:
        rule: one of `MR_RULES`, from the volume itself, or the fixed (low, high).
        percentiles: `mr_percentiles` of the volume, for 'percentile'.
        fat_level: `data.values.mr_scale.fat_level` of the volume, for 'tissue': the window is 0 to 1200/950 of it.
    """
    if rule == "tissue":
        assert fat_level is not None, "'tissue' needs the level of fat"
        return IntensityMap.window(0.0, TISSUE_REACH * fat_level)
    window = percentiles if isinstance(rule, str) else rule
    assert window is not None, "'percentile' needs the percentiles"
    low, high = window
    if not low < high:
        raise InputError(f"MR window {low} .. {high}: the MR is constant inside the body, or the window is reversed")
    return IntensityMap.window(low, high)
