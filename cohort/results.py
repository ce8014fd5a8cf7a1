"""The folder of a cohort's results: volumes, their records, and the claims of the processes that work on them.

    <folder>/<case>.nii.gz           synthetic CT
    <folder>/dicom/<case>/           the same as a DICOM series, if asked for
    <folder>/mu_maps/<case>.nii.gz   its attenuation at 511 keV, if asked for
    <folder>/uncertainty/<case>.nii.gz   its standard deviation, if asked for
    <folder>/records/<case>.json     what it was made of and what was found; written after the volume
    <folder>/.claims/<case>          locked by the process that converts the case

A claim is a lock of the operating system on a file, so it ends with its process, however that ends.
"""

import fcntl
import glob
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cohort.result_keys import is_made
from data.errors import InputError
from data.files import hash_files, read_json, whole_file, write_json
from data.volumes.outputs import check_free
from data.volumes.paths import hash_source

FORMAT_VERSION = 1
# How the warning of a case begins whose picture or page failed.
NO_PICTURE = "no picture: "
# What may be asked for beside a volume, and where it goes.
DICOM, MU_MAP, UNCERTAINTY = "dicom", "mu_map", "uncertainty"
EXTRAS = {DICOM: "dicom/{}", MU_MAP: "mu_maps/{}.nii.gz", UNCERTAINTY: "uncertainty/{}.nii.gz"}


@dataclass(frozen=True)
class CaseRecord:
    """The outcome of one case; a failed one has a reason and no output.

    Attributes:
        case: its name.
        status: 'done', 'failed', or 'begun': outputs are being written, or their process was killed meanwhile.
        input: absolute path of the volume.
        key: all that the result depends on: hashes of input, mask, reference and model, options.
        attempt: tells this attempt from any other.
        finished: time, ISO 8601.
        reason: why it failed; details: the traceback, where our own code is to blame.
        warnings: what somebody should look at; unchecked: checks that were left out, and why; notes: what
            is worth knowing, and nothing to act on.
        output, output_sha256: the volume's file name and the hash of its bytes.
        made: names, below the folder, of the files and folders that are this case's: they may be renewed.
        made_of: the key of the volume that these files are of: `key` of a case that is done, else that of the last
            volume that was written; None if there is none, and in records of earlier versions.
        unwritten: those of them for which the disk had no room; they are made when there is.
        seconds: wall time by stage.
        geometry, hu, checks, scores: figures by name.
        extras: what was asked for beside the volume, by kind: what it depends on, and the hash of its files.
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
    notes: list[str] = field(default_factory=list)
    output: str | None = None
    output_sha256: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    geometry: dict = field(default_factory=dict)
    hu: dict[str, float] = field(default_factory=dict)
    checks: dict[str, float | None] = field(default_factory=dict)
    scores: dict[str, float | None] = field(default_factory=dict)
    run: dict = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    made_of: dict | None = None
    unwritten: list[str] = field(default_factory=list)
    extras: dict[str, dict] = field(default_factory=dict)


class Claim:
    """A case that this process alone works on, until it is released or the process ends."""

    def __init__(self, descriptor: int) -> None:
        """Own a locked file's descriptor."""
        self._descriptor = descriptor

    def release(self) -> None:
        """Let others have it."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def follows_a_death(self) -> bool:
        """Tell whether the last process that held it died without releasing it; from now on this process counts as
        holding it.
        """
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

    def extra_path(self, kind: str, case: str) -> Path:
        """Return the path of an extra of a case, by its kind in `EXTRAS`."""
        return self.folder / EXTRAS[kind].format(case)

    def targets(self, case: str) -> dict[str, Path]:
        """Return all that is ever written of a case beside its record: volume, page (a folder), picture and extras."""
        paths = (
            self.volume_path(case), self.page_path(case).parent, self.folder / f"{case}.png",
            *(self.extra_path(kind, case) for kind in EXTRAS),
        )  # fmt: skip
        return {path.relative_to(self.folder).as_posix(): path for path in paths}

    def made(self, case: str) -> list[str]:
        """Return the names of what earlier runs made of a case."""
        record = self.read(case)
        if record is None:  # a damaged record is that of a case all the same
            return list(self.targets(case)) if self.record_path(case).exists() else []
        # Records of earlier versions say it of the volume only.
        return record.made or (list(self.targets(case)) if record.output else [])

    def record_path(self, case: str) -> Path:
        """Return where a case's record goes."""
        return self.folder / "records" / f"{case}.json"

    def read(self, case: str) -> CaseRecord | None:
        """Return a case's record; None if there is none that this version understands."""
        return _read_record(self.record_path(case))

    def read_all(self) -> list[CaseRecord]:
        """Return all records, by case."""
        records = (_read_record(path) for path in sorted((self.folder / "records").glob("[!.]*.json")))
        return [record for record in records if record is not None]

    def write(self, record: CaseRecord) -> None:
        """Write a case's record, in place of an earlier one."""
        write_json(self.record_path(record.case), {"format_version": FORMAT_VERSION, **asdict(record)})

    def forget(self, case: str) -> None:
        """Remove a case's record."""
        self.record_path(case).unlink(missing_ok=True)

    def is_current(self, record: CaseRecord | None, key: dict, asked: Mapping[str, dict]) -> bool:
        """Tell whether a case is done, of just this, all of it, and its files are those that were written.

        `asked`: what is asked for beside the volume, as `Extras.asked` says it.
        """
        if (
            record is None
            or record.status != "done"
            or not is_made(record.key, key, bool(record.scores))
            or record.unwritten
        ):
            return False
        path = self.volume_path(record.case)
        if not (path.is_file() and hash_files([path]) == record.output_sha256):
            return False
        return all(
            kind in record.extras and record.extras[kind] == self.describe_extra(kind, record.case, of)
            for kind, of in asked.items()
        )

    def lacks_page(self, record: CaseRecord) -> bool:
        """Tell whether a case that is done has no page, though none failed."""
        failed = any(text.startswith(NO_PICTURE) for text in record.warnings)
        return not failed and not self.page_path(record.case).exists()

    def describe_extra(self, kind: str, case: str, of: dict) -> dict | None:
        """Return what a record says of an existing extra; None if there is none."""
        path = self.extra_path(kind, case)
        return {**of, "sha256": hash_source(path)} if path.exists() else None

    def claim(self, case: str) -> Claim | None:
        """Return the claim to a case, or None if another process has it.

        What a process that was killed left half-written of the case is removed.

        Raises:
            InputError: the folder cannot be written, or its file system has no locks.
        """
        claim = _lock(self.folder / ".claims" / case, blocking=False)
        # Looking for what was left lists the folder: for each case of a great cohort that is slow.
        if claim and claim.follows_a_death():
            self._clean(f"{case}.nii.gz", f"{case}.png", f"records/{case}.json", f"pages/{case}/*",
                        *(place.format(case) for place in EXTRAS.values()))  # fmt: skip
        return claim

    def check_own(self, overwrite: bool) -> None:
        """Refuse a folder that no pipeline has worked in if it holds files that a pipeline would replace.

        Raises:
            InputError: it does, and `overwrite` does not allow it.
        """
        if not (self.folder / ".claims").exists():
            names = ("summary.csv", "summary.json", "index.html", "records", "pages")
            check_free([self.folder / name for name in names], "--results_dir", overwrite=overwrite)

    @contextmanager
    def summary_lock(self) -> Iterator[None]:
        """Keep other processes from writing the summary."""
        claim = _lock(self.folder / ".claims" / ".summary", blocking=True)
        assert claim is not None, "it was waited for"
        try:
            self._clean("summary.csv", "summary.json", "index.html")
            yield
        finally:
            claim.release()

    def _clean(self, *names: str) -> None:
        """Remove leftovers of `whole_file` that nobody is writing now; the name `*` stands for any."""
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


