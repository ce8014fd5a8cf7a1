"""Preparing a data set: volumes on disk to slices on one grid, with masks and a manifest.

Two passes over the volumes. The first finds each body, so that `auto` spacing can be chosen; its masks are kept under
`bodies/`, on the volumes' own grids, where they can be looked at and corrected: a corrected one is kept and used. The
second writes slices. A volume whose source and settings have not changed is not touched again.

An interruption leaves no data set that looks whole: before the first array is written the manifest goes, and before a
case's arrays are, its record forgets its frame.
"""

import logging
from collections import defaultdict
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from data.errors import InputError, listed
from data.files import read_json, remove
from data.prepared.bodies import analyse
from data.prepared.jobs import Job, is_begun, open_job
from data.prepared.manifest import (
    BODIES_PAGE,
    MANIFEST_NAME,
    Case,
    Manifest,
    check_names,
    check_splits,
    read_manifest,
)
from data.prepared.patient_ids import warn_of_twins
from data.prepared.pixel_spacing import choose_spacing
from data.prepared.slice_writing import SliceWriter
from data.prepared.sources import Source
from data.prepared.trainable import check_swapped, check_trainable
from data.prepared.unused_masks import warn_of_unused_masks
from data.prepared.volume_jobs import Failure, run_jobs
from data.volumes.outputs import check_free

log = logging.getLogger(__name__)

_LISTED = 5  # names in a message


def prepare_dataset(
    root: Path,
    groups: dict[tuple[str, str], list[Source]],
    size: int,
    spacing_mm: float | None,
    slice_mm: float | None = None,
    workers: int = 1,
    overwrite: bool = False,
    bias_correction: bool = False,
    view: str = "axial",
) -> tuple[Manifest, list[Failure]]:
    """Prepare volumes into `root` and write its manifest; return it and the volumes that failed.

    Args:
        root: the data set's folder.
        groups: sources by (split, domain), e.g. ('train', 'A'); a data set to simulate MR from needs no MR.
        size: pixels of a slice's side, even.
        spacing_mm: pixel spacing; None picks the finest with which every body fits (`choose_spacing`).
        slice_mm: resample through the planes to this spacing; None keeps the acquired slices.
        workers: processes.
        overwrite: whether files in `root` that no preparation made may be replaced.
        bias_correction: correct the MR for its bias field.
        view: how slices lie, of `data.volumes.slice_frame.VIEWS`.

    Raises:
        InputError: names that collide, a patient in train and test, files of others in the way, no volume left in a
            domain to train on, MR and CT that look swapped, or without `overwrite` a data set that would be of other
            slices or lose all MR or CT that it had.
    """
    if size < 2 or size % 2:
        raise InputError(f"slices of {size} pixels; expected a positive even number")
    jobs = [
        open_job(root, source, *group, bias_correction, view) for group, sources in groups.items() for source in sources
    ]
    check_names([(job.split, job.domain, job.source.name, job.source.patient) for job in jobs])
    if not overwrite:
        _refuse_to_replace(root, jobs)
        _refuse_another_frame(jobs, size, spacing_mm, slice_mm)
        _check_named(root, jobs)
    warn_of_unused_masks(root, groups)
    accepted = {job.split for job in jobs if job.known}
    check_swapped(root, {group: groups[group] for group in groups if group[0] not in accepted}, workers)
    title = "checking what is prepared" if all(job.known for job in jobs) else "finding bodies"
    analysed, failures = run_jobs(analyse, jobs, workers, title)
    check_splits(analysed)
    warn_of_twins(analysed)
    check_trainable(root, groups, analysed, failures)
    frames = [job.known.frame for job in jobs if job.known and job.known.frame and not overwrite]
    made = {frame.get("spacing_mm") for frame in frames}
    spacing_mm = spacing_mm or _spacing(root, analysed, size, made)
    jobs_by_key = {(job.split, job.domain, job.source.name): job for job in jobs}
    jobs = [replace(jobs_by_key[c.split, c.domain, c.name], known=c) for c in analysed]
    for job in jobs:
        if job.known and job.known.mask_source_sha256 and not job.source.mask:
            log.info("%s: corrected by hand, kept and used", job.body_path)
    writer = SliceWriter(size, spacing_mm, slice_mm, view)
    done = [writer.is_done(job) for job in jobs]
    cases = [job.analysed for job, is_done in zip(jobs, done, strict=True) if is_done]
    todo = [job for job, is_done in zip(jobs, done, strict=True) if not is_done]
    if todo:
        remove(root / MANIFEST_NAME)
    else:
        log.info("already prepared: %d volumes", len(cases))
    written, failed = run_jobs(writer, todo, workers, "writing slices")
    cases, failures = [*cases, *written], [*failures, *failed]
    check_trainable(root, groups, cases, failures)
    cases.sort(key=lambda case: (case.split, case.domain, case.name))
    manifest = Manifest(size, spacing_mm, slice_mm, tuple(cases), software_versions(), view)
    manifest.write(root)
    for case in cases:
        if case.fat_problem:
            log.warning("warning: %s: prepared, but not for --mr_window tissue: %s", case.source, case.fat_problem)
    return manifest, failures


