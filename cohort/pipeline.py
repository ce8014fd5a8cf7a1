"""The batch conversion: find what is to be done, do it with all processes, and report."""

import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cohort.contrasts import find_contrast_cohort
from cohort.conversion import NOT_SCORED, Conversion, Outcome
from cohort.extras import Extras
from cohort.inputs import Cohort, CohortCase, read_list
from cohort.making import Models
from cohort.overlap import run_overlapped
from cohort.progress import Progress
from cohort.references import with_references
from cohort.result_keys import result_key
from cohort.results import CaseRecord, Results, now
from cohort.scoring import cohort_command
from cohort.stray_ct import failures, warning_by_name
from cohort.summary import write_summary
from data.durations import describe_seconds
from data.errors import InputError, counted, listed
from data.prepared.case_names import short_hash
from data.signals import Stop, exit_code
from data.volumes.dicom_series import NAMES_KEPT
from evaluation.patterns import kind_of
from evaluation.report import summarise
from models.ensemble import called, check_ensemble, ensemble_sha256, mixed_air
from models.inference_settings import InferenceSettings
from models.synthesis import TrainedGenerator, find_generator, load_synthesiser
from options.pipeline_options import CohortSettings
from training.distributed import ProcessGroup

log = logging.getLogger(__name__)

# How often cases that another process holds are looked at again.
RETRY_SECONDS = 2.0
_HASHING_THREADS = 4
_MOST_THREADS = 8
_NAMED = 5


@dataclass(frozen=True)
class Survey:
    """The start of a run: the cohort, its cases to convert, the records as they were, the models' hash, and a warning
    that holds for every case.
    """

    cohort: Cohort
    todo: tuple[CohortCase, ...]
    known: dict[str, CaseRecord]
    model_sha256: str
    mixture: str | None


def convert_cohort(opt: CohortSettings, group: ProcessGroup) -> int:
    """Convert what is missing or changed, write the summary, and return the exit code.

    That is 0, or 1 if a case failed, or was to be scored and was not.

    Args:
        opt: what is converted, and how.
        group: the processes that run this at the same time.

    Raises:
        InputError: nothing could be started: no model, no input, or results that cannot be written.
    """
    generators = group.share(lambda: _find_generators(opt))
    mu = opt.mu_settings(one.settings.ct_kvp for one in generators)
    extras = Extras(called(opt.name, generators), opt.epoch, opt.dicom, opt.anonymous, mu, opt.uncertainty)
    results = Results(opt.results_dir / extras.model)
    survey = group.share(lambda: make_survey(opt, generators, extras, results))
    with Stop("the volumes in progress") as stop:  # torchrun's processes all hear it, and wait for each other here
        figures = _convert(opt, group, survey, extras, results, stop) if survey.todo else None
        processes = [one for one in group.gather(figures) if one]
    direction = generators[0].settings.direction
    return group.share(lambda: _account(opt, survey, direction, extras, results, processes))


def _find_generators(opt: CohortSettings) -> list[TrainedGenerator]:
    """Return the generators to use; refuse those that do not match, and CT extras of a model that makes MR."""
    generators = [find_generator(folder, opt.epoch, opt.spacing_mm, opt.direction) for folder in opt.folders]
    settings = [one.settings for one in generators]
    if settings[0].direction != "AtoB" and (opt.dicom or opt.mu_map or opt.uncertainty or opt.air_outside):
        raise InputError(
            "--dicom, --mu_map, --uncertainty, --air_outside: need a synthetic CT, but the model makes MR; leave them "
            "out"
        )
    check_ensemble(opt.name, settings, opt.uncertainty, opt.fusion)
    return generators


