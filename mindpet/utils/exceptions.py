"""The errors that MindPet raises beyond Python's own, by the names that MindPet 1.x gave them."""

__all__ = [
    "AbsolutePathError",
    "CompiledNetworkError",
    "DivergedError",
    "InputError",
    "LinkPathError",
    "ModelConfigFreezeInfoError",
    "NotPositiveError",
    "RankError",
    "ReadYamlFileError",
    "UnexpectedError",
    "UnknownNonLinearityError",
]


class InputError(ValueError):
    """A file, folder or setting from outside cannot be used.

    The message is one sentence for the person who handed it in: the place (file and line), what was found, what is
    expected and what to do. The command line prints it and ends with exit code 2.
    """


class CompiledNetworkError(InputError):
    """A network cannot be changed while an optimizer or a compiled function lives that would not notice."""


class DivergedError(RuntimeError):
    """In training, the loss or a trained parameter is no longer a finite number."""


class RankError(RuntimeError):
    """A process of a data-parallel run ended before its time, and the run with it."""


class NotPositiveError(TypeError, ValueError):
    """Zero or a negative number where a positive integer is meant.

    The specification documents this as a TypeError in some places and as a ValueError in others; either handler works.
    """


class UnknownNonLinearityError(TypeError, ValueError):
    """A name that no activation goes by, where an adapter's `non_linearity` is meant.

    The specification documents this as a ValueError, and MindPet 1.x raised a TypeError; either handler works.
    """


class AbsolutePathError(InputError):
    """A relative path where an absolute one is required."""


class LinkPathError(InputError):
    """A symbolic link where a real file or folder is required."""


class ReadYamlFileError(InputError):
    """A YAML file does not exist, is a symbolic link or cannot be read."""


class ModelConfigFreezeInfoError(InputError):
    """A freeze configuration is empty, has no `freeze` mapping, or holds keys other than `include` and `exclude`."""


class UnexpectedError(Exception):
    """An error of MindPet 1.x that wrapped whatever went wrong; kept so that handlers which name it still import."""
