"""P-Tuning v2: trained tokens before the keys and values of every layer (arXiv:2110.07602)."""

from typing import Any

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from mindpet.delta._checks import check_bool, check_positive_int, check_rate
from mindpet.delta._prepend import check_batch, count_examples, prepend_to_mask, prepend_to_states
from mindpet.utils.version_control import get_dropout

__all__ = ["PrefixEncoder"]


class PrefixEncoder(nn.Cell):
    """The prefixes of all attention layers of a network, from one table of trained tokens.

    prefix = dropout(table), or dropout(tanh(table W_in^T + b_in) W_out^T + b_out) with `prefix_projection`.

    A row of the table holds, for one token, num_layers * 2 * num_heads * kv_channels numbers: for each layer the key
    and the value of each head. The parameters are `mindpet_delta_ptuning2_embedding.embedding_table` and, with
    `prefix_projection`, weight and bias of `mindpet_delta_ptuning2_dense_in` and `mindpet_delta_ptuning2_dense_out`.

    Args:
        pre_seq_len (int): the number of tokens before each layer's keys.
        num_layers (int): the number of layers of the network.
        num_heads (int): the number of heads of keys and values.
        kv_channels (int): the size of a key or value of one head.
        prefix_projection (bool): whether the table passes through two dense layers.
        projection_dim (int): the size between the two dense layers; it is checked in any case.
        dropout_prob (float): the rate at which elements of the prefix are dropped in training.
        parallel_config: an object with the ints `data_parallel` and `model_parallel`, which are handed to `shard`.
            Default: None.
        out_perm (tuple): how the axes (batch, tokens, layers * 2, heads, channels) are arranged before the layers are
            parted; it begins with 2. Default: (2, 0, 3, 1, 4).

    Inputs:
        - **batch_size** (int) - the number of examples; all see the same tokens.
        - **dtype** (dtype) - of the output. Default: float16.

    Outputs:
        A tuple of num_layers Tensors of shape (2, batch_size, num_heads, pre_seq_len, kv_channels): key and value.

    Raises:
        TypeError: a size is no int, `prefix_projection` no bool, `dropout_prob` no number, `out_perm` no tuple.
        NotPositiveError: a size is 0 or negative (a TypeError and a ValueError).
        ValueError: `dropout_prob` lies outside [0, 1); `out_perm` is no permutation of five axes that begins with 2.
    """

    def __init__(
        self,
        pre_seq_len: int,
        num_layers: int,
        num_heads: int,
        kv_channels: int,
        prefix_projection: bool,
        projection_dim: int,
        dropout_prob: float,
        parallel_config: Any = None,
        out_perm: tuple[int, ...] = (2, 0, 3, 1, 4),
    ) -> None:
        check_positive_int("pre_seq_len", pre_seq_len)
        check_positive_int("num_layers", num_layers)
        check_positive_int("num_heads", num_heads)
        check_positive_int("kv_channels", kv_channels)
        check_bool("prefix_projection", prefix_projection)
        check_positive_int("projection_dim", projection_dim)
        check_rate("dropout_prob", dropout_prob)
        _check_permutation(out_perm)
        super().__init__()
        self.pre_seq_len = pre_seq_len
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.kv_channels = kv_channels
        self.prefix_projection = prefix_projection
        self.projection_dim = projection_dim
        self.out_perm = out_perm
        width = num_layers * 2 * num_heads * kv_channels
        self.mindpet_delta_ptuning2_embedding = nn.Embedding(pre_seq_len, width)
        if prefix_projection:
            self.mindpet_delta_ptuning2_dense_in = nn.Dense(width, projection_dim)
            self.mindpet_delta_ptuning2_tanh = nn.Tanh()
            self.mindpet_delta_ptuning2_dense_out = nn.Dense(projection_dim, width)
        self.dropout = get_dropout(dropout_prob)
        # Of its own, since a computed mask is the same at every call of one cell.
        self.layer_dropouts = nn.CellList([get_dropout(dropout_prob) for _ in range(num_layers)])
        self.cast = ops.Cast()
        self.reshape = ops.Reshape()
        self.tile = ops.Tile()
        self.transpose = ops.Transpose()
        self.split_layers = ops.Split(0, num_layers)
        self.split_columns = ops.Split(1, num_layers)
        if parallel_config is not None:
            self.shard(parallel_config.data_parallel, parallel_config.model_parallel)

    def construct(self, batch_size: int, dtype: Any = mstype.float16) -> tuple[Tensor, ...]:
        """Return each layer's prefix (2, batch_size, num_heads, pre_seq_len, kv_channels) in `dtype`."""
        prefix = self.dropout(self._for_each_example(self._rows(), batch_size, dtype))
        return self.split_layers(self.transpose(prefix, self.out_perm))

    def layer_rows(self) -> tuple[Tensor, ...]:
        """Return what `layer_prefix` needs for each layer, so that the dense layers are computed once for all.

        Returns:
            num_layers Tensors (pre_seq_len, 2 * num_heads * kv_channels) in the dtype of the parameters.
        """
        return self.split_columns(self._rows())

    def layer_prefix(
        self, layer: int, batch_size: int, dtype: Any = mstype.float16, rows: Tensor | None = None
    ) -> Tensor:
        """Return what `construct` returns for one layer, and compute no more than that.

        In a network whose attentions each ask for their own prefix, nothing has to be handed from layer to layer. With
        `prefix_projection` the first dense layer is then computed at each call, and its gradient too, unless the rows
        are given.

        Args:
            layer: the number of the layer, from 0.
            batch_size: the number of examples; all see the same tokens.
            dtype: of the output.
            rows: what `layer_rows` returns for this layer; None computes it here.

        Returns:
            (2, batch_size, num_heads, pre_seq_len, kv_channels): key and value, in `dtype`.
        """
        if rows is None:
            rows = self._rows_of(layer)
        prefix = self.layer_dropouts[layer](self._for_each_example(rows, batch_size, dtype))
        return self.transpose(prefix, self.out_perm)

    def _rows(self) -> Tensor:
        """Return keys and values of all layers for each token, (pre_seq_len, layers * 2 * num_heads * kv_channels)."""
        if self.prefix_projection:
            return self.mindpet_delta_ptuning2_dense_out(self._hidden())
        return self.mindpet_delta_ptuning2_embedding.embedding_table  # every token once: nothing to look up

    def _rows_of(self, layer: int) -> Tensor:
        """Return the columns of `_rows` that are one layer's."""
        width = 2 * self.num_heads * self.kv_channels
        start, stop = layer * width, (layer + 1) * width
        if self.prefix_projection:
            dense = self.mindpet_delta_ptuning2_dense_out
            return dense.bias_add(dense.matmul(self._hidden(), dense.weight[start:stop]), dense.bias[start:stop])
        return self.mindpet_delta_ptuning2_embedding.embedding_table[:, start:stop]

    def _hidden(self) -> Tensor:
        """Return the table between the two dense layers, (pre_seq_len, projection_dim)."""
        table = self.mindpet_delta_ptuning2_embedding.embedding_table
        return self.mindpet_delta_ptuning2_tanh(self.mindpet_delta_ptuning2_dense_in(table))

    def _for_each_example(self, prefix: Tensor, batch_size: int, dtype: Any) -> Tensor:
        """Return (pre_seq_len, width) as (batch_size, pre_seq_len, layers * 2, num_heads, kv_channels)."""
        shape = (1, self.pre_seq_len, -1, self.num_heads, self.kv_channels)
        return self.tile(self.reshape(self.cast(prefix, dtype), shape), (batch_size, 1, 1, 1, 1))

    def extend(
        self,
        prefix_key_value: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        additive: bool = False,
        hidden_is_true: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Prepend one layer's prefix to each example's keys, values and mask.

        Args:
            prefix_key_value: (2, batch, num_heads, pre_seq_len, kv_channels), one of the Tensors that `construct`
                returns.
            key: (batch, num_heads, length, kv_channels), (batch, length, num_heads * kv_channels) or (batch * length,
                num_heads * kv_channels).
            value: of the same shape.
            attention_mask: (..., length), with 1 or True where a key is visible. What it says about the given keys
                (causal, padding) stays; every position sees every token of the prefix. None (all visible) stays
                None and needs keys with three or four axes.
            additive: the mask is added to the scores: 0 is visible.
            hidden_is_true: the mask is 1 or True where a key is hidden, as in GLM2.

        Returns:
            key and value with pre_seq_len more positions for each example, in their own dtype, and the mask of shape
            (..., pre_seq_len + length).

        Raises:
            ValueError: the shapes do not fit, or both flags are set.
        """
        check_batch(count_examples(key, attention_mask), prefix_key_value.shape[1])
        mask = prepend_to_mask(self.pre_seq_len, attention_mask, additive, hidden_is_true)
        return prepend_to_states(prefix_key_value[0], key), prepend_to_states(prefix_key_value[1], value), mask

    def shard(self, data_parallel: int, model_parallel: int) -> "PrefixEncoder":
        """Split the batch over `data_parallel` devices and the projections' columns over `model_parallel`.

        Valid in semi-automatic and automatic parallel mode; elsewhere the strategies are stored and change no result.

        Args:
            data_parallel: the number of parts of the batch.
            model_parallel: the number of parts of the two dense layers' output channels.

        Returns:
            The cell itself.

        Raises:
            TypeError: an argument is no int.
            NotPositiveError: an argument is 0 or negative (a TypeError and a ValueError).
        """
        check_positive_int("data_parallel", data_parallel)
        check_positive_int("model_parallel", model_parallel)
        if self.prefix_projection:
            for dense in (self.mindpet_delta_ptuning2_dense_in, self.mindpet_delta_ptuning2_dense_out):
                dense.matmul.shard(((1, 1), (model_parallel, 1)))
                dense.bias_add.shard(((1, model_parallel), (model_parallel,)))
            self.mindpet_delta_ptuning2_tanh.tanh.shard(((1, model_parallel),))
        by_example = ((data_parallel, 1, 1, 1, 1),)
        for dropout in (self.dropout, *self.layer_dropouts):
            dropout.dropout.shard(by_example)
        self.transpose.shard(by_example)
        layers_first = [(data_parallel, 1, 1, 1, 1)[axis] for axis in self.out_perm]
        self.split_layers.shard((tuple(layers_first),))
        return self


def _check_permutation(out_perm: Any) -> None:
    if not isinstance(out_perm, tuple):
        raise TypeError(f"`out_perm` is {out_perm!r}; accepted is a tuple of five axes. Write (2, 0, 3, 1, 4).")
    if sorted(out_perm) != [0, 1, 2, 3, 4] or out_perm[0] != 2:
        raise ValueError(
            f"`out_perm` is {out_perm}; accepted is a permutation of 0 to 4 that begins with 2, the layers' axis. "
            "Write (2, 0, 3, 1, 4), for example."
        )
