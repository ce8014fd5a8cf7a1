"""What holds for every test: one thread, and no process left behind."""

import os
from collections.abc import Iterator

# Before torch is imported: several processes test at once, and sums are those of the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests import processes


@pytest.fixture(autouse=True)
def no_program_is_left() -> Iterator[None]:
    yield
    processes.kill_all()
