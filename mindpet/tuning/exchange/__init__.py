"""What knows both methods and files: saving and loading an adapter, and proving that it was applied."""
