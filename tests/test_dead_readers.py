"""What ends the process that reads a file costs that file's case alone, and the file is named."""

import os
import struct
from pathlib import Path

import pytest

from data.errors import InputError
from data.prepared.jobs import Job
from data.prepared.sources import Source
from data.prepared.volume_jobs import run_jobs
from data.volumes import dicom, reader_process
from data.volumes.volume import read_volume
from tests.test_volume import write_series


def nested(depth: int) -> bytes:
    """Return a private DICOM sequence that holds `depth` - 1 others in each other, all of defined length."""
    size = 20 * (depth - 1)
    levels = (size - 20 * level for level in range(depth))
    return b"".join(
        struct.pack("<HH2sHIHHI", 0x21, 0x1001, b"SQ", 0, below + 8, 0xFFFE, 0xE000, below) for below in levels
    )


def insert(file: Path, elements: bytes) -> None:
    """Put elements of group 0021 where they belong into a slice of explicit little-endian VR."""
    data = file.read_bytes()
    place = data.index(b"\x28\x00\x02\x00US")
    file.write_bytes(data[:place] + struct.pack("<HH2sH4s", 0x21, 0x10, b"LO", 4, b"ACME") + elements + data[place:])


def test_sequences_of_ordinary_depth_are_read_in_this_process(tmp_path, monkeypatch):
    write_series(tmp_path)
    plain = read_volume(tmp_path).array
    insert(min(tmp_path.glob("*.dcm")), nested(20))
    monkeypatch.setattr(reader_process, "_start", lambda task: pytest.fail("a process for an ordinary series"))
    assert (read_volume(tmp_path).array == plain).all()


def test_a_series_that_ends_its_reader_is_an_error_that_names_the_slice(tmp_path):
    """GDCM's stack ends at some thousand sequences in each other."""
    write_series(tmp_path)
    file = sorted(tmp_path.glob("*.dcm"))[2]
    insert(file, nested(20000))
    with pytest.raises(InputError, match=rf"{file.name}: its pixels cannot be decoded .*crashed with SIGSEGV"):
        read_volume(tmp_path)


def test_a_compressed_series_is_read_apart(tmp_path, monkeypatch):
    write_series(tmp_path, change=lambda k, header: header.compress("1.2.840.10008.1.2.5"))
    asked = []
    monkeypatch.setattr(
        dicom,
        "read_slices",
        lambda files, kind, apart: asked.append(apart) or reader_process.read_slices(files, kind, False),
    )
    read_volume(tmp_path)
    assert asked == [True]


def end_on_bad(job: Job) -> str:
    if job.source.name == "bad":
        os._exit(139)
    if job.source.name == "refused":
        raise InputError("refused")
    return job.source.name


@pytest.mark.slow
def test_a_volume_that_ends_its_process_is_named_and_costs_no_other(tmp_path):
    names = ["a", "bad", "refused", "b"]
    jobs = [Job(tmp_path, Source(name, name, tmp_path / f"{name}.nii"), "train", "A") for name in names]
    done, failures = run_jobs(end_on_bad, jobs, workers=2, title="reading")
    assert sorted(done) == ["a", "b"]
    reasons = {failure.source.name: failure.reason for failure in failures}
    assert reasons.pop("refused") == "refused"
    assert reasons.pop("bad").startswith(f"{tmp_path / 'bad.nii'}: the process that worked on it ended abruptly")
    assert not reasons
