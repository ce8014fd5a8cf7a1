"""Whether a data set can be trained on: volumes of each domain, MR and CT not swapped, MR where a method needs it."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.errors import InputError
from data.prepared.manifest import Case, Manifest
from data.prepared.sources import Source
from data.prepared.volume_jobs import Failure
from data.values.modality import SWAPPED

# Sources by (split, domain).
Groups = Mapping[tuple[str, str], Sequence[Source]]


def check_trainable(root: Path, groups: Groups, cases: Sequence[Case], failures: Sequence[Failure]) -> None:
    """Refuse a data set without a volume to train on in a domain that `groups` has, and MR and CT that are swapped.

    Raises:
        InputError: it says which volumes failed, and why; of swapped ones only how many they are.
    """
    for split in ("train", "test"):
        found = [_count_of_swapped(groups.get((split, domain), ()), failures) for domain in "AB"]
        if all(found):
            test = "test_" if split == "test" else ""
            raise InputError(
                f"{root}: MR and CT look swapped: {found[0]} volumes of --{test}mr have values as low as those of CT, "
                f"{found[1]} of --{test}ct have none; give the globs the other way round"
            )
    wanted = {domain for split, domain in groups if split == "train"}
    left = {case.domain for case in cases if case.split == "train"}
    if wanted - left:
        lacking = " and ".join(name for domain, name in (("A", "MR"), ("B", "CT")) if domain in wanted - left)
        reasons = "".join(f"\n  {failure.reason}" for failure in failures)
        raise InputError(f"{root}: no volume left to train on of {lacking}; failed:{reasons or ' none'}")


def _count_of_swapped(sources: Sequence[Source], failures: Sequence[Failure]) -> int:
    """Return how many volumes have the other modality's values, if all failed and most of them by that; else 0."""
    paths = {source.path for source in sources}
    failed = {failure.source.path: failure.reason for failure in failures if failure.source.path in paths}
    swapped = [path for path, reason in failed.items() if SWAPPED in reason]
    return len(swapped) if failed.keys() == paths and 2 * len(swapped) > len(paths) else 0


def check_has_mr(root: Path, manifest: Manifest, what: str) -> None:
    """Refuse a data set that was prepared without MR to train on, for `what` needs it.

    Raises:
        InputError: it gives the command that adds MR and leaves the slices of the CT as they are.
    """
    if manifest.select("train", "A"):
        return
    frame = {"size": manifest.size, "spacing_mm": f"{manifest.spacing_mm:g}"}
    frame |= {"slice_mm": f"{manifest.slice_mm:g}"} if manifest.slice_mm else {}
    frame |= {"view": manifest.view} if manifest.view != "axial" else {}
    words = [word for name, value in frame.items() for word in (f"--{name}", str(value))]
    raise InputError(
        f"{root}: prepared without MR, which {what} needs; add MR with: python -m scripts.prepare_dataset --mr GLOB "
        f"--ct GLOB {shlex.join(['--out', str(root), *words])}"
    )
