"""Settings that are declared once: as command-line options, in saved states and in files."""