def _read_record(path: Path) -> CaseRecord | None:
    try:
        data = read_json(path)
        if data.pop("format_version") != FORMAT_VERSION:
            return None
        record = CaseRecord(**data)
    except (InputError, KeyError, TypeError, AttributeError):
        return None
    # Paths are made of the case's name: that of another file would lead elsewhere.
    return record if path.name == f"{record.case}.json" and _has_its_types(record) else None


def _has_its_types(record: CaseRecord) -> bool:
    """Tell whether values have the types that what uses a record trusts."""
    texts = (record.status, record.input, record.attempt, record.finished, record.reason, record.details)
    lists = (record.warnings, record.unchecked, record.notes, record.made, record.unwritten)
    figures = (record.seconds, record.hu, record.checks, record.scores)
    size, spacing = (
        record.geometry.get(name, []) if _is_dict(record.geometry) else None for name in ("size", "spacing")
    )
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(text, str | None) for text in (record.output, record.output_sha256))
        and all(isinstance(one, list) and all(isinstance(text, str) for text in one) for one in lists)
        and all(_is_dict(one) for one in (record.key, record.run, record.extras, *figures))
        and all(isinstance(value, int | float | None) for one in figures for value in one.values())
        and all(isinstance(one, list) and all(isinstance(v, int | float) for v in one) for one in (size, spacing))
    )


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _lock(path: Path, blocking: bool) -> Claim | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"{path.parent.parent}: cannot be written: {error}; choose another --results_dir") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise InputError(f"{path}: cannot be locked: {error}; put --results_dir on a file system with locks") from error
    return Claim(descriptor)
