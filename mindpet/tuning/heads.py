"""The output layer of a language model, and what shares the table of an embedding with it."""

from __future__ import annotations

from mindspore import nn

from mindpet.tuning.layers import Network

__all__ = ["find_output_layers", "find_sharers"]

_NAMES = ("lm_head", "output_layer")  # the second is ChatGLM's


def find_output_layers(network: Network) -> set[str]:
    """Return the paths of the dense layers that map hidden states to the words of a language model.

    These are the ones named so, and those whose weight is the very Parameter of an embedding's table.
    """
    tables = {id(network.cells[path].embedding_table) for path in network.embedding_paths}
    return {
        path
        for path in network.dense_paths
        if path.rpartition(".")[2] in _NAMES or id(network.cells[path].weight) in tables
    }


def find_sharers(network: Network, path: str) -> dict[str, nn.Cell]:
    """Return the other cells that hold the table of the embedding at `path`, by path; '' is that of the network."""
    embedding = network.cells[path]
    return {
        other: cell
        for other, cell in {"": network.root, **network.cells}.items()
        if cell is not embedding
        and any(own is embedding.embedding_table for _, own in cell.parameters_and_names(expand=False))
    }
