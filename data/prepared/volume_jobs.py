"""Process volumes in parallel; one that cannot be read, or crashes its process, fails alone."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import SimpleITK as sitk
from threadpoolctl import threadpool_limits

from data.errors import InputError
from data.prepared.sources import Source
from data.progress import shown_progress
from data.worker_processes import WorkerProcesses

log = logging.getLogger(__name__)


class VolumeJob(Protocol):
    """What is to be done with one volume."""

    @property
    def source(self) -> Source:
        """The volume."""
        ...


@dataclass(frozen=True)
class Failure:
    """A volume that could not be worked on, and why."""

    source: Source
    reason: str


def run_jobs[Job: VolumeJob, Result](
    work: Callable[[Job], Result],
    jobs: list[Job],
    workers: int,
    title: str,
    way_out: str = "convert it to .nii.gz, or leave it out",
) -> tuple[list[Result], list[Failure]]:
    """Run `work` on every job; a volume with bad input becomes a `Failure` and does not stop the others.

    When a process dies, all that were at work or waited are done again, each in a process of its own: one that ends
    its process then is known by name, and one that ran out of memory has all of it.

    Args:
        work: travels to the processes.
        jobs: one for each volume.
        workers: processes; one is this process itself.
        title: of the progress shown.
        way_out: what can be done about a volume that ends its process.
    """
    done, failures, lost = [], [], []
    with _processes(workers) if workers > 1 else nullcontext() as pool:
        for job, result in shown_progress(_calls(pool, work, jobs), len(jobs), title, "volume"):
            try:
                done.append(result())
            except InputError as error:
                failures.append(Failure(job.source, str(error)))
            except OSError as error:
                failures.append(_unreadable(job.source, error))
            except BrokenProcessPool:
                lost.append(job)
    if lost:
        log.warning("%s: a process died; the remaining volumes are done one at a time: %d", title, len(lost))
    for job in lost:
        try:
            with _processes(workers) as pool:
                done.append(pool.submit(work, job).result())
        except InputError as error:
            failures.append(Failure(job.source, str(error)))
        except OSError as error:
            failures.append(_unreadable(job.source, error))
        except BrokenProcessPool:
            reason = "the process that worked on it ended abruptly: the file is damaged, or memory too small for it"
            failures.append(Failure(job.source, f"{job.source.path}: {reason}; {way_out}"))
    return done, failures


def _unreadable(source: Source, error: OSError) -> Failure:
    return Failure(source, f"{source.path}: cannot be read: {error}")


def _calls[Job: VolumeJob, Result](
    pool: Executor | None, work: Callable[[Job], Result], jobs: list[Job]
) -> Iterator[tuple[Job, Callable[[], Result]]]:
    """Yield jobs with what returns their results: in a pool as they are done, else in order, each done when called."""
    if pool is None:
        yield from ((job, partial(work, job)) for job in jobs)
        return
    calls = {_submit(pool, work, job): job for job in jobs}
    for call in as_completed(calls):
        yield calls[call], call.result


def _submit(pool: Executor, work: Callable, job: VolumeJob) -> Future:
    """Return a call to the pool, also to one that is broken by now."""
    try:
        return pool.submit(work, job)
    except BrokenProcessPool as error:
        call: Future = Future()
        call.set_exception(error)
        return call


def _processes(workers: int) -> Executor:
    """Return a pool of processes. Spawned: forking ITK's threads can deadlock."""
    return WorkerProcesses(workers, _one_thread)


def _one_thread() -> None:
    # One thread a process: the processes are the parallelism, and BLAS threads that wait in a spin would starve them.
    threadpool_limits(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
