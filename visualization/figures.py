"""Figures for papers: volumes side by side with difference maps in HU, and the losses of several runs."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke

from data.errors import InputError
from data.files import whole_file
from data.volumes.volume import Volume, resampling, same_grid
from visualization.planes import PLANES, PatientOrder, Plane, patient_order
from visualization.records import LossRecord
from visualization.windows import (
    DIFFERENCE_COLOURS,
    GRAYS,
    MARK_COLOUR,
    UNCERTAINTY_COLOURS,
    UNCERTAINTY_TITLE,
    DisplayWindow,
    mr_display_range,
    round_ticks,
    uncertainty_reach,
)

log = logging.getLogger(__name__)

# Colours that colour-blind readers can tell apart (Okabe and Ito), with a dash each for print without colour.
_RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_RUN_DASHES = ("-", "--", "-.", ":")
_COLUMN_INCHES = 1.75


@dataclass(frozen=True)
class Column:
    """One column of a figure: a title, a volume, what lies at the ends of its colours, and those.

    `scale`: what the bar of its values is called; columns of one scale share a bar. '' for none.
    """

    title: str
    volume: Volume
    low: float
    high: float
    colours: str = GRAYS
    scale: str = ""


def columns_of(
    mr: Volume | None, cts: Sequence[Volume], reference: Volume | None, labels: Sequence[str] | None,
    window: DisplayWindow, spread_hu: float, uncertainty: Volume | None = None,
) -> list[Column]:  # fmt: skip
    """Return the columns MR, CTs, true CT, for each CT its difference from the true one, and an uncertainty in HU.

    `labels` name MR, CTs and true CT in this order; None: by what they are.

    Raises:
        InputError: not one label a volume, or volumes on different grids.
    """
    given: list[tuple[str, Volume]] = [] if mr is None else [("MR", mr)]
    given += [("CT" if len(cts) == 1 else f"CT {k + 1}", ct) for k, ct in enumerate(cts)]
    given += [] if reference is None else [("true CT", reference)]
    titles = [title for title, _ in given] if labels is None else list(labels)
    if len(titles) != len(given):
        raise InputError(f"--labels: {len(titles)} labels for {len(given)} volumes; expected one for each")
    deviations = [] if uncertainty is None else [("uncertainty", uncertainty)]
    for title, volume in [*zip(titles, (one for _, one in given), strict=True), *deviations]:
        if not same_grid(volume, given[0][1]):
            way = resampling("VOLUME", "FIRST_VOLUME")
            raise InputError(f"{title}: not on the grid of {titles[0]}; resample it first: {way}")
    columns = []
    for title, (kind, volume) in zip(titles, given, strict=True):
        if kind == "MR":
            columns.append(Column(title, volume, *mr_display_range(volume.array)))
        else:
            columns.append(Column(title, volume, *window.range, scale="CT [HU]"))
    if reference is not None:
        first = int(mr is not None)
        for title, ct in zip(titles[first : first + len(cts)], cts, strict=True):
            difference = ct.with_array(ct.array.astype(np.float32) - reference.array)
            shown = f"{title} \N{MINUS SIGN} {titles[-1]}"
            columns.append(
                Column(shown, difference, -spread_hu, spread_hu, DIFFERENCE_COLOURS, "synthetic - true CT [HU]")
            )
    for title, volume in deviations:
        reach = uncertainty_reach(volume.array)
        columns.append(Column(title, volume, 0.0, reach, UNCERTAINTY_COLOURS, f"{UNCERTAINTY_TITLE} [HU]"))
    return columns


def draw_comparison(columns: Sequence[Column], cuts: Sequence[tuple[Plane, int]], mask: Volume | None = None) -> Figure:
    """Return a figure with a row for each cut (plane and slice in patient order) and a column for each volume.

    One volume alone has its cuts in a grid, row by row. `mask`, on the same grid, is outlined in every image.
    """
    lie = patient_order(columns[0].volume)
    scales = {column.scale: column for column in columns if column.scale}
    figure, panels = (
        _grid(columns[0].volume, cuts, lie, len(scales))
        if len(columns) == 1
        else _table(columns, cuts, lie, len(scales))
    )
    shown = [(column, *cut) for cut in cuts for column in columns]
    for axes, (column, plane, index) in zip(panels.flat, shown, strict=False):
        _draw_cut(axes, column, lie, plane, index)
        if mask is not None:
            _draw_outline(axes, plane.cut(lie.array(mask.array), index) != 0)
    if len(columns) == 1:
        figure.suptitle(columns[0].title, fontsize=9, parse_math=False)  # a label with $ is no formula
    else:
        for axes, column in zip(panels[0], columns, strict=True):
            axes.set_title(column.title, fontsize=8, pad=3, parse_math=False)
    for label, scale in scales.items():
        colours = ScalarMappable(Normalize(scale.low, scale.high), scale.colours)
        ticks = round_ticks(scale.low, scale.high)
        bar = figure.colorbar(colours, ax=panels, extend="both", shrink=0.5, aspect=26, pad=0.01, ticks=ticks)
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return figure


def _table(
    columns: Sequence[Column], cuts: Sequence[tuple[Plane, int]], lie: PatientOrder, bars: int
) -> tuple[Figure, np.ndarray]:
    """Return a figure and its panels: a row for each cut, a column for each volume, all as wide."""
    sizes_mm = [_size_mm(columns[0].volume, lie, plane) for plane, _ in cuts]
    shares = [height / width for height, width in sizes_mm]
    figure = _empty((_COLUMN_INCHES * len(columns) + 0.75 * bars, _COLUMN_INCHES * sum(shares) + 0.3))
    panels = figure.subplots(len(cuts), len(columns), squeeze=False, height_ratios=shares)
    for axes, cut in zip(panels[:, 0], cuts, strict=True):
        axes.set_ylabel(_name(*cut, "\n"), fontsize=8, labelpad=2)
    return figure, panels


def _grid(volume: Volume, cuts: Sequence[tuple[Plane, int]], lie: PatientOrder, bars: int) -> tuple[Figure, np.ndarray]:
    """Return a figure and its panels for the cuts of one volume, all at one scale: slices of a plane in about a square.

    Planes of different kinds stand side by side.
    """
    sizes_mm = [_size_mm(volume, lie, plane) for plane, _ in cuts]
    across = math.ceil(math.sqrt(len(cuts))) if len({plane.name for plane, _ in cuts}) == 1 else len(cuts)
    rows = [sizes_mm[k : k + across] for k in range(0, len(cuts), across)]
    widths, heights = [width for _, width in rows[0]], [max(height for height, _ in row) for row in rows]
    inches = _COLUMN_INCHES / max(widths)
    figure = _empty((sum(widths) * inches + 0.75 * bars, sum(heights) * inches + 0.2 * len(rows) + 0.3))
    panels = figure.subplots(len(rows), across, squeeze=False, width_ratios=widths, height_ratios=heights)
    for axes, cut in zip(panels.flat, cuts, strict=False):
        axes.set_title(_name(*cut, ", "), fontsize=8, pad=3)
    for axes in panels.flat[len(cuts) :]:
        axes.set_axis_off()
    return figure, panels


def _empty(size_inches: tuple[float, float]) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    return Figure(figsize=size_inches, layout=layout, facecolor="white")


def _name(plane: Plane, index: int, separator: str) -> str:
    """Return what a cut is called; axial slices have the number that `--slices` takes."""
    return f"{plane.name}{separator}slice {index + 1}" if plane is PLANES[0] else plane.name


def _size_mm(grid: Volume, lie: PatientOrder, plane: Plane) -> tuple[float, float]:
    """Return height and width of a plane of a volume."""
    shape = lie.array(grid.array).shape
    height, width = (shape[axis] * lie.spacing_mm[axis] for axis in plane.rows_and_columns)
    return height, width


def _draw_cut(axes: Axes, column: Column, lie: PatientOrder, plane: Plane, index: int) -> None:
    rows, columns = (lie.spacing_mm[axis] for axis in plane.rows_and_columns)
    axes.imshow(
        plane.cut(lie.array(column.volume.array), index), vmin=column.low, vmax=column.high, aspect=rows / columns,
        cmap=column.colours, interpolation="bilinear",
    )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor("black")
    left, right, *_ = plane.letters
    for letter, x, side in ((left, 0.02, "left"), (right, 0.98, "right")):
        text = axes.text(
            x, 0.5, letter, transform=axes.transAxes, color=MARK_COLOUR, fontsize=8, weight="bold", ha=side, va="center"
        )
        text.set_path_effects([withStroke(linewidth=1.2, foreground="black")])


def _draw_outline(axes: Axes, inside: np.ndarray) -> None:
    """Outline a mask along the edges of its pixels, also at the image's border."""
    edges = np.repeat(np.repeat(np.pad(inside, 1), 8, axis=0), 8, axis=1)
    rows, columns = ((np.arange(n) + 0.5) / 8 - 1.5 for n in edges.shape)
    for width, colour in ((1.6, "black"), (0.8, MARK_COLOUR)):
        axes.contour(columns, rows, edges, levels=[0.5], colors=colour, linewidths=width)
    axes.set_xlim(-0.5, inside.shape[1] - 0.5)
    axes.set_ylim(inside.shape[0] - 0.5, -0.5)


