"""The page of a data set's body masks, `bodies/index.html`: every mask on its volume, doubtful ones first."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dominate import tags
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from data.files import whole_file
from data.masks.body_mask import mr_mask_doubt
from data.prepared.manifest import BODIES_PAGE, Case, Manifest
from data.prepared.sources import Source
from data.prepared.volume_jobs import Failure, run_jobs
from data.volumes.volume import read_volume
from visualization.mask_sheet import SHEET_SIZE, mask_sheet
from visualization.pages import link_to, new_document, write_document

log = logging.getLogger(__name__)

_DRAWING = "2"  # to be raised when the same volume and mask come to give another picture, or another doubt
_KINDS = {("train", "A"): "MR to train on", ("train", "B"): "CT to train on",
          ("test", "A"): "MR of test patients", ("test", "B"): "CT of test patients"}  # fmt: skip


@dataclass(frozen=True)
class _Sheet:
    """The picture of one case's mask. It holds what it was made of, and why the mask is doubtful."""

    root: Path
    source: Source
    case: Case

    @property
    def path(self) -> Path:
        case = self.case
        return self.root / f"bodies/pictures/{case.split}{case.domain}/{case.name}.png"

    @property
    def made_of(self) -> str:
        case = self.case
        return f"{_DRAWING} {case.source_sha256} {case.mask_source_sha256} {case.body_sha256}"

    def texts(self) -> Mapping[str, str]:
        """Return what the picture on the disk says of itself; nothing where there is none."""
        try:
            with Image.open(self.path) as image:
                return getattr(image, "text", {})
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError):
            return {}

    def is_current(self) -> bool:
        return self.texts().get("made_of") == self.made_of

    def flags(self) -> list[str]:
        """Return why the mask should be looked at first."""
        case, doubt = self.case, self.texts().get("doubt")
        flags = [doubt] if doubt else []
        if case.body_slices[0] == case.body_slices[1]:
            flags.append("no slice has enough body to train on")
        if case.lost_voxels:
            flags.append(f"{case.lost_voxels} voxels of the body lie outside the frame of the slices")
        return flags


def write_bodies_page(
    root: Path, manifest: Manifest, groups: Mapping[tuple[str, str], Sequence[Source]], failures: Sequence[Failure],
    workers: int,
) -> Path:  # fmt: skip
    """Draw the masks that have changed, and write the page; a mask that cannot be drawn is a warning.

    Args:
        root: the data set's folder.
        manifest: its cases.
        groups: the sources of the cases, by (split, domain).
        failures: volumes that were not prepared.
        workers: processes.

    Raises:
        InputError: the page cannot be written.
    """
    sources = {(*group, source.name): source for group, found in groups.items() for source in found}
    sheets = [_Sheet(root, sources[case.split, case.domain, case.name], case) for case in manifest.cases]
    _, undrawn = run_jobs(_draw, [sheet for sheet in sheets if not sheet.is_current()], workers, "drawing masks")
    for failure in undrawn:
        log.warning("warning: no picture of a mask: %s", failure.reason)
    page = root / BODIES_PAGE
    document = new_document(f"Body masks of {root.name}", ("base.css", "bodies.css"))
    with document:
        with tags.header():
            tags.h1(f"Body masks of {root.name}")
            tags.p(f"{len(sheets)} volumes")
        tags.p(
            "The outline should follow the skin, with arms and legs inside and the couch outside. To correct a mask, "
            "edit its file below and prepare the data set again; delete the file to "
            "undo the correction. Axial slices are counted from the feet, the lowest is 1.",
            cls="note",
        )
        if failures:
            with tags.section(aria_label="Not prepared"):
                tags.h2("Not prepared")
                tags.ul(*(tags.li(failure.reason, cls="warning") for failure in failures))
        flagged = [sheet for sheet in sheets if sheet.flags()]
        if not flagged:
            tags.p("The checks found no doubtful mask. Look at all of them anyway.", cls="note")
        _add_section("Look at these first", flagged, page.parent)
        for group, title in _KINDS.items():
            rest = [one for one in sheets if (one.case.split, one.case.domain) == group and one not in flagged]
            _add_section(title, rest, page.parent)
    return write_document(document, page)


def _draw(sheet: _Sheet) -> None:
    source, case = sheet.source, sheet.case
    volume = read_volume(source.path, source.series_uid, log_notes=False, contrast=source.contrast)
    mask = read_volume(sheet.root / case.body_file, log_notes=False).array > 0
    texts = PngImagePlugin.PngInfo()
    texts.add_text("made_of", sheet.made_of)
    if case.domain == "A" and not case.mask_source_sha256 and (doubt := mr_mask_doubt(volume)):
        texts.add_text("doubt", doubt)
    with whole_file(sheet.path) as scratch:
        mask_sheet(volume, mask, case.domain).save(scratch, format="PNG", pnginfo=texts)


def _add_section(title: str, sheets: Sequence[_Sheet], folder: Path) -> None:
    if not sheets:
        return
    with tags.section(aria_label=title):
        tags.h2(f"{title}: {len(sheets)}")
        for sheet in sheets:
            case = sheet.case
            with tags.figure():
                with tags.figcaption():
                    tags.b(case.name)
                    tags.code(str((sheet.root / case.body_file).absolute()))
                    if case.mask_source_sha256:
                        tags.span("corrected by hand" if sheet.source.mask is None else "supplied", cls="note")
                    for flag in sheet.flags():
                        tags.p(flag, cls="warning")
                if sheet.path.exists():
                    size = dict(zip(("width", "height"), map(str, SHEET_SIZE), strict=True))
                    link = link_to(sheet.path, folder)
                    tags.img(src=link, alt=f"Mask of {case.name} on its volume", loading="lazy", **size)
                else:
                    tags.p("no picture")
