"""Feed damaged files to every reader: `python -m tools.fuzz --minutes M [--json FILE]`.

Each file is a small valid one with a few edits. A reader may read it or refuse it by `InputError`; anything else is a
finding: another error, a process that dies, one that takes too long or too much memory. Readers run in a process of
their own, so that what ends it is known. The formats `content-...` are compressed volumes with damage to the stream:
reading other voxels than were written is a finding, too. An execution is named by its format and number, and can be
repeated alone: `python -m tools.fuzz --format nii --only 1234`.
"""

import argparse
import json
import logging
import os
import random
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from data.errors import InputError, run_command
from data.files import write_json
from data.loading.augmentation import Augmentation
from data.loading.slices import ImageFolderSlices, typical_mr_window
from data.loading.unaligned_dataset import Draw, open_unaligned
from data.prepared.manifest import read_manifest
from data.prepared.training_statistics import training_statistics
from data.settings.parser import CommandParser
from data.volumes.outputs import check_free
from data.volumes.volume import Volume, read_volume
from models.inference_settings import FILE_NAME as SETTINGS_NAME
from models.state_dicts import load_checkpoint
from models.synthesis import load_synthesiser, synthesize_volume
from tools.fuzz_samples import CONTENT, SETTINGS, SIZE, SLICES, SPACING_MM, content_volume, write_samples

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
# A sample holds a few kB: a reader that wants this much more than it had before believes a header's lies.
MEMORY_BYTES = 512 << 20
SECONDS = 30.0  # for one file, on a machine that is busy otherwise
# What a reader says that was stopped by the limit above, and not by its own judgement.
_MEMORY_WORDS = ("bad_alloc", "allocate", "out of memory", "memoryerror")


def _train_on(path: Path) -> None:
    """Open a data set as training does, and read a sample of it."""
    dataset = open_unaligned(path.parent, "percentile", SETTINGS.ct, Augmentation(preprocess="none"), True, seed=0)
    sample = dataset[Draw(1, 0, 0, 0)]
    if isinstance(sample, Exception):
        raise sample
    manifest = read_manifest(path.parent)
    training_statistics(manifest)
    typical_mr_window(manifest, "percentile")


def _use_model(path: Path) -> None:
    synthesiser = load_synthesiser(path.parent, "latest", torch.device("cpu"))
    mr = Volume(np.arange(SLICES * SIZE**2, dtype=np.float32).reshape(SLICES, SIZE, SIZE), (SPACING_MM,) * 3)
    synthesize_volume(mr, synthesiser, np.ones(mr.array.shape, bool), batch_size=1)


def _read_the_same(name: str) -> Callable[[Path], None]:
    """Return a reader of a volume of `CONTENT`, which must be refused or be the volume that was written."""
    truth = content_volume().array

    def read(path: Path) -> None:
        array = read_volume(path.with_name(CONTENT[name][1])).array
        if not np.array_equal(array, truth):
            raise AssertionError(f"misread: {np.count_nonzero(array != truth)} voxels are others than were written")

    return read


def _read_image(path: Path) -> None:
    ImageFolderSlices(path.parent, path.parent, with_masks=False).read(0, False)


# By format: the file's name, below its folder, and what reads it. For DICOM the folder is what is read.
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "nii": ("mr.nii", read_volume),
    "nii.gz": ("mr.nii.gz", read_volume),
    "nrrd": ("mr.nrrd", read_volume),
    "mha": ("mr.mha", read_volume),
    "mhd": ("mr.mhd", read_volume),
    "dicom": ("dicom/slice2.dcm", lambda path: read_volume(path.parent)),
    "png": ("slice.png", _read_image),
    "manifest": ("manifest.json", _train_on),
    "npy": ("trainA/caseA.npy", lambda path: _train_on(path.parent)),
    "settings": (SETTINGS_NAME, _use_model),
    "checkpoint": ("weights.pth", load_checkpoint),
    **{name: (f"content/{file}", _read_the_same(name)) for name, (file, _) in CONTENT.items()},
}
TEXT_FORMATS = ("manifest", "settings")
# What text headers begin with, of MetaImage and NRRD.
_TEXT_HEADS = (b"Obje", b"NRRD")
# Ends, signs and sizes that readers are known to stumble over, as text and as bytes of either order.
WORDS = [b"-1", b"0", b"1", b"30000", b"65536", b"4294967296", b"9223372036854775807", b"nan", b"inf", b"1e308", b"",
         b"null", b"[]", b"{}", b'""', b"true", b"\xff\xff", b"\x00" * 4, b"\xff\xff\xff\x7f", b"\x80\x00\x00\x00",
         b"-7.5", b'"x"', b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"../../etc/passwd", b"%s%n",
         b"A" * 300]  # fmt: skip


