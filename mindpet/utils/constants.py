"""How MindPet 1.x opened the files that it made, kept for code that imports these names."""

import os
import stat

__all__ = ["DEFAULT_FLAGS", "DEFAULT_MODES"]

DEFAULT_FLAGS = os.O_RDWR | os.O_CREAT
DEFAULT_MODES = stat.S_IRUSR | stat.S_IWUSR
