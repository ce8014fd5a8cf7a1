"""How the project is handed on: a checkout that pip refuses in words, and an image."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tools import refuse_install

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("words", [["install", "--no-deps", "."], ["install", "--no-deps", "-e", "."], ["wheel", "."]])
def test_pip_is_refused_in_words(words, tmp_path):
    more = ["--wheel-dir", str(tmp_path)] if words[0] == "wheel" else ["--target", str(tmp_path / "lib")]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words, *more, "--no-index", "--disable-pip-version-check"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "it is not installed by pip" in said and "bash scripts/setup.sh" in said
    assert not list(tmp_path.rglob("*.whl")) and not list(tmp_path.rglob("data"))


def test_the_way_that_the_refusal_names_exists():
    assert (ROOT / "scripts/setup.sh").exists() and (ROOT / "Dockerfile").exists()
    assert "docker build" in refuse_install.REFUSAL


def test_the_image_is_built_of_files_that_are_there():
    text = (ROOT / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for word in line.split()]
    assert "." in copied and all((ROOT / name).exists() for name in copied)
    assert (ROOT / re.search(r"^ARG REQUIREMENTS=(\S+)$", text, re.MULTILINE)[1]).exists()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert version == ">=3.12" and "FROM python:3.12" in text


def test_the_image_takes_the_models_that_git_has_and_no_others():
    """Both files list the shipped models: what is trained beside them stays at home."""
    shipped = {
        name: {line.rstrip("/") for line in (ROOT / name).read_text().splitlines() if line.startswith("!checkpoints/")}
        for name in (".gitignore", ".dockerignore")
    }
    assert shipped[".gitignore"] == shipped[".dockerignore"] and len(shipped[".gitignore"]) > 5


def test_the_versions_agree():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(rf"^version: ['\"]?{re.escape(version)}['\"]?$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert re.search(rf"^## {re.escape(version)} ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
