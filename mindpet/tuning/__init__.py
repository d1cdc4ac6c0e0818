"""Adapters on any network."""