def planes_through(grid: Volume, point_mm: tuple[float, float, float] | None) -> list[tuple[Plane, int]]:
    """Return the three planes through a point in patient coordinates (LPS, mm), or through the middle.

    Raises:
        InputError: the point lies outside the volume.
    """
    lie = patient_order(grid)
    shape = lie.array(grid.array).shape
    index = np.array(shape) // 2
    if point_mm is not None:
        index = np.rint(np.linalg.solve(lie.affine[:, :3], np.array(point_mm) - lie.affine[:, 3])).astype(int)
        if np.any(index < 0) or np.any(index >= shape):
            raise InputError(f"--at {' '.join(f'{mm:g}' for mm in point_mm)}: outside the volume (LPS, mm)")
    return [(plane, int(index[plane.axis])) for plane in PLANES]


def axial_slices(grid: Volume, slices: Sequence[int] | int) -> list[tuple[Plane, int]]:
    """Return axial cuts: at slices counted from the feet (1 is the lowest), or so many evenly spaced ones.

    Raises:
        InputError: there is no such slice, or there are fewer.
    """
    count = patient_order(grid).array(grid.array).shape[0]
    if isinstance(slices, int):
        if slices > count:
            raise InputError(f"--n_slices {slices}: the volume has {count} axial slices; expected at most that many")
        slices = [1 + int((k + 1) * count / (slices + 1)) for k in reversed(range(slices))]
    for number in slices:
        if not 1 <= number <= count:
            raise InputError(f"--slices {number}: the volume has slices 1 to {count}, counted from the feet")
    return [(PLANES[0], number - 1) for number in slices]


