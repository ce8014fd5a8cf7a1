"""What holds for every test: one thread, no waiting for the disk, and no process left behind."""

import os
import sys
from collections.abc import Iterator

# Before torch is imported: several processes test at once, and sums are those of the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# As where the environment is active: commands that messages show then begin with `python`.
os.environ["VIRTUAL_ENV"] = sys.prefix

import pytest

from tests import processes


@pytest.fixture(autouse=True)
def no_program_is_left() -> Iterator[None]:
    yield
    processes.kill_all()


@pytest.fixture(autouse=True, scope="session")
def nothing_waits_for_the_disk() -> Iterator[None]:
    """Thousands of small files are written; that they reach the disk before they get their names is tested apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which raises as os.fsync does where a file is not open
        yield
