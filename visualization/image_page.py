"""The page of a folder of converted images, each beside its result, as upstream's `test.py` shows them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from dominate import tags

from visualization.pages import link_to, new_document, pairs, write_document


class ImagePair(NamedTuple):
    """An image's name, its picture, and the picture of what was made of it."""

    name: str
    real: Path
    fake: Path


def write_image_page(
    folder: Path, rows: Sequence[ImagePair], kinds: tuple[str, str], title: str, details: Mapping[str, object]
) -> Path:
    """Write `index.html` into `folder`; links are relative, so folders move together.

    Args:
        folder: where; usually the one that the pictures lie below.
        rows: the images, in the order in which they are shown.
        kinds: what the two columns show.
        title: the page's heading.
        details: further lines; what is None is left out.

    Raises:
        InputError: the folder cannot be written.
    """
    document = new_document(title, ("base.css", "images.css"))
    with document:
        with tags.header():
            tags.h1(title)
            tags.p("Not for clinical use")
        with tags.section(aria_label="Images"), tags.div(cls="images"):
            for row in rows:
                with tags.figure():
                    for kind, path in zip(kinds, (row.real, row.fake), strict=True):
                        link = link_to(path, folder)
                        with tags.a(href=link):
                            tags.img(src=link, alt=f"{kind} of {row.name}", title=kind, loading="lazy")
                    tags.figcaption(f"{row.name}: {', '.join(kinds)}")
        with tags.section(aria_label="Details"):
            tags.h2("Details")
            written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
            pairs({**details, "page written": written})
    return write_document(document, folder / "index.html")
