"""The lowest room: bytes, arrays and names; it imports nothing of ours but `utils`."""
