"""The training engine: the loop, its state, signals, and several processes."""
