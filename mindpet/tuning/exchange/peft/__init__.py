"""Folders of Hugging Face PEFT: one module a family states its names and shapes once, for reading and for writing."""
