"""Training's own faults: it ends with one line, and resumes from what it saved to the weights of an undisturbed run."""

import itertools
import json
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from data.errors import InputError, run_command
from data.prepared.manifest import read_manifest
from models import run_folder
from models.cycle_gan_model import CycleGANModel
from tests.faults.commands import assert_one_clear_error, assert_refused, fill, mount, remount, run, snapshot
from tests.processes import Program
from tests.test_distributed_training import finished as finished_job
from tests.test_distributed_training import torchrun
from tests.test_train import assert_same_weights
from tools.fuzz_samples import SLICES, write_data_set

NETWORKS = "--netG resnet_6blocks --netD pixel --ngf 2 --ndf 2 --pool_size 2 --lambda_shape 0 --lambda_shape_gan 0"
# Four steps an epoch, two epochs; states after steps 2 and 4 and at the epoch's end.
LENGTH = "--n_epochs 2 --n_epochs_decay 0 --save_latest_freq 2 --save_epoch_freq 1 --print_freq 1"
MR_FILE = "trainA/caseA.npy"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the processes that are started: the order of sums is that of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, one_thread) -> Path:
    """A data set in set/, and in checkpoints/run/ what an undisturbed training on it leaves."""
    root = tmp_path_factory.mktemp("finished")
    write_data_set(root / "set")
    rng = np.random.default_rng(0)
    for path in (root / "set" / MR_FILE, root / "set/trainB/caseB.npy"):
        array = np.load(path)
        np.save(path, rng.uniform(0, 100, array.shape).astype(array.dtype))
    assert train.main(training(root)) == 0
    return root


@pytest.fixture
def root(finished, tmp_path) -> Path:
    """The data set alone, in set/."""
    shutil.copytree(finished / "set", tmp_path / "set")
    return tmp_path


def training(root: Path, *more: str, checkpoints: Path | None = None) -> list[str]:
    where = ["--dataroot", root / "set", "--checkpoints_dir", checkpoints or root / "checkpoints", "--name", "run"]
    return [*map(str, where), *NETWORKS.split(), *LENGTH.split(), *"--device cpu --num_threads 0 --no_html".split(),
            *more]  # fmt: skip


def refused(capsys, arguments: list[str], *words: str) -> None:
    """Train as the command does, which must be refused."""
    assert_refused(capsys, lambda: train.main(arguments), *words)


def resumes(root: Path, finished: Path, checkpoints: Path | None = None, *more: str) -> None:
    """Continue to the end; all weights and records must be those of the undisturbed run."""
    assert train.main(training(root, "--continue_train", *more, checkpoints=checkpoints)) == 0
    folder = (checkpoints or root / "checkpoints") / "run"
    assert_same_weights(finished / "checkpoints/run", folder)
    assert positions(folder) == list(itertools.product((1, 2), range(1, 5)))
    assert not list(folder.glob(".*"))


def positions(folder: Path) -> list[tuple[int, int]]:
    records = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    return [(record["epoch"], record["iteration"]) for record in records]


def state_position(folder: Path) -> tuple[int, int]:
    position = run_folder.load_state(folder)["position"]
    return position["epoch"], position["samples"]


def before_step(monkeypatch, number: int, action: Callable[[dict], dict | None]) -> None:
    """Have `action` on the batch of the step `number` (from 1) of all that follow; it may return another batch."""
    step, calls = CycleGANModel.step, itertools.count(1)

    def disturbed(self, batch):
        return step(self, (action(batch) if next(calls) == number else None) or batch)

    monkeypatch.setattr(CycleGANModel, "step", disturbed)


# Memory


def huge(batch):
    return {key: value.expand(2**40, -1, -1, -1) if torch.is_tensor(value) else value for key, value in batch.items()}


def full_gpu(batch):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8 GiB")


@pytest.mark.parametrize(("shortage", "asked"), [(huge, "524288.0 GiB more requested"), (full_gpu, "2.5 GiB more")])
def test_memory_ends_in_a_step(root, finished, monkeypatch, capsys, shortage, asked):
    """A batch of 2^40 slices is one that no address space holds: torch's allocator itself refuses it."""
    kept = {}

    def disturb(batch):
        kept.update(snapshot(root / "checkpoints"))
        return shortage(batch)

    before_step(monkeypatch, 4, disturb)
    words = ["cpu: out of memory (", asked, "GiB free)", "--batch_size", "bf16", "--crop_size", "--ngf"]
    refused(capsys, training(root), *words)
    assert snapshot(root / "checkpoints") == kept
    assert state_position(root / "checkpoints/run") == (1, 2)
    resumes(root, finished)


