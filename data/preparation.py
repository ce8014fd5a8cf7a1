"""Preparing a data set: volumes on disk to slices on one grid, with masks and a manifest.

Two passes over the volumes. The first finds each body, so that `auto` spacing can be chosen; its masks are kept under
`bodies/`, on the volumes' own grids, where they can be looked at, corrected and supplied again. The second writes
slices. A volume whose source and settings have not changed is not touched again.
"""

import json
import logging
import math
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from data.body_mask import ct_body_mask, mr_body_mask, read_mask, remove_couch
from data.errors import InputError
from data.files import whole_file
from data.intensity import AIR_HU, mr_percentiles
from data.manifest import Case, Manifest, check_splits, hash_source, write_json
from data.slice_frame import SliceFrame
from data.sources import Source
from data.volume import Volume, read_volume, write_volume

log = logging.getLogger(__name__)

# A slice is trained on where the body fills at least this share of it.
MIN_BODY_SHARE = 0.005
# CT is stored as int16; scanners mark voxels outside their field of view by values far below air.
CT_STORED_HU = (-1024, 32767)


@dataclass(frozen=True)
class Job:
    """One volume to prepare into `root`, and what was recorded of it before (None: nothing that still holds)."""

    root: Path
    source: Source
    split: str
    domain: str
    known: Case | None = None


@dataclass(frozen=True)
class Failure:
    """A volume that could not be prepared, and why."""

    source: Source
    reason: str


Outcome = tuple[list[Case], list[Failure]]


def prepare_dataset(
    root: Path,
    groups: dict[tuple[str, str], list[Source]],
    size: int,
    spacing_mm: float | None,
    slice_mm: float | None = None,
    workers: int = 1,
) -> tuple[Manifest, list[Failure]]:
    """Prepare volumes into `root` and write its manifest; return it and the volumes that failed.

    Args:
        root: the data set's folder.
        groups: sources by (split, domain), e.g. ('train', 'A').
        size: pixels of a slice's side.
        spacing_mm: pixel spacing; None picks the finest with which every body fits (`choose_spacing`).
        slice_mm: resample through the planes to this spacing; None keeps the acquired slices.
        workers: processes.

    Raises:
        InputError: names that collide, a patient in train and test, or no volume left in a domain to train on.
    """
    jobs = [_job(root, source, *group) for group, sources in groups.items() for source in sources]
    with _processes(workers) as pool:
        analysed, failures = _run(analyse, jobs, pool, "finding bodies")
        check_splits(analysed)
        if not analysed:
            raise InputError(f"no volume could be prepared; the first: {failures[0].reason}")
        spacing_mm = spacing_mm or choose_spacing(analysed, size)
        jobs_by_key = {(job.split, job.domain, job.source.name): job for job in jobs}
        writable = [replace(jobs_by_key[c.split, c.domain, c.name], known=c) for c in analysed]
        cases, failed = _run(_SliceWriter(size, spacing_mm, slice_mm), writable, pool, "writing slices")
    cases.sort(key=lambda case: (case.split, case.domain, case.name))
    manifest = Manifest(size, spacing_mm, slice_mm, tuple(cases), software_versions())
    manifest.write(root)
    return manifest, failures + failed


def choose_spacing(cases: list[Case], size: int) -> float:
    """Return the finest pixel spacing (mm) with which every body fits `size` pixels, but none finer than acquired.

    Volumes that all share one in-plane spacing keep it where their bodies fit: nothing is resampled then.
    """
    needed = max(case.extent_mm for case in cases) / size
    acquired = min(case.in_plane_mm for case in cases)
    return acquired if needed <= acquired else math.ceil(needed * 100) / 100


def software_versions() -> dict[str, str]:
    """Return the versions of the packages that make a prepared data set."""
    return {package: metadata.version(package) for package in ("numpy", "scipy", "SimpleITK", "pydicom")}


def lost_body_message(case: Case, size: int, spacing_mm: float) -> str:
    """Say how much of a case's body lies outside the frame and what would hold it."""
    return (
        f"{case.name}: {case.lost_voxels} body voxels lie outside the frame of {size} x {spacing_mm:g} mm; to keep "
        f"them use --spacing_mm {math.ceil(case.extent_mm / size * 100) / 100:g} or "
        f"--size {4 * math.ceil(case.extent_mm / spacing_mm / 4)}"
    )


def analyse(job: Job) -> Case:
    """Find one volume's body; write its mask on the volume's grid. A known, unchanged case comes back as it is."""
    source = job.source
    digest = hash_source(source.path)
    mask_digest = hash_source(source.mask) if source.mask else None
    known = job.known
    body_path = _body_path(job)
    unchanged = known and (known.source_sha256, known.mask_source_sha256) == (digest, mask_digest)
    if unchanged and known.patient == source.patient and body_path.exists():
        return known
    volume = read_volume(source.path)
    if source.mask:
        body = read_mask(source.mask, volume)
    else:
        body = (mr_body_mask if job.domain == "A" else ct_body_mask)(volume)
    write_volume(volume.with_array(body.astype(np.uint8)), body_path)
    frame = SliceFrame.of(volume, size=1, spacing_mm=1.0)
    case = Case(
        name=source.name,
        patient=source.patient,
        split=job.split,
        domain=job.domain,
        source=str(source.path),
        source_sha256=digest,
        mask_source_sha256=mask_digest,
        extent_mm=frame.body_extent_mm(body),
        in_plane_mm=frame.in_plane_mm,
        percentiles=mr_percentiles(volume.array, body) if job.domain == "A" else None,
    )
    write_json(_record_path(job), case.to_dict())
    return case


