"""Commands started with a standard stream closed: they work, and nothing that is said gets into a file."""

import subprocess
import sys

import pytest

from tests.faults.commands import ROOT

CODE = """
import logging, os, subprocess, sys
from pathlib import Path
from data.errors import InputError, run_command
from data.files import whole_file
def main():
    logging.getLogger().info("said by the log")
    file = open(sys.argv[1] + ".log", "wb")  # would get the number of the stream that is closed
    os.write(2, b"said by a library")
    os.write(1, b"said by a library")
    print("said by the command")
    subprocess.run(["sh", "-c", "echo said by a child; echo said by it >&2"], check=True)
    print("said by the command", file=sys.stderr)
    file.close()
    with whole_file(Path(sys.argv[1])) as scratch:
        scratch.write_text("result")
    if sys.argv[2] == "fails":
        raise InputError("refused")
    return 5
run_command(main)
"""


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
@pytest.mark.parametrize(("end", "code"), [("works", 5), ("fails", 2)])
def test_a_closed_stream_changes_nothing(tmp_path, closed, end, code):
    path = tmp_path / "a.txt"
    command = f'exec "$0" -c "$1" "$2" {end} {closed}'
    done = subprocess.run(["bash", "-c", command, sys.executable, CODE, path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert path.read_text() == "result" and (tmp_path / "a.txt.log").read_bytes() == b""
    if "2>" not in closed and end == "fails":
        assert "error: refused" in done.stderr
