"""The hot operations of a network, each behind one function."""
