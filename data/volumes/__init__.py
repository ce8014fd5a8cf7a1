"""Volumes on disk and in memory: formats, headers, geometry."""
