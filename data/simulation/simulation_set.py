"""The CT of a prepared data set as the simulation needs it, computed once and stored beside the slices."""

import hashlib
import json
import logging
import zipfile
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.errors import InputError
from data.files import whole_file
from data.prepared.arrays import read_case
from data.prepared.manifest import Case, Manifest, read_manifest
from data.prepared.slice_spacing import common_slice_spacing
from data.prepared.sources import Source
from data.prepared.volume_jobs import run_jobs
from data.simulation.simulation_volume import METHOD_VERSION, simulation_volume
from data.volumes.outputs import check_free

log = logging.getLogger(__name__)

FOLDER = "simulation"
Maps = dict[str, np.ndarray]
_TITLE = "preparing CT for the simulation of MR, once"
_WAY_OUT = "free memory, prepare the data set again, or leave the CT out (--leave_out)"
# What a damaged file raises, or one that holds an array alone; checksums are verified on reading.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class SimulationSet:
    """CT volumes for the simulation.

    Attributes:
        volumes: by case name its maps `hu` and `depth`, (n, H, W) (`SimulationVolume`).
        slice_mm: distance of their slices.
        manifest: the data set without the CT that are not trained on.
    """

    volumes: dict[str, Maps]
    slice_mm: float
    manifest: Manifest

    @property
    def pixel_mm(self) -> float:
        """Spacing within slices."""
        return self.manifest.spacing_mm


class Job(NamedTuple):
    """A CT whose maps are needed."""

    dataroot: Path
    case: Case
    pixel_mm: float
    slice_mm: float

    @property
    def source(self) -> Source:
        """Its prepared slices."""
        return Source(self.case.name, self.case.patient, self.dataroot / self.case.image_file)


class Unkept(NamedTuple):
    """Maps of a CT that could not be kept, and why."""

    name: str
    maps: Maps
    why: str


# What comes of a job: nothing if the maps are kept in their file.
Computed = Unkept | None


def open_simulation_set(
    dataroot: Path, workers: int = 1, leave_out: Collection[str] = (), leave_out_ct: str = ""
) -> SimulationSet:
    """Return the training CT of the data set in `dataroot`; missing maps are computed, and stored if possible.

    `leave_out`: patients that do not train. `leave_out_ct`: CT whose names contain it do not train, either; "": none.

    Raises:
        InputError: no prepared data set, no CT in it, none left, a damaged file, a file of others in the way, or CT of
            different slice spacings.
    """
    manifest = read_manifest(dataroot).without(leave_out)
    cases = [case for case in manifest.select("train", "B") if case.has_body]
    if not cases:
        raise InputError(f"{dataroot}: no CT to train on; prepare the data set with --ct")
    if leave_out_ct:
        cases = [case for case in cases if leave_out_ct not in case.name]
    if not cases:
        raise InputError(f"--leave_out {leave_out_ct}: leaves out every CT of {dataroot}")
    slice_mm = common_slice_spacing(dataroot, manifest, cases, "the simulation of MR needs")
    jobs = [Job(dataroot, case, manifest.spacing_mm, slice_mm) for case in cases]
    others = (case for case in manifest.cases if (case.split, case.domain) != ("train", "B"))
    return SimulationSet(_maps(jobs, workers), slice_mm, manifest.with_only([*others, *cases]))


def simulation_maps(
    dataroot: Path, cases: Sequence[Case], pixel_mm: float, slice_mm: Sequence[float]
) -> dict[str, Maps]:
    """Return by name the maps of CT's slices with body, (n, H, W) as in `SimulationSet`; `slice_mm` is each case's.

    They are computed at first, and kept where the data set may be written.

    Raises:
        InputError: a damaged file, or a file of others in the way.
    """
    jobs = [Job(dataroot, case, pixel_mm, mm) for case, mm in zip(cases, slice_mm, strict=True)]
    return _maps(jobs, workers=1)


def _maps(jobs: list[Job], workers: int) -> dict[str, Maps]:
    """Return the maps of all jobs by the names of their cases; what is missing is computed by so many processes."""
    missing = [job for job in jobs if not _is_current(job.dataroot, job.case)]
    paths = [_path(job.dataroot, job.case) for job in missing]
    check_free(paths, "--dataroot", made=[path for path in paths if _is_own(path)], overwrite=None)
    computed, failures = run_jobs(_compute, missing, workers, _TITLE, _WAY_OUT)
    if failures:
        raise InputError("; ".join(failure.reason for failure in failures))
    unkept = [one for one in computed if one]
    if unkept:
        log.info(
            "the simulation's maps of the CT cannot be stored, so every start computes them again: %s", unkept[0].why
        )
    held = {one.name: one.maps for one in unkept}
    return {job.case.name: held.get(job.case.name) or _read(_path(job.dataroot, job.case)) for job in jobs}


def _path(dataroot: Path, case: Case) -> Path:
    return dataroot / FOLDER / f"{case.name}.npz"


def _identity(dataroot: Path, case: Case) -> str:
    """Return what a kept volume was computed from: source, body, frame and the method."""
    written = (dataroot / case.image_file).stat().st_mtime_ns
    parts = (METHOD_VERSION, case.source_sha256, case.mask_source_sha256, case.frame, case.body_slices, written)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _is_current(dataroot: Path, case: Case) -> bool:
    try:
        with np.load(_path(dataroot, case), allow_pickle=False) as kept:
            return str(kept["identity"]) == _identity(dataroot, case)
    except _DAMAGE:
        return False


def _is_own(path: Path) -> bool:
    """Tell whether a file is one of these, of whatever CT and method."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return set(kept) == {"hu", "depth", "identity"}
    except _DAMAGE:
        return False


def _compute(job: Job) -> Computed:
    """Compute and keep the maps of a CT; return them where they cannot be kept."""
    dataroot, case = job.dataroot, job.case
    first, last = case.body_slices
    ct, labels = (array[first:last] for array in read_case(dataroot, case))
    volume = simulation_volume(ct.astype(np.float32), labels > 0, job.pixel_mm, job.slice_mm, case.view)
    try:
        with whole_file(_path(dataroot, case)) as scratch, scratch.open("wb") as file:
            np.savez_compressed(file, hu=volume.hu, depth=volume.depth, identity=_identity(dataroot, case))
    except InputError as error:  # a data set that may only be read, or a full disk
        return Unkept(case.name, {"hu": volume.hu, "depth": volume.depth}, str(error))
    return None


def _read(path: Path) -> Maps:
    try:
        with np.load(path, allow_pickle=False) as kept:
            return {"hu": kept["hu"], "depth": kept["depth"]}
    except _DAMAGE as error:
        raise InputError(f"{path}: damaged ({error}); delete it, and it will be made again") from error
