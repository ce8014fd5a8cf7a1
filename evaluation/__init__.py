"""Image-similarity metrics and score reports."""