@pytest.mark.parametrize(
    "greedy",
    ["--ndf 6000000", "--preprocess resize_and_crop --load_size 20000000 --crop_size 8 --num_threads 2"],
    ids=["networks", "slices"],
)
def test_memory_ends_before_the_first_step(root, capsys, greedy):
    refused(capsys, training(root, *greedy.split()), "cpu: out of memory (", "GiB more requested", "--crop_size")


LIMITED = """
import resource, sys
import train
from data.errors import run_command
from models.cycle_gan_model import CycleGANModel
step, calls = CycleGANModel.step, []
def limited(self, batch):
    calls.append(1)
    if len(calls) == 4:
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.getrlimit(resource.RLIMIT_AS)[1]))
        batch = {key: value.repeat(4096, 1, 1, 1) if key in "AB" else value for key, value in batch.items()}
    return step(self, batch)
CycleGANModel.step = limited
run_command(lambda: train.main(sys.argv[1:]))
"""


def test_memory_that_the_system_grants_ends(root, finished):
    """4096 slices in a step need some hundred MB beyond the 64 that are left, in pieces that any machine has."""
    result = run("-c", LIMITED, *training(root))
    assert_one_clear_error(result, "cpu: out of memory (", "--batch_size")
    assert state_position(root / "checkpoints/run") == (1, 2)
    resumes(root, finished)


def test_any_command_says_that_memory_has_ended(capsys):
    words = ("error: out of memory: ", "tried to allocate 36028797018963968 bytes")
    assert_refused(capsys, lambda: torch.empty(2**55, dtype=torch.uint8), *words)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):  # our own faults keep their traceback
        run_command(lambda: torch.ones(2, 3) @ torch.ones(2, 3))


# Disks


def test_the_disk_fills_up_while_a_state_is_saved(root, finished, small_disk, capsys):
    """Of three states, which a third save needs for a moment, the disk holds two."""
    refused(capsys, training(root, checkpoints=small_disk), "run/next_latest_state.pth: cannot be written", "No space")
    left = {path.name for path in snapshot(small_disk / "run")}
    assert left >= {"latest_state.pth", "previous_state.pth", "1_net_G_A.pth"} and "next_latest_state.pth" not in left
    assert state_position(small_disk / "run") == (1, 4)
    remount(small_disk, "size=4m")
    resumes(root, finished, small_disk)


def test_an_end_between_the_first_weights_of_an_epoch_and_the_next_state(root, finished, monkeypatch, capsys):
    """Without a state of that epoch, the weights that are there would keep the run from resuming and from starting."""
    save_state = run_folder.save_state

    def full(folder, state):
        if state["position"]["epoch"] == 2:
            raise InputError("no room")
        save_state(folder, state)

    monkeypatch.setattr(run_folder, "save_state", full)
    refused(capsys, training(root, "--save_latest_freq", "5000"), "no room")
    assert state_position(root / "checkpoints/run") == (1, 4)
    monkeypatch.setattr(run_folder, "save_state", save_state)
    resumes(root, finished)


@pytest.mark.parametrize("damage", ["gone", "cut short"])
def test_settings_that_cannot_be_read_are_written_again(root, finished, caplog, capsys, damage):
    assert train.main(training(root, "--n_epochs", "1")) == 0
    path = root / "checkpoints/run/inference.json"
    good = path.read_bytes()
    assert good.count(b'"steps": 4') == 1
    path.unlink() if damage == "gone" else path.write_bytes(good[:100])
    resumes(root, finished)
    assert path.read_bytes() == good.replace(b'"steps": 4', b'"steps": 8')
    assert "inference.json: " in caplog.text and "it is written again" in caplog.text


def test_a_link_to_a_run_is_locked_with_it(root):
    (root / "checkpoints/run").mkdir(parents=True)
    (root / "checkpoints/alias").symlink_to("run")
    with (
        run_folder.lock(root / "checkpoints/run"),
        pytest.raises(InputError, match=r"alias: another training is writing to it"),
        run_folder.lock(root / "checkpoints/alias"),
    ):
        pass


def test_the_disk_is_full_before_the_first_step(root, finished, small_disk, capsys):
    filler = fill(small_disk)
    refused(capsys, training(root, checkpoints=small_disk), "inference.json: cannot be written", "No space")
    filler.unlink()
    remount(small_disk, "size=4m")
    assert train.main(training(root, checkpoints=small_disk)) == 0
    assert_same_weights(finished / "checkpoints/run", small_disk / "run")


