"""The shape extractor: a U-Net that finds the body (and bone) in a CT slice."""
