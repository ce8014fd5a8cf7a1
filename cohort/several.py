"""A folder of several volumes, given where one patient is converted: which commands convert them."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from cohort.inputs import glob_below
from data.commands import python_command
from data.errors import InputError
from data.volumes.dicom import holds_slices
from evaluation.patterns import kind_of, propose_glob, volumes_below


def refuse_several(path: Path, model: Sequence[object], kind: str) -> None:
    """Refuse a folder that holds no DICOM series itself, but volumes below it.

    Args:
        path: what was given as one volume.
        model: the options that choose the model, and what is made with it.
        kind: what the model takes, "mr" or "ct".

    Raises:
        InputError: it gives the first volume that may be of this kind, and the command that converts all.
    """
    if not path.is_dir() or holds_slices(path) or not (there := volumes_below(path)):
        return
    called_so, unknown = ([volume for volume in there if kind_of(volume.as_posix()) == one] for one in (kind, ""))
    fitting = called_so or unknown
    proposed = fitting or there
    others = set(there) - set(proposed)
    count = "1 volume" if len(there) == 1 else f"{len(there)} volumes"
    way_out = f"Give one volume: --input {shlex.quote(str(path / proposed[0]))}"
    pattern = propose_glob(proposed, others, lambda glob: glob_below(path, glob)) if others else None
    if len(fitting) > 1 and (pattern[1] > 1 if pattern else not others):
        words = ["--input_dir", path, *(["--pattern", pattern[0]] if pattern else [])]
        which = f"{pattern[1]} of them" if pattern else "all"
        way_out += f"; or convert {which}: {python_command('test_pipeline.py', *model, *words)}"
    raise InputError(f"{path}: a folder of {count}, not a DICOM series; this command converts one patient. {way_out}")