def test_the_disk_is_full_for_what_is_shown_alone(root, finished, small_disk, monkeypatch, caplog):
    """From the first step to the last but one of an epoch: what is shown is warned of, and comes when there is room."""
    remount(small_disk, "size=4m")
    before_step(monkeypatch, 1, lambda batch: fill(small_disk) and None)
    before_step(monkeypatch, 4, lambda batch: (small_disk / "filler").unlink())
    arguments = training(root, "--display_freq", "1", "--save_latest_freq", "1000", checkpoints=small_disk)
    arguments.remove("--no_html")
    assert train.main(arguments) == 0
    warned = [entry.getMessage() for entry in caplog.records if "warning: " in entry.getMessage()]
    assert len(warned) == 2 and all("No space left on device" in text for text in warned)
    assert warned[0].startswith("warning: losses cannot be written: ") and "they are kept" in warned[0]
    assert warned[1].startswith("warning: web page: ") and "training continues without it" in warned[1]
    assert_same_weights(finished / "checkpoints/run", small_disk / "run")
    assert positions(small_disk / "run") == positions(finished / "checkpoints/run")
    assert (small_disk / "run/web/data/curves.js").read_text().count("point(") == 8


def test_checkpoints_that_may_not_be_written(root, finished, capsys):
    """As root, permissions bind nobody: the folder is a file system that is mounted read-only."""
    with mount(root / "checkpoints", "size=4m"):
        shutil.copytree(finished / "checkpoints/run", root / "checkpoints/run")
        before = snapshot(root)
        remount(root / "checkpoints", "ro")
        words = ["checkpoints/run: cannot be written", "Read-only file system"]
        refused(capsys, training(root, "--continue_train", "--n_epochs", "3"), *words)
        refused(capsys, training(root, "--name", "other"), "checkpoints/other: cannot", "Read-only file system")
        assert snapshot(root) == before
        remount(root / "checkpoints", "rw")
        assert train.main(training(root, "--continue_train", "--n_epochs", "3")) == 0


# Two trainings in one folder


def test_a_second_training_in_a_folder_is_refused_and_the_first_is_not_disturbed(root, finished, monkeypatch, capsys):
    def second(batch):
        (root / "checkpoints/run/.writing-first").mkdir()
        kept = snapshot(root / "checkpoints")
        for more in ([], ["--continue_train"]):
            refused(capsys, training(root, *more), f"{root / 'checkpoints/run'}: another training is writing to it")
        assert snapshot(root / "checkpoints") == kept
        (root / "checkpoints/run/.writing-first").rmdir()  # the half-written file of one that is alive
        assert train.main(training(root, "--name", "other")) == 0

    before_step(monkeypatch, 3, second)
    assert train.main(training(root)) == 0
    for name in ("run", "other"):
        assert_same_weights(finished / "checkpoints/run", root / "checkpoints" / name)
    assert train.main(training(root, "--continue_train", "--n_epochs", "3")) == 0  # it holds nothing any more


HALTED = """
import signal, sys
import train
from models.cycle_gan_model import CycleGANModel
step, calls = CycleGANModel.step, []
def halting(self, batch):
    calls.append(1)
    if len(calls) == 4:  # the state of the second step is there
        signal.pause()
    return step(self, batch)
CycleGANModel.step = halting
train.main(sys.argv[1:])
"""


def test_a_killed_training_keeps_nobody_out(root, finished, capsys):
    child = Program("-c", HALTED, *training(root))
    state = root / "checkpoints/run/latest_state.pth"
    while not state.exists():
        assert child.poll() is None
        time.sleep(0.001)
    refused(capsys, training(root, "--continue_train"), "another training is writing to it")
    child.kill()
    assert child.wait() == -signal.SIGKILL
    resumes(root, finished)


@pytest.mark.slow
def test_all_processes_of_a_second_training_end(root):
    """The first process alone asks for the lock, and says why."""
    with run_folder.lock(root / "checkpoints/run"):
        code, output = finished_job(torchrun("train.py", *training(root)))
    assert code != 0 and output.count("error: ") == 1 and "another training is writing to it" in output
    assert not (root / "checkpoints/run").exists()


