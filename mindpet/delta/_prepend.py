"""Prepend prefix tokens to the keys, values and mask of an attention, for each example by itself."""

from mindspore import Tensor, ops

__all__ = ["check_batch", "count_examples", "prepend_to_mask", "prepend_to_states"]


def count_examples(states: Tensor, attention_mask: Tensor | None) -> int:
    """Return the batch size of keys or values.

    Args:
        states: (batch, heads, length, head_dim) or (batch, length, hidden), or (batch * length, hidden) where
            `attention_mask` tells the length.
        attention_mask: of shape (..., length); None needs the first or second.

    Raises:
        ValueError: `states` have another rank, or rows that are no multiple of the mask's length.
    """
    if states.ndim in (3, 4):
        return states.shape[0]
    if attention_mask is None:
        raise ValueError(
            f"The keys have the shape {states.shape} and there is no mask; accepted is (batch, heads, length, "
            "head_dim) or (batch, length, hidden). Reshape them, or hand in the mask, which tells the length."
        )
    length = attention_mask.shape[-1]
    if states.ndim != 2 or states.shape[0] % length != 0:
        raise ValueError(
            f"The keys have the shape {states.shape} and the mask {attention_mask.shape}; accepted is (batch, heads, "
            "length, head_dim), (batch, length, hidden) or (batch * length, hidden), with a mask (..., length). "
            "Reshape them."
        )
    return states.shape[0] // length


def check_batch(given: int, accepted: int) -> None:
    """Refuse keys of another batch than the prefix was made for (ValueError)."""
    if given != accepted:
        raise ValueError(
            f"The keys hold {given} examples; accepted is a batch of {accepted}, which the prefix was made for. "
            "Pass such a batch, or make a prefix for this one (a PrefixLayer with batch_size=1 serves any)."
        )


def prepend_to_states(prefix: Tensor, states: Tensor) -> Tensor:
    """Prepend a prefix to keys or values, in their dtype.

    Args:
        prefix: (batch, heads, tokens, head_dim).
        states: (batch, heads, length, head_dim), (batch, length, heads * head_dim) or (batch * length, heads *
            head_dim).

    Returns:
        The states in the same layout, with tokens + length in the place of length.
    """
    prefix = prefix.astype(states.dtype)
    if states.ndim == 4:
        return ops.concat((prefix, states), 2)
    batch, hidden = prefix.shape[0], states.shape[-1]
    rows = prefix.transpose((0, 2, 1, 3)).reshape((batch, -1, hidden))  # (batch, tokens, hidden)
    if states.ndim == 3:
        return ops.concat((rows, states), 1)
    return ops.concat((rows, states.reshape((batch, -1, hidden))), 1).reshape((-1, hidden))


def prepend_to_mask(tokens: int, attention_mask: Tensor | None, additive: bool, hidden_is_true: bool) -> Tensor | None:
    """Let every position see `tokens` more keys before those of `attention_mask`, which stays what it was.

    Args:
        tokens: how many keys are prepended.
        attention_mask: (..., length), of any dtype: 1 or True is visible, unless one of the two flags is set. None
            (all visible) stays None.
        additive: 0 is visible, and a large negative number hidden.
        hidden_is_true: 0 or False is visible, and 1 or True hidden.

    Returns:
        A mask (..., tokens + length) of the same dtype.

    Raises:
        ValueError: both flags are set.
    """
    if additive and hidden_is_true:
        raise ValueError("Both `additive` and `hidden_is_true` are set; accepted is one of them. Drop the other.")
    if attention_mask is None:
        return None
    shape = attention_mask.shape[:-1] + (tokens,)  # noqa: RUF005, graph mode knows only +
    make = ops.zeros if additive or hidden_is_true else ops.ones
    return ops.concat((make(shape, attention_mask.dtype), attention_mask), -1)