@dataclass(frozen=True)
class Edit:
    """One change to a file: at a share `place` (0 to 1) of its length, `removed` bytes give way to `inserted`."""

    place: float
    removed: int
    inserted: bytes

    def apply(self, data: bytes) -> bytes:
        """Return the file's bytes after the change."""
        start = round(self.place * len(data))
        return data[:start] + self.inserted + data[start + self.removed :]


def random_edits(rng: random.Random, data: bytes, header: int) -> list[Edit]:
    """Return one to four edits, most of them in the first `header` bytes, where formats keep what they believe."""
    edits = []
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        end = len(data) if rng.random() < 0.2 else min(header, len(data))
        start = rng.randrange(end)
        kind = rng.randrange(5)
        if kind == 0:
            removed, inserted = 1, bytes([data[start] ^ 1 << rng.randrange(8)])
        elif kind == 1:
            inserted = rng.choice(WORDS)
            removed = len(inserted) if rng.random() < 0.5 else rng.randrange(1, 9)
        elif kind == 2:
            removed, inserted = rng.randrange(1, 32), b""
        elif kind == 3:
            copied = rng.randrange(len(data))
            removed, inserted = rng.randrange(16), data[copied : copied + rng.randrange(1, 64)]
        else:
            removed, inserted = (len(data), b"") if rng.random() < 0.3 else (4, rng.randbytes(4))
        edits.append(Edit(start / len(data), removed, inserted))
    if rng.random() < 0.4:
        edits.append(_changed_word(rng, data[:header], len(data)))
    return edits


def damaged_stream(rng: random.Random, data: bytes) -> bytes:
    """Return a file with damage as disks, memory and transfers make it, to its stream: headers have no checksum."""
    text = max(data.find(mark) + len(mark) for mark in (b"= LOCAL\n", b"\n\n")) if data[:4] in _TEXT_HEADS else 0
    start = rng.randrange(text, len(data))
    length = min(rng.choice((1, 16, 512, 4096)), len(data) - start)
    kind = rng.randrange(8)
    if kind < 3:
        return data[:start] + bytes([data[start] ^ 1 << rng.randrange(8)]) + data[start + 1 :]
    if kind == 3:
        return data[:start] + bytes(length) + data[start + length :]
    if kind == 4:
        return data[:start]
    if kind == 5:
        return data[:start] + data[start + length :]
    if kind == 6:
        return data[:start] + rng.randbytes(length) + data[start + length :]
    return data + rng.randbytes(length)


def _changed_word(rng: random.Random, header: bytes, length: int) -> Edit:
    """Return an edit that puts another word in place of a whole number or value of a text header."""
    starts = [k for k in range(1, len(header)) if header[k - 1 : k] in b' ,:=(["' and header[k : k + 1].isalnum()]
    if not starts:
        return Edit(0.0, 4, rng.choice(WORDS))
    start = rng.choice(starts)
    end = start
    while end < len(header) and header[end : end + 1] not in b' ,:)]"\n':
        end += 1
    return Edit(start / length, end - start, rng.choice(WORDS))


class Reader:
    """A process that reads files of one format, with limits; it is started again when it dies.

    Args:
        name: one of `READERS`.
        folder: for its files; a whole sample lies there between executions.
    """

    def __init__(self, name: str, folder: Path) -> None:
        """Write the samples; the process starts with the first file."""
        self.name, self.folder = name, folder / name
        write_samples(self.folder)
        self.path = self.folder / READERS[name][0]
        self.sample = self.path.read_bytes()
        self._process: subprocess.Popen | None = None

    def try_bytes(self, data: bytes) -> tuple[str, str]:
        """Return what became of a file, 'read', 'refused' or a finding, and the message."""
        if self._process is None:
            self._start()
        self.path.write_bytes(data)
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], SECONDS)
        if not ready:
            self.close()
            return "hang", f"no answer within {SECONDS:g} s"
        answer = self._process.stdout.readline()
        if not answer:
            code = self._process.wait()
            self.close()
            return "died", f"the process ended with {code}"
        return tuple(json.loads(answer))

    def _start(self) -> None:
        self.path.write_bytes(self.sample)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools.fuzz", "--serve", self.name, str(self.path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT, env=environment,
        )  # fmt: skip
        assert self._process.stdout.readline() == b"ready\n", "the reading process did not start"

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@contextmanager
def open_reader(name: str) -> Iterator[Reader]:
    """Open a `Reader` in a folder of its own, for a while."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        reader = Reader(name, Path(folder))
        try:
            yield reader
        finally:
            reader.close()


def serve(name: str, path: Path) -> None:
    """Read `path` whenever a line comes in, and answer with what became of it, one JSON line each."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints is no answer
    read = READERS[name][1]
    read(path)  # all is imported before memory is limited
    limit = psutil.Process().memory_info().vms + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    answers.write(b"ready\n")
    for _ in sys.stdin:
        answers.write(json.dumps(_attempt(read, path)).encode() + b"\n")


