"""What has to be installed: bounds in requirements.txt, and one set of versions within them in requirements.lock."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def requirements_of(text: str) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def not_locked(requirements: str, lock: str) -> list[str]:
    """Return the requirements that a lock does not pin, or pins to a version out of their bounds."""
    versions = {canonicalize_name(one.name): one.specifier for one in requirements_of(lock)}
    missing = []
    for wanted in requirements_of(requirements):
        pins = list(versions.get(canonicalize_name(wanted.name), ()))
        if [pin.operator for pin in pins] != ["=="] or not wanted.specifier.contains(pins[0].version):
            missing.append(str(wanted))
    return missing


def test_the_lock_pins_every_requirement_within_its_bounds():
    assert not_locked((ROOT / "requirements.txt").read_text(), (ROOT / "requirements.lock").read_text()) == []


def test_the_lock_holds_nothing_but_names_and_public_versions():
    """No address or path of the machine that made it, no build such as +cpu that PyPI does not have."""
    for one in requirements_of((ROOT / "requirements.lock").read_text()):
        assert one.url is None and not one.extras and one.marker is None
        assert [pin.operator for pin in one.specifier] == ["=="]
        assert "+" not in str(one.specifier) and "*" not in str(one.specifier)


@pytest.mark.parametrize(
    ("lock", "missing"),
    [
        ("Pillow==12.2\ntornado==6.5.9", []),
        ("pillow==12.2", ["tornado<6.6,>=6.5.5"]),
        ("pillow==12.0\ntornado==6.5.9", ["Pillow>=12.1.1"]),
        ("pillow==12.2\ntornado==6.6", ["tornado<6.6,>=6.5.5"]),
        ("pillow>=12.2\ntornado==6.5.9", ["Pillow>=12.1.1"]),
    ],
)
def test_the_rule_can_fail(lock, missing):
    assert not_locked("# of images\nPillow>=12.1.1\ntornado>=6.5.5,<6.6\n", lock) == missing
