"""The commands of README.md, docs/ and the models' cards, as a shell hands them over; and how each is read and run.

Blocks of indented lines go through bash in a folder where `python` and other programs only note their arguments, so
that variables, loops, globs and the recipes in scripts/ count as they do for a reader.
"""

import contextlib
import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from data.settings.parser import CommandParser
from options import pipeline_options, test_options, train_options

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "checkpoints").rglob("*.md"))]
FIRST_WORD = r"(\.venv/bin/)?python|bash|torchrun|sbatch|git|docker|pip-audit|for|echo|options=|\[?[A-Z_]+="
# Programs that only note how they were called.
NOTED = ("python", "torchrun", "sbatch", "ruff", "mypy")
_NOTE = """#!/bin/bash
until mkdir "$NOTES.lock" 2>/dev/null; do sleep 0.01; done # programs that run at the same time note one after another
printf '%s\\0' "${0##*/}" "$@" $'\\n' >>"$NOTES"
rmdir "$NOTES.lock"
while [ $# -gt 1 ]; do if [ "$1" = --out ]; then mkdir -p "$2"; fi; shift; done
"""


def blocks(page: Path) -> list[str]:
    """Return the blocks of indented lines of a page, outside of fences."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", text, re.MULTILINE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in found]


def shell_blocks(page: Path) -> list[str]:
    """Return the blocks that are for a shell."""
    return [block for block in blocks(page) if re.match(FIRST_WORD, block)]


def inline_commands(page: Path) -> list[str]:
    """Return the commands with arguments that stand within a page's sentences and tables."""
    return re.findall(r"`((?:python|torchrun|sbatch) [^`]*--[^`]+|bash scripts/[^` ]+ [^`]+)`", page.read_text())


def way(page: Path) -> list[str]:
    """Return the blocks for a shell and the commands within sentences, in the order of the page."""
    text = page.read_text()
    places = {command: text.index(f"`{command}`") for command in inline_commands(page)}
    places |= {block: text.index("    " + block.splitlines()[0]) for block in shell_blocks(page)}
    return sorted(places, key=places.__getitem__)


def plain(text: str) -> str:
    """Return shell text without what is meant for readers: brackets around what may be left out, and `...`."""
    text = re.sub(r"\[((?:--|[A-Z_]+=)[^\]\n]*)\]", r"\1", text)
    return re.sub(r" \.\.\.(?=\s|$)", "", re.sub(r"(?<=[a-z])\|[a-z|]+", "", text))


def make_place(folder: Path) -> None:
    """Make a folder in which commands can be noted: the recipes, and programs that note their arguments."""
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name in ("setup.sh", "visdom_offline.sh"):  # these install
        (folder / "scripts" / name).write_text("exit 0\n")
    programs = folder / ".venv/bin"
    programs.mkdir(parents=True)
    for name in NOTED:
        (programs / name).write_text(_NOTE)
        (programs / name).chmod(0o755)


def noted(folder: Path, text: str) -> list[list[str]]:
    """Return the command lines that a block of shell text comes to, in order, in a folder of `make_place`."""
    notes = folder / "notes"
    notes.write_bytes(b"")
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "CI", "DEVICE", "EPOCHS")}
    path = f"{folder / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", plain(text)], cwd=folder, text=True, capture_output=True, timeout=120,
        env=kept | {"PATH": path, "NOTES": str(notes), "STS": "STS"},
    )  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stderr}"
    return [line.split("\0")[:-1] for line in notes.read_text().split("\n\0")[:-1]]


def split(words: list[str]) -> tuple[str, list[str]]:
    """Return the module of a command line, and what it is given."""
    program, *words = words
    if program == "sbatch":
        while words[0].startswith("-"):
            words = words[1:]
        script = {"scripts/slurm_train.sbatch": "train.py", "scripts/slurm_convert.sbatch": "test_pipeline.py"}
        words = [script[words[0]], *words[1:]]
    if program == "torchrun":
        from torch.distributed.run import get_args_parser

        known = get_args_parser().parse_args(words)
        words = [known.training_script, *known.training_script_args]
    return (words[1], words[2:]) if words[0] == "-m" else (words[0].removesuffix(".py"), words[1:])


def run(words: list[str]) -> None:
    """Run a command line in this process: what is tested is not the start of Python."""
    module, arguments = split(words)
    assert importlib.import_module(module).main(arguments) in (None, 0), words


class _Parsed(Exception):
    pass


@contextlib.contextmanager
def _parsing_ends_the_command() -> Iterator[None]:
    parse_args = CommandParser.parse_args

    def parse_and_end(*args, **kwargs):
        parse_args(*args, **kwargs)
        raise _Parsed

    with patch.object(CommandParser, "parse_args", parse_and_end), contextlib.suppress(_Parsed):
        yield
        raise AssertionError("the command has parsed nothing")


def read(words: list[str]) -> None:
    """Let a command's own parser read a line of `noted`; it ends the process where it refuses."""
    name, arguments = split(words)
    command = importlib.import_module(name)
    parsers = {"train": train_options.parse, "test_adapt": test_options.parse, "test_pipeline": pipeline_options.parse}
    parse = parsers.get(name) or getattr(command, "parse", None) or getattr(command, "parse_arguments", None)
    arguments = [re.sub(r"^cuda(:\d)?$", "cpu", word) for word in arguments]  # the line is right; a GPU may be missing
    if parse:
        parse(arguments)
    elif arguments or hasattr(command, "main"):
        with _parsing_ends_the_command():
            command.main(arguments)
