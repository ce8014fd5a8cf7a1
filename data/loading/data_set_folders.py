"""Find the data set that a wrong `--dataroot` meant."""

from pathlib import Path

from data.commands import prepare_command
from data.errors import InputError, did_you_mean
from data.prepared.manifest import MANIFEST_NAME

# Where data sets are by default.
_USUAL = Path("datasets")


def is_data_set(folder: Path) -> bool:
    """Tell whether a folder is a prepared data set, or one of images."""
    return (folder / MANIFEST_NAME).exists() or any((folder / name).is_dir() for name in ("trainA", "trainB"))


def check_data_root(root: Path) -> None:
    """Refuse a folder that is not there, or holds no data set.

    Raises:
        InputError: it names the data set that is most likely meant, and those beside, in, or in the usual folder.
    """
    if is_data_set(root):
        return
    places = dict.fromkeys([root, root.parent, _USUAL] if root.is_dir() else [root.parent, _USUAL])
    found = [path for place in places for path in sorted(place.glob("*")) if is_data_set(path)]
    known = [path for k, path in enumerate(found) if not any(path.samefile(earlier) for earlier in found[:k])]
    same = [path for path in known if path.name == root.name]
    near = f"; did you mean {same[0]}?" if same else did_you_mean(root.name, (path.name for path in known))
    what = "no data set: neither a manifest.json nor trainA or trainB in it" if root.is_dir() else "no such folder"
    there = ", ".join(map(str, known[:8])) + (" ..." if len(known) > 8 else "")
    raise InputError(
        f"--dataroot {root}: {what}{near or '.'} "
        + (f"Data sets: {there}" if known else f"Make one with {prepare_command()}")
    )
