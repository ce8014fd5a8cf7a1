"""What voxel values mean: HU, an MR's scale, and what is neither."""
