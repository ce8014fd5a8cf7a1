"""What a command may replace: only its own files, unless --overwrite is given."""

import os
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path

from data.errors import InputError
from data.volumes.paths import source_files
from data.volumes.volume import volume_stem, volume_suffix


def volume_targets(path: Path) -> list[Path]:
    """Return the files that `write_volume` makes for a path: a .mhd has its voxels in a .raw beside it."""
    if volume_suffix(path) != ".mhd":
        return [path]
    return [path, path.with_name(f"{volume_stem(path)}.raw")]


def check_free(
    targets: Iterable[Path],
    option: str,
    inputs: Iterable[Path] = (),
    made: Collection[Path] | None = None,
    overwrite: bool | None = False,
) -> None:
    """Refuse to replace existing files. Call it before the work and, if that takes long, again before writing.

    Args:
        targets: files and folders that are to be written.
        option: the option that says where they go, for the message.
        inputs: volumes and other files that the command reads; their files are never written over.
        made: targets that a former run of the same command made for the same input; they may be renewed. None where
            the command keeps no account of that.
        overwrite: whether other files may be replaced; None if the command has no --overwrite.

    Raises:
        InputError: a target is an input, or is there already and may not be replaced.
    """
    read = {identity for path in inputs for file in _files(path) if (identity := _identity(file))}
    for target in targets:
        if _identity(target) in read:
            raise InputError(f"{target}: is one of the inputs; choose another {option}")
        if overwrite or not _is_taken(target) or target in (made or ()):
            continue
        whose = "" if made is None else ", and was not made by this command from this input"
        way_out = "move it away" if overwrite is None else "replace it with --overwrite"
        raise InputError(f"{target}: exists already{whose}; choose another {option}, or {way_out}")


def check_writable(target: Path, option: str) -> None:
    """Refuse a place where nothing can be written. Call it before long work; it leaves nothing there.

    Raises:
        InputError: no file can be made in the folder of the target, or where that folder would be made.
    """
    folder = next(parent for parent in target.absolute().parents if os.path.lexists(parent))
    try:
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"{target}: cannot be written: nothing can be made in {folder}: {error.strerror}; choose another {option}"
        ) from error


def _is_taken(target: Path) -> bool:
    """Tell whether something would be lost: an empty folder is nothing."""
    if target.is_dir() and not target.is_symlink():
        return any(target.iterdir())
    return os.path.lexists(target)


def _files(path: Path) -> list[Path]:
    """Return a volume's files; of a damaged one only its own, since reading it will report the damage."""
    try:
        return source_files(path)
    except InputError:
        return [path]


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what identifies a file, whatever its name; None if there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