def make_survey(
    opt: CohortSettings, generators: Sequence[TrainedGenerator], extras: Extras, results: Results
) -> Survey:
    """Find the cohort and compare it with what is recorded."""
    model = ensemble_sha256([(one.settings, one.weights) for one in generators], opt.fusion)
    cohort = _find(opt, results, generators[0].settings)
    known = {case.name: record for case in cohort.cases if (record := results.read(case.name))}

    def look_at(case: CohortCase) -> tuple[CohortCase, bool]:
        """Return a case, with the problem that shows now, and whether it is up to date."""
        record = known.get(case.name)
        if record is None or opt.overwrite or case.problem:
            return case, False
        try:
            key = result_key(case, model, opt.precision, opt.chosen, opt.resample_reference, opt.air_outside)
        except InputError:
            return case, False  # it is reported when it is its turn
        case = _refuse_other_patient(case, record, key, generators[0].settings.direction == "AtoB")
        current = results.is_current(record, key, extras.asked(case))
        return case, current and (opt.no_html or not results.lacks_page(record))

    with ThreadPoolExecutor(_HASHING_THREADS) as threads:
        looked = list(threads.map(look_at, cohort.cases))
    todo = tuple(case for case, current in looked if not current)
    log.info("%s: %d up to date, %d to do", counted(len(looked), "case"), len(looked) - len(todo), len(todo))
    for passed in cohort.passed_over:
        log.debug("passed over: %s", passed)
    if cohort.passed_over:
        log.info("%d DICOM series or files skipped: listed in summary.json", len(cohort.passed_over))
    one_mr_each = generators[0].settings.direction == "AtoB" and not any(case.further for case in cohort.cases)
    if opt.input_dir and one_mr_each and (said := warning_by_name(todo, cohort.cases, opt.input_dir)):
        log.warning("warning: %s", said)
    mixture = mixed_air(opt.name, [one.settings for one in generators], opt.fusion)
    if mixture and todo:
        log.warning("warning: %s", mixture)
    results.check_own(opt.overwrite)
    with results.summary_lock():
        pass  # results that cannot be written stop the run here; later on, they cost the cases that meet it
    return Survey(replace(cohort, cases=tuple(case for case, _ in looked)), todo, known, model, mixture)


def _find(opt: CohortSettings, results: Results, settings: InferenceSettings) -> Cohort:
    contrasts, modality = settings.contrasts, "MR" if settings.direction == "AtoB" else "CT"
    if opt.list:
        cohort = read_list(opt.list, contrasts, modality)
        if modality == "CT" and any(case.reference for case in cohort.cases):
            raise InputError(
                f"--list {opt.list}: has references; the model makes MR from CT, and MR in arbitrary units is not "
                "scored; leave that column out"
            )
    else:
        assert opt.input_dir is not None, "one of the two is given"
        if opt.input_dir.resolve().is_relative_to(opt.results_dir.resolve()):
            raise InputError(f"--input_dir {opt.input_dir}: holds the results, or lies among them; choose another")
        log.info("searching %s", opt.input_dir)
        cohort = find_contrast_cohort(
            opt.input_dir, opt.pattern, opt.series_description, opt.results_dir, contrasts, modality,
            partial(_known_name, results),
        )  # fmt: skip
        if opt.reference_pattern:
            if modality == "CT":
                raise InputError(
                    "--reference_pattern: the model makes MR from CT, and MR in arbitrary units is not scored; "
                    "leave it out"
                )
            cohort = with_references(cohort, opt.input_dir, opt.reference_pattern)
    return replace(cohort, cases=cohort.cases[: opt.num_test])


def _known_name(results: Results, case: CohortCase) -> str | None:
    """Return the name that a case was converted as, alone or beside others than now; None if it was not."""
    for name in (case.name, *case.other_names):
        record = results.read(name)
        made_of = record and (record.input, record.key.get("series_uid"))
        if made_of == (str(case.path.absolute()), case.series_uid):
            return name
    return None


def _refuse_other_patient(case: CohortCase, record: CaseRecord, key: dict, to_ct: bool) -> CohortCase:
    """Return a case; where its result would replace that of another input, as one that cannot be converted.

    `to_ct`: whether the model makes CT.
    """
    path = str(case.path.absolute())
    if record.status != "done" or record.input == path or record.key.get("input_sha256") == key["input_sha256"]:
        return case
    way_out = "use another --results_dir, or --overwrite"
    if to_ct and kind_of(Path(path).name) == "ct" and kind_of(Path(record.input).name) != "ct":
        way_out = "if it is the true CT of that, leave it out here and give it by --reference_pattern or a --list"
    problem = f"{path}: would be converted as {record.case}, which is the result of {record.input}; {way_out}"
    return replace(case, name=f"{case.name}__{short_hash(path)}", problem=problem)


