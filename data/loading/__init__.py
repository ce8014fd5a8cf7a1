"""What training and inference read: slices, images, augmentation, samples and their order."""
