"""Shared by all HTML pages: style, scripts, escaping, and the rule that nothing is fetched from elsewhere.

Text goes through dominate, which escapes it; data go into `<script src>` files of calls, which pages opened from a disk
may load (they may not fetch); links are quoted. A content-security policy forbids every other source.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import dominate
from dominate import tags
from dominate.util import raw

from data.files import whole_file

_ASSETS = Path(__file__).parent / "assets"
# `file:` beside 'self', because browsers differ in what 'self' means for a page from a disk.
_POLICY = (
    "default-src 'none'; script-src 'self' file: 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' file: data:; base-uri 'none'; form-action 'none'"
)


def new_document(title: str, styles: tuple[str, ...]) -> dominate.document:
    """Return an empty page with our style sheets, files of `assets`, in it."""
    document = dominate.document(title=title)
    document["lang"] = "en"
    with document.head:
        tags.meta(charset="utf-8")
        tags.meta(http_equiv="Content-Security-Policy", content=_POLICY)
        tags.meta(name="viewport", content="width=device-width, initial-scale=1")
        tags.meta(name="color-scheme", content="light dark")
        tags.meta(name="referrer", content="no-referrer")
        tags.link(rel="icon", href="data:,")
        for style in styles:
            tags.style(raw(_asset(style)))
    return document


def add_script(document: dominate.document, name: str) -> None:
    """Put a script of `assets` at the end of a page."""
    document.body.add(tags.script(raw(_asset(name))))


def write_document(document: dominate.document, path: Path) -> Path:
    """Write a page; it appears whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    with whole_file(path) as scratch:
        # A file name that is no UTF-8 is shown with question marks.
        scratch.write_text(document.render(pretty=False), encoding="utf-8", errors="replace")
    return path


def to_js(value: object) -> str:
    """Return a value as JavaScript that may stand anywhere, also inside an HTML page; NaN and infinity become null."""
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def call(function: str, *arguments: object) -> str:
    """Return one line that calls a function of the page's script."""
    return f"{function}({','.join(map(to_js, arguments))});\n"


def link_to(path: Path, folder: Path) -> str:
    """Return a relative link from a page in `folder` to `path`, quoted."""
    # As bytes, because a file name need not be UTF-8.
    return quote(os.fsencode(path.resolve().relative_to(folder.resolve(), walk_up=True).as_posix()))


def pairs(values: Mapping[str, object]) -> tags.dl:
    """Return names and values as a list for reading, each of a list on a line; values that are None are left out."""
    listed = tags.dl(cls="pairs")
    for name, value in values.items():
        if value is not None:
            lines = value if isinstance(value, list) else [value]
            listed.add(tags.div(tags.dt(name), *(tags.dd(str(line)) for line in lines)))
    return listed


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
