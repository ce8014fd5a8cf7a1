"""The results page of one case: a folder with `index.html`, for any browser, from the disk."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import numpy as np
from dominate import tags
from dominate.util import raw

from data.errors import InputError
from data.files import remove, whole_file
from data.masks.body_mask import ct_body_mask
from data.volumes.volume import Volume, resampling, same_grid
from evaluation.report import COLUMNS, EXPLANATIONS, FIGURES
from visualization.case_volumes import HU_STEP, Region, ShownVolume, pack, region_to_show
from visualization.pages import add_script, call, link_to, new_document, pairs, to_js, write_document
from visualization.planes import PLANES, Plane
from visualization.preview import heading, model_names, mr_title, save_preview, thumbnail
from visualization.svg_charts import histogram_chart, joint_histogram_chart
from visualization.windows import (
    CT_WINDOWS,
    DIFFERENCE_COLOURS,
    DIFFERENCE_HU,
    UNCERTAINTY_COLOURS,
    UNCERTAINTY_REACHES,
    UNCERTAINTY_TITLE,
    colour_table,
    mr_display_range,
)

# Volumes that a page may show; each has its file below data/.
VOLUME_IDS = ("mr", "ct", "reference", "uncertainty")
PREVIEW_NAME = "preview.png"
THUMBNAIL_NAME = "thumbnail.png"
# A page opens in the first, that of the picture.
_WINDOW_BUTTONS = {
    "Soft tissue and bone": CT_WINDOWS["default"],
    "Soft tissue": CT_WINDOWS["soft_tissue"],
    "Bone": CT_WINDOWS["bone"],
    "Lung": CT_WINDOWS["lung"],
    "Everything": CT_WINDOWS["wide"],
}
_SPREADS_HU = (100, 200, 400, 1000)
_HU_EDGES = np.arange(-1024.0, 1577.0, 25.0)  # of the histograms; the outermost bins also hold what lies beyond
_OBLIQUE_DEG = 1.0


def write_case_page(
    folder: Path,
    case: str,
    mr: Volume,
    ct: Volume,
    reference: Volume | None = None,
    scores: Mapping[str, float] | None = None,
    *,
    synthetic: str = "CT",
    body: np.ndarray | None = None,
    details: Mapping[str, object] | None = None,
    cohort_page: Path | None = None,
    contrast: str | None = None,
    uncertainty: Volume | None = None,
) -> Path:
    """Write the results page of a case into `folder`: `index.html`, two pictures and the volumes in `data`.

    Args:
        folder: of its own; an earlier page there goes, its volumes too, also those that the new one does not have.
        case: the case's name, shown as it is.
        mr: the MR.
        ct: CT in HU on the MR's grid.
        reference: the true CT in HU on the MR's grid; the difference is `ct` less this.
        scores: by the keys of `evaluation.report.FIGURES`; others are shown by their own names.
        synthetic: which of the two, 'CT' or 'MR', was made from the other.
        body: where voxels count in the histograms, bool (z, y, x); computed from the CT if None.
        details: further lines, e.g. input, model, epoch; what is None is left out. A list has a line for each.
        cohort_page: page of the cohort to lead back to.
        contrast: which one of several the MR is.
        uncertainty: the standard deviation in HU of the synthetic CT on the MR's grid.

    Returns:
        The page.

    Raises:
        InputError: the volumes lie on different grids, or the folder cannot be written.
    """
    shown = [
        ShownVolume.of("mr", mr_title(contrast) if synthetic == "CT" else "synthetic MR", "MR", mr),
        ShownVolume.of("ct", "synthetic CT" if synthetic == "CT" else "CT", "CT", ct),
    ]
    if reference is not None:
        shown.append(ShownVolume.of("reference", "true CT", "CT", reference))
    if uncertainty is not None:
        shown.append(ShownVolume.of("uncertainty", "uncertainty", "uncertainty", uncertainty))
    for other in shown[1:]:
        if not same_grid(mr, other.volume):
            raise InputError(
                f"{case}: the {other.title} is not on the grid of the {shown[0].title}; resample it first: "
                f"{resampling('VOLUME', shown[0].title.upper().replace(' ', '_'))}"
            )
    region = region_to_show(shown)
    if body is None:
        body = _body_of(ct if reference is None else reference)
    document = new_document(case, ("base.css", "case.css"))
    with document:
        _add_header(case, cohort_page, folder, details or {})
        _add_viewer(shown, region)
        _add_scores(scores or {})
        _add_histograms(mr, ct, reference, body, shown[1].title)
        with tags.section(aria_label="Details"):
            tags.h2("Details")
            written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
            pairs({**(details or {}), **_describe(mr, region), "page written": written})
    document.body.add(tags.script(raw(f"const page = {to_js(_page_data(shown, region))};")))
    add_script(document, "case.js")
    page = folder / "index.html"
    remove(page)  # first: an earlier page's geometry must never meet other voxels
    _write_volumes(folder / "data", shown, region)
    lines = heading(case, (details or {}).get("model"), scores or {}, synthetic)
    save_preview(mr, ct, reference, folder / PREVIEW_NAME, lines, synthetic, contrast, uncertainty)
    with whole_file(folder / THUMBNAIL_NAME) as scratch:
        thumbnail(mr, ct).save(scratch)
    return write_document(document, page)


def remove_case_page(folder: Path) -> None:
    """Remove a page with its files; what else lies in its folder stays.

    Raises:
        InputError: a file cannot be removed.
    """
    volumes = [folder / "data" / f"{identity}.js" for identity in VOLUME_IDS]
    for file in (folder / "index.html", *volumes, folder / PREVIEW_NAME, folder / THUMBNAIL_NAME):
        remove(file)
    for emptied in (folder / "data", folder):
        with suppress(OSError):  # it holds something else
            emptied.rmdir()


def _write_volumes(folder: Path, shown: list[ShownVolume], region: Region) -> None:
    """Write the volumes into `folder`, and remove those that an earlier page left there beside them."""
    for identity in set(VOLUME_IDS) - {volume.id for volume in shown}:
        remove(folder / f"{identity}.js")
    for volume in shown:
        with whole_file(folder / f"{volume.id}.js") as scratch:
            scratch.write_text(call("volume", volume.id, pack(volume, region)), encoding="utf-8")


def _body_of(ct: Volume) -> np.ndarray:
    """Return the body of a CT; everywhere, where none is found."""
    try:
        return ct_body_mask(ct, synthetic=True)
    except InputError:
        return np.ones(ct.array.shape, bool)


def _page_data(shown: list[ShownVolume], region: Region) -> dict:
    """Return what the page's script has to know."""
    volumes = [
        {"id": v.id, "title": v.title, "kind": v.kind, "scale": v.scale, "low": v.low, "high": v.high,
         "file": f"data/{v.id}.js"}
        for v in shown
    ]  # fmt: skip
    planes = [
        {"name": plane.name, "axis": plane.axis, "axes": plane.rows_and_columns, "flipped": plane.upside_down}
        for plane in PLANES
    ]
    difference = uncertainty = None
    if title := _difference_title(shown):
        difference = {"of": "ct", "minus": "reference", "title": title, "spread": DIFFERENCE_HU,
                      "colours": colour_table(DIFFERENCE_COLOURS).tolist()}  # fmt: skip
    if deviation := _shown_as(shown, "uncertainty"):
        uncertainty = {"reach": deviation.high, "colours": colour_table(UNCERTAINTY_COLOURS).tolist()}
    return {
        "shape": region.shape, "affine": region.affine.tolist(), "volumes": volumes, "planes": planes, "hu": HU_STEP,
        "difference": difference, "uncertainty": uncertainty,
    }  # fmt: skip


