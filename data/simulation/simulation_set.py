"""The CT of a prepared data set as the simulation of MR needs it, computed once and kept beside the slices."""

import hashlib
import json
import logging
import zipfile
import zlib
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.errors import InputError
from data.files import whole_file
from data.outputs import check_free
from data.prepared.manifest import Case, read_manifest
from data.prepared.slice_spacing import common_slice_spacing
from data.simulation.simulation_volume import METHOD_VERSION, simulation_volume

log = logging.getLogger(__name__)

FOLDER = "simulation"
# What a damaged file raises, or one that holds an array alone; checksums are verified on reading.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class SimulationSet:
    """CT volumes for the simulation.

    Attributes:
        volumes: by case name its maps `hu` and `depth`, (n, H, W) (`SimulationVolume`).
        slice_mm, pixel_mm: their spacing.
        size: pixels of a slice's side.
    """

    volumes: dict[str, dict[str, np.ndarray]]
    slice_mm: float
    pixel_mm: float
    size: int


def open_simulation_set(dataroot: Path, workers: int = 1, leave_out: Collection[str] = ()) -> SimulationSet:
    """Return the training CT of the data set in `dataroot`; what is not kept there yet is computed and kept.

    Raises:
        InputError: no prepared data set, no CT in it, a damaged file, a file of others in the way, or CT of different
            slice spacings.
    """
    manifest = read_manifest(dataroot).without(leave_out)
    cases = [case for case in manifest.select("train", "B") if case.body_slices[1] > case.body_slices[0]]
    if not cases:
        raise InputError(f"{dataroot}: no CT to train on; prepare the data set with --ct")
    slice_mm = common_slice_spacing(dataroot, manifest, cases)
    missing = [case for case in cases if not _is_current(dataroot, case)]
    if missing:
        made = [path for path in (_path(dataroot, case) for case in missing) if _is_own(path)]
        check_free([_path(dataroot, case) for case in missing], "--dataroot", made=made, overwrite=None)
        (dataroot / FOLDER).mkdir(exist_ok=True)
        jobs = [(dataroot, case, manifest.spacing_mm, slice_mm) for case in missing]
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            for _ in tqdm(pool.map(_compute, jobs), total=len(jobs), desc="preparing the simulation", disable=None):
                pass
    volumes = {case.name: _read(_path(dataroot, case)) for case in cases}
    return SimulationSet(volumes, slice_mm, manifest.spacing_mm, manifest.size)


def simulation_maps(dataroot: Path, case: Case, pixel_mm: float, slice_mm: float) -> dict[str, np.ndarray]:
    """Return the maps of one CT's slices with body, (n, H, W) as in `SimulationSet`; computed and kept at first.

    Raises:
        InputError: they cannot be read.
    """
    if not _is_current(dataroot, case):
        (dataroot / FOLDER).mkdir(exist_ok=True)
        _compute((dataroot, case, pixel_mm, slice_mm))
    return _read(_path(dataroot, case))


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


def _compute(job: tuple[Path, Case, float, float]) -> None:
    dataroot, case, pixel_mm, slice_mm = job
    first, last = case.body_slices
    ct = np.load(dataroot / case.image_file, mmap_mode="r", allow_pickle=False)[first:last].astype(np.float32)
    body = np.load(dataroot / case.mask_file, mmap_mode="r", allow_pickle=False)[first:last] > 0
    volume = simulation_volume(ct, body, pixel_mm, slice_mm)
    with whole_file(_path(dataroot, case)) as scratch, scratch.open("wb") as file:
        np.savez_compressed(file, hu=volume.hu, depth=volume.depth, identity=_identity(dataroot, case))


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as kept:
            return {"hu": kept["hu"], "depth": kept["depth"]}
    except _DAMAGE as error:
        raise InputError(f"{path}: damaged ({error}); delete it, then it is made again") from error
