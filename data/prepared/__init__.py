"""A prepared data set: from volumes to slices, and the manifest that says what they are."""