@dataclass(frozen=True)
class _SliceWriter:
    """The second pass, for one frame setting; a class so that it travels to worker processes."""

    size: int
    spacing_mm: float
    slice_mm: float | None

    def __call__(self, job: Job) -> Case:
        """Write one analysed volume's slices and masks."""
        case = job.known
        files = [job.root / case.image_file, job.root / case.mask_file]
        made_for = (case.frame.get("size"), case.frame.get("spacing_mm"), case.frame.get("slice_mm"))
        if made_for == (self.size, self.spacing_mm, self.slice_mm) and all(file.exists() for file in files):
            return case
        volume = read_volume(job.source.path)
        body = read_volume(_body_path(job)).array > 0
        frame = SliceFrame.of(volume, self.size, self.spacing_mm, self.slice_mm)
        labels = _labels(job, body)
        masks = frame.prepare_labels(volume.with_array(labels))
        _save_array(files[0], _mr_slices(volume, frame) if case.domain == "A" else _ct_slices(volume, body, frame))
        _save_array(files[1], masks)
        case = replace(
            case,
            slices=frame.slices,
            body_slices=_body_slices(masks),
            lost_voxels=frame.outside(body),
            labels=int(labels.max()),
            frame=frame.to_dict(),
        )
        write_json(_record_path(job), case.to_dict())
        return case


def _mr_slices(volume: Volume, frame: SliceFrame) -> np.ndarray:
    return frame.prepare(volume, fill=float(volume.array.min()))


def _ct_slices(volume: Volume, body: np.ndarray, frame: SliceFrame) -> np.ndarray:
    slices = frame.prepare(remove_couch(volume, body), fill=AIR_HU)
    return np.rint(slices).clip(*CT_STORED_HU).astype(np.int16)


def _labels(job: Job, body: np.ndarray) -> np.ndarray:
    """Return the mask to store, uint8: 1 for the body, or the labels 1, 2, ... of a supplied mask that has several."""
    if not job.source.mask:
        return body.astype(np.uint8)
    supplied = read_volume(job.source.mask).array
    values = np.unique(supplied[supplied != 0])
    if len(values) == 1:
        return body.astype(np.uint8)
    if not np.array_equal(values, np.arange(1, len(values) + 1)):
        found = ", ".join(f"{value:g}" for value in values[:8])
        raise InputError(f"{job.source.mask}: labels {found}; expected one value, or 1 (body), 2 (bone), 3, ...")
    return supplied.astype(np.uint8)


def _body_slices(masks: np.ndarray) -> tuple[int, int]:
    used = np.flatnonzero(np.count_nonzero(masks, axis=(1, 2)) >= MIN_BODY_SHARE * masks[0].size)
    return (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)


def _job(root: Path, source: Source, split: str, domain: str) -> Job:
    job = Job(root, source, split, domain)
    try:
        known = Case.from_dict(json.loads(_record_path(job).read_text()))
    except (OSError, ValueError, TypeError, AttributeError):
        known = None
    return replace(job, known=known)


def _record_path(job: Job) -> Path:
    return job.root / f"{job.split}{job.domain}" / f"{job.source.name}.json"


def _body_path(job: Job) -> Path:
    return job.root / f"bodies/{job.split}{job.domain}/{job.source.name}.nii.gz"


def _save_array(path: Path, array: np.ndarray) -> None:
    with whole_file(path) as scratch:
        np.save(scratch, array)


def _run(work: Callable[[Job], Case], jobs: list[Job], pool: Executor | None, title: str) -> Outcome:
    """Run `work` on every job; a volume with bad input becomes a `Failure` and does not stop the others."""
    done, failures = [], []
    calls = {pool.submit(work, job): job for job in jobs} if pool else {partial(work, job): job for job in jobs}
    for call in tqdm(as_completed(calls) if pool else calls, total=len(jobs), desc=title, unit="volume", disable=None):
        try:
            done.append(call.result() if pool else call())
        except InputError as error:
            failures.append(Failure(calls[call].source, str(error)))
    return done, failures


def _processes(workers: int) -> AbstractContextManager[Executor | None]:
    """Return a pool of processes, or None for one worker: this process. Spawned: forking ITK's threads can deadlock."""
    if workers == 1:
        return nullcontext()
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread)


def _one_thread() -> None:
    # One thread a process: the processes are the parallelism, and BLAS threads that wait in a spin would starve them.
    threadpool_limits(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
