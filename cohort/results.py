"""The folder of a cohort's results: volumes, what is recorded of each, and the claims of those who work on them.

    <folder>/<case>.nii.gz           synthetic CT
    <folder>/records/<case>.json     what it was made of and what was found; written after the volume
    <folder>/.claims/<case>          locked by the process that converts the case

A claim is a lock of the operating system on a file, so it ends with its process, however that ends.
"""

import fcntl
import glob
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data.errors import InputError
from data.files import whole_file
from data.manifest import hash_files, write_json

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Record:
    """What came of one case; a failed one has a reason, and no output.

    Attributes:
        case: its name.
        status: 'done' or 'failed'.
        input: absolute path of the volume.
        key: all that the result depends on: hashes of input, mask, reference and model, options.
        attempt: tells this attempt from any other.
        finished: time, ISO 8601.
        reason: why it failed; details: the traceback, where our own code is to blame.
        warnings: what somebody should look at; unchecked: checks that were left out, and why.
        output, output_sha256: the volume's file name and the hash of its bytes.
        seconds: wall time by stage.
        geometry, hu, checks, scores: figures by name.
        run: device, precision, package versions and host.
    """

    case: str
    status: str
    input: str
    key: dict
    attempt: str
    finished: str
    reason: str = ""
    details: str = ""
    warnings: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    output: str | None = None
    output_sha256: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    geometry: dict = field(default_factory=dict)
    hu: dict[str, float] = field(default_factory=dict)
    checks: dict[str, float | None] = field(default_factory=dict)
    scores: dict[str, float | None] = field(default_factory=dict)
    run: dict = field(default_factory=dict)


class Claim:
    """A case that this process alone works on, until it is released or the process ends."""

    def __init__(self, descriptor: int) -> None:
        """Take over a locked file's descriptor."""
        self._descriptor = descriptor

    def release(self) -> None:
        """Let others have it."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def follows_a_death(self) -> bool:
        """Tell whether the process that had it last did not release it; from now on that can be told of this one."""
        died = os.fstat(self._descriptor).st_size > 0
        try:
            os.pwrite(self._descriptor, b"1", 0)
        except OSError:  # a full disk: what a dead process left would make room
            return True
        return died


class Results:
    """The results of one model; safe with several processes and machines on one folder."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; it is made when something is written."""
        self.folder = folder

    def volume_path(self, case: str) -> Path:
        """Return where a case's synthetic CT goes."""
        return self.folder / f"{case}.nii.gz"

    def page_path(self, case: str) -> Path:
        """Return where a case's results page goes."""
        return self.folder / "pages" / case / "index.html"

    def record_path(self, case: str) -> Path:
        """Return where a case's record goes."""
        return self.folder / "records" / f"{case}.json"

    def read(self, case: str) -> Record | None:
        """Return a case's record; None where there is none that this version understands."""
        return _read_record(self.record_path(case))

    def read_all(self) -> list[Record]:
        """Return all records, by case."""
        records = (_read_record(path) for path in sorted((self.folder / "records").glob("[!.]*.json")))
        return [record for record in records if record is not None]

    def write(self, record: Record) -> None:
        """Write a case's record, in place of an earlier one."""
        write_json(self.record_path(record.case), {"format_version": FORMAT_VERSION, **asdict(record)})

    def forget(self, case: str) -> None:
        """Remove a case's record."""
        self.record_path(case).unlink(missing_ok=True)

    def is_current(self, record: Record | None, key: dict) -> bool:
        """Tell whether a case is done, of just this, and its volume is the one that was written."""
        if record is None or record.status != "done" or record.key != key:
            return False
        path = self.volume_path(record.case)
        return path.is_file() and hash_files([path]) == record.output_sha256

    def claim(self, case: str) -> Claim | None:
        """Return the claim to a case, or None where another process has it.

        What a process that was killed left half-written of the case is removed.

        Raises:
            InputError: the folder cannot be written, or its file system has no locks.
        """
        claim = _lock(self.folder / ".claims" / case, blocking=False)
        # Looking for what was left lists the folder: for each case of a great cohort that is slow.
        if claim and claim.follows_a_death():
            self._clean(f"{case}.nii.gz", f"{case}.png", f"records/{case}.json", f"pages/{case}/*")
        return claim

    @contextmanager
    def summary_lock(self) -> Iterator[None]:
        """Keep other processes from writing the summary."""
        claim = _lock(self.folder / ".claims" / ".summary", blocking=True)
        try:
            self._clean("summary.csv", "summary.json", "index.html")
            yield
        finally:
            claim.release()

    def _clean(self, *names: str) -> None:
        """Remove what `whole_file` left of files that nobody is writing now; the name `*` stands for any."""
        for path in map(self.folder.joinpath, names):
            pattern = path.name if path.name == "*" else glob.escape(path.name)
            for left in path.parent.glob(f".writing-*/{pattern}"):
                shutil.rmtree(left.parent, ignore_errors=True)

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file into the folder; it appears whole or not at all."""
        with whole_file(self.folder / name) as scratch:
            # A file name need not be text: what is not is written as its bytes.
            scratch.write_text(text, encoding="utf-8", errors="backslashreplace")
        return self.folder / name


def now() -> str:
    """Return the time, ISO 8601 with the zone, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _read_record(path: Path) -> Record | None:
    try:
        data = json.loads(path.read_text())
        return Record(**data) if data.pop("format_version") == FORMAT_VERSION else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _lock(path: Path, blocking: bool) -> Claim | None:
    descriptor = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        raise InputError(f"{path}: cannot be locked: {error}; put --results_dir on a file system with locks") from error
    return Claim(descriptor)
