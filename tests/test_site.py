"""The documentation site: it builds with every link whole, and its option reference is that of the settings."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from options.train_options import METHODS
from tools import option_reference, site_pages

ROOT = Path(__file__).resolve().parents[1]


def test_the_option_reference_is_that_of_the_settings():
    """After a change of the options: python -m tools.option_reference."""
    assert option_reference.PAGE.read_text() == option_reference.reference()


def test_the_reference_names_every_option_with_its_default():
    text = option_reference.reference()
    for method in METHODS:
        assert method == "cycle_gan" or f"## train.py --model {method}" in text
    for row in ("| `--ngf` | `64` |", "| `--dataroot` | required |", "| `--input_dir` |", "| `--no_mirrored` |"):
        assert row in text
    # Of the other methods only what differs.
    own = text.split("## train.py --model shape_extractor")[1].split("## python -m")[0]
    assert "| `--width` | `64` |" in own and "| `--batch_size`, `--batchSize` | `8` |" in own and "`--seed`" not in own


@pytest.mark.skipif(find_spec("material") is None, reason="mkdocs-material is not installed")
def test_the_site_builds_with_all_its_links(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for page in ("index.html", "which_model/index.html", "options/index.html", "checkpoints/recommended/index.html"):
        assert (tmp_path / "site" / page).exists(), page
    assert "Synthetic CT in Hounsfield units" in (tmp_path / "site/index.html").read_text()


def test_links_of_pages_outside_docs_are_those_of_the_site():
    class Page:
        class file:
            src_uri = "checkpoints/README.md"

    markdown = "[a](../docs/results.md#x) [b](recommended/README.md)"
    assert site_pages.on_page_markdown(markdown, Page) == "[a](../results.md#x) [b](recommended/README.md)"
    Page.file.src_uri = "results.md"
    assert site_pages.on_page_markdown("[a](../checkpoints/README.md)", Page) == "[a](checkpoints/README.md)"


def test_every_page_of_docs_can_be_reached():
    nav = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert re.search(rf": {page.name}$", nav, re.MULTILINE), page.name
