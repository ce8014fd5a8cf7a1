"""Files and folders: written completely or not at all, never a pipe or a device; JSON files, and hashes of files."""

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import InputError, did_you_mean

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


@contextmanager
def _scratch_beside(path: Path) -> Iterator[Path]:
    """Yield a scratch folder beside `path`, removed at the end; an error of writing becomes one clear message."""
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
        yield scratch
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error}") from error
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path of the same name to write to; when the block ends without error, that file becomes `path`.

    The data reach the disk before the name does. Further files that the block writes beside the yielded path move
    along, the named one last: a header that names a data file never points to nothing.

    Raises:
        InputError: the file cannot be written.
    """
    with _scratch_beside(path) as scratch:
        yield scratch / path.name
        for written in sorted(scratch.iterdir(), key=lambda file: file.name == path.name):
            _to_disk(written)
            written.replace(path.parent / written.name)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to write files into; when the block ends without error, that folder becomes `path`.

    A folder that is there already is taken away then, with all that it holds: whoever calls this knows that it may be.

    Raises:
        InputError: the folder cannot be written.
    """
    with _scratch_beside(path) as scratch:
        folder = scratch / path.name
        folder.mkdir()
        yield folder
        for written in folder.rglob("*"):
            if written.is_file():
                _to_disk(written)
        _take_place(folder, path, former=scratch / "former")


def _take_place(written: Path, path: Path, former: Path) -> None:
    """Rename a folder to `path`, and the old one to `former`; if the first fails, the second is undone."""
    replaced = os.path.lexists(path)
    if replaced:
        path.rename(former)
    try:
        written.rename(path)
    except OSError:
        if replaced:
            former.rename(path)
        raise


def _to_disk(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def check_regular(path: Path) -> None:
    """Refuse a named pipe, a device or a socket, which would be read without end.

    Raises:
        InputError: the path is there, and is neither a file nor a folder.
    """
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise InputError(f"{path}: {_KINDS.get(kind, 'a special file')}; expected a file: save the data to one first")


def names_in(folder: Path) -> list[str]:
    """Return the names of what a folder holds, without hidden ones; none where it cannot be read."""
    try:
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def not_there(path: Path, kind: str = "file or folder") -> str:
    """Return what is missing of a path, itself or a folder above it, and the name there that may be meant."""
    gone = next((folder for folder in reversed(path.parents) if not folder.exists()), path)
    if gone.is_symlink():
        return f"{gone} is a link to what is not there: {gone.readlink()}"
    is_folder = kind == "folder" or gone != path
    what = f"no such {kind}" if gone == path else f"no such folder: {gone}"
    near = [name for name in names_in(gone.parent) if not is_folder or (gone.parent / name).is_dir()]
    return what + did_you_mean(gone.name, near)


def check_is_folder(option: str, path: Path) -> None:
    """Refuse what is no folder.

    Raises:
        InputError: it is a file, or not there; it names the folder that may be meant.
    """
    if path.is_dir():
        return
    found = "is a file; expected a folder" if path.exists() else not_there(path, "folder")
    raise InputError(f"{option} {path}: {found}")


def remove(path: Path, folder: bool = False) -> None:
    """Remove a file or link, with `folder` a folder and all that it holds, too; nothing where there is none.

    Raises:
        InputError: it cannot be removed.
    """
    try:
        if folder and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: made earlier, cannot be removed: {error}") from error


def write_json(path: Path, data: dict) -> Path:
    """Write JSON to `path`; the file appears whole or not at all.

    Raises:
        InputError: the folder cannot be written.
    """
    with whole_file(path) as scratch:
        scratch.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    return path


def read_json(path: Path) -> dict:
    """Return the named values that a JSON file holds; of what kind they are is not checked.

    Raises:
        InputError: it is missing, no regular file, cannot be read, torn, nested too deeply, or holds no named values.
    """
    try:
        check_regular(path)  # a named pipe would be waited for
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: damaged, cannot be read as JSON: {error}; restore the file or make it again"
        ) from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: damaged, holds a {type(data).__name__}; expected named values: restore the file")
    return data


def hash_files(files: Iterable[Path]) -> str:
    """Return one SHA-256 of the bytes of several files, in this order.

    Raises:
        InputError: a file is missing or cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        try:
            check_regular(file)
            with file.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error}") from error
    return digest.hexdigest()
