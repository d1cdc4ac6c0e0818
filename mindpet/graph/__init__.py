"""Freezing, and checkpoints of the trainable parameters."""
