"""How fast data are prepared, loaded and opened: on generated patients, and on a simulated set of a million slices."""

import json
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import Seconds, take_turns
from benchmarks.settings import BenchmarkSettings
from data.errors import InputError
from data.loading.augmentation import Augmentation
from data.loading.batches import load_batches
from data.loading.unaligned_dataset import UnalignedSampler, open_unaligned
from data.phantom.patients import PhantomSettings, write_dataset
from data.prepared.manifest import MANIFEST_NAME, Case, Manifest, read_manifest
from data.prepared.preparation import prepare_dataset, software_versions
from data.prepared.sources import find_sources
from data.prepared.training_statistics import HU_EDGES
from data.values.intensity import CT_WINDOW_HU, IntensityMap
from data.volumes.slice_frame import SliceFrame
from data.volumes.volume import Volume
from models.shape_extractor import ExtractorSettings, ShapeExtractor, save_extractor

# What a patient's generated volumes span, whatever their number of voxels.
BODY_MM, HEIGHT_MM = 512.0, 1800.0
# Hard links to every prepared volume, so that an epoch of loading is long enough to be timed.
LINKS = 10
ROOT = Path(__file__).resolve().parents[1]


def generate_patients(opt: BenchmarkSettings) -> Path:
    """Write phantom patients, `patients` of each domain, `size` pixels wide; those there already are kept."""
    folder = opt.folder / f"patients_{opt.size}_{opt.volume_slices}_{opt.patients}"
    grid = PhantomSettings(opt.size, opt.volume_slices, BODY_MM / opt.size, HEIGHT_MM / opt.volume_slices)
    write_dataset(folder, grid, patients=opt.patients, test_patients=0)
    return folder


def prepare(patients: Path, out: Path, size: int, workers: int) -> None:
    """Prepare generated patients from the beginning.

    Raises:
        InputError: a volume failed.
    """
    shutil.rmtree(out, ignore_errors=True)
    groups = {
        ("train", domain): find_sources([str(patients / f"train/{name}/*")], (), None)
        for domain, name in (("A", "mr"), ("B", "ct"))
    }
    if prepare_dataset(out, groups, size, None, workers=workers)[1]:
        raise InputError(f"{patients}: a generated volume could not be prepared")


def measure_preparation(opt: BenchmarkSettings) -> dict:
    """Return the slices that `scripts.prepare_dataset` prepares in a second, by the number of its processes."""
    patients, out = generate_patients(opt), opt.folder / "prepared"
    ways = {str(n): partial(prepare, patients, out, opt.size, n) for n in opt.workers}
    seconds = take_turns(ways, opt.turns, torch.device("cpu"), warm_up=False)
    slices = sum(case.slices for case in read_manifest(out).cases)
    return {"slices": slices} | _rates("slices_per_second", seconds, slices)


def _rates(name: str, seconds: Seconds, amount: int) -> dict:
    rounded = {way: [round(value, 3) for value in values] for way, values in seconds.items()}
    return {"seconds": rounded, name: {way: rate(amount, values) for way, values in seconds.items()}}


def rate(amount: int, seconds: list[float]) -> float:
    """Return how much of `amount` is done in a second, in the median turn."""
    return round(amount / statistics.median(seconds), 2)


def measure_loader(opt: BenchmarkSettings) -> dict:
    """Return the pairs of slices, with masks, that the loader gives out in a second, by `--num_threads`.

    Nothing but loading runs meanwhile, and the files are in the system's cache.
    """
    source, root = opt.folder / "prepared", opt.folder / "linked"
    if not (source / MANIFEST_NAME).exists() or read_manifest(source).size != opt.size:
        prepare(generate_patients(opt), source, opt.size, max(opt.workers))
    link_volumes(source, root, LINKS)
    ct_map = IntensityMap.window(*CT_WINDOW_HU)
    dataset = open_unaligned(root, "percentile", ct_map, Augmentation(), masks=True, seed=0)

    pinned = opt.device.type == "cuda"

    def epoch_of(num_threads: int) -> None:
        for _ in load_batches(dataset, UnalignedSampler(dataset, 0), opt.batch_size, num_threads, pinned):
            pass

    ways = {str(n): partial(epoch_of, n) for n in opt.num_threads}
    seconds = take_turns(ways, opt.turns, torch.device("cpu"))
    return {"pairs": len(dataset), "batch_size": opt.batch_size} | _rates("pairs_per_second", seconds, len(dataset))


