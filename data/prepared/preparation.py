"""Preparing a data set: volumes on disk to slices on one grid, with masks and a manifest.

Two passes over the volumes. The first finds each body, so that `auto` spacing can be chosen; its masks are kept under
`bodies/`, on the volumes' own grids, where they can be looked at and corrected: a corrected one is kept and used. The
second writes slices. A volume whose source and settings have not changed is not touched again.

An interruption leaves no data set that looks whole: before the first array is written the manifest goes, and before a
case's arrays are, its record forgets its frame.
"""

import logging
from collections import defaultdict
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError, listed
from data.files import read_json, remove, whole_file, write_json
from data.masks.body_mask import remove_couch
from data.prepared.case_volumes import describe_mr, find_body, read_source_volumes, without_bias
from data.prepared.manifest import (
    BODIES_PAGE,
    MANIFEST_NAME,
    Case,
    FurtherContrast,
    Manifest,
    body_file,
    case_problems,
    check_names,
    check_splits,
    read_manifest,
)
from data.prepared.patient_ids import warn_of_twins
from data.prepared.pixel_spacing import choose_spacing
from data.prepared.sources import Source
from data.prepared.trainable import check_swapped, check_trainable
from data.prepared.training_statistics import MIN_BODY_SHARE, section_figures, slice_spread
from data.prepared.unused_masks import warn_of_unused_masks
from data.prepared.volume_jobs import Failure, run_jobs
from data.values.intensity import AIR_HU
from data.volumes.outputs import check_free
from data.volumes.paths import hash_source
from data.volumes.slice_frame import SliceFrame
from data.volumes.volume import Volume, read_volume, write_volume

log = logging.getLogger(__name__)

_LISTED = 5  # names in a message

# To be raised when the same volume comes to give another mask, other slices or another window: body masks, couch
# removal, frame, the level of fat, the bias field.
METHOD_VERSION = 4
# What the record of a case says while its files are written for the first time.
BEGUN = {"begun": "a run of scripts.prepare_dataset that has not ended yet"}
# CT is stored as int16; scanners mark voxels outside their field of view by values far below air.
CT_STORED_HU = (-1024, 32767)


@dataclass(frozen=True)
class Job:
    """One volume to prepare into `root`, and what was recorded of it before (None: nothing that still holds).

    `bias_correction`: whether an MR is corrected for its bias field. `view`: how its slices lie.
    """

    root: Path
    source: Source
    split: str
    domain: str
    known: Case | None = None
    bias_correction: bool = False
    view: str = "axial"

    @property
    def corrects_bias(self) -> bool:
        """Whether this volume is corrected: CT has no bias field."""
        return self.bias_correction and self.domain == "A"


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
        _job(root, source, *group, bias_correction, view) for group, sources in groups.items() for source in sources
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
    spacing_mm = spacing_mm or _spacing(root, analysed, size, overwrite)
    jobs_by_key = {(job.split, job.domain, job.source.name): job for job in jobs}
    jobs = [replace(jobs_by_key[c.split, c.domain, c.name], known=c) for c in analysed]
    for job in jobs:
        if job.known and job.known.mask_source_sha256 and not job.source.mask:
            log.info("%s: corrected by hand, kept and used", _body_path(job))
    writer = _SliceWriter(size, spacing_mm, slice_mm, view)
    done = [writer.is_done(job) for job in jobs]
    cases = [_analysed(job) for job, is_done in zip(jobs, done, strict=True) if is_done]
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
    own = [job for job in jobs if job.known or _is_begun(_record_path(job))]
    if not own and not _is_manifest(root / MANIFEST_NAME):
        check_free([root / MANIFEST_NAME, root / BODIES_PAGE], "--out")
    for job in [job for job in jobs if job not in own]:
        folders: tuple[str, ...] = (f"{job.split}{job.domain}", f"mask{job.domain}")
        folders += tuple(f"{folders[0]}/{one.contrast}" for one in job.source.further)
        files = [_record_path(job), *(root / folder / f"{job.source.name}.npy" for folder in folders)]
        supplied = job.source.mask and _is_body_file(job.source.mask, job)
        check_free(files if supplied else [*files, _body_path(job)], "--out")


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
    if not _is_manifest(root / MANIFEST_NAME):
        return
    named = {(job.split, job.domain, job.source.name) for job in jobs}
    had = defaultdict(list)
    for case in read_manifest(root).cases:
        had[case.split, case.domain].append(case.name)
    gone = {group: [name for name in names if (*group, name) not in named] for group, names in had.items()}
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


