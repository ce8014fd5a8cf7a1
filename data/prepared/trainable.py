"""Whether a data set can be trained on: volumes of each domain, MR and CT not swapped, MR where a method needs it."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.errors import InputError
from data.prepared.manifest import Case, Manifest
from data.prepared.sources import Source
from data.prepared.volume_jobs import Failure, run_jobs
from data.values.modality import SWAPPED, check_ct, check_mr
from data.volumes.volume import read_volume

# Sources by (split, domain).
Groups = Mapping[tuple[str, str], Sequence[Source]]
# Volumes of each that are looked at: a single one among the wrong ones is left out in preparation.
_LOOKED_AT = 3


@dataclass(frozen=True)
class _Look:
    """A volume to look at, of domain 'A' (MR) or 'B' (CT)."""

    source: Source
    domain: str


def check_swapped(root: Path, groups: Groups, workers: int = 1) -> None:
    """Refuse MR and CT that are swapped, by a look at the first volumes of each; volumes that cannot be read count not.

    Raises:
        InputError: it names a volume of each, and what to do.
    """
    for split in ("train", "test"):
        looks = [_Look(one, domain) for domain in "AB" for one in groups.get((split, domain), ())[:_LOOKED_AT]]
        if len({look.domain for look in looks}) < 2:
            continue
        found, _ = run_jobs(_looked_at, looks, min(workers, len(looks)), "looking at the first volumes")
        seen = dict(found)
        if all(any(one.domain == domain for one in seen) for domain in "AB") and all(seen.values()):
            low, high = (next(one.source.path for one in looks if one in seen and one.domain == d) for d in "AB")
            test = "test_" if split == "test" else ""
            raise InputError(
                f"{root}: MR and CT look swapped: --{test}mr has {low} with values as low as those of CT, "
                f"--{test}ct has {high} without; give the globs the other way round"
            )


def _looked_at(look: _Look) -> tuple[_Look, bool]:
    """Return a volume, and whether it has the other modality's values."""
    source = look.source
    volume = read_volume(source.path, source.series_uid, again=True, contrast=source.contrast)
    try:
        (check_mr if look.domain == "A" else check_ct)(volume)
    except InputError as error:
        return look, SWAPPED in str(error)
    return look, False


def check_trainable(root: Path, groups: Groups, cases: Sequence[Case], failures: Sequence[Failure]) -> None:
    """Refuse a data set without a volume to train on in a domain that `groups` has.

    Raises:
        InputError: it says which volumes failed, and why.
    """
    wanted = {domain for split, domain in groups if split == "train"}
    left = {case.domain for case in cases if case.split == "train"}
    if wanted - left:
        lacking = " and ".join(name for domain, name in (("A", "MR"), ("B", "CT")) if domain in wanted - left)
        reasons = "".join(f"\n  {failure.reason}" for failure in failures)
        raise InputError(f"{root}: no volume left to train on of {lacking}; failed:{reasons or ' none'}")


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
