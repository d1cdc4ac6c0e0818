"""What `generate.py` makes the conformance set of."""