def _shown_as(shown: list[ShownVolume], identity: str) -> ShownVolume | None:
    return next((volume for volume in shown if volume.id == identity), None)


def _difference_title(shown: list[ShownVolume]) -> str | None:
    """Return what the difference from a true CT is called; None without one."""
    reference = _shown_as(shown, "reference")
    return f"{shown[1].title} \N{MINUS SIGN} {reference.title}" if reference else None


def _describe(mr: Volume, region: Region) -> dict[str, object]:
    """Return the lines on geometry, and on what the page does not show as it is."""
    oblique = region.lie.oblique_deg
    averaged = " x ".join(map(str, region.factor[::-1]))
    return {
        "voxels (x, y, z)": " x ".join(map(str, mr.size)),
        "spacing": " x ".join(f"{mm:.4g}" for mm in mr.spacing) + " mm",
        "planes": f"the volume's own, up to {oblique:.0f}° off the patient's" if oblique > _OBLIQUE_DEG else None,
        "shown": f"averaged over {averaged} voxels (x, y, z)" if max(region.factor) > 1 else None,
        "precision on this page": f"{HU_STEP} HU; scores and histograms are from the full volumes",
    }


def _add_header(case: str, cohort_page: Path | None, folder: Path, details: Mapping[str, object]) -> None:
    with tags.header():
        tags.h1(case)
        if model := details.get("model"):
            tags.p(f"model: {model_names(model)}")
        if cohort_page is not None:
            tags.p(tags.a("All cases", href=link_to(cohort_page, folder)), cls="screen")
        tags.p("Not for clinical use")
    for name, kind in (("warnings", "warning"), ("notes", "note")):
        texts = details.get(name)
        for text in texts if isinstance(texts, list) else []:
            tags.p(f"{kind}: {text}", cls=kind, role="note")


