"""Commands run as `python -m scripts.NAME`."""

import data  # noqa: F401  # first: it says what to do where packages are missing