def _refuse_to_replace(root: Path, jobs: list[Job]) -> None:
    """Refuse files that preparation did not make in the place of those of a case."""
    own = [job for job in jobs if job.known or is_begun(job.record_path)]
    if not own and not _is_manifest(root / MANIFEST_NAME):
        check_free([root / MANIFEST_NAME, root / BODIES_PAGE], "--out")
    for job in [job for job in jobs if job not in own]:
        folders: tuple[str, ...] = (f"{job.split}{job.domain}", f"mask{job.domain}")
        folders += tuple(f"{folders[0]}/{one.contrast}" for one in job.source.further)
        files = [job.record_path, *(root / folder / f"{job.source.name}.npy" for folder in folders)]
        supplied = job.source.mask and job.is_body_file(job.source.mask)
        check_free(files if supplied else [*files, job.body_path], "--out")


def _refuse_another_frame(jobs: list[Job], size: int, spacing_mm: float | None, slice_mm: float | None) -> None:
    """Refuse to turn a data set into one of other slices, which the models trained on it do not take."""
    asked = {"size": size, "spacing_mm": spacing_mm, "slice_mm": slice_mm}
    for job in jobs:
        made = job.known.frame if job.known else {}
        changed = [name for name, value in asked.items() if made and made.get(name) != value]
        if spacing_mm is None and "spacing_mm" in changed:  # auto: what comes out is not known yet
            changed.remove("spacing_mm")
        if changed:
            was, now = (" ".join(f"--{name} {values.get(name)}" for name in changed) for values in (made, asked))
            raise InputError(
                f"{job.root}: prepared with {was}, now {now}; choose another --out, or prepare all of it again with "
                "--overwrite: models trained on it can then not be resumed"
            )


def _check_named(root: Path, jobs: list[Job]) -> None:
    """Refuse to lose all MR or all CT of a data set, where only what is new was given; warn of single volumes.

    Raises:
        InputError: none of those that it had is named.
    """
    try:
        before = read_manifest(root).cases
    except InputError:  # there is none, or it is damaged, and preparing again mends it
        return
    named = {(job.split, job.domain, key) for job in jobs for key in (job.source.name, str(job.source.path))}
    had: dict[tuple[str, str], list[str]] = defaultdict(list)
    gone: dict[tuple[str, str], list[str]] = defaultdict(list)
    for case in before:
        group = (case.split, case.domain)
        had[group].append(case.name)
        gone[group] += [] if {(*group, case.name), (*group, case.source)} & named else [case.name]
    kinds = {("train", "A"): "--mr", ("train", "B"): "--ct", ("test", "A"): "--test_mr", ("test", "B"): "--test_ct"}
    for group, names in gone.items():
        if not names:
            continue
        of = f"{kinds[group]}: {listed(names, _LISTED)}"
        if len(names) == len(had[group]):
            raise InputError(
                f"{root}: this data set has volumes that are not given now ({of}); give those that it has together "
                "with new ones, or leave them out with --overwrite or another --out"
            )
        log.warning("warning: %s: leaves out volumes that it had before (%s)", root, of)


def _spacing(root: Path, analysed: list[Case], size: int, made: set[float | None]) -> float:
    """Return the pixel spacing where none is said: the one that the data set was `made` with, if it holds every body.

    Raises:
        InputError: it does not.
    """
    chosen = choose_spacing(analysed, size)
    if len(made) != 1 or not (before := made.pop()):
        return chosen
    if chosen > before:
        largest = max(analysed, key=lambda case: case.extent_mm)
        raise InputError(
            f"{root}: prepared with pixels of {before:g} mm; to fit whole, {largest.name} ({largest.source}) needs "
            f"{chosen:g} mm. --spacing_mm {before} keeps them, and what does not fit is cut off; --overwrite prepares "
            "all again: models trained on it can then not be resumed"
        )
    return float(before)


def _is_manifest(path: Path) -> bool:
    try:
        found = read_json(path)
    except InputError:
        return False
    return {"format_version", "cases", "spacing_mm"} <= found.keys()


def software_versions() -> dict[str, str]:
    """Return the versions of the packages that make a prepared data set."""
    return {package: metadata.version(package) for package in ("numpy", "scipy", "SimpleITK", "pydicom")}
