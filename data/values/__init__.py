"""What voxel values mean: HU, the scale of an MR, and values that are neither."""