def _convert(
    opt: CohortSettings, group: ProcessGroup, survey: Survey, extras: Extras, results: Results, stop: Stop
) -> dict:
    """Convert this process's share of the cases; return its figures."""
    device = group.device(opt.device)
    how = (opt.epoch, device, opt.precision, opt.spacing_mm, opt.direction)
    loaded = {name: load_synthesiser(folder, *how) for name, folder in zip(opt.name, opt.folders, strict=True)}
    models = Models(loaded, opt.fusion, opt.uncertainty, opt.batch_size, survey.mixture, opt.air_outside)
    conversion = Conversion(
        models, survey.model_sha256, opt.precision, results, survey.known, extras, opt.chosen, pages=not opt.no_html,
        overwrite=opt.overwrite, resample_reference=opt.resample_reference, purpose=opt.purpose,
    )  # fmt: skip
    workers = opt.num_threads or (1 if device.type == "cpu" else min(_MOST_THREADS, own_cores()))
    if group.rank == 0:
        log.info("%s on %s in %s", " + ".join(opt.name), device, models.first.model.precision)
    counts = {"done": 0, "failed": 0, "elsewhere": 0}
    device_seconds = 0.0
    started = time.perf_counter()
    with Progress(len(survey.todo), group) as progress:
        for outcome in _outcomes(conversion, _dealt(survey.todo, group, stop), workers, stop):
            progress.report(outcome)
            counts[outcome.what] += 1
            if outcome.what != "elsewhere" and outcome.record is not None:
                device_seconds += outcome.record.seconds.get("device", 0.0)
    seconds = time.perf_counter() - started
    figures = {"seconds": round(seconds, 3), "device_seconds": round(device_seconds, 3)}
    return {**counts, **figures, "workers": workers, "signal": stop.received, **conversion.run}


def own_cores() -> int:
    """Return this process's share of the cores that the job may use."""
    allotted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allotted // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _dealt(todo: tuple[CohortCase, ...], group: ProcessGroup, stop: Stop) -> Iterator[CohortCase]:
    """Yield cases until the group has none left or is to stop; each goes to the first process that has room for it."""
    while not stop.received and (index := group.count("dealt")) < len(todo):
        yield todo[index]


def _outcomes(conversion: Conversion, cases: Iterable[CohortCase], workers: int, stop: Stop) -> Iterator[Outcome]:
    """Convert cases; those that another process holds are looked at again until it has done, or left, them."""
    waiting = False
    while True:
        held = []
        stages = (conversion.prepare, conversion.translate, conversion.finish)
        for outcome in run_overlapped(cases, *stages, lambda value: isinstance(value, Outcome), workers):
            if outcome.what == "held":
                held.append(outcome.case)
            else:
                yield outcome
        if not held:
            return
        if not waiting:
            log.info("waiting for %s that another process is converting", counted(len(held), "case"))
            waiting = True
        time.sleep(RETRY_SECONDS)
        if stop.received:
            return
        cases = held


def _account(
    opt: CohortSettings, survey: Survey, direction: str, extras: Extras, results: Results, processes: list[dict]
) -> int:
    """Write the summary, report what is not done, and return the exit code."""
    model = _described_model(opt, survey, direction, extras)
    last_run = _run_figures(processes) if processes else None
    names = {case.name for case in survey.cohort.cases}
    try:
        records, summarised = write_summary(results, names, model, survey.cohort.passed_over, last_run), True
    except (InputError, OSError) as error:  # by now volumes are written, which stand
        log.error("failed: the summary was not written: %s; run again to write it", error)
        records, summarised = results.read_all(), False
    by_name = {record.case: record for record in records}
    stopped = max((figures["signal"] for figures in processes), default=0)
    tally = _tally(survey, by_name, bool(stopped))
    if last_run and any(figures["done"] for figures in processes):
        _report_time(last_run)
    for name in tally.failed:  # the others were named when they failed
        if name not in by_name:
            log.error("failed: %s: not recorded; see above", name)
    if direction == "AtoB" and (said := failures(survey.cohort.cases, by_name, opt.input_dir)):
        log.error("%s", said)
    log.info("%d done (%d with warnings), %d failed: %s", len(tally.done), tally.warned, len(tally.failed),
             results.folder / "summary.csv")  # fmt: skip
    if tally.left:
        log.warning("stopped by a signal, with %s left; the same command goes on", counted(len(tally.left), "case"))
        return exit_code(stopped)
    if direction == "AtoB":
        _say_next(opt, results, tally.done, by_name)
    if tally.unscored:
        log.error("not scored, although a true CT was given: %d of %s, %s; the warnings of each say why",
                  len(tally.unscored), counted(len(tally.done), "case"), listed(tally.unscored, _NAMED))  # fmt: skip
    # A failure that could not be put on record is one all the same.
    failed = tally.failed or any(figures["failed"] for figures in processes)
    return 1 if failed or tally.unscored or not summarised else 0


