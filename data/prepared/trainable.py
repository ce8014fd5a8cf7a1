"""Whether a data set can be trained on: volumes of each domain, MR and CT not swapped, MR where a method needs it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.commands import prepare_command
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
    split: str
    domain: str


@dataclass(frozen=True)
class _Seen:
    """What a look found: whether a volume has the other modality's values, and from where to where they go."""

    look: _Look
    swapped: bool
    low: float
    high: float


def check_swapped(root: Path, groups: Groups, workers: int = 1) -> None:
    """Refuse MR and CT that are swapped, by a look at the first volumes of each; volumes that cannot be read count not.

    Raises:
        InputError: it names a volume of each, and what to do.
    """
    splits = [split for split in ("train", "test") if groups.get((split, "A")) and groups.get((split, "B"))]
    looks = [_Look(one, split, d) for split in splits for d in "AB" for one in groups[split, d][:_LOOKED_AT]]
    if not looks:
        return
    found, _ = run_jobs(_looked_at, looks, min(workers, len(looks)), "looking at the first volumes")
    for split in splits:
        seen = [one for look in looks for one in found if one.look == look and look.split == split]
        mr, ct = ([one for one in seen if one.look.domain == domain] for domain in "AB")
        if mr and ct and all(one.swapped for one in seen):
            test = "test_" if split == "test" else ""
            raise InputError(
                f"{root}: MR and CT look swapped: --{test}mr has {mr[0].look.source.path} with values as low as those "
                f"of CT ({mr[0].low:g} to {mr[0].high:g}), --{test}ct has {ct[0].look.source.path} without "
                f"({ct[0].low:g} to {ct[0].high:g}); give the globs the other way round; if they are not swapped, the "
                "CT are not in HU or the MR are padded below their intensities"
            )


def _looked_at(look: _Look) -> _Seen:
    source = look.source
    volume = read_volume(source.path, source.series_uid, log_notes=False, contrast=source.contrast)
    swapped = False
    try:
        (check_mr if look.domain == "A" else check_ct)(volume)
    except InputError as error:
        swapped = SWAPPED in str(error)
    return _Seen(look, swapped, float(volume.array.min()), float(volume.array.max()))


def check_trainable(root: Path, groups: Groups, cases: Sequence[Case], failures: Sequence[Failure]) -> None:
    """Refuse a data set without a volume to train on in a domain that `groups` has.

    Raises:
        InputError: it says which volumes failed, and why.
    """
    wanted = {domain for split, domain in groups if split == "train"}
    left = {case.domain for case in cases if case.split == "train"}
    if wanted - left:
        lacking = " and no ".join(name for domain, name in (("A", "MR"), ("B", "CT")) if domain in wanted - left)
        reasons = "".join(f"\n  {failure.reason}" for failure in failures)
        raise InputError(f"{root}: no {lacking} left to train on; failed:{reasons or ' none'}")


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
        f"{root}: prepared without MR, which {what} needs; add MR with: "
        + prepare_command("--mr", "GLOB", "--ct", "GLOB", "--out", root, *words)
    )
