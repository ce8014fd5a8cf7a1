"""What lies at a path: a volume file, a DICOM series, a folder; the paths of a glob; a volume's files."""

import errno
import glob
from collections.abc import Iterator
from pathlib import Path

from data.errors import InputError
from data.files import hash_files
from data.volumes.dicom import holds_dicom, holds_slices
from data.volumes.volume import volume_files, volume_suffix


def find_paths(pattern: str) -> list[Path]:
    """Return what `glob.glob` with `**` does, but follow no symbolic link into a folder that it lies in.

    Round such a loop there are paths without end; glob takes all of up to 40 links, which with two loops are 2^40.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        return [Path(match) for match in glob.glob(pattern)]
    split = parts.index("**")
    found = []
    below = Path(*(parts[split + 1 :] or "*"))
    for base in glob.glob(str(Path(*parts[:split]))):
        for folder in _folders_below(Path(base)):
            found += [folder] if parts[-1] == "**" else []
            if "**" in below.parts:
                inside = find_paths(str(Path(glob.escape(str(folder)), below)))
            else:
                inside = [folder / match for match in glob.glob(str(below), root_dir=folder)]
            found += [path for path in inside if parts[-1] != "**" or is_regular_file(path)]
    return list(dict.fromkeys(found))


def _folders_below(top: Path) -> Iterator[Path]:
    """Yield a folder and those below it that are not hidden, in order, each before what it holds.

    One that cannot be looked into is yielded too: whoever reads it says why.
    """
    # Each with what identifies the folders that it lies in.
    waiting: list[tuple[Path, frozenset]] = [(top, frozenset())]
    while waiting:
        folder, above = waiting.pop()
        try:
            status = folder.stat()
            identity = (status.st_dev, status.st_ino)
            if not is_folder(folder) or identity in above:
                continue
            inside = sorted(path for path in folder.iterdir() if path.name[0] != "." and is_folder(path))
        except OSError:
            inside = []
        if is_folder(folder):
            yield folder
        waiting += [(path, above | {identity}) for path in reversed(inside)]


def is_folder(path: Path) -> bool:
    """Tell whether a path is a folder. One that is too deep to be looked at counts as one, so that it is reported."""
    try:
        return path.is_dir()
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG


def is_regular_file(path: Path) -> bool:
    """Tell whether a path is a regular file. What cannot be looked at counts as one, so that it is reported."""
    try:
        return path.is_file()
    except OSError:
        return True


def is_volume(path: Path) -> bool:
    """Tell whether a file name ends like a volume; DICOM files make one only together."""
    return volume_suffix(path) not in ("", ".dcm", ".img", ".img.gz") and is_regular_file(path)


def is_series(path: Path) -> bool:
    """Tell whether a path is a folder with DICOM slices directly in it; one that cannot be looked at is none."""
    try:
        return path.is_dir() and holds_slices(path)
    except OSError:
        return False


def is_volume_or_series(path: Path) -> bool:
    """Tell whether a path is a volume file, or a folder with DICOM files directly in it.

    What cannot be looked at counts as one, so that it is reported.
    """
    try:
        return holds_dicom(path) if is_folder(path) else is_volume(path)
    except OSError:
        return True


def source_files(path: Path) -> list[Path]:
    """Return a volume's files: its own and the data files of a header, or all files of a (DICOM) folder.

    Raises:
        InputError: they cannot be listed.
    """
    try:
        return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else volume_files(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def hash_source(path: Path) -> str:
    """Return the SHA-256 of a volume's files, `source_files`.

    Raises:
        InputError: a file is missing or cannot be read.
    """
    return hash_files(source_files(path))
