"""Running the real commands in the fault suite, small disks, and comparing what lies there before and after."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data.errors import run_command
from tests import processes
from tests.cohort_data import NAME

ROOT = Path(__file__).resolve().parents[2]
# As run_command reports an error of the user's.
USER_ERROR = 2


def run(*arguments: str | Path) -> processes.Program:
    """Run `python *arguments` as a user does, in a process of its own."""
    return processes.run(*arguments)


def run_in(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess:
    """Run it with variables that Python reads as it starts; output is captured as text."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def adapt(site: Path, source: Path, *more: str | Path) -> list[str]:
    """Return arguments of `test_adapt.py` for a model and results below `site`."""
    where = ["--checkpoints_dir", site / "checkpoints", "--results_dir", site / "out"]
    return [str(part) for part in ["--name", NAME, *where, "--device", "cpu", "--input", source, *more]]


def pipeline(site: Path, source: Path, *more: str | Path) -> list[str]:
    """Return arguments of `test_pipeline.py`, alike."""
    where = ["--checkpoints_dir", site / "checkpoints", "--results_dir", site / "out", "--precision", "fp32"]
    return [str(part) for part in ["--name", NAME, *where, "--device", "cpu", "--input_dir", source, *more]]


def prepare(root: Path, *more: str | Path, mr: str = "mr/*", ct: str = "ct/*") -> list[str]:
    """Return arguments of `scripts.prepare_dataset` for the volumes below `root`."""
    where = ["--mr", root / mr, "--ct", root / ct, "--out", root / "set"]
    return [str(part) for part in [*where, "--size", 64, "--workers", 1, *more]]


@contextmanager
def mount(folder: Path, options: str) -> Iterator[None]:
    """Have a file system in memory at `folder`; skip the test where none can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)  # lazily: an error's traceback may hold a file open


def remount(folder: Path, options: str) -> None:
    """Change the options of what `mount` has mounted."""
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def fill(disk: Path, but_for: int = 0) -> Path:
    """Fill a file system but for so many bytes; return the file that does."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(bytes(free - but_for))
    return disk / "filler"


def snapshot(folder: Path) -> dict[Path, bytes]:
    """Return the bytes of all files below a folder; hidden ones, which are locks and halves, apart."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if not _hidden(path.relative_to(folder))}


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def assert_one_clear_error(result: subprocess.CompletedProcess | processes.Program, *words: str) -> None:
    """Check that a command ended with 2, one line that holds all words, and no traceback; a line of help may follow."""
    assert result.returncode == USER_ERROR, result.stderr
    assert "Traceback" not in result.stderr
    last = _without_help(result.stderr.strip().splitlines())[-1]
    assert last.startswith("error: "), result.stderr
    for word in words:
        assert word in last, f"{word!r} not in {last!r}"


def _without_help(lines: list[str]) -> list[str]:
    return lines[:-1] if lines[-1].startswith("help: ") else lines


def assert_refused(capsys: pytest.CaptureFixture, main: Callable[[], object], *words: str) -> None:
    """Check the same of a command's ``main`` in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    (line,) = _without_help(capsys.readouterr().err.splitlines())
    assert stop.value.code == USER_ERROR and line.startswith("error: "), line
    for word in words:
        assert word in line, f"{word!r} not in {line!r}"
