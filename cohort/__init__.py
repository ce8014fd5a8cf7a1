"""Batch conversion of a cohort: what to convert, who converts it, in which order, and what came of it."""

import data  # noqa: F401  # first: it says what to do where packages are missing
