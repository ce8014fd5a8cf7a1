"""The project's only U-Net."""
