"""`summary.csv`, `summary.json` and `index.html`: every record in the folder of results, one row a case.

The page shows the cases of the last run, and names the others below.
"""

import csv
import io
import logging
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from cohort.checks import shown_figures
from cohort.inputs import exists
from cohort.results import CaseRecord, Results, now
from cohort.stray_ct import is_ct
from data.errors import InputError
from data.files import read_json, write_json
from evaluation.report import COLUMNS
from visualization.cohort_page import CohortRow, write_cohort_page

log = logging.getLogger(__name__)

STAGES = ("read", "prepare", "device", "restore", "check", "write", "score", "show", "total")
HU = ("mean", "std", "p01", "p25", "p50", "p75", "p99", "soft", "bone_share")
CHECKS = (
    "body_dice", "outside_tissue_ml", "slice_width_mm", "low_end_share", "high_end_share", "hu_distance",
    "hu_distance_limit", "odd_slices_share", "mr_low", "mr_high", "mr_median", "mr_clipped_share",
    "dark_border_share", "below_skin", "tilt_deg", "in_plane_mm", "through_mm", "section_cm2", "dark_share",
    "unseen_slices_share", "isolated_bone_pieces", "isolated_bone_ml", "isolated_bone_share", "slices_without_bone",
    "uncertainty_mean_hu",
)  # fmt: skip


def write_summary(
    results: Results, current: Collection[str], model: dict, passed_over: Sequence[str], last_run: dict | None
) -> list[CaseRecord]:
    """Write both files from the records of all pipelines that worked on this folder; return those.

    Failures of other cases than the current are forgotten once their input is there no longer, has been converted
    under another name, or is a CT, which nobody wants to convert any more.

    Args:
        results: the folder.
        current: names of the cases of this run, which the page shows.
        model: name, epoch and hash of the model.
        passed_over: DICOM series and volume files that were no cases, with the reason.
        last_run: figures of the run that ends now; None leaves those of the run before.
    """
    with results.summary_lock():
        records = [record for record in results.read_all() if record.status != "begun"]
        records = [r for r in records if r.status != "done" or results.volume_path(r.case).exists()]
        done = [record for record in records if record.status == "done"]
        converted = {(record.input, record.key.get("series_uid")) for record in done}
        others = [record for record in records if record.status == "failed" and record.case not in current]
        gone = [
            r for r in others
            if is_ct(r) or not exists(Path(r.input)) or (r.input, r.key.get("series_uid")) in converted
        ]  # fmt: skip
        for record in gone:
            results.forget(record.case)
        records = [record for record in records if record not in gone]
        results.write_text("summary.csv", format_csv(records))
        counts = {
            "done": len(done),
            "failed": len(records) - len(done),
            "with_warnings": sum(bool(record.warnings) for record in done),
        }
        write_json(
            results.folder / "summary.json",
            {
                "written": now(),
                "model": model,
                "counts": counts,
                "cases": [vars(record) for record in records],
                "passed_over": list(passed_over),
                "last_run": last_run or _earlier_run(results),
            },
        )
        _write_page(results, records, current, model)
    return records


def _write_page(results: Results, records: Sequence[CaseRecord], current: Collection[str], model: dict) -> None:
    """Write the cohort's page; one that fails is a warning, since the summary is there."""
    rows = [_page_row(results, record) for record in records if record.case in current]
    others = [_page_row(results, record) for record in records if record.case not in current]
    details = {"model": model["name"], "epoch": model["epoch"], "model for": model["for"], "folder": model["folder"]}
    details |= {"warnings": model.get("warning")}
    try:
        write_cohort_page(results.folder, rows, model["name"], details, others)
    except Exception as error:
        log.warning("warning: no page of the cohort: %s", error)


def _page_row(results: Results, record: CaseRecord) -> CohortRow:
    page = results.page_path(record.case)
    fine = [] if record.warnings or record.unchecked else ["no warnings"]
    note = record.reason or "; ".join([*fine, *record.notes])
    shown = page if record.status == "done" and page.exists() else None
    figures = {**record.scores, **shown_figures(record.hu, record.checks)}
    scores = {name: value for name, value in figures.items() if value is not None}
    return CohortRow(record.case, scores, shown, note, record.status != "done", record.warnings)


def format_csv(records: Iterable[CaseRecord]) -> str:
    """Return the table of `summary.csv`."""
    rows = [_row(record) for record in records]
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, fieldnames=list(_row(_NO_RECORD)), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _row(record: CaseRecord) -> dict[str, object]:
    row: dict[str, object] = {
        "case": record.case,
        "status": record.status,
        "reason": record.reason,
        "warnings": "; ".join(record.warnings),
        "unchecked": "; ".join(record.unchecked),
        "notes": "; ".join(record.notes),
        "input": record.input,
        "output": record.output,
        "finished": record.finished,
        "size": "x".join(map(str, record.geometry.get("size", ()))),
        "spacing_mm": "x".join(f"{value:g}" for value in record.geometry.get("spacing", ())),
    }
    row |= {f"hu_{name}": record.hu.get(name) for name in HU}
    row |= {"body_l": record.hu.get("body_l")}
    row |= {name: record.checks.get(name) for name in CHECKS}
    row |= {name: record.scores.get(name) for name in COLUMNS}
    row |= {f"seconds_{stage}": record.seconds.get(stage) for stage in STAGES}
    row |= {name: record.run.get(name) for name in ("precision", "device", "host")}
    row |= {name: record.key.get(name) for name in ("input_sha256", "model_sha256")}
    return row | {"output_sha256": record.output_sha256}


def _earlier_run(results: Results) -> dict | None:
    try:
        return read_json(results.folder / "summary.json")["last_run"]
    except (InputError, KeyError, TypeError):
        return None


_NO_RECORD = CaseRecord("", "", "", {}, "", "")