def draw_losses(runs: Mapping[str, Sequence[LossRecord]], names: Sequence[str] | None, smooth: float) -> Figure:
    """Return one chart for each loss with a curve for each run, over epochs.

    Args:
        runs: records by the run's name, none empty. Of one that has one epoch only nobody can tell whether it was
            finished: it is drawn with the steps per epoch of the others, with a warning.
        names: losses to show; None: all that any run has.
        smooth: weight of the past in an exponential mean, 0 to below 1; the raw curve stays visible below.

    Raises:
        InputError: no run has one of `names`.
    """
    known = list(dict.fromkeys(name for records in runs.values() for record in records for name in record.losses))
    shown = known if names is None else list(names)
    for name in shown:
        if name not in known:
            raise InputError(f"--losses {name}: no run has it; there are {', '.join(known)}")
    steps = _steps_per_epoch(runs)
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.1 * rows + 0.4), layout="constrained", facecolor="white")
    for k, name in enumerate(shown):
        axes = figure.add_subplot(rows, columns, k + 1)
        axes.set_title(name, fontsize=9, loc="left", parse_math=False)
        for r, (run, records) in enumerate(runs.items()):
            usable = [record for record in records if name in record.losses]
            x = [record.epoch - 1 + record.iteration / steps[run] for record in usable]
            y = np.array([record.losses[name] for record in usable])
            _draw_run(axes, x, y, smooth, _RUN_COLOURS[r % len(_RUN_COLOURS)], _RUN_DASHES[r % 4])
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.tick_params(labelsize=7)
        axes.grid(color="#e3e6ea", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if k >= len(shown) - columns:
            axes.set_xlabel("epoch", fontsize=8)
    lines = [
        axes.plot([], [], color=_RUN_COLOURS[r % len(_RUN_COLOURS)], ls=_RUN_DASHES[r % 4])[0] for r in range(len(runs))
    ]
    legend = figure.legend(
        lines, list(runs), loc="outside upper left", ncols=min(len(runs), 4), fontsize=8, frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a run's name with $ is no formula
    if smooth:
        note = f"thin: as recorded; bold: smoothed (--smooth {smooth:g}), which follows late"
        figure.text(0.995, 0.995, note, ha="right", va="top", fontsize=7, color="#5b6570")
    return figure


def _steps_per_epoch(runs: Mapping[str, Sequence[LossRecord]]) -> dict[str, int]:
    """Return the steps of an epoch by run, from the records: the last step of each finished epoch has one."""
    steps = {name: max(record.iteration for record in records) for name, records in runs.items()}
    unsure = [name for name, records in runs.items() if len({record.epoch for record in records}) == 1]
    known = max((steps[name] for name in steps if name not in unsure), default=0)
    for name in unsure:
        steps[name] = max(steps[name], known)
        log.warning(
            "warning: %s: it has one epoch only, perhaps unfinished; %d steps per epoch are assumed, and its place on "
            "the axis may be wrong", name, steps[name],
        )  # fmt: skip
    return steps


def _draw_run(axes: Axes, x: Sequence[float], y: np.ndarray, smooth: float, colour: str, dash: str) -> None:
    if not len(y):
        return
    if len(y) == 1:  # no line can be drawn
        axes.plot(x, y, color=colour, marker="o", markersize=4)
        return
    if smooth:
        axes.plot(x, y, color=colour, alpha=0.2, linewidth=0.8)
    axes.plot(x, smoothed(y, smooth), color=colour, ls=dash, linewidth=1.3)


def smoothed(values: np.ndarray, smooth: float) -> np.ndarray:
    """Return the exponential mean m_k = (s m_(k-1) + (1 - s) x_k) / (1 - s^k), unbiased at its start."""
    mean, out = 0.0, np.empty(len(values))
    for k, value in enumerate(values):
        mean = smooth * mean + (1 - smooth) * value
        out[k] = mean / (1 - smooth ** (k + 1))
    return out


def check_figure_name(path: Path) -> None:
    """Check the ending of a figure's file.

    Raises:
        InputError: no figure ends so.
    """
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise InputError(f"{path}: expected a file ending in .png, .pdf or .svg")


def save_figure(figure: Figure, path: Path, dpi: int = 300) -> Path:
    """Write a figure as PNG, PDF or SVG, by the ending of `path`.

    Raises:
        InputError: another ending, or the file cannot be written.
    """
    check_figure_name(path)
    with whole_file(path) as scratch:
        figure.savefig(scratch, dpi=dpi)
    return path
