"""The training loop on MindSpore's own Model and callbacks."""
