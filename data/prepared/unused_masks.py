"""Masks in a data set's `bodies/` that a user corrected, and that no case uses under the name that it has now."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.errors import InputError
from data.files import read_json
from data.prepared.sources import Source
from data.volumes.paths import hash_source
from data.volumes.volume import volume_stem

log = logging.getLogger(__name__)


def warn_of_unused_masks(root: Path, groups: Mapping[tuple[str, str], Sequence[Source]]) -> None:
    """Warn of each mask that was corrected, or put there, under a name that a case had before or nearly has.

    A case gets another name where its data set is prepared from another folder or together with others: `x` becomes
    `a__x`.
    """
    for (split, domain), sources in groups.items():
        names = {source.name for source in sources}
        supplied = {source.mask.resolve() for source in sources if source.mask}
        for mask in sorted((root / f"bodies/{split}{domain}").glob("[!.]*.nii.gz")):
            if (old := volume_stem(mask)) in names or mask.resolve() in supplied:
                continue
            made_of, written = _recorded(root / f"{split}{domain}/{old}.json")
            if written is not None and hash_source(mask) == written:  # as it was computed
                continue
            cases = [one.name for one in sources if _is_of(one, old, made_of)]
            if cases and made_of is not None:
                why, target = f"its case is now called {cases[0]}", mask.with_name(f"{cases[0]}.nii.gz")
            elif cases:
                why = f"no case is called {old}; it may be of {' or '.join(cases)}"
                target = mask.with_name("CASE.nii.gz")
            else:
                continue
            log.warning(
                "warning: %s: a corrected mask that is not used, because %s; to use it, move it to %s after this run, "
                "and run again", mask, why, target,
            )  # fmt: skip


def _recorded(record: Path) -> tuple[str | None, str | None]:
    """Return the source of the case that had the mask's name, and the hash of the mask that was computed for it."""
    try:
        data = read_json(record)
        return data.get("source"), data.get("body_sha256")
    except (InputError, AttributeError):
        return None, None


def _is_of(source: Source, old: str, made_of: str | None) -> bool:
    """Tell whether a case of today is the one that was called `old`, or without a record may be it."""
    if made_of is not None:
        return Path(made_of).resolve() == source.path.resolve()
    return f"__{old}__" in f"__{source.name}__"
