"""What the names of parameters tell."""

__all__ = ["DELTA_MARK", "SCALE", "STATE_MARK"]

DELTA_MARK = "mindpet_delta_"  # in the name of each parameter that a method adds, before the method's name
STATE_MARK = "mindpet_state_"  # in the name of each parameter that is state: never trained, counted or saved
SCALE = f"{STATE_MARK}scale"  # of an adapted layer
