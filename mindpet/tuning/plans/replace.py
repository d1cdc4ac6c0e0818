"""Plans that replace layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mindspore import nn

from mindpet.delta._state import hold_scale
from mindpet.delta.adapter import AdapterDense
from mindpet.delta.dora import DoRADense
from mindpet.delta.ia3 import IA3Dense
from mindpet.delta.lora import LoRADense
from mindpet.delta.lora_conv2d import LoRAConv2d
from mindpet.delta.lora_embedding import LoRAEmbedding
from mindpet.delta.low_rank_adapter import LowRankAdapterDense
from mindpet.delta.pissa import PiSSADense
from mindpet.delta.trainable_tokens import TiedTokens, TrainableTokensEmbedding
from mindpet.delta.vera import VeRADense, make_projection
from mindpet.tuning.config import (
    AdapterConfig,
    IA3Config,
    LoraConfig,
    LowRankAdapterConfig,
    TrainableTokensConfig,
    VeraConfig,
)
from mindpet.tuning.heads import find_output_layers, find_sharers
from mindpet.tuning.layers import Network, view_layer
from mindpet.tuning.placements import Placement, placement_of
from mindpet.tuning.places import Place
from mindpet.tuning.plans.plan import Plan, find_biases, start_plan
from mindpet.tuning.targets import ALL_LINEAR, TargetMatch, match_keys, match_targets
from mindpet.utils.exceptions import InputError
from mindpet.utils.names import DELTA_MARK, file_name

__all__ = ["plan_adapter", "plan_ia3", "plan_lora", "plan_low_rank_adapter", "plan_tokens", "plan_vera"]

_DENSE = "dense layer"
_LORA = "dense layer, embedding or convolution"
_EMBEDDING = "embedding"


def plan_lora(network: Network, config: LoraConfig, compute_dtype: Any) -> Plan:
    """Plan LoRA: each target becomes a layer with a branch of its own rank and scale."""
    plan = start_plan(network, config)
    dense = _dense_variant(config)
    candidates = (network.lora_paths, _LORA) if dense is LoRADense else ()
    paths = _targets(plan, network, config.target_modules, lambda usual: usual.lora, *candidates)
    ranks = _pattern(plan, "rank_pattern", config.rank_pattern, paths)
    alphas = _pattern(plan, "alpha_pattern", config.alpha_pattern, paths)

    def build(path: str, layer: nn.Cell, dtype: Any) -> nn.Cell:
        rank = ranks.get(path, config.r)
        alpha = config.scale_numerator(rank, alphas.get(path, config.lora_alpha))
        if isinstance(layer, nn.Embedding):
            return LoRAEmbedding.from_embedding(layer, rank, alpha, compute_dtype=dtype)
        start = {} if config.lora_a_init is None else {"lora_a_init": config.lora_a_init}
        make = LoRAConv2d.from_conv2d if isinstance(layer, nn.Conv2d) else dense.from_dense
        return make(layer, rank, alpha, config.lora_dropout, compute_dtype=dtype, **start)

    _replace(plan, network, paths, compute_dtype, build)
    if config.bias == "lora_only":
        plan.trained += find_biases(network, paths)
    elif config.bias == "all":  # with the shifts of normalisations, which PEFT calls biases too
        names = [parameter.name for parameter in network.root.get_parameters()]
        plan.trained += [name for name in names if file_name(name).endswith("bias")]
    return plan


def _dense_variant(config: LoraConfig) -> type[LoRADense]:
    """Return what a dense layer becomes; only plain LoRA adapts embeddings and convolutions too."""
    if config.use_dora:
        return DoRADense
    return PiSSADense if config.init_lora_weights == "pissa" else LoRADense


def plan_vera(network: Network, config: VeraConfig, compute_dtype: Any) -> Plan:
    """Plan VeRA: each target gets two vectors, and all share one random pair, large enough for the largest."""
    plan = start_plan(network, config)
    paths = _targets(plan, network, config.target_modules, lambda usual: usual.lora)
    weights = [view_layer(path, network.cells[path]).layer for path in paths]
    inputs, outputs = (max(getattr(one, name) for one in weights) for name in ("in_channels", "out_channels"))
    projection = make_projection(inputs, outputs, config.r, config.projection_prng_key)
    _replace(
        plan,
        network,
        paths,
        compute_dtype,
        lambda path, dense, dtype: VeRADense.from_dense(
            dense, config.r, config.vera_dropout, config.d_initial, projection, compute_dtype=dtype
        ),
    )
    return plan


def plan_tokens(network: Network, config: TrainableTokensConfig, compute_dtype: Any) -> Plan:
    """Plan trainable tokens: each target becomes an embedding of which the tokens' rows are trained."""
    plan = start_plan(network, config)
    paths = _targets(
        plan, network, config.target_modules, lambda usual: usual.words, network.embedding_paths, _EMBEDDING
    )
    _replace(
        plan,
        network,
        paths,
        compute_dtype,
        lambda path, embedding, dtype: TrainableTokensEmbedding.from_embedding(embedding, config.token_indices),
    )
    for path in paths:
        _reach_heads(plan, network, path)
    return plan


def plan_adapter(network: Network, config: AdapterConfig, compute_dtype: Any) -> Plan:
    """Plan adapters: each target becomes a dense layer that an adapter follows."""
    plan = start_plan(network, config)
    paths = _targets(plan, network, config.target_modules, lambda usual: usual.adapter)
    _replace(
        plan,
        network,
        paths,
        compute_dtype,
        lambda path, dense, dtype: AdapterDense.from_dense(
            dense, config.bottleneck_size, config.non_linearity, compute_dtype=dtype, up_init=config.up_init
        ),
    )
    return plan


