"""Batch conversion of a cohort."""

import data  # noqa: F401  # first: it says what to do where packages are missing
