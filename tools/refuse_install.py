"""The build backend of pyproject.toml: this is a checkout that commands are run in, and `pip install .` says so.

Installed as packages, its modules would be called `data`, `models`, `options`, ..., beside those of everybody else.
"""

import sys
from typing import NoReturn

REFUSAL = (
    "\nThis project is used from its checkout; it is not installed by pip.\n"
    "    bash scripts/setup.sh            # makes .venv with what it needs\n"
    "    source .venv/bin/activate\n"
    "    python test_adapt.py --help\n"
    "To use it elsewhere: docker build -t mr-to-ct . (Dockerfile), or run the commands by their path.\n"
)


def build_wheel(*_: object, **__: object) -> NoReturn:
    """Refuse."""
    sys.exit(REFUSAL)


build_sdist = build_editable = prepare_metadata_for_build_wheel = prepare_metadata_for_build_editable = build_wheel
