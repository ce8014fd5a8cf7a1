"""Python programs in processes of their own, which need not import torch once more.

One server process for each process that runs tests has imported what the commands import, and is forked for every
program. A program so starts in milliseconds instead of seconds, with modules as fresh as after their import. What
Python reads before it runs a program is not repeated, such as LC_ALL; nor is the end of the interpreter.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "train",
        "test_pipeline",
        "test_adapt",
        "torch.distributed.run",
        "torchvision.transforms.v2",
    ]
)
# `torchrun`, but for processes that are forked from the one that launches them.
TORCHRUN = ("-m", "torch.distributed.run", "--run-path", "--start-method=fork")


class Program:
    """`python *arguments` from its start on, much as `subprocess.Popen` is."""

    started: list["Program"] = []  # noqa: RUF012 - of the process, as `kill_all` wants them

    def __init__(self, *arguments: object, together: bool = False, **environment: str) -> None:
        """Start it in a session of its own, with one thread and in the checkout.

        Args:
            arguments: a script, or -m and a module, or -c and code; then what it is given.
            together: errors go where output goes.
            environment: further variables.
        """
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name) / name for name in ("out", "out" if together else "err")]
        for file in self._files:
            file.touch()
        variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        words = list(map(str, arguments))
        self.process = _CONTEXT.Process(target=_run, args=(words, variables, self._files))
        with patch.dict(os.environ, PYTHONPATH=str(ROOT)):  # wherever the server is started
            forkserver.ensure_running()
        self.process.start()
        self.started.append(self)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    @property
    def stdout(self) -> str:
        """What it has written until now."""
        return self._files[0].read_text()

    @property
    def stderr(self) -> str:
        return self._files[1].read_text()

    def poll(self) -> int | None:
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float = 600) -> int:
        """Return the exit code; the negative of a signal's number where that ended it."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("python", timeout, self.stdout, self.stderr)
        return self.process.exitcode

    def wait_for(self, text: str, timeout: float = 300) -> None:
        """Return when its output holds a text."""
        deadline = time.monotonic() + timeout
        while text not in self.stdout:
            assert self.poll() is None and time.monotonic() < deadline, self.stdout + self.stderr
            time.sleep(0.005)


def run(*arguments: object, timeout: float = 600, **environment: str) -> Program:
    """Run `python *arguments` to its end."""
    program = Program(*arguments, **environment)
    program.wait(timeout)
    return program


def kill_all() -> None:
    """End what a test that failed has left running."""
    for program in Program.started:
        if program.poll() is None:
            program.kill()
            program.process.join()
    Program.started.clear()


def _run(arguments: list[str], variables: dict[str, str], files: list[Path]) -> None:
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(variables)
    for target, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), target)
    sys.stdout.reconfigure(line_buffering=True)
    if "torch" in sys.modules:  # which has asked for the number of threads already
        sys.modules["torch"].set_num_threads(int(variables["OMP_NUM_THREADS"]))
    try:
        match arguments:
            case ["-c", code, *given]:
                sys.argv = ["-c", *given]
                exec(code, {"__name__": "__main__"})
            case ["-m", module, *given]:
                sys.argv = [module, *given]
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            case [script, *given]:
                sys.argv = [script, *given]
                runpy.run_path(script, run_name="__main__")
    finally:
        atexit._run_exitfuncs()
