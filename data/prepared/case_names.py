"""The names of cases and of their results: one rule for all commands.

A case is called after its file, without the ending, or after the folder of its DICOM series. A name that only says what
the image is (`mr`, `MR_T1`, `DICOM`, `SE000001`, a UID) is left out, and so the folder above it names the case:
`STS_024/MR_T1` is `STS_024`, `P07/mr.nii.gz` is `P07`. It does so only if it is short and has a number, as patients'
folders are, and only if the user wrote it down: `downloads/mr.nii.gz` is `mr`, and so is `mr.nii.gz` alone. Of volumes
that are searched for below a folder, the folders in between are part of the name, joined by two underscores:
`siteA/P07/mr.nii.gz` is `siteA__P07`. A folder that the file's name repeats is not: `P07/P07_mr.nii.gz` is `P07_mr`.

A name depends on the path alone, so further patients rename no earlier ones. Only if two volumes would share a name
are all parts of their paths used: `P07__mr` and `P07__t2`.
"""

import glob
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data.volumes.contrasts import without_name
from data.volumes.volume import volume_stem

_KINDS = frozenset(
    "mr mri ct t1 t1w t2 t2w image images img volume vol series study scan dicom dcm anat mask".split()
)  # words that say what an image is, not whose
# Folders as exports name them (ST000001, SE000001), and UIDs.
_EXPORTED = re.compile(r"(st|se|ser)\d{5,}|\d+(\.\d+){4,}", re.IGNORECASE)
_LIKE_A_PATIENT = re.compile(r"(?=.*\d).{1,20}")
_NOT_IN_A_NAME = re.compile(r"[^\w.+-]+")
# File systems take 255 bytes; endings and the folder that a file is written in need some.
NAME_BYTES = 180


def case_name(path: Path, root: Path | None = None) -> str:
    """Return the name of the volume at `path`, found below `root`; None: it was named, not searched for."""
    root = root or path.parent
    parts = _parts(path, root)
    telling = [part for part in parts if names_somebody(part)]
    if not telling:
        above = next((part for part in reversed(root.parts) if names_somebody(part) or part == ".."), "..")
        telling = [above] if _LIKE_A_PATIENT.fullmatch(above) else []
    telling = [part for part in telling[:-1] if not _repeats(telling[-1], part)] + telling[-1:]
    return _joined(telling or parts)


def name_without(name: str, contrast: str, path: Path) -> str:
    """Return a case's `name` without that of the contrast at `path`; that of the folder where nothing else is left."""
    return without_name(name, contrast) or case_name(path.absolute().parent)


def full_name(path: Path, root: Path) -> str:
    """Return the name that tells `path` from every other below `root`: all parts of it."""
    return _joined(_parts(path, root))


def name_cases(paths: Sequence[Path], roots: Sequence[Path]) -> list[str]:
    """Return the name of each volume below its root; those that would share one get all parts of their paths.

    Paths that differ in replaced characters alone, like `A B` and `A_B`, still share one.
    """
    names = [case_name(path, root) for path, root in zip(paths, roots, strict=True)]
    counts = Counter(names)
    named = zip(names, paths, roots, strict=True)
    return [name if counts[name] == 1 else full_name(path, root) for name, path, root in named]


def searched_folder(pattern: str) -> Path:
    """Return the folder that a glob searches: its parts before the first wildcard; of a plain path, its folder."""
    path = Path(pattern)
    if not glob.has_magic(pattern):
        return path.parent
    plain = next(k for k, part in enumerate(path.parts) if glob.has_magic(part))
    return Path(*path.parts[:plain])


def below(root: Path, path: Path) -> Path:
    """Return what `path.relative_to(root)` does, which in folders 1,500 deep takes minutes."""
    return Path(*path.parts[len(root.parts) :])


def clean(name: str) -> str:
    """Return a name with an underscore for everything but letters, digits and `_ . + -`, and without dots before it."""
    return _NOT_IN_A_NAME.sub("_", name).lstrip(".")


def is_clean(name: str) -> bool:
    """Tell whether a text can be a case's name as it is."""
    return bool(name) and clean(name) == name and len(name.encode()) <= NAME_BYTES


def short_hash(text: str) -> str:
    """Return eight characters that stand for a text."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]


def words(name: str) -> list[str]:
    """Return the words of a name in lower case."""
    return [word for word in re.split(r"[_\W]+", name.lower()) if word]


def telling_words(name: str) -> set[str]:
    """Return the words of a name but those that only say what the image is: of `P07_MR_T1` it is `p07`."""
    return set(words(name)) - _KINDS


def patient_part(name: str) -> str:
    """Return a name without the words at its ends that only say what the image is: `P07_MR_T1` is `P07`."""
    kinds = "|".join(_KINDS)
    return re.sub(rf"^(({kinds})[\W_]+)+|([\W_]+({kinds}))+$", "", name, flags=re.IGNORECASE)


def names_somebody(part: str) -> bool:
    """Tell whether a part of a path says more than what an image is."""
    return not (_EXPORTED.fullmatch(part) or _KINDS.issuperset(words(part)))


def _parts(path: Path, root: Path) -> list[str]:
    return [*below(root, path).parts[:-1], volume_stem(path)]


def _repeats(name: str, folder: str) -> bool:
    return re.search(rf"(^|[_.+-]){re.escape(folder)}($|[_.+-])", name) is not None


def _joined(parts: Sequence[str]) -> str:
    """Return one file name of the parts of a path; too long ones end with a hash of the whole."""
    name = "__".join(map(clean, parts))
    if len(name.encode()) <= NAME_BYTES:
        return name
    return f"{name.encode()[-NAME_BYTES:].decode(errors='ignore')}__{short_hash('/'.join(parts))}"
