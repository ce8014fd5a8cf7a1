"""Limit the threads that one thread's tensor operations use."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from threadpoolctl import ThreadpoolController


@contextmanager
def one_thread() -> Iterator[None]:
    """Have tensor operations in this thread take no further threads while the block lasts; other threads keep theirs.

    `torch.set_num_threads` in one thread also counts for all others that have not computed yet, the training's own
    among them: it would then train on one core, and to other weights, since the order of sums is that of threads.
    """
    torch.get_num_threads()  # torch sets a thread's number when the thread first asks: now, not within the block
    with _openmp().limit(limits=1):
        yield


@cache
def _openmp() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="openmp")