def test_a_file_system_without_locks_is_warned_of(root, monkeypatch, caplog):
    def none(file, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(run_folder.fcntl, "flock", none)
    with run_folder.lock(root / "run"):
        assert "run: cannot be locked (" in caplog.text and "Function not implemented" in caplog.text


# Data


def test_a_loss_that_is_not_finite(root, finished, capsys):
    """A voxel of NaN in one slice, which is not the first that is met."""
    path = root / "set" / MR_FILE
    good = np.load(path)
    bad = good.copy()
    bad[2, 3, 3] = np.nan
    np.save(path, bad)
    words = ["loss not finite", "'gan_A': nan", "caseA:2", "no weight was changed", "--continue_train"]
    refused(capsys, training(root, "--save_latest_freq", "1"), *words)
    epoch, samples = state_position(root / "checkpoints/run")
    assert (epoch, positions(root / "checkpoints/run")) == (1, [(1, k + 1) for k in range(samples)]) and samples > 0
    before = snapshot(root / "checkpoints")
    refused(capsys, training(root, "--save_latest_freq", "1", "--continue_train"), *words)
    assert snapshot(root / "checkpoints") == before
    np.save(path, good)
    resumes(root, finished)


@pytest.mark.parametrize("threads", ["0", "2"])
@pytest.mark.parametrize("fault", ["vanishes", "is cut short"])
def test_a_file_of_slices_while_training(root, finished, monkeypatch, capsys, fault, threads):
    """Threads load ahead: the fault is met by the epoch's last batch or, where that was loaded before, by the next."""
    path = root / "set" / MR_FILE
    good = path.read_bytes()

    def disturb(batch):
        path.unlink()
        if fault == "is cut short":
            path.write_bytes(good[: len(good) // 10])

    before_step(monkeypatch, 3, disturb)
    said = {"vanishes": "cannot be read", "is cut short": "ends before slice"}[fault]
    refused(capsys, training(root, "--num_threads", threads), str(path), said, "prepare the data set again")
    assert state_position(root / "checkpoints/run") in {"0": [(1, 2)], "2": [(1, 2), (2, 0)]}[threads]
    path.write_bytes(good)
    resumes(root, finished)


def prepare_anew(root: Path, **changes) -> None:
    manifest = replace(read_manifest(root), **changes)
    cases = [replace(case, frame=case.frame | {"size": manifest.size}) for case in manifest.cases]
    replace(manifest, cases=tuple(cases)).write(root)
    for case in cases:
        for file in (case.image_file, case.mask_file):
            array = np.resize(np.load(root / file), (SLICES, manifest.size, manifest.size))
            np.save(root / file, array)


@pytest.mark.parametrize(
    ("prepared", "options", "words"),
    [
        ({"size": 12}, [], "other images (size: 8 there, 12 here)"),
        ({"spacing_mm": 2.0}, [], "other images (spacing_mm: 2.5 there, 2.0 here)"),
        ({"slice_mm": 4.0}, [], "other images (slice_mm: None there, 4.0 here)"),
        ({}, ["--mr_window", "0", "50"], "mr_window: was percentile, now (0.0, 50.0)"),
        ({}, ["--ct_window", "-500", "900"], "ct_map: was IntensityMap"),
    ],
)
def test_a_run_does_not_resume_with_other_images(root, finished, capsys, prepared, options, words):
    shutil.copytree(finished / "checkpoints", root / "checkpoints")
    if prepared:
        prepare_anew(root / "set", **prepared)
    before = snapshot(root / "checkpoints")
    refused(capsys, training(root, "--continue_train", "--n_epochs", "3", *options), words, "--init_from")
    assert snapshot(root / "checkpoints") == before


def test_a_run_resumes_with_other_intensities_but_says_so(root, finished, caplog):
    shutil.copytree(finished / "checkpoints", root / "checkpoints")
    manifest = read_manifest(root / "set")
    cases = [replace(case, percentiles=case.percentiles and (0.0, 80.0)) for case in manifest.cases]
    replace(manifest, cases=tuple(cases)).write(root / "set")
    assert train.main(training(root, "--continue_train")) == 0
    assert "the run resumes on volumes of other intensities than before" in caplog.text


# Clocks


def test_a_clock_that_goes_back_moves_no_save(root, finished, monkeypatch):
    """The clock on the wall goes back by an hour whenever it is asked; the steady one advances by 20 s."""
    saved, save, steady, wall = [], run_folder.save_state, itertools.count(0, 20), itertools.count(2e9, -3600)

    def note(folder, state):
        saved.append((state["position"]["epoch"], state["position"]["samples"]))
        save(folder, state)

    monkeypatch.setattr(run_folder, "save_state", note)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(steady)))
    arguments = training(root, "--save_latest_freq", "1min")
    assert train.main([*arguments, "--name", "right"]) == 0
    expected, saved[:] = saved.copy(), []
    assert 1 < len([samples for _, samples in expected if samples]) < 8  # not after every step
    steady = itertools.count(0, 20)
    monkeypatch.setattr(time, "time", lambda: float(next(wall)))
    assert train.main(arguments) == 0
    assert saved == expected
    assert_same_weights(finished / "checkpoints/run", root / "checkpoints/run")
