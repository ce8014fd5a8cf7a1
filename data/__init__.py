"""Volumes, geometry, intensity, masks and the data sets that training reads."""
