"""Read DICOM slices with GDCM in a separate process, if a file could crash the reader.

A dead reader costs its series alone, and the slice that it died of is named. Ordinary slices are read in this process:
nothing that their decoders could stumble over is in them.
"""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import SimpleITK as sitk

ROOT = Path(__file__).resolve().parents[2]
# GDCM calls itself for each sequence in a sequence. An item's tag stands before each, in one byte order or the other.
_ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_HARMLESS_ITEMS = 500
# A thousand slices of JPEG 2000 take a minute.
_SECONDS = 1800


class ReaderError(RuntimeError):
    """The slices cannot be read: GDCM reported an error, or crashed."""


def is_nested(file: Path) -> bool:
    """Tell whether a DICOM file may hold sequences nested so deeply that GDCM overflows its stack."""
    data = file.read_bytes()
    return sum(data.count(tag) for tag in _ITEM_TAGS) > _HARMLESS_ITEMS


def read_slices(files: Sequence[Path], pixel_type: int | None, apart: bool) -> sitk.Image:
    """Return the slices of files as one image, in their order.

    Args:
        files: DICOM slices.
        pixel_type: of the image, SimpleITK's number; None takes the first slice's.
        apart: in a process of its own.

    Raises:
        ReaderError: they cannot be read.
    """
    if not apart:
        try:
            return _read(list(map(str, files)), pixel_type)
        except RuntimeError as error:
            raise ReaderError(str(error)) from error
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "image.mha")
        done = _start({"files": [str(file.absolute()) for file in files], "type": pixel_type, "out": str(out)})
        if done.returncode:
            raise ReaderError(_ending(done))
        return sitk.ReadImage(str(out))


def find_unreadable(files: Sequence[Path]) -> tuple[Path, str] | None:
    """Return the first file that cannot be read by itself, and what ended the attempt; None if all can."""
    done = _start({"files": [str(file.absolute()) for file in files], "out": None})
    return (files[len(done.stdout.split()) - 1], _ending(done)) if done.returncode and done.stdout else None


def _start(task: dict) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [sys.executable, "-m", "data.volumes.reader_process"], input=json.dumps(task), cwd=ROOT,
            capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ReaderError(f"no answer within {_SECONDS} s") from error


def _ending(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"its reader crashed with {signal.Signals(-done.returncode).name}"
    return (done.stderr.strip().splitlines() or ["no reason given"])[-1]


def _read(files: list[str], pixel_type: int | None) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    if pixel_type is not None:
        reader.SetOutputPixelType(pixel_type)
    return reader.Execute()


def _serve() -> None:
    """Do the task on standard input: write the image, or name each file by a dot before reading it."""
    task = json.load(sys.stdin)
    if task["out"]:
        sitk.WriteImage(_read(task["files"], task["type"]), task["out"])
        return
    for file in task["files"]:
        print(".", flush=True)
        sitk.ReadImage(file)


if __name__ == "__main__":
    _serve()
