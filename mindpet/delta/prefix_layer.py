"""Prefix tuning: trained tokens before the keys and values of an attention (arXiv:2101.00190)."""

import numpy as np
from mindspore import Tensor, nn, ops

from mindpet.delta._checks import check_multiple, check_positive_int, check_rate
from mindpet.delta._prepend import check_batch, count_examples, prepend_to_mask, prepend_to_states
from mindpet.utils.version_control import get_dropout

__all__ = ["PrefixLayer"]


class PrefixLayer(nn.Cell):
    """The prefix of one attention layer: two matrices, made anew from trainable parameters at every call.

    (past_key, past_value) = dropout(tanh(table W_1^T + b_1) W_2^T + b_2), split in halves of hidden_dim columns.

    The parameters are `mindpet_delta_prefixtuning_wte.embedding_table` (prefix_token_num, embed_dim) and weight and
    bias of `mindpet_delta_prefixtuning_control_trans.0` (mid_dim, embed_dim) and `.2` (2 * hidden_dim, mid_dim).

    Use `extend` in the `construct` of an attention: one line there is all that changes.

    >>> key, value, attention_mask = self.prefix.extend(key, value, attention_mask)  # doctest: +SKIP

    Args:
        prefix_token_num (int): the number of tokens for all examples of a batch together, a multiple of `batch_size`.
        batch_size (int): the number of examples in a batch. Example i sees the i-th slice of prefix_token_num /
            batch_size tokens. With 1, all examples of a batch of any size see the same tokens.
        num_heads (int): the number of attention heads; it divides `hidden_dim`.
        hidden_dim (int): the size of keys and values over all heads.
        embed_dim (int): the number of columns of the table.
        mid_dim (int): the size between the two projections. Default: 512.
        dropout_rate (float): the rate at which elements of the prefix are dropped in training. Default: 0.1.

    Outputs:
        Two Tensors of shape (prefix_token_num, hidden_dim), float32: past_key and past_value.

    Raises:
        TypeError: a size is no int, or `dropout_rate` no number.
        NotPositiveError: a size is 0 or negative (a TypeError and a ValueError).
        ValueError: `prefix_token_num` is no multiple of `batch_size`, or `hidden_dim` none of `num_heads`;
            `dropout_rate` lies outside [0, 1).
    """

    def __init__(
        self,
        prefix_token_num: int,
        batch_size: int,
        num_heads: int,
        hidden_dim: int,
        embed_dim: int,
        mid_dim: int = 512,
        dropout_rate: float = 0.1,
    ) -> None:
        check_positive_int("prefix_token_num", prefix_token_num)
        check_positive_int("batch_size", batch_size)
        check_positive_int("num_heads", num_heads)
        check_positive_int("hidden_dim", hidden_dim)
        check_positive_int("embed_dim", embed_dim)
        check_positive_int("mid_dim", mid_dim)
        check_rate("dropout_rate", dropout_rate)
        check_multiple("prefix_token_num", prefix_token_num, "batch_size", batch_size)
        check_multiple("hidden_dim", hidden_dim, "num_heads", num_heads)
        super().__init__()
        self.prefix_token_num = prefix_token_num
        self.batch_size = batch_size
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.embed_dim = embed_dim
        self.mid_dim = mid_dim
        self.dropout_rate = dropout_rate
        self.dropout = get_dropout(dropout_rate)
        self.mindpet_delta_prefixtuning_wte = nn.Embedding(prefix_token_num, embed_dim)
        self.mindpet_delta_prefixtuning_control_trans = nn.SequentialCell(
            nn.Dense(embed_dim, mid_dim),
            nn.Tanh(),
            nn.Dense(mid_dim, 2 * hidden_dim),
        )

    def construct(self) -> tuple[Tensor, Tensor]:
        """Return past_key and past_value, each of shape (prefix_token_num, hidden_dim)."""
        table = self.mindpet_delta_prefixtuning_wte.embedding_table  # every token once: nothing to look up
        both = self.dropout(self.mindpet_delta_prefixtuning_control_trans(table))
        return both[:, : self.hidden_dim], both[:, self.hidden_dim :]

    def extend(
        self,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        additive: bool = False,
        hidden_is_true: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Prepend the prefix to each example's keys, values and mask.

        Args:
            key: (batch, num_heads, length, head_dim), (batch, length, hidden_dim) or (batch * length, hidden_dim).
            value: of the same shape.
            attention_mask: (..., length), with 1 or True where a key is visible. What it says about the given keys
                (causal, padding) stays; every position sees every token of the prefix. None (all visible) stays
                None and needs keys with three or four axes.
            additive: the mask is added to the scores: 0 is visible.
            hidden_is_true: the mask is 1 or True where a key is hidden, as in GLM2.

        Returns:
            key and value in their own layout and dtype, with tokens + length in the place of length, where tokens =
            prefix_token_num / batch_size; and the mask of shape (..., tokens + length). Beside keys of two or four
            axes, a mask of four axes is broadcast over the heads: (batch, num_heads, query length or 1, tokens +
            length).

        Raises:
            ValueError: the batch is not `batch_size` (unless that is 1), the shapes do not fit, or both flags are set.
        """
        batch = count_examples(key, attention_mask)
        if self.batch_size != 1:
            check_batch(batch, self.batch_size)
        past_key, past_value = self.construct()
        tokens = self.prefix_token_num // self.batch_size
        mask = prepend_to_mask(tokens, attention_mask, additive, hidden_is_true)
        if mask is not None and mask.ndim == 4 and key.ndim != 3:
            # No -1: MindSpore 2.7 refuses it for a mask that is a constant of the graph.
            mask = ops.broadcast_to(mask, (mask.shape[0], self.num_heads, *mask.shape[2:]))
        key = prepend_to_states(self._for_each_example(past_key, batch), key)
        value = prepend_to_states(self._for_each_example(past_value, batch), value)
        return key, value, mask

    def _for_each_example(self, past: Tensor, batch: int) -> Tensor:
        """Return (prefix_token_num, hidden_dim) as (batch, num_heads, tokens, head_dim)."""
        slices = past.reshape((self.batch_size, -1, self.num_heads, self.hidden_dim // self.num_heads))
        slices = slices.transpose((0, 2, 1, 3))
        return ops.broadcast_to(slices, (batch, -1, -1, -1))

    @property
    def past_key_reparam(self) -> Tensor:
        """The key prefix (prefix_token_num, hidden_dim) as it is now, without gradient and dropout; see `extend`."""
        return self._read()[0]

    @property
    def past_value_reparam(self) -> Tensor:
        """The value prefix (prefix_token_num, hidden_dim) as it is now, without gradient and dropout; see `extend`."""
        return self._read()[1]

    def _read(self) -> tuple[Tensor, Tensor]:
        first, second = (self.mindpet_delta_prefixtuning_control_trans[index] for index in (0, 2))
        table = self.mindpet_delta_prefixtuning_wte.embedding_table.asnumpy()
        hidden = np.tanh(table @ first.weight.asnumpy().T + first.bias.asnumpy())
        both = hidden @ second.weight.asnumpy().T + second.bias.asnumpy()
        return Tensor(both[:, : self.hidden_dim]), Tensor(both[:, self.hidden_dim :])
