"""LoRA on an embedding: each row of the table gets a trained change of low rank (arXiv:2106.09685)."""

from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.common.initializer import Normal

from mindpet.delta._checks import check_plain
from mindpet.delta._embedding import take_over_embedding
from mindpet.delta._host import host_values
from mindpet.delta._low_rank import add_factors, check_factors
from mindpet.delta._state import refuse_merged_training

__all__ = ["LoRAEmbedding"]


class LoRAEmbedding(nn.Embedding):
    r"""An embedding with a LoRA branch.

    output(i) = embedding_table[i] + lora_alpha / lora_rank * lora_b lora_a[:, i]

    Only `mindpet_delta_lora_a` (lora_rank, vocab_size) and `mindpet_delta_lora_b` (embedding_size, lora_rank) are meant
    to be trained; `freeze_delta(network, 'lora')` freezes the rest. As in PEFT, lora_a starts at zeros and lora_b
    normal with spread 1, the other way round than in a dense layer, and nothing is dropped. The scale is the attribute
    `scaling`, as in LoRADense. The row of `padding_idx` can train like any other, as in nn.Embedding.

    Args:
        vocab_size (int): the number of rows of the table.
        embedding_size (int): the number of columns.
        lora_rank (int): the number of rows of lora_a and columns of lora_b.
        lora_alpha (Union[int, float]): the numerator of the scale, not 0.
        lora_a_init (Union[Tensor, str, Initializer, Number]): how lora_a starts. Default: 'zeros'.
        lora_b_init (Union[Tensor, str, Initializer, Number]): how lora_b starts. Default: Normal(1.0).
        param_init_type (dtype): the dtype of lora_a and lora_b: float32 (default), float16 or bfloat16.
        compute_dtype (dtype): the dtype in which the branch is computed: float32 (default), float16 or bfloat16.
        use_one_hot (bool): as for nn.Embedding, like the arguments after it; the branch looks its rows up in any case.
        embedding_table (Union[Tensor, str, Initializer, Number]): how the table starts. Default: 'normal'.
        padding_idx (Union[int, None]): the row of the table that starts at zeros. Default: None.

    Inputs:
        - **ids** (Tensor) - of any shape, int32 or int64.

    Outputs:
        Tensor of shape (*ids.shape, embedding_size), in the dtype of the table.

    Raises:
        TypeError: `lora_rank` is no int; `lora_alpha` is no int or float; an initializer is no Tensor, str, Initializer
            or number; a dtype is none of the three.
        NotPositiveError: `lora_rank` is 0 or negative (a TypeError and a ValueError).
        ValueError: `lora_alpha` is 0, NaN or infinite; an initializer is a Tensor of the wrong shape or the name of
            none.
    """

    merged = False

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int,
        lora_rank: int,
        lora_alpha: float,
        lora_a_init: Any = "zeros",
        lora_b_init: Any = Normal(1.0),  # noqa: B008
        param_init_type: Any = mstype.float32,
        compute_dtype: Any = mstype.float32,
        use_one_hot: bool = False,
        embedding_table: Any = "normal",
        padding_idx: int | None = None,
    ) -> None:
        check_factors(lora_rank, lora_alpha, param_init_type, compute_dtype)
        super().__init__(vocab_size, embedding_size, use_one_hot, embedding_table, padding_idx=padding_idx)
        add_factors(
            self,
            lora_rank,
            lora_alpha,
            (lora_a_init, (lora_rank, vocab_size)),
            (lora_b_init, (embedding_size, lora_rank)),
            param_init_type,
        )
        self.compute_dtype = compute_dtype
        self.lora_a_transpose = ops.Transpose()
        self.lora_a_gather = ops.Gather()
        self.lora_b_matmul = ops.MatMul(transpose_b=True)
        self.mul = ops.Mul()
        self.add = ops.Add()
        self.cast = ops.Cast()

    @classmethod
    def from_embedding(
        cls,
        embedding: nn.Embedding,
        lora_rank: int,
        lora_alpha: float,
        lora_a_init: Any = "zeros",
        lora_b_init: Any = Normal(1.0),  # noqa: B008
        param_init_type: Any = mstype.float32,
        compute_dtype: Any = None,
    ) -> "LoRAEmbedding":
        """Return an embedding that stands in for `embedding`, with its own Parameter and primitives.

        Args:
            embedding: the embedding to replace; it is left as it is.
            lora_rank: as for the class, like the other arguments.
            lora_alpha: the numerator of the scale.
            lora_a_init: how lora_a starts; with the default the result equals `embedding` exactly.
            lora_b_init: how lora_b starts.
            param_init_type: the dtype of lora_a and lora_b.
            compute_dtype: the dtype of the branch; None takes the dtype of the table.

        Raises:
            TypeError: `embedding` is no nn.Embedding or computes something of its own; and all that the class raises.
        """
        check_plain("embedding", embedding, nn.Embedding)
        layer = cls(
            embedding.vocab_size,
            embedding.embedding_size,
            lora_rank,
            lora_alpha,
            lora_a_init,
            lora_b_init,
            param_init_type,
            embedding.embedding_table.dtype if compute_dtype is None else compute_dtype,
            embedding.use_one_hot,
            "zeros",
        )
        take_over_embedding(layer, embedding)
        return layer

    def construct(self, ids: Tensor) -> Tensor:
        """Return the embeddings of `ids`, of shape (*ids.shape, embedding_size)."""
        base = super().construct(ids)
        branch = self.reshape(self.branch(self.reshape_flat(ids, (-1,))), self.get_shp(base))
        return self.add(base, self.cast(branch, base.dtype))

    def branch(self, ids: Tensor) -> Tensor:
        """Return scaling * lora_b lora_a[:, i] for each of (rows,) ids, of shape (rows, embedding_size)."""
        refuse_merged_training(self)
        lora_a = self.cast(self.lora_a_transpose(self.mindpet_delta_lora_a, (1, 0)), self.compute_dtype)
        lora_b = self.cast(self.mindpet_delta_lora_b, self.compute_dtype)
        hidden = self.lora_a_gather(lora_a, ids, 0)  # (rows, lora_rank)
        return self.mul(self.lora_b_matmul(hidden, lora_b), self.cast(self.scaling, self.compute_dtype))

    def merged_values(self) -> dict[str, np.ndarray]:
        """Return the table with which the base alone computes what this layer does, by attribute, in float32.

        That is embedding_table + scaling * (lora_b lora_a)^T, computed on the host.
        """
        change = host_values(self.mindpet_delta_lora_a).T @ host_values(self.mindpet_delta_lora_b).T
        return {"embedding_table": host_values(self.embedding_table) + host_values(self.scaling) * change}
