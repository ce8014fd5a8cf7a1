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


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("raise KeyError('x')", "error"),
        ("import os; os.abort()", "died"),
        ("bytearray(4 << 30)", "memory"),
        pytest.param("import time; time.sleep(60)", "hang", marks=pytest.mark.slow),
        ("raise InputError('no')", "refused"),
        ("pass", "read"),
    ],
)
def test_what_a_reader_does_is_told(monkeypatch, tmp_path, code, outcome):
    """The reading process, with a reader whose misdeed is known."""
    script = tmp_path / "serve.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom data.errors import InputError\nfrom tools import fuzz\n"
        "def read(path):\n    if path.read_bytes() == b'x':\n        " + code.replace("; ", "\n        ") + "\n"
        "fuzz.READERS['png'] = (fuzz.READERS['png'][0], read)\nfuzz.serve('png', Path(sys.argv[-1]))\n"
    )
    start = fuzz.subprocess.Popen
    monkeypatch.setattr(
        fuzz.subprocess, "Popen",
        lambda command, **more: start([command[0], str(script), command[-1]], **more | {
            "env": more["env"] | {"PYTHONPATH": str(fuzz.ROOT)}
        }),
    )  # fmt: skip
    monkeypatch.setattr(fuzz, "SECONDS", 4)
    with open_reader("png") as reader:
        assert reader.try_bytes(b"x")[0] == outcome


@pytest.mark.slow
def test_figures_of_a_format():
    figures = run_format("png", seconds=30, seed=1, count=20)
    assert figures["executions"] == 20 and figures["findings"] == []
    assert figures["refused"] + figures.get("read", 0) == 20
