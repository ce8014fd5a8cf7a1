"""Batch conversion of a cohort: what to convert, who converts it, in which order, and what came of it."""
