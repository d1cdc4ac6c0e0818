"""What the names of parameters tell."""

__all__ = ["DELTA_MARK", "SCALE", "STATE_MARK", "file_name"]

DELTA_MARK = "mindpet_delta_"  # in the name of each parameter that a method adds, before the method's name
STATE_MARK = "mindpet_state_"  # in the name of each parameter that is state: never trained, counted or saved
SCALE = f"{STATE_MARK}scale"  # of an adapted layer

# MindSpore's leaf name of a parameter -> the name of the same tensor in Hugging Face files; the paths are equal.
_LEAVES = {"embedding_table": "weight", "gamma": "weight", "beta": "bias"}


def file_name(parameter_name: str) -> str:
    """Return the name in Hugging Face files of the parameter `parameter_name`."""
    path, _, leaf = parameter_name.rpartition(".")
    return f"{path}.{_LEAVES.get(leaf, leaf)}"
