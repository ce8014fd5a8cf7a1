"""The generated patients."""
