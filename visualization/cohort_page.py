"""The results page of a cohort: sortable tables of scores and of figures, box plots, for any browser, from the disk."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from dominate import tags

from evaluation.report import COLUMNS, EXPLANATIONS, FIGURES, UP_TO_ONE, WORST_HIGHEST, summarise
from visualization.case_page import THUMBNAIL_NAME, score_text
from visualization.pages import add_script, link_to, new_document, pairs, write_document
from visualization.svg_charts import FEWEST_IN_A_BOX, box_chart


@dataclass(frozen=True)
class CohortRow:
    """One case of a cohort.

    Attributes:
        case: its name, shown as it is.
        scores: by the keys of `evaluation.report.FIGURES`; empty where there is none.
        page: its results page (`write_case_page`), or None.
        note: a remark, e.g. why it failed.
        warnings: of the checks.
        failed: whether there is no result.
    """

    case: str
    scores: Mapping[str, float] = field(default_factory=dict)
    page: Path | None = None
    note: str = ""
    failed: bool = False
    warnings: Sequence[str] = ()


def write_cohort_page(
    folder: Path,
    rows: Sequence[CohortRow],
    title: str = "Results",
    details: Mapping[str, object] | None = None,
    others: Sequence[CohortRow] = (),
) -> Path:
    """Write `index.html` of a cohort into `folder`; links to the cases' pages are relative, so folders move together.

    Args:
        folder: where; usually the one that holds the cases' folders.
        rows: the cases; the tables show those with the highest MAE first, then the others in this order.
        title: the page's heading.
        details: further lines, e.g. model and epoch; what is None is left out. `warnings` stand at the top, too.
        others: results of earlier runs with other cases; they are named, and count nowhere.

    Returns:
        The page.

    Raises:
        InputError: the folder cannot be written.
    """
    rows = _worst_first(rows)
    names = [name for name in FIGURES if any(_is_defined(row, name) for row in rows)]
    failed = sum(row.failed for row in rows)
    warned = sum(bool(row.warnings) for row in rows)
    document = new_document(title, ("base.css", "cohort.css"))
    with document:
        with tags.header():
            tags.h1(title)
            counts = [f"{failed} failed" if failed else "", f"{warned} with warnings" if warned else ""]
            tags.p(", ".join(filter(None, [_cases(len(rows)), *counts])))
            tags.p("Not for clinical use")
        if warnings := (details or {}).get("warnings"):
            tags.p(f"warning: {warnings}", cls="warning", role="note")
        if names:
            scored = [name for name in names if name in COLUMNS]
            _add_boxes(rows, scored or names, folder)
        _add_tables(rows, names, folder)
        if others:
            _add_others(others, folder)
        with tags.section(aria_label="Details"):
            tags.h2("Details")
            written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
            pairs({**(details or {}), "page written": written})
    add_script(document, "cohort.js")
    return write_document(document, folder / "index.html")


def _cases(count: int) -> str:
    return "1 case" if count == 1 else f"{count} cases"


def _worst_first(rows: Sequence[CohortRow]) -> list[CohortRow]:
    """Return cases from the highest MAE to the lowest, then those without one in the order that they had."""
    return sorted(rows, key=lambda row: -row.scores["mae"] if _is_defined(row, "mae") else math.inf)


def _is_defined(row: CohortRow, name: str) -> bool:
    value = row.scores.get(name)
    return value is not None and math.isfinite(value)


def _add_boxes(rows: Sequence[CohortRow], names: list[str], folder: Path) -> None:
    defined = {name: [row for row in rows if _is_defined(row, name)] for name in names}
    note = "Each point is a case; click it to open its page."
    if max(map(len, defined.values())) >= FEWEST_IN_A_BOX:
        note += (
            f" With {FEWEST_IN_A_BOX} cases or more, the box shows the median and quartiles; the whiskers reach the "
            "last case within 1.5 box lengths."
        )
    with tags.section(aria_label="Distributions"):
        tags.h2("Distributions")
        with tags.div(cls="boxes"):
            for name, usable in defined.items():
                with tags.figure():
                    tags.figcaption(tags.b(FIGURES[name][0]), f", {_cases(len(usable))}")
                    links = [link_to(row.page, folder) if row.page else None for row in usable]
                    box_chart(
                        [row.scores[name] for row in usable], [row.case for row in usable],
                        links, f"{FIGURES[name][0]} of the cases", 1.0 if name in UP_TO_ONE else math.inf,
                    )  # fmt: skip
        tags.p(note, cls="note")


def _add_tables(rows: Sequence[CohortRow], names: list[str], folder: Path) -> None:
    """Add the table of scores, of the cases that have any, and the table of all cases with what else is known."""
    scores = [name for name in names if name in COLUMNS]
    scored = [row for row in rows if any(_is_defined(row, name) for name in scores)]
    with tags.section(aria_label="Cases"):
        with tags.div(cls="controls"):
            tags.h2("Cases")
            with tags.span(cls="scripted"):
                tags.label("search ", tags.input_(type="search", id="search"))
            tags.span(f"{len(rows)} of {len(rows)} cases", id="count", role="status", cls="note")
        with tags.p(cls="note"):
            tags.span("Worst first, by MAE; cases without a score follow. " if "mae" in scores else "")
            tags.span(
                "Click a column's title to sort by it, the worst or lowest first; click again for the other order.",
                cls="scripted screen",
            )  # fmt: skip
        if scored:
            tags.h3("Scores against the true CT")
            _add_table(scored, scores, folder)
            tags.h3("All cases: values that need no true CT")
        _add_table(rows, [name for name in names if name not in scores], folder, all_of_it=True)


def _add_others(others: Sequence[CohortRow], folder: Path) -> None:
    """Add a line on results of earlier runs, which opens to their names."""
    lie = "1 older result lies" if len(others) == 1 else f"{len(others)} older results lie"
    with tags.details(cls="panel"):
        tags.summary(f"{lie} in this folder, from cases that were not part of the last run (not counted above)")
        with tags.ul():
            for row in others:
                entry = tags.li(tags.a(row.case, href=link_to(row.page, folder)) if row.page else row.case)
                if row.failed:
                    entry.add(": failed")


def _add_table(rows: Sequence[CohortRow], names: list[str], folder: Path, all_of_it: bool = False) -> None:
    """Add a table of figures, with `all_of_it` also with thumbnails and notes."""
    with_notes = all_of_it and any(row.note or row.warnings for row in rows)
    with tags.div(cls="scroll sticky"), tags.table(cls="sortable", **({"id": "cases"} if all_of_it else {})):
        with tags.thead(), tags.tr():
            _heading("case", "")
            for name in names:
                _heading(FIGURES[name][0], "number", name)
            if with_notes:
                _heading("warnings and notes", "")
        with tags.tbody():
            for row in rows:
                _add_row(row, names, folder, all_of_it, with_notes)
        if names:
            _add_summary(rows, names, with_notes)


def _heading(title: str, kind: str, figure: str = "") -> None:
    """Add a column's title, of one of `FIGURES` or of text; rows come sorted by MAE."""
    button = tags.button(title, type="button", **({"title": EXPLANATIONS[figure]} if figure else {}))
    first = {"data_first": "descending"} if figure in WORST_HIGHEST else {}
    tags.th(button, cls=kind, scope="col", **first, **({"aria-sort": "descending"} if figure == "mae" else {}))


