"""Trainable tokens: an embedding of which a few rows are trained, as PEFT's TrainableTokens does."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from mindpet.delta._checks import check_dtype, check_plain
from mindpet.delta._dense import make_parameter
from mindpet.delta._embedding import take_over_embedding
from mindpet.delta._host import host_values
from mindpet.delta._state import refuse_merged_training
from mindpet.utils.names import STATE_MARK

__all__ = ["TiedTokens", "TrainableTokensEmbedding"]


class TrainableTokensEmbedding(nn.Embedding):
    r"""An embedding of which only the rows of chosen tokens are trained.

    output(i) = rows[k] if i is token_indices[k], else embedding_table[i]

    Only `mindpet_delta_tokens_rows` (tokens, embedding_size) is meant to be trained; `freeze_delta(network, 'tokens')`
    freezes the rest. It starts as the table's own rows, which changes nothing. Who gives the table other values
    afterwards, by loading a checkpoint for example, calls `reset_rows` then. Where a network uses the table once more,
    as a language model's head may, that use sees the table as it is; `TiedTokens` gives it the rows.

    Which tokens are meant stands in `mindpet_state_token_slots` (vocab_size,), int32, a Parameter without gradient: k
    for token_indices[k], -1 for every other token. A `scaling` of 0, where others have a scale, leaves the table alone;
    any other number changes nothing. Who must change it after the first call assigns a Parameter without gradient
    there, before that call.

    Args:
        vocab_size (int): the number of rows of the table.
        embedding_size (int): the number of columns.
        token_indices (Union[list[int], tuple[int]]): the tokens, each once, from 0 to vocab_size - 1.
        param_init_type (dtype): the dtype of the trained rows: float32 (default), float16 or bfloat16.
        use_one_hot (bool): as for nn.Embedding, like the arguments after it; the trained rows are looked up in any
            case.
        embedding_table (Union[Tensor, str, Initializer, Number]): how the table starts. Default: 'normal'.
        padding_idx (Union[int, None]): the row of the table that starts at zeros. Default: None.

    Inputs:
        - **ids** (Tensor) - of any shape, int32 or int64.

    Outputs:
        Tensor of shape (*ids.shape, embedding_size), in the dtype of the table.

    Raises:
        TypeError: `token_indices` is no list or tuple of ints; `param_init_type` is none of the three dtypes.
        ValueError: `token_indices` is empty, names a token twice, or one that the table does not have.
    """

    merged = False

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int,
        token_indices: Sequence[int],
        param_init_type: Any = mstype.float32,
        use_one_hot: bool = False,
        embedding_table: Any = "normal",
        padding_idx: int | None = None,
    ) -> None:
        check_dtype("param_init_type", param_init_type)
        super().__init__(vocab_size, embedding_size, use_one_hot, embedding_table, padding_idx=padding_idx)
        _check_tokens(token_indices, vocab_size)
        self.token_indices = tuple(token_indices)
        slots = np.full(vocab_size, -1, np.int32)
        slots[list(token_indices)] = np.arange(len(token_indices))
        self.mindpet_delta_tokens_rows = make_parameter(
            "rows", "zeros", (len(token_indices), embedding_size), param_init_type, "mindpet_delta_tokens_rows"
        )
        self.mindpet_state_token_slots = Parameter(Tensor(slots), name=f"{STATE_MARK}token_slots", requires_grad=False)
        self.scaling: Any = 1.0
        self.slot_gather = ops.Gather()
        self.row_gather = ops.Gather()
        self.maximum = ops.Maximum()
        self.logical_and = ops.LogicalAnd()
        self.select = ops.Select()
        self.cast = ops.Cast()
        self.reset_rows()

    @classmethod
    def from_embedding(
        cls, embedding: nn.Embedding, token_indices: Sequence[int], param_init_type: Any = mstype.float32
    ) -> "TrainableTokensEmbedding":
        """Return an embedding that stands in for `embedding`, with its own Parameter and primitives.

        Args:
            embedding: the embedding to replace; it is left as it is.
            token_indices: as for the class.
            param_init_type: the dtype of the trained rows.

        Raises:
            TypeError: `embedding` is no nn.Embedding or computes something of its own; and all that the class raises.
        """
        check_plain("embedding", embedding, nn.Embedding)
        layer = cls(
            embedding.vocab_size,
            embedding.embedding_size,
            token_indices,
            param_init_type,
            embedding.use_one_hot,
            "zeros",
        )
        take_over_embedding(layer, embedding)
        layer.reset_rows()
        return layer

    def reset_rows(self) -> None:
        """Let the trained rows start anew as the table's own."""
        values = host_values(self.embedding_table)[list(self.token_indices)]
        self.mindpet_delta_tokens_rows.set_data(Tensor(values).astype(self.mindpet_delta_tokens_rows.dtype))

    def construct(self, ids: Tensor) -> Tensor:
        """Return the embeddings of `ids`, of shape (*ids.shape, embedding_size)."""
        refuse_merged_training(self)
        base = super().construct(ids)
        slots = self.slot_gather(self.mindpet_state_token_slots, ids, 0)
        rows = self.row_gather(self.mindpet_delta_tokens_rows, self.maximum(slots, 0), 0)
        trained = self.logical_and(slots >= 0, self.cast(self.scaling, mstype.float32) != 0.0)
        return self.select(self.expand(trained, -1), self.cast(rows, base.dtype), base)

    def merged_values(self) -> dict[str, np.ndarray]:
        """Return the table with which the base alone computes what this layer does, by attribute, in float32."""
        table = host_values(self.embedding_table)
        if host_values(self.scaling) != 0:
            slots = self.mindpet_state_token_slots.asnumpy()
            table[slots >= 0] = host_values(self.mindpet_delta_tokens_rows)[slots[slots >= 0]]
        return {"embedding_table": table}


