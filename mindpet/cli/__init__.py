"""The command line; everything that it does can be called from Python."""
