"""The volumes of a folder by case name, as commands that score take them.

A path is either one volume (a file, or a folder with one DICOM series in it) or a folder of cases. In a
folder of cases the pattern tells where a case lies and how it is called: a path below the folder in which
``{case}`` stands for the case name, e.g. ``{case}.mha``, ``{case}/ct.nii.gz`` or ``{case}/{case}_CT.nii.gz``
(twice the same name). Without a pattern the volume files directly in the folder count, and the case name is
the file name less its volume suffix. Names are cleaned as those of results are: ``P 07`` is ``P_07``. Files and
folders whose name starts with a dot are skipped.
"""

import glob
import re
from dataclasses import dataclass
from pathlib import Path

from data.errors import InputError
from data.files import not_there
from data.prepared.case_names import clean
from data.volumes.dicom import list_series
from data.volumes.volume import WRITABLE_SUFFIXES, volume_stem, volume_suffix

CASE = "{case}"


@dataclass(frozen=True)
class CaseVolumes:
    """What one option names: a volume or a folder of cases, and the pattern of the latter.

    `kind`: what the volumes are: 'ct', 'sct' (synthetic), 'mr', 'mask', or '' where names do not tell.
    `takes_pattern`: whether the command has an option for the pattern.
    `pattern_called`: that option, where it is not called after `option`.
    """

    option: str
    path: Path
    pattern: str | None = None
    kind: str = ""
    takes_pattern: bool = True
    pattern_called: str = ""

    @property
    def pattern_option(self) -> str:
        """The option that gives the pattern."""
        return self.pattern_called or f"{self.option}_pattern"

    @property
    def example(self) -> str:
        """A pattern to show."""
        return f"'{CASE}/{self.kind or 'ct'}.nii.gz'"


def search(source: CaseVolumes) -> dict[str, Path] | None:
    """Return the volumes of a folder of cases by case name, sorted, or None if the source is a single volume.

    Raises:
        InputError: the path is missing, two files claim one case, or a pattern is unusable.
    """
    path, pattern = source.path, source.pattern
    if not path.exists():
        raise InputError(f"{source.option} {path}: {not_there(path)}")
    if path.is_file() or (pattern is None and list_series(path)):
        if pattern is not None:
            raise InputError(f"{source.pattern_option} {pattern}: {path} is a file; a pattern needs a folder of cases")
        return None
    found: dict[str, Path] = {}
    for name, file in _matches(source):
        if name in found:
            raise InputError(f"{source.option}: case {name} is both {found[name]} and {file}; keep one of them")
        found[name] = file
    return dict(sorted(found.items()))


def nothing_found(source: CaseVolumes) -> str:
    """Return the beginning of the error for a folder without cases."""
    if source.pattern:
        return f"{source.option} {source.path}: found nothing for {source.pattern}"
    return f"{source.option} {source.path}: no file ending in {' or '.join(WRITABLE_SUFFIXES)} lies in it"


def _matches(source: CaseVolumes) -> list[tuple[str, Path]]:
    """Return (case name, path) for all that matches the source's pattern, or its volume files without one."""
    if source.pattern is None:
        files = [file for file in sorted(source.path.iterdir()) if volume_suffix(file) in WRITABLE_SUFFIXES]
        return [(clean(volume_stem(file)), file) for file in files if file.is_file() and file.name[0] != "."]
    head, *tail = re.split(r"\{case\}", source.pattern)
    place = Path(source.pattern)
    if not tail or place.is_absolute() or ".." in place.parts or "*" in source.pattern:
        raise InputError(
            f"{source.pattern_option} {source.pattern}: expected a path below {source.path} with {{case}} "
            f"for the case name and no *, e.g. {source.example}"
        )
    regex = re.escape(head) + r"(?P<case>[^/.][^/]*)" + r"(?P=case)".join(map(re.escape, tail))
    matches = []
    for path in sorted(source.path.glob("*".join(glob.escape(part) for part in (head, *tail)))):
        match = re.fullmatch(regex, path.relative_to(source.path).as_posix())
        if match:
            matches.append((clean(match["case"]), path))
    return matches
