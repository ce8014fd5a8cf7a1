"""Every command says in one line what to do where Python is too old or packages are missing."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import data

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [
    *sorted([path.name] for path in ROOT.glob("*.py")),
    ["-m", "scripts.evaluate"],
    ["-m", "ct_segmentation.train"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_python_without_packages_says_what_to_activate(command):
    # -S -I: without site-packages; the checkout is put back, as it is first on the path of a command.
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import runpy; sys.argv = ['x', '--help']; "
    run = f"runpy.run_path({str(ROOT / command[0])!r}" if len(command) == 1 else f"runpy.run_module({command[1]!r}"
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-c", f"{start}{run}, run_name='__main__')"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert " has no torch, numpy, SimpleITK; run first: " in done.stderr


def test_an_older_python_is_told(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    with pytest.raises(SystemExit, match=r"this is Python 3\.9; expected 3\.12 or newer; run first: "):
        data.check_environment()


def test_ctrl_c_while_packages_load_is_said_without_a_traceback():
    done = subprocess.run(
        [sys.executable, "-c", "import data; raise KeyboardInterrupt"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "interrupted\n")


def test_other_errors_keep_their_traceback():
    done = subprocess.run(
        [sys.executable, "-c", "import data; raise ValueError('x')"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and done.stderr.endswith("ValueError: x\n")
