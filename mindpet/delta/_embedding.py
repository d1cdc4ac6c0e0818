"""How an embedding of a method takes over a plain one."""

from typing import Any

from mindspore import nn

__all__ = ["take_over_embedding"]


def take_over_embedding(layer: Any, embedding: nn.Embedding) -> None:
    """Let `layer` use the table, primitives and training flag of `embedding` itself.

    The added parameters are named beside the table: `block.words.embedding_table` puts them under `block.words`.
    """
    table, name = embedding.embedding_table, embedding.embedding_table.name
    prefix = name.rpartition(".")[0]
    for parameter in layer.get_parameters():
        if prefix and parameter is not layer.embedding_table:
            parameter.name = f"{prefix}.{parameter.name}"
    layer.embedding_table = table
    table.name = name
    for attribute in ("padding_idx", "dtype", "on_value", "off_value", "gather", "one_hot", "array_mul"):
        setattr(layer, attribute, getattr(embedding, attribute))
    layer.set_train(embedding.training)