def plan_low_rank_adapter(network: Network, config: LowRankAdapterConfig, compute_dtype: Any) -> Plan:
    """Plan low-rank adapters: each target becomes a dense layer that a low-rank adapter follows."""
    plan = start_plan(network, config)
    paths = _targets(plan, network, config.target_modules, lambda usual: usual.adapter)
    _replace(
        plan,
        network,
        paths,
        compute_dtype,
        lambda path, dense, dtype: LowRankAdapterDense.from_dense(
            dense,
            config.reduction_factor,
            config.low_rank_size,
            config.low_rank_w_init,
            config.non_linearity,
            compute_dtype=dtype,
            up_init=config.low_rank_w_init if config.up_init is None else config.up_init,
        ),
    )
    return plan


def plan_ia3(network: Network, config: IA3Config, compute_dtype: Any) -> Plan:
    """Plan IA3: each target gets a factor for each output, or for each input where it is a feed-forward layer."""
    plan = start_plan(network, config)
    paths = _targets(plan, network, config.target_modules, lambda usual: usual.ia3)
    feedforward = config.feedforward_modules
    if feedforward is None:
        feedforward = placement_of(network).feedforward if config.target_modules is None else ()
    matches = match_targets("ia3", "feedforward_modules", feedforward, paths, "target of IA3")
    plan.matches += matches
    scaled_inside = {path for match in matches for path in match.paths}
    _replace(
        plan,
        network,
        paths,
        compute_dtype,
        lambda path, dense, dtype: IA3Dense.from_dense(dense, path in scaled_inside, compute_dtype=dtype),
    )
    return plan


def _targets(
    plan: Plan,
    network: Network,
    given: str | Sequence[str] | None,
    usual: Callable[[Placement], Sequence[str]],
    paths: Sequence[str] | None = None,
    kind: str = _DENSE,
) -> list[str]:
    """Match `target_modules` and return the layers' paths in the network's order.

    Args:
        plan: Takes the matches; those of modules_to_save are in it.
        network: The network.
        given: The field; None for the architecture's `usual` places.
        usual: Finds them in a placement.
        paths: The candidates, by default the dense layers.
        kind: What the candidates are.
    """
    method = plan.config.method
    dense = network.dense_paths
    paths = dense if paths is None else paths
    if given == ALL_LINEAR:
        saved = [path for match in plan.matches for path in match.paths]
        left_out = find_output_layers(network)
        found = tuple(
            path
            for path in dense
            if path not in left_out and not any(path == one or path.startswith(f"{one}.") for one in saved)
        )
        if not found:
            raise InputError(
                f"target_modules: {ALL_LINEAR!r} matches no {_DENSE} outside modules_to_save and a language model's"
                " output layer; give names"
            )
        matches = [TargetMatch(method, "target_modules", ALL_LINEAR, found)]
    else:
        entries = usual(placement_of(network)) if given is None else given
        matches = match_targets(method, "target_modules", entries, paths, kind)
    plan.matches += matches
    chosen = {path for match in matches for path in match.paths}
    return [path for path in paths if path in chosen]


def _pattern(plan: Plan, field_name: str, pattern: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """Return the pattern's value for each path that a key matches; the first key counts."""
    values: dict[str, Any] = {}
    for match in match_keys(plan.config.method, field_name, pattern, paths):
        plan.matches.append(match)
        values = {path: pattern[match.entry] for path in match.paths} | values
    return values


def _replace(
    plan: Plan,
    network: Network,
    paths: Sequence[str],
    compute_dtype: Any,
    build: Callable[[str, nn.Cell, Any], nn.Cell],
) -> None:
    """Let `build` make the new cell of each path from the layer there and the dtype of its product."""
    for path in paths:
        view = view_layer(path, network.cells[path])
        try:
            cell = build(path, view.layer, view.dtype if compute_dtype is None else compute_dtype)
        except (TypeError, ValueError, KeyError) as error:
            raise InputError(f"{path} cannot be adapted by {plan.config.method}: {error}") from error
        _name_by_path(path, cell, network.cells[path])
        scaled = cell if hasattr(cell, "scaling") else getattr(cell, f"{DELTA_MARK}{plan.config.method}", None)
        if scaled is not None:
            hold_scale(scaled)
        plan.cells[path] = cell


def _reach_heads(plan: Plan, network: Network, path: str) -> None:
    """Let the trained rows of an embedding reach each head that is tied to its table."""
    for other, cell in find_sharers(network, path).items():
        if not hasattr(cell, "tied_rows"):
            raise InputError(
                f"{path} shares its table with {other or 'the network itself'}, which trained tokens would have to"
                " reach; give that cell the attribute tied_rows, as mindpet.delta.trainable_tokens.TiedTokens says, or"
                " each of the two a weight of its own"
            )
        plan.aids.append((Place(cell, "tied_rows"), TiedTokens(plan.cells[path])))


def _name_by_path(path: str, cell: nn.Cell, original: nn.Cell) -> None:
    """Name what a cell adds after its own path where its weight has the name of another cell, with which it is tied.

    Else it stays named beside the weight, whose name may begin above the network or within it.
    """
    own = {id(parameter) for parameter in original.get_parameters()}
    prefix = next(iter(original.get_parameters())).name.rpartition(".")[0]
    if prefix and (f".{prefix}".endswith(f".{path}") or f".{path}".endswith(f".{prefix}")):
        return
    for parameter in cell.get_parameters():
        if id(parameter) not in own:
            parameter.name = f"{path}.{parameter.name.removeprefix(f'{prefix}.')}"