def _spacing(root: Path, analysed: list[Case], size: int, overwrite: bool) -> float:
    """Return the pixel spacing where none is said: what the data set has, where that holds every body.

    Raises:
        InputError: it does not, and `overwrite` is not set.
    """
    chosen = choose_spacing(analysed, size)
    made = {case.frame["spacing_mm"] for case in analysed if case.frame}
    if overwrite or len(made) != 1:
        return chosen
    (before,) = made
    if chosen > before:
        largest = max(analysed, key=lambda case: case.extent_mm)
        raise InputError(
            f"{root}: prepared with pixels of {before:g} mm; {largest.name} ({largest.source}) is larger and needs "
            f"{chosen:g} mm. --spacing_mm {before} keeps them, and what does not fit is cut off; --overwrite prepares "
            "all again: models trained on it can then not be resumed"
        )
    return float(before)


def _is_begun(record: Path) -> bool:
    try:
        return read_json(record) == BEGUN
    except InputError:
        return False


def _is_manifest(path: Path) -> bool:
    try:
        found = read_json(path)
    except InputError:
        return False
    return {"format_version", "cases", "spacing_mm"} <= found.keys()


def software_versions() -> dict[str, str]:
    """Return the versions of the packages that make a prepared data set."""
    return {package: metadata.version(package) for package in ("numpy", "scipy", "SimpleITK", "pydicom")}


def analyse(job: Job) -> Case:
    """Find one volume's body; write its mask on the volume's grid. A known, unchanged case comes back as it is.

    The mask under `bodies/` is not written where the user corrected it or supplies that very file.
    """
    source = job.source
    digests = [hash_source(one.path) for one in (source, *source.further)]
    mask_path = _supplied_mask(job)
    mask_digest = hash_source(mask_path) if mask_path else None
    if job.known and _is_current(job, job.known, digests, mask_digest):
        return job.known
    volumes = read_source_volumes(source)
    body = find_body(source, job.domain, volumes, mask_path)
    volume = volumes[0]
    if mask_path and _is_body_file(mask_path, job):
        body_digest = job.known.body_sha256 if job.known else None
    else:
        body_digest = _write_body(job, volume.with_array(body.astype(np.uint8)))
    if job.corrects_bias:
        volumes = without_bias(source, volumes, body)
    described: list[dict[str, Any]] = [{"percentiles": None}]
    if job.domain == "A":
        described = [describe_mr(one, body, job.corrects_bias) for one in volumes]
    further = zip(source.further, digests[1:], described[1:], strict=True)
    frame = SliceFrame.of(volume, size=1, spacing_mm=1.0, view=job.view)
    case = Case(
        name=source.name,
        patient=source.patient,
        split=job.split,
        domain=job.domain,
        source=str(source.path),
        source_sha256=digests[0],
        mask_source_sha256=mask_digest,
        extent_mm=frame.body_extent_mm(body),
        in_plane_mm=frame.in_plane_mm,
        **described[0],
        contrast=source.contrast,
        further=tuple(
            FurtherContrast(_contrast_name(one), str(one.path), digest, one.series_uid, **figures)
            for one, digest, figures in further
        ),
        bias_corrected=job.corrects_bias,
        series_uid=source.series_uid,
        body_sha256=body_digest,
        method=METHOD_VERSION,
        view=job.view,
    )
    write_json(_record_path(job), case.to_dict())
    return case


def _contrast_name(source: Source) -> str:
    assert source.contrast is not None, "of several contrasts each has a name"
    return source.contrast


def _is_current(job: Job, known: Case, digests: list[str], mask_digest: str | None) -> bool:
    """Tell whether what was recorded of a volume still holds."""
    source = job.source
    if not _body_path(job).exists():
        return False
    if job.domain == "A" and known.fat_level is None and known.fat_problem is None:  # of an older version
        return False
    of_source = (known.source_sha256, known.mask_source_sha256, known.series_uid, known.patient)
    contrasts = (known.contrast, *((one.name, one.source_sha256, one.series_uid) for one in known.further))
    recorded = (*of_source, known.method, known.bias_corrected, known.view, *contrasts)
    further = zip(source.further, digests[1:], strict=True)
    given = (source.contrast, *((one.contrast, digest, one.series_uid) for one, digest in further))
    current = (digests[0], mask_digest, source.series_uid, source.patient, METHOD_VERSION, job.corrects_bias, job.view)
    return recorded == (*current, *given)


def _write_body(job: Job, body: Volume) -> str:
    """Write a body mask; return its hash."""
    # Without its hash, a body that an interruption leaves is not taken for one corrected by hand.
    write_json(_record_path(job), BEGUN)
    write_volume(body, _body_path(job))
    return hash_source(_body_path(job))


def _supplied_mask(job: Job) -> Path | None:
    """Return the mask that the user supplied, or the body mask under `bodies/` if it was corrected by hand."""
    body_path = _body_path(job)
    written = job.known.body_sha256 if job.known else None
    corrected = written is not None and body_path.exists() and hash_source(body_path) != written
    if job.source.mask is None:
        return body_path if corrected else None
    if corrected and not _is_body_file(job.source.mask, job):
        raise InputError(
            f"{body_path}: corrected by hand, but {job.source.mask} is supplied as the mask; leave out the mask option "
            f"to use the corrected mask, or remove it"
        )
    return job.source.mask