def _add_viewer(shown: list[ShownVolume], region: Region) -> None:
    deviation, difference = _shown_as(shown, "uncertainty"), _difference_title(shown)
    columns = [(volume.id, volume.title) for volume in shown if volume is not deviation]
    columns += [("difference", difference)] if difference else []
    columns += [(deviation.id, UNCERTAINTY_TITLE)] if deviation else []
    with tags.section(aria_label="Images"):
        _add_controls(difference is not None, deviation)
        tags.p(id="loading", role="status")
        tags.noscript(tags.p(tags.img(src=PREVIEW_NAME, alt="Three planes through the middle")))
        with tags.div(id="planes", cls="planes", style=f"--columns:{len(columns)};--tall:26rem"):
            for plane in PLANES:
                _add_plane(plane, columns, region)
        tags.div(id="readout", aria_live="off")
        with tags.div(cls="scales"):
            _add_scale("ct", "CT")
            if difference:
                _add_scale("difference", "Difference")
            if deviation:
                _add_scale("uncertainty", UNCERTAINTY_TITLE.capitalize())


def _add_controls(with_difference: bool, deviation: ShownVolume | None) -> None:
    with tags.div(cls="controls"):
        with tags.fieldset():
            tags.legend("CT window")
            for name, window in _WINDOW_BUTTONS.items():
                tags.button(
                    name, type="button", title=str(window), aria_pressed="false",
                    data_level=f"{window.level:g}", data_width=f"{window.width:g}",
                )  # fmt: skip
        with tags.fieldset():
            tags.label("level ", tags.input_(type="number", id="level", step="10"))
            tags.label("width ", tags.input_(type="number", id="width", step="50", min="1"))
        with tags.label():
            tags.span("MR brightness", cls="name")
            tags.input_(type="range", id="bright", min="-1.5", max="1.5", step="0.1", value="0")
        if with_difference:
            _add_choice("spread", "difference", {spread: f"± {spread} HU" for spread in _SPREADS_HU}, DIFFERENCE_HU)
        if deviation:
            reaches = {reach: f"0 to {reach} HU" for reach in UNCERTAINTY_REACHES}
            _add_choice("reach", "uncertainty", reaches, deviation.high)
        with tags.fieldset():
            tags.legend("planes")
            for name in ("all", *(plane.name for plane in PLANES)):
                pressed = "true" if name == "all" else "false"
                tags.button(name, type="button", data_planes=name, aria_pressed=pressed)
        tags.label(tags.input_(type="checkbox", id="cross", checked="checked"), " crosshair")


def _add_choice(identity: str, title: str, texts: Mapping[int, str], chosen: float) -> None:
    with tags.label():
        tags.span(title, cls="name")
        with tags.select(id=identity):
            for value, text in texts.items():
                tags.option(text, value=str(value), **({"selected": "selected"} if value == chosen else {}))


def _add_plane(plane: Plane, columns: list[tuple[str, str]], region: Region) -> None:
    rows, cols = plane.rows_and_columns
    size_mm = [n * mm for n, mm in zip(region.shape, region.spacing_mm, strict=True)]
    with tags.div(id=f"plane-{plane.name}", cls="plane", role="group", aria_label=f"{plane.name} plane"):
        with tags.div(cls="bar"):
            tags.h3(plane.name.capitalize())
            tags.input_(
                type="range", id=f"slice-{plane.name}", min="0", max=str(region.shape[plane.axis] - 1), step="1",
                value="0", aria_label=f"{plane.name} slice",
            )  # fmt: skip
            tags.output(id=f"place-{plane.name}")
        with tags.div(cls="views"):
            for identity, title in columns:
                with tags.figure():
                    tags.figcaption(title)
                    with tags.div(
                        cls="view", data_volume=identity, data_plane=plane.name,
                        style=f"--aspect:{size_mm[cols] / size_mm[rows]:.5f}",
                    ):  # fmt: skip
                        tags.canvas(role="img", aria_label=f"{title}, {plane.name}")
                        tags.i(cls="across")
                        tags.i(cls="down")
                        for edge, letter in zip(("left", "right", "top", "bottom"), plane.letters, strict=True):
                            tags.span(letter, cls=f"mark {edge}")


