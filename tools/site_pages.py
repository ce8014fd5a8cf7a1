"""What the documentation site needs beside docs/: README.md as its first page, the models' cards, and their links.

MkDocs calls these functions (`hooks` in mkdocs.yml).
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def outside_pages() -> dict[str, Path]:
    """Return the pages that lie outside docs/, by their place in the site."""
    names = ["CHANGELOG.md", "CONTRIBUTING.md", "checkpoints/README.md"]
    names += sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("checkpoints/*/README.md"))
    return {"index.md": ROOT / "README.md"} | {name: ROOT / name for name in names}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    from mkdocs.structure.files import File

    for place, path in outside_pages().items():
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links hold in the site, where docs/ is the top folder."""
    place = page.file.src_uri
    if place in outside_pages():
        up = "../" * place.count("/")
        markdown = markdown.replace("[Dockerfile](Dockerfile)", "Dockerfile")  # no page of the site
        return re.sub(r"\]\((?:\.\./)*docs/", f"]({up}", markdown)
    return markdown.replace("](../checkpoints/", "](checkpoints/").replace("](../README.md", "](index.md")
