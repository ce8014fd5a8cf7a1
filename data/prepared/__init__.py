"""A prepared data set: from volumes to slices, with a manifest that describes them."""
