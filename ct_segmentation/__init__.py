"""The shape extractor: a U-Net that finds the body (and bone) in a CT slice."""

import data  # noqa: F401  # first: it says what to do where packages are missing
