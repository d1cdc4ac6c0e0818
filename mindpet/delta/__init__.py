"""The tuning methods, one file each."""