class _Tally(NamedTuple):
    """What became of a cohort's cases.

    Attributes:
        done: cases with a result.
        failed: names of those without.
        left: names of those that a stopped run has not come to; they count for neither.
        unscored: names of those done whose true CT could not be used.
        warned: how many of those done have warnings.
    """

    done: list[CohortCase]
    failed: list[str]
    left: set[str]
    unscored: list[str]
    warned: int


def _tally(survey: Survey, records: Mapping[str, CaseRecord], stopped: bool) -> _Tally:
    """Return what became of the cases, by their `records`; `stopped`: whether a signal ended the run."""
    left = _left(survey, records) if stopped else set()
    tried = [case for case in survey.cohort.cases if case.name not in left]
    done = [case for case in tried if case.name in records and records[case.name].status == "done"]
    warnings = {case.name: records[case.name].warnings for case in done}
    failed = [case.name for case in tried if case.name not in warnings]
    unscored = [name for name, texts in warnings.items() if any(text.startswith(NOT_SCORED) for text in texts)]
    return _Tally(done, failed, left, unscored, sum(map(bool, warnings.values())))


def _report_time(last_run: Mapping[str, float]) -> None:
    taken, busy = describe_seconds(last_run["seconds"]), last_run["device_busy_share"]
    if busy:
        log.info("converted in %s; the device was busy for %.0f %% of it", taken, 100 * busy)
    else:
        log.info("scores and pages renewed in %s, nothing converted again", taken)


def _described_model(opt: CohortSettings, survey: Survey, direction: str, extras: Extras) -> dict:
    """Return what the summary says of the models."""
    return {
        "name": extras.model,
        "folder": " + ".join(str(folder.absolute()) for folder in opt.folders),
        "epoch": opt.epoch,
        "for": opt.purpose,
        "direction": direction,
        **({"fusion": opt.fusion} if opt.fusion else {}),
        **({"warning": survey.mixture} if survey.mixture else {}),
        "sha256": survey.model_sha256,
    }


def _say_next(
    opt: CohortSettings, results: Results, done: Sequence[CohortCase], records: Mapping[str, CaseRecord]
) -> None:
    """Log where the page is, the mean of the scores, and the command that scores what has none yet."""
    if (results.folder / "index.html").exists():
        log.info("page: %s", results.folder / "index.html")
    if opt.anonymous:
        log.info("%s", NAMES_KEPT)
    if scored := [record.scores for case in done if (record := records[case.name]).scores]:
        rows = [{name: math.nan if value is None else value for name, value in one.items()} for one in scored]
        mean = summarise(rows, ("mae", "dice_bone"))["mean"]
        bone = "" if math.isnan(mean["dice_bone"]) else f", bone Dice {mean['dice_bone']:.3f}"
        kept = sum(case.reference is None and bool(records[case.name].scores) for case in done)
        earlier = f", {kept} of them in an earlier run" if kept else ""
        log.info("scored %d%s: on average MAE %.1f HU%s", len(scored), earlier, mean["mae"], bone)
    if unscored := {case.name: case.path for case in done if not records[case.name].scores}:
        alone = not opt.chosen and all(case.alone and not (case.contrast and case.path.is_dir()) for case in done)
        log.info("%s", cohort_command(results.folder, unscored, opt.input_dir, mr_alone=alone))


def _left(survey: Survey, records: Mapping[str, CaseRecord]) -> set[str]:
    """Return the names of cases that a run which was stopped has not come to: their records are the earlier ones."""
    return {case.name for case in survey.todo if records.get(case.name) == survey.known.get(case.name)}


def _run_figures(processes: list[dict]) -> dict:
    """Return the figures of a run from those of its processes."""
    seconds = sum(figures["seconds"] for figures in processes)
    return {
        "finished": now(),
        "seconds": max(figures["seconds"] for figures in processes),
        "device_busy_share": round(sum(figures["device_seconds"] for figures in processes) / max(seconds, 1e-3), 4),
        "processes": processes,
    }
