"""What training and use read: slices, images, augmentation, samples and their order."""