def _add_scale(identity: str, title: str) -> None:
    with tags.span():
        tags.span(title)
        tags.span(id=f"{identity}-low")
        with tags.span(cls="bar", aria_hidden="true"):
            tags.canvas(id=f"{identity}-scale", width="256", height="1")
            tags.span(id=f"{identity}-ticks", cls="ticks")
        tags.span(id=f"{identity}-high")


def _add_scores(scores: Mapping[str, float]) -> None:
    if not scores:
        return
    with tags.section(aria_label="Scores and values"):
        tags.h2("Scores and values" if COLUMNS.keys() & scores.keys() else "Values")
        with tags.div(cls="scroll"), tags.table():
            cells = [(name, score_text(name, value)) for name, value in scores.items()]
            titles = [(FIGURES.get(name, (name,))[0], EXPLANATIONS.get(name, "")) for name, _ in cells]
            tags.thead(tags.tr(*(tags.th(title, cls="number", title=text) for title, text in titles)))
            tags.tbody(tags.tr(*(tags.td(text, cls="number") for _, text in cells)))


def score_text(name: str, value: float | None) -> str:
    """Return a score with the decimals of its column; '-' where it is undefined."""
    if value is None or np.isnan(value):
        return "-"
    return f"{value:.{FIGURES[name][1]}f}" if name in FIGURES else f"{value:g}"


def _add_histograms(mr: Volume, ct: Volume, reference: Volume | None, body: np.ndarray, ct_title: str) -> None:
    """Add the histograms of HU, and the joint histogram of the CT with the true CT, or with the MR without that."""
    if reference is None:
        x_edges = np.linspace(*mr_display_range(mr.array), _HU_EDGES.size)
        x_title, note = "MR", ""
    else:
        x_edges, x_title = _HU_EDGES, "true CT [HU]"
        bias = _mean_difference(ct.array, reference.array, body)
        note = f" On the dashed line both agree; mean difference {bias:+.1f} HU."
    counts = joint_counts((mr if reference is None else reference).array, ct.array, body, x_edges, _HU_EDGES)
    curves = {ct_title: counts.sum(axis=0)} | ({} if reference is None else {"true CT": counts.sum(axis=1)})
    shares = [100 * curve / max(counts.sum(), 1) for curve in curves.values()]
    with tags.section(aria_label="Histograms"):
        tags.h2("Histograms, inside the body")
        with tags.div(cls="two"):
            with tags.figure():
                histogram_chart(_HU_EDGES, shares, f"Histogram of HU: {', '.join(curves)}")
                caption = tags.figcaption()
                for colour, title in zip("abc", curves, strict=False):
                    caption.add(tags.span(cls=f"swatch {colour}"), title)
                caption.add(
                    f". The first bin holds all voxels below {_HU_EDGES[1]:g} HU, the last one all above "
                    f"{_HU_EDGES[-2]:g} HU: dense bone, metal."
                )
            with tags.figure():
                titles = (x_title, f"{ct_title} [HU]")
                x_range, y_range = ((float(edges[0]), float(edges[-1])) for edges in (x_edges, _HU_EDGES))
                label = f"Joint histogram of {x_title} and {ct_title}"
                joint_histogram_chart(counts, x_range, y_range, titles, reference is not None, label)
                tags.figcaption(
                    f"Colour: number of voxels (log scale). The outermost bins hold all values beyond them.{note}"
                )


def joint_counts(
    x: np.ndarray, y: np.ndarray, body: np.ndarray, x_edges: np.ndarray, y_edges: np.ndarray
) -> np.ndarray:
    """Return the numbers of voxels inside `body` by (x bin, y bin); values beyond the edges are in the outermost bins.

    It goes slice by slice, because whole-body volumes have hundreds of millions of voxels.

    Args:
        x, y: two volumes (z, y, x).
        body: which voxels count, bool (z, y, x).
        x_edges, y_edges: of the bins, ascending, (n + 1,).
    """
    counts = np.zeros((x_edges.size - 1, y_edges.size - 1))
    for x_slice, y_slice, inside in zip(x, y, body, strict=True):
        x_values, y_values = (
            values[inside].astype(np.float32).clip(edges[0], edges[-1])
            for values, edges in ((x_slice, x_edges), (y_slice, y_edges))
        )
        counts += np.histogram2d(x_values, y_values, (x_edges, y_edges))[0]
    return counts


def _mean_difference(ct: np.ndarray, reference: np.ndarray, body: np.ndarray) -> float:
    """Return the mean of CT less true CT inside the body, slice by slice; NaN if no voxel is inside."""
    slices = zip(ct, reference, body, strict=True)
    total = sum(float((a[inside].astype(np.float64) - b[inside]).sum()) for a, b, inside in slices)
    return total / body.sum() if body.any() else float("nan")
