"""The processes of a training: a single one, or those that torchrun started on one machine or several."""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from data.errors import InputError

# How long the processes of a cohort wait for each other: the first searches the inputs, the last ends its last case.
PATIENCE = timedelta(days=2)
# Gloo's threads live on after the group (DistributedDataParallel holds it) and let go of a tensor a moment
# after the collective; where the interpreter ends in that moment, the process aborts (pytorch/pytorch#179291).
RELEASE_S = 0.3
# Until what the first process makes is there: it may validate or prepare patients, and torchrun ends all if it dies.
_AS_LONG_AS_IT_TAKES = timedelta(days=365)


class ProcessGroup:
    """One process by itself; `rank` counts from 0."""

    rank, size = 0, 1

    def __init__(self) -> None:
        """Start counting."""
        self._counts: dict[str, int] = {}

    def count(self, name: str) -> int:
        """Add one to a count that all processes share; return what it was before."""
        self._counts[name] = self._counts.get(name, 0) + 1
        return self._counts[name] - 1

    def share[T](self, make: Callable[[], T]) -> T:
        """Return to all what the first process makes; its `InputError` ends them all."""
        return make()

    def gather[T](self, value: T) -> list[T]:
        """Return every process's value, by rank, once all have come to this point."""
        return [value]

    def average(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the means over all processes of tensors by name, of one shape and the same in each, in their type."""
        return values

    def greatest(self, *numbers: int) -> list[int]:
        """Return for each number the greatest that any process gives."""
        return list(numbers)

    def device(self, chosen: torch.device) -> torch.device:
        """Return this process's device: of several on one machine each takes a GPU, unless one is named."""
        if chosen.type != "cuda" or chosen.index is not None:
            return chosen
        return torch.device("cuda", torch.cuda.current_device())  # torch sets and asks GPUs by number


class DistributedProcessGroup(ProcessGroup):
    """The processes of a `torch.distributed` group."""

    def __init__(self, store: dist.Store, rank: int, size: int, backend: str, patience: timedelta = PATIENCE) -> None:
        """Join the group; `store` holds the counts, which it adds to one at a time."""
        self._store, self.rank, self.size = store, rank, size
        self._shared = 0
        dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=rank, world_size=size,
                                timeout=patience)  # fmt: skip

    def count(self, name: str) -> int:
        """Add one to a count that all processes share; return what it was before."""
        return self._store.add(f"count/{name}", 1) - 1

    def share[T](self, make: Callable[[], T]) -> T:
        """Return to all what the first process makes, however long it takes; its `InputError` ends them all."""
        box: list[Any] = [None]
        error: InputError | None = None
        made_it, self._shared = f"shared/{self._shared}", self._shared + 1
        if self.rank == 0:
            try:
                box = [(True, make())]
            except InputError as raised:
                box, error = [(False, None)], raised
            finally:
                self._store.set(made_it, "")
        else:
            self._store.wait([made_it], _AS_LONG_AS_IT_TAKES)
        dist.broadcast_object_list(box, src=0)
        if error:
            raise error
        made, value = box[0]
        if not made:
            sys.exit(2)  # the first process says why
        return value

    def gather[T](self, value: T) -> list[T]:
        """Return every process's value, by rank, once all have come to this point."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def average(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the means over all processes of tensors by name, of one shape and the same in each, in their type."""
        means = torch.stack([value.detach() for value in values.values()])
        dist.all_reduce(means)
        return dict(zip(values, means / self.size, strict=True))

    def greatest(self, *numbers: int) -> list[int]:
        """Return for each number the greatest that any process gives."""
        greatest = torch.tensor(numbers)
        dist.all_reduce(greatest, dist.ReduceOp.MAX)
        return greatest.tolist()

    def device(self, chosen: torch.device) -> torch.device:
        """Return this process's device: of several on one machine each takes a GPU, unless one is named."""
        if chosen.type != "cuda" or chosen.index is not None:
            return chosen
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def restarts() -> int:
    """Return how often torchrun has restarted the processes after one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def job() -> str | None:
    """Return what tells this start of torchrun from all others, the same after a restart; None without torchrun.

    Its run id alone does not: it may be chosen, or left out. Added is torchrun's process on this machine, by its number
    and by how long the machine had been up when it started: numbers return, in containers at once.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    launcher = psutil.Process(os.getppid())
    up_s = launcher.create_time() - psutil.boot_time()
    return f"{os.environ['TORCHELASTIC_RUN_ID']} {socket.gethostname()} {launcher.pid} {up_s:.2f}"


@contextmanager
def open_process_group(backend: str = "gloo", patience: timedelta = PATIENCE) -> Iterator[ProcessGroup]:
    """Yield the group that the environment describes: torchrun sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    Args:
        backend: of `torch.distributed`. Gloo does where only lists and counts go between processes;
            'cpu:gloo,cuda:nccl' is for tensors on GPUs.

    Raises:
        InputError: the processes do not meet.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield ProcessGroup()
        return
    try:
        store, rank, size = next(rendezvous("env://"))
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but the processes cannot connect: {error}"
        ) from error
    store.set_timeout(patience)
    # After a restart the store still holds the addresses and counts of the processes before.
    attempt = dist.PrefixStore(f"attempt{restarts()}", store)
    group = DistributedProcessGroup(attempt, rank, size, backend, patience)
    try:
        yield group
    finally:
        time.sleep(RELEASE_S)
        dist.destroy_process_group()