def _is_body_file(path: Path, job: Job) -> bool:
    return path.resolve() == _body_path(job).resolve()


def _analysed(job: Job) -> Case:
    assert job.known is not None, "the first pass has analysed it"
    return job.known


@dataclass(frozen=True)
class _SliceWriter:
    """The second pass, for one frame setting; a class so that it travels to worker processes."""

    size: int
    spacing_mm: float
    slice_mm: float | None
    view: str

    def is_done(self, job: Job) -> bool:
        """Tell whether the slices and masks of an analysed volume are there, in this frame."""
        case = _analysed(job)
        made_for = (case.frame.get("size"), case.frame.get("spacing_mm"), case.frame.get("slice_mm"))
        files = [job.root / file for file in (*case.image_files, case.mask_file)]
        recorded = case.domain == "A" or None not in (case.hu_histogram, case.section_cm2)
        return recorded and made_for == (self.size, self.spacing_mm, self.slice_mm) and all(f.exists() for f in files)

    def __call__(self, job: Job) -> Case:
        """Write one analysed volume's slices and masks."""
        case = _analysed(job)
        if case.frame:
            write_json(_record_path(job), replace(case, frame={}).to_dict())
        volumes = read_source_volumes(job.source, log_notes=False)
        body = read_volume(_body_path(job), log_notes=False).array > 0
        if case.bias_corrected:
            volumes = without_bias(job.source, volumes, body)
        volume = volumes[0]
        frame = SliceFrame.of(volume, self.size, self.spacing_mm, self.slice_mm, self.view)
        labels = _labels(_supplied_mask(job), body)
        masks = frame.prepare_labels(volume.with_array(labels))
        histogram = spread = section = gas = None
        if case.domain == "B":
            slices = _ct_slices(volume, body, frame)
            histogram, spread = slice_spread(slices, masks)
            section, gas = section_figures(slices, masks, self.spacing_mm)
            _save_array(job.root / case.image_file, slices)
        else:
            for file, contrast in zip(case.image_files, volumes, strict=True):
                _save_array(job.root / file, _mr_slices(contrast, frame))
        _save_array(job.root / case.mask_file, masks)
        case = replace(
            case,
            slices=frame.slices,
            body_slices=_body_slices(masks),
            lost_voxels=frame.outside(body),
            labels=int(labels.max()),
            frame=frame.to_dict(),
            hu_histogram=None if histogram is None else tuple(histogram.tolist()),
            hu_slice_spread=spread,
            section_cm2=section,
            gas_share=gas,
        )
        write_json(_record_path(job), case.to_dict())
        return case


def _mr_slices(volume: Volume, frame: SliceFrame) -> np.ndarray:
    return frame.prepare(volume, fill=float(volume.array.min()))


def _ct_slices(volume: Volume, body: np.ndarray, frame: SliceFrame) -> np.ndarray:
    slices = frame.prepare(remove_couch(volume, body), fill=AIR_HU)
    return np.rint(slices).clip(*CT_STORED_HU).astype(np.int16)


def _labels(mask_path: Path | None, body: np.ndarray) -> np.ndarray:
    """Return the mask to store, uint8: 1 for the body, or the labels 1, 2, ... of a supplied mask that has several."""
    if not mask_path:
        return body.astype(np.uint8)
    supplied = read_volume(mask_path, log_notes=False).array
    values = np.unique(supplied[supplied != 0])
    if len(values) == 1:
        return body.astype(np.uint8)
    if not np.array_equal(values, np.arange(1, len(values) + 1)):
        found = ", ".join(f"{value:g}" for value in values[:8])
        raise InputError(f"{mask_path}: labels {found}; expected one value, or 1 (body), 2 (bone), 3, ...")
    return supplied.astype(np.uint8)


def _body_slices(masks: np.ndarray) -> tuple[int, int]:
    used = np.flatnonzero(np.count_nonzero(masks, axis=(1, 2)) >= MIN_BODY_SHARE * masks[0].size)
    return (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)


def _job(root: Path, source: Source, split: str, domain: str, bias_correction: bool, view: str) -> Job:
    job = Job(root, source, split, domain, bias_correction=bias_correction, view=view)
    try:
        known = Case.from_dict(read_json(_record_path(job)))
        fine = not case_problems(known)
    except (InputError, TypeError, AttributeError):
        fine = False
    return replace(job, known=known) if fine else job


def _record_path(job: Job) -> Path:
    return job.root / f"{job.split}{job.domain}" / f"{job.source.name}.json"


def _body_path(job: Job) -> Path:
    return job.root / body_file(job.split, job.domain, job.source.name)


def _save_array(path: Path, array: np.ndarray) -> None:
    with whole_file(path) as scratch:
        np.save(scratch, array)
