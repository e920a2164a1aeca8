"""Training: segments, losses, the data stream."""
