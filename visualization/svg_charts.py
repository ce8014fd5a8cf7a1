"""Charts of results as inline SVG: histograms, joint histogram, box plots."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from dominate import svg
from PIL import Image

_WIDTH, _HEIGHT = 560, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 10, 44
# Of fewer values quartiles say nothing.
FEWEST_IN_A_BOX = 4


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis: values `low` to `high` at pixels `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 6) -> list[float]:
        """Return round values on the axis."""
        if self.log:
            return [10.0**k for k in range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)]
        raw = (self.high - self.low) / count
        power = 10 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
        return [k * step for k in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


def histogram_chart(edges: np.ndarray, shares: Sequence[np.ndarray], label: str) -> svg.svg:
    """Return up to three histograms as lines over each other, `shares` in % of voxels on a logarithmic scale.

    Args:
        edges: HU of the bins' edges, (n + 1,).
        shares: for each volume its shares, (n,), in the colours a, b, c.
        label: what the chart is, for screen readers.
    """
    high = max(float(share.max()) for share in shares)
    x = Axis(float(edges[0]), float(edges[-1]), _LEFT, _WIDTH - _RIGHT)
    y = Axis(1e-3, 10 ** math.ceil(math.log10(max(high, 1e-2))), _HEIGHT - _BOTTOM, _TOP, log=True)
    chart = _frame(x, y, "HU", "% of voxels", label)
    for share, colour in zip(shares, "abc", strict=False):
        heights = [y(max(float(value), y.low)) for value in share]
        path = "".join(
            f"{'L' if k else 'M'}{x(edges[k]):.1f} {height:.1f}H{x(edges[k + 1]):.1f}"
            for k, height in enumerate(heights)
        )
        chart.add(svg.path(d=path, cls=f"line {colour}"))
    return chart


def joint_histogram_chart(
    counts: np.ndarray, x_range: tuple[float, float], y_range: tuple[float, float], titles: tuple[str, str],
    identity: bool, label: str,
) -> svg.svg:  # fmt: skip
    """Return a joint histogram as an image, logarithmic colours, with the line of equal values if `identity`.

    Args:
        counts: voxels by (x bin, y bin).
        x_range, y_range: values of the first and last edge of the bins.
        titles: of the axes.
        identity: whether both axes have the same unit.
        label: what the chart is, for screen readers.
    """
    x = Axis(*x_range, _LEFT, _WIDTH - _RIGHT - 70)
    y = Axis(*y_range, _HEIGHT - _BOTTOM, _TOP)
    chart = _frame(x, y, *titles, label)
    shown = np.log1p(counts.T[::-1]) / max(math.log1p(counts.max()), 1e-9)
    rgba = matplotlib.colormaps["cividis"](shown, bytes=True)
    rgba[..., 3] = np.where(counts.T[::-1] > 0, 255, 0)
    place = {"x": x.start, "y": y.end, "width": x.end - x.start, "height": y.start - y.end}
    chart.add(_image(rgba, place))
    if identity:
        low, high = max(x.low, y.low), min(x.high, y.high)
        chart.add(svg.path(d=f"M{x(low):.1f} {y(low):.1f}L{x(high):.1f} {y(high):.1f}", cls="line b dashed"))
    bar = matplotlib.colormaps["cividis"](np.linspace(1, 0, 64)[:, None], bytes=True)
    chart.add(_image(bar, {"x": x.end + 16, "y": y.end, "width": 12, "height": y.start - y.end}))
    for text, height in ((f"{counts.max():,.0f}", y.end + 10), ("1", y.start)):
        chart.add(svg.text(text, x=x.end + 32, y=height, cls="faint"))
    return chart


def box_chart(
    values: Sequence[float],
    names: Sequence[str],
    links: Sequence[str | None],
    label: str,
    most: float = math.inf,
) -> svg.svg:
    """Return every case as a point, which leads to the case's page, on a box plot if there are `FEWEST_IN_A_BOX`.

    The box is from the first to the third quartile, with the median; whiskers reach the last value within 1.5 times
    the box's length (Tukey). `values` are finite; the axis ends at `most`, unless one exceeds it.
    """
    height = 92
    ordered = np.sort(np.asarray(values, dtype=float))
    low, high = float(ordered[0]), float(ordered[-1])
    margin = (high - low) * 0.06 or abs(low) * 0.05 or 1.0
    x = Axis(max(low - margin, 0.0) if low >= 0 else low - margin, max(min(high + margin, most), high), 20, _WIDTH - 20)
    chart = svg.svg(viewBox=f"0 0 {_WIDTH} {height}", role="img", aria_label=label)
    for tick in x.ticks():
        chart.add(svg.line(x1=x(tick), x2=x(tick), y1=4, y2=66, cls="grid"))
        chart.add(svg.text(f"{tick:g}", x=x(tick), y=84, text_anchor="middle", cls="faint"))
    if len(values) >= FEWEST_IN_A_BOX:
        _add_box(chart, x, ordered)
    for k, (value, name, link) in enumerate(zip(values, names, links, strict=True)):
        point = svg.circle(svg.title(f"{name}: {value:g}"), cx=f"{x(value):.1f}", cy=28 + 7 * (k % 3), r=4, cls="case")
        chart.add(_link(point, link) if link else point)
    return chart


def _add_box(chart: svg.svg, x: Axis, ordered: np.ndarray) -> None:
    first, median, third = np.percentile(ordered, (25, 50, 75))
    reach = 1.5 * (third - first)
    inside = ordered[(ordered >= first - reach) & (ordered <= third + reach)]
    chart.add(svg.path(d=f"M{x(inside[0]):.1f} 35H{x(first):.1f}M{x(third):.1f} 35H{x(inside[-1]):.1f}", cls="whisker"))
    chart.add(svg.rect(x=f"{x(first):.1f}", y=22, width=f"{max(x(third) - x(first), 0.5):.1f}", height=26, cls="box"))
    chart.add(svg.path(d=f"M{x(median):.1f} 22V48", cls="median"))


def _link(shape: svg.svg_tag, target: str) -> svg.svg_tag:
    link = svg.g(shape)
    link.tagname = "a"
    link["href"] = target
    return link


def _frame(x: Axis, y: Axis, x_title: str, y_title: str, label: str) -> svg.svg:
    chart = svg.svg(viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=label)
    for tick in x.ticks():
        chart.add(svg.line(x1=x(tick), x2=x(tick), y1=y.end, y2=y.start, cls="grid"))
        chart.add(svg.text(f"{tick:g}", x=x(tick), y=y.start + 17, text_anchor="middle", cls="faint"))
    for tick in y.ticks():
        chart.add(svg.line(x1=x.start, x2=x.end, y1=y(tick), y2=y(tick), cls="grid"))
        chart.add(svg.text(f"{tick:g}", x=x.start - 6, y=y(tick) + 4, text_anchor="end", cls="faint"))
    middle = (y.start + y.end) / 2
    chart.add(svg.text(x_title, x=(x.start + x.end) / 2, y=_HEIGHT - 6, text_anchor="middle"))
    chart.add(svg.text(y_title, transform=f"translate(14 {middle}) rotate(-90)", text_anchor="middle"))
    chart.add(svg.path(d=f"M{x.start} {y.end}V{y.start}H{x.end}", cls="axis"))
    return chart


def _image(rgba: np.ndarray, place: dict[str, float]) -> svg.image:
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "PNG")
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return svg.image(href=source, preserveAspectRatio="none", cls="pixels", **place)