def _add_row(row: CohortRow, names: list[str], folder: Path, with_thumbnail: bool, with_notes: bool) -> None:
    with tags.tr(cls="failed" if row.failed else ""):
        cell = tags.td(data_value=row.case, data_case="")
        if row.page:
            link = link_to(row.page, folder)
            if with_thumbnail:
                picture = tags.img(src=link_to(row.page.with_name(THUMBNAIL_NAME), folder), alt="", loading="lazy")
                cell.add(tags.a(picture, href=link, aria_label=row.case))
            cell.add(tags.a(row.case, href=link))
        else:
            cell.add(row.case)
        for score in names:
            value = row.scores.get(score)
            sorted_by = {"data_value": repr(float(value))} if value is not None and not math.isnan(value) else {}
            tags.td(score_text(score, value), cls="number", **sorted_by)
        if with_notes:
            said = "; ".join(filter(None, [*row.warnings, row.note]))
            with tags.td(**({"data_value": said} if said else {})):
                for warning in row.warnings:
                    tags.p(f"warning: {warning}", cls="warning")
                if row.note:
                    tags.p(row.note)


def _add_summary(rows: Sequence[CohortRow], names: list[str], with_notes: bool) -> None:
    scored = [{name: math.nan for name in FIGURES} | dict(row.scores) for row in rows if row.scores]
    summary = summarise(scored, FIGURES)
    with tags.tfoot():
        for title, key in (("mean", "mean"), ("standard deviation", "std"), ("cases", "n")):
            with tags.tr():
                tags.th(title, scope="row")
                for name in names:
                    value = summary[key][name]
                    tags.td(str(value) if key == "n" else score_text(name, value), cls="number")
                if with_notes:
                    tags.td()