def link_volumes(source: Path, root: Path, links: int) -> None:
    """Make a data set of every prepared volume `links` times, by hard links."""
    shutil.rmtree(root, ignore_errors=True)
    manifest = read_manifest(source)
    cases = []
    for case in manifest.cases:
        for k in range(links):
            named = replace(case, name=f"{case.name}_{k}")
            for file, there in ((named.image_file, case.image_file), (named.mask_file, case.mask_file)):
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                (root / file).hardlink_to(source / there)
            cases.append(named)
    replace(manifest, cases=tuple(cases)).write(root)


def measure_startup(opt: BenchmarkSettings) -> dict:
    """Return seconds from the start of train.py to its first step, and its memory then, by volumes in the manifest."""
    sets = {str(count): simulate_data_set(opt, count) for count in opt.volumes}
    extractor = opt.folder / "extractor.pth"
    ct_map = IntensityMap.window(*CT_WINDOW_HU)
    save_extractor(ShapeExtractor(ExtractorSettings(opt.extractor_width, 1, ct_map, opt.size, 1.0)), extractor)
    seconds, memory = {name: [] for name in sets}, {name: [] for name in sets}
    for turn in range(opt.turns + 1):
        for name, root in sets.items():
            took, mib = start_training(opt, root, extractor)
            if turn:  # the first fills the system's cache
                seconds[name].append(round(took, 3))
                memory[name].append(round(mib, 1))
    medians = {name: statistics.median(values) for name, values in memory.items()}
    return {
        "slices": {name: opt.case_slices * count for name, count in zip(sets, opt.volumes, strict=True)},
        "seconds": seconds,
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "memory_mib": medians,
        "memory_growth_mib": round(max(medians.values()) - min(medians.values()), 1),
    }


def start_training(opt: BenchmarkSettings, root: Path, extractor: Path) -> tuple[float, float]:
    """Run train.py up to its first step; return the seconds until then, and the memory (MiB) of all its processes."""
    report, name = opt.folder / "first_step.json", "benchmark_startup"
    report.unlink(missing_ok=True)  # of the training before
    shutil.rmtree(opt.folder / "checkpoints" / name, ignore_errors=True)
    arguments = [
        "--dataroot", root, "--name", name, "--checkpoints_dir", opt.folder / "checkpoints", "--device", opt.device,
        "--shape_extractor", extractor, "--netG", opt.netG, "--ngf", opt.ngf, "--ndf", opt.ndf,
    ]  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.first_step", str(report.resolve()), *map(str, arguments)]
    started = time.time()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"train.py failed before its first step:\n{done.stderr[-2000:]}")
    found = json.loads(report.read_text())
    return found["time"] - started, found["memory_mib"]


def simulate_data_set(opt: BenchmarkSettings, volumes: int) -> Path:
    """Write a prepared data set of `volumes` empty volumes, half of them MR, of `case_slices` slices.

    The files are sparse: they have their size, and take no room.
    """
    root = (opt.folder / f"simulated_{opt.size}_{opt.case_slices}_{volumes}").resolve()
    if (root / MANIFEST_NAME).exists():
        return root
    shape = (opt.case_slices, opt.size, opt.size)
    frame = SliceFrame.of(Volume(np.broadcast_to(np.int16(0), shape)), opt.size, 1.0).to_dict()
    cases = [_simulated_case(k, "AB"[k % 2], opt.case_slices, frame) for k in range(volumes)]
    for case in cases:
        kind = np.float32 if case.domain == "A" else np.int16
        for file, dtype in ((case.image_file, kind), (case.mask_file, np.uint8)):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            np.lib.format.open_memmap(root / file, "w+", dtype, shape)
    Manifest(opt.size, 1.0, None, tuple(cases), software_versions()).write(root)
    return root


def _simulated_case(number: int, domain: str, slices: int, frame: dict) -> Case:
    name = f"{number:06d}"
    common = dict(
        name=name, patient=name, split="train", domain=domain, source=f"{name}.nii.gz", source_sha256=name,
        mask_source_sha256=None, extent_mm=200.0, in_plane_mm=1.0, slices=slices, body_slices=(0, slices), frame=frame,
    )  # fmt: skip
    if domain == "A":
        return Case(**common, percentiles=(0.0, 1000.0), mr_median=300.0)
    histogram = np.random.default_rng(number).integers(1, 10**6, len(HU_EDGES) - 1)
    return Case(
        **common, percentiles=None, hu_histogram=tuple(histogram.tolist()), hu_slice_spread=(10.0, 50.0),
        section_cm2=(50.0, 300.0), gas_share=0.1,
    )  # fmt: skip
