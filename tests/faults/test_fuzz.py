"""Damaged files: each reader reads them or refuses them by `InputError`, and its process lives and stays small.

A few seconds here; `python -m tools.fuzz --minutes M` runs for as long as one likes.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tools import fuzz
from tools.fuzz import READERS, WORDS, Edit, mutated, open_reader, run_format

places = st.one_of(st.floats(0, 1), st.floats(0, 0.1))
edits = st.lists(
    st.builds(Edit, places, st.integers(0, 24), st.one_of(st.sampled_from(WORDS), st.binary(max_size=12))),
    min_size=1, max_size=4,
)  # fmt: skip


@pytest.mark.slow  # each reading process imports torch first
@pytest.mark.parametrize("name", READERS)
def test_a_reader_reads_or_refuses(name):
    with open_reader(name) as reader:
        assert reader.try_bytes(reader.sample)[0] == "read"

        @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(edits)
        def try_edits(changes):
            data = reader.sample
            for change in changes:
                data = change.apply(data)
            outcome, message = reader.try_bytes(data)
            assert outcome in ("read", "refused"), message

        try_edits()
        for number in range(40):
            outcome, message = reader.try_bytes(mutated(name, reader.sample, seed=0, number=number))
            assert outcome in ("read", "refused"), f"{number}: {message}"


MISDEEDS = """
import os, sys, time
from pathlib import Path
from data.errors import InputError
from tools import fuzz
def error(): raise KeyError("x")
def memory(): bytearray(4 << 30)
def refused(): raise InputError("no")
def died(): os.abort()
def hang(): time.sleep(60)
def read(path): {b"e": error, b"m": memory, b"r": refused, b"d": died, b"h": hang}.get(path.read_bytes(), int)()
fuzz.READERS["png"] = (fuzz.READERS["png"][0], read)
fuzz.serve("png", Path(sys.argv[-1]))
"""


@pytest.fixture
def misbehaving(monkeypatch, tmp_path):
    """Open the reading process with a reader that does what its file says."""
    script = tmp_path / "serve.py"
    script.write_text(MISDEEDS)
    start = fuzz.subprocess.Popen
    monkeypatch.setattr(
        fuzz.subprocess, "Popen",
        lambda command, **more: start([command[0], str(script), command[-1]], **more | {
            "env": more["env"] | {"PYTHONPATH": str(fuzz.ROOT)}
        }),
    )  # fmt: skip
    monkeypatch.setattr(fuzz, "SECONDS", 4)
    with open_reader("png") as reader:
        yield reader


@pytest.mark.slow
def test_what_a_reader_does_is_told(misbehaving):
    tried = [b"", b"e", b"r", b"m", b"", b"d", b""]  # after it died, there is another process
    told = [misbehaving.try_bytes(data)[0] for data in tried]
    assert told == ["read", "error", "refused", "memory", "read", "died", "read"]


@pytest.mark.slow
def test_a_reader_that_does_not_end_is_told(misbehaving):
    assert misbehaving.try_bytes(b"h")[0] == "hang"


@pytest.mark.slow
def test_figures_of_a_format():
    figures = run_format("png", seconds=30, seed=1, count=20)
    assert figures["executions"] == 20 and figures["findings"] == []
    assert figures["refused"] + figures.get("read", 0) == 20