class TiedTokens(nn.Cell):
    r"""What trained tokens make of the logits of a head whose weight is the embedding's table.

    output(..., i) = hidden rows[k]^T if i is token_indices[k], else logits(..., i)

    A head that takes it has an attribute `tied_rows`, None at first, and hands its input and its product with the
    table, before any bias, to the cell that is assigned there:

        logits = self.matmul(hidden, self.weight)
        if self.tied_rows is not None:
            logits = self.tied_rows(hidden, logits)

    Args:
        embedding (TrainableTokensEmbedding): whose Parameters it uses; their names and values stay what they are there.

    Inputs:
        - **hidden** (Tensor) - of shape (..., embedding_size).
        - **logits** (Tensor) - of shape (..., vocab_size).

    Outputs:
        Tensor of the shape and dtype of `logits`.
    """

    def __init__(self, embedding: TrainableTokensEmbedding) -> None:
        super().__init__(auto_prefix=False)
        self.mindpet_delta_tokens_rows = embedding.mindpet_delta_tokens_rows
        self.mindpet_state_token_slots = embedding.mindpet_state_token_slots
        self.scaling = embedding.scaling
        self.matmul = ops.MatMul(transpose_b=True)
        self.gather = ops.Gather()
        self.maximum = ops.Maximum()
        self.logical_and = ops.LogicalAnd()
        self.select = ops.Select()
        self.reshape = ops.Reshape()
        self.cast = ops.Cast()

    def construct(self, hidden: Tensor, logits: Tensor) -> Tensor:
        """Return the logits with those of the trained tokens in their places."""
        rows = self.cast(self.mindpet_delta_tokens_rows, hidden.dtype)
        own = self.matmul(self.reshape(hidden, (-1, hidden.shape[-1])), rows)  # (positions, tokens)
        spread = self.gather(own, self.maximum(self.mindpet_state_token_slots, 0), 1)  # (positions, vocab_size)
        trained = self.logical_and(self.mindpet_state_token_slots >= 0, self.cast(self.scaling, mstype.float32) != 0.0)
        return self.select(trained, self.cast(self.reshape(spread, logits.shape), logits.dtype), logits)


def _check_tokens(token_indices: Any, vocab_size: int) -> None:
    def refuse(error: type[Exception], given: object, advice: str) -> None:
        accepted = f"a list of different tokens, each an int from 0 to {vocab_size - 1}"
        raise error(f"`token_indices` is {given}; accepted is {accepted}. {advice}")

    if not isinstance(token_indices, (list, tuple)) or not all(type(token) is int for token in token_indices):
        refuse(TypeError, f"{token_indices!r} ({type(token_indices).__name__})", "Pass a list of Python ints.")
    if not token_indices:
        refuse(ValueError, "empty", "Name at least one.")
    twice = [token for token, count in Counter(token_indices).items() if count > 1]
    if twice:
        refuse(ValueError, f"a list with {twice[0]} twice", "Name each once.")
    outside = [token for token in token_indices if not 0 <= token < vocab_size]
    if outside:
        refuse(ValueError, f"a list with {outside[0]}", "Enlarge the table first, or name tokens that it has.")
