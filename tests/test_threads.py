"""Threads: a training keeps all cores, and no result depends on who loads its slices or on whether it was stopped.

In new processes without OMP_NUM_THREADS, which hides all of this.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from data.loading.threads import one_thread
from tests.test_datasets import dataroot  # noqa: F401
from tests.test_train import TINY, assert_same_weights

ROOT = Path(__file__).resolve().parents[1]
TRAIN = """
import sys, torch, train
from models.cycle_gan_model import CycleGANModel
step = CycleGANModel.step
def noting(self, batch):
    losses = step(self, batch)
    print("threads", torch.get_num_threads(), flush=True)
    return losses
CycleGANModel.step = noting
sys.exit(train.main(sys.argv[1:]))
"""
# Slices large enough that their operations are shared between threads.
OPTIONS = (
    "--ngf 4 --preprocess resize_and_crop --load_size 72 --crop_size 64 --use_dropout --no_html --n_epochs_decay 0"
)
OPTIONS += " --lr_policy step --max_dataset_size 2 --seed 3"
cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="there is one core")


def start(code: str, *arguments: object) -> list[str]:
    """Run code in a new process with all cores; return the lines that say threads."""
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    process = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, env=environment,
                             capture_output=True, text=True, timeout=600, check=False)  # fmt: skip
    assert process.returncode == 0, process.stderr
    return [line for line in process.stdout.splitlines() if line.startswith("threads ")]


@cores
@pytest.mark.slow
def test_a_training_keeps_all_cores_and_ends_with_the_same_weights_however_it_came_there(dataroot, tmp_path):  # noqa: F811
    """Whole; loading in the training's own thread; stopped after half and continued, with other loading threads."""

    def training(name: str, epochs: int, loading: int, *more: str) -> list[str]:
        where = ["--dataroot", dataroot, "--checkpoints_dir", tmp_path, "--name", name]
        words = [*TINY, *OPTIONS.split(), "--n_epochs", epochs, "--num_threads", loading, *more]
        return start(TRAIN, *where, *words)

    noted = training("whole", 2, 2)
    noted += training("alone", 2, 0)
    noted += training("parts", 1, 1)
    noted += training("parts", 2, 3, "--continue_train")
    (everything,) = start("import torch; print('threads', torch.get_num_threads())")
    assert everything != "threads 1" and noted == [everything] * (3 * 4)
    for name in ("alone", "parts"):
        assert_same_weights(tmp_path / "whole", tmp_path / name)


SYNTHESIS = """
import numpy as np, torch
from models.test_model import TestModel
from tests.cohort_data import NAME, SETTINGS, write_model
import sys
from pathlib import Path
folder = Path(sys.argv[1])
write_model(folder)
def model():
    return TestModel(SETTINGS, folder / "checkpoints" / NAME / "latest_net_G_A.pth", torch.device("cpu"))
first = model()
slices = np.random.default_rng(0).uniform(-1, 1, (4, 64, 64)).astype(np.float32)
everything = torch.get_num_threads()
together = first.translate(slices, batch_size=4)
assert torch.get_num_threads() == everything
from threading import Thread
found = []
thread = Thread(target=lambda: found.append((torch.get_num_threads(), model()._threads)))
thread.start(); thread.join()
assert found == [(everything, everything)], found
torch.set_num_threads(1)
assert np.array_equal(together, first.translate(slices, batch_size=1))
"""


@cores
def test_synthesis_leaves_the_threads_of_others_alone(tmp_path):
    """A model that another thread builds after it has all cores, and no voxel depends on their number."""
    start(SYNTHESIS, tmp_path)


COUNTS = """
import torch
from concurrent.futures import ThreadPoolExecutor
from data.loading.threads import one_thread
def inside(_):
    with one_thread():
        before = torch.get_num_threads()
        torch.ones(1 << 18).sum()
        return before, torch.get_num_threads()
with ThreadPoolExecutor(3) as threads:
    assert set(threads.map(inside, range(9))) == {(1, 1)}
print("threads", torch.get_num_threads())
with one_thread():
    print("threads", torch.get_num_threads())
print("threads", torch.get_num_threads())
"""


@cores
def test_one_thread_counts_for_its_own_thread_alone():
    everything, inside, after = start(COUNTS)
    assert inside == "threads 1" and after == everything != inside


def test_one_thread_ends_with_its_block_also_by_an_error():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), one_thread():
        1 / 0  # noqa: B018
    with ThreadPoolExecutor(1) as threads, one_thread():
        assert threads.submit(lambda: np.square(3)).result() == 9
    assert torch.get_num_threads() == before
