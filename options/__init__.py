"""Command-line options."""