def _attempt(read: Callable[[Path], object], path: Path) -> tuple[str, str]:
    try:
        read(path)
    except InputError as error:
        greedy = any(word in str(error).lower().replace("bitsallocated", "") for word in _MEMORY_WORDS)
        return ("memory" if greedy else "refused"), str(error)
    except MemoryError as error:
        return "memory", f"{error!r}\n{_last_lines()}"
    except BaseException as error:
        return "error", f"{error!r}\n{_last_lines()}"
    return "read", ""


def _last_lines() -> str:
    return "".join(traceback.format_exc().splitlines(keepends=True)[-8:])


def mutated(name: str, sample: bytes, seed: int, number: int) -> bytes:
    """Return the file of an execution."""
    rng = random.Random(f"{seed} {name} {number}")
    data = sample
    if name in CONTENT:
        return damaged_stream(rng, data)
    if name in TEXT_FORMATS and rng.random() < 0.8:  # bytes that are no JSON are refused at once
        return _changed_word(rng, data, len(data)).apply(data)
    for edit in random_edits(rng, data, header=_header_bytes(name, data)):
        data = edit.apply(data)
    return data


def _header_bytes(name: str, data: bytes) -> int:
    return len(data) if name in (*TEXT_FORMATS, "png", "checkpoint", "nii.gz") else 700


def run_format(name: str, seconds: float, seed: int, first: int = 0, count: int | None = None) -> dict:
    """Fuzz one format for a while, or `count` files from number `first`; return its figures and findings."""
    outcomes, findings, seen = Counter(), [], set()
    number = first
    with open_reader(name) as reader:
        reader.try_bytes(reader.sample)  # the process starts, which takes seconds
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and (count is None or number < first + count):
            outcome, message = reader.try_bytes(mutated(name, reader.sample, seed, number))
            outcomes[outcome] += 1
            kind = (outcome, message.partition("(")[0] if outcome == "error" else "")
            if outcome not in ("read", "refused"):
                if kind not in seen:  # of one kind, the first is told
                    log.warning("%s %d: %s: %s", name, number, outcome, message)
                    findings.append({"number": number, "outcome": outcome, "message": message})
                seen.add(kind)
            number += 1
    return {"executions": sum(outcomes.values()), **outcomes, "findings": findings}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command's options."""
    parser = CommandParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=1.0, help="minutes for all formats together (default %(default)s)"
    )
    parser.add_argument("--format", choices=READERS, action="append", help="only this format; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other files (default %(default)s)")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="only this execution")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and findings")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --json")
    parser.add_argument("--serve", nargs=2, metavar=("FORMAT", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only is not None and len(options.format or []) != 1:
        parser.error("--only: choose the format with --format")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Fuzz, say what was found, and return 0, or 1 where there is a finding."""
    opt = parse(arguments)
    if opt.serve:
        serve(opt.serve[0], Path(opt.serve[1]))
        return 0
    if opt.json:
        check_free([opt.json], "--json", overwrite=opt.overwrite)
    names = opt.format or list(READERS)
    first, count = (0, None) if opt.only is None else (opt.only, 1)
    figures = {}
    for name in names:
        figures[name] = run_format(name, 60 * opt.minutes / len(names), opt.seed, first, count)
        parts = ", ".join(f"{value} {key}" for key, value in figures[name].items() if key != "findings")
        log.info("%s: %s", name, parts)
    found = sum(len(one["findings"]) for one in figures.values())
    executions = sum(one["executions"] for one in figures.values())
    log.info("%d executions, %d kinds of findings", executions, found)
    if opt.json:
        write_json(opt.json, {"seed": opt.seed, "executions": executions, "findings": found, "formats": figures})
    return 1 if found else 0


if __name__ == "__main__":
    run_command(main)
