"""Checkpoints of a training on many devices, of which each holds what one device keeps of the parameters."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore.parallel import load_distributed_checkpoint

from mindpet.graph.checksums import read_checkpoint
from mindpet.graph.layouts import Stage, is_state_of, read_stages
from mindpet.graph.load import PathLike, check_fit, check_network, list_paths, warn_unverified
from mindpet.graph.parameters import canonical_name, own_parameters, trainable_parameters
from mindpet.utils.exceptions import InputError

__all__ = ["gather_adapter", "load_trainable_distributed"]

_LISTED = 20


class _Ranks(NamedTuple):
    """The checkpoints of one pipeline stage, in the order of their ranks."""

    stage: Stage
    paths: list[Path]


def gather_adapter(
    files: Sequence[PathLike],
    strategy: PathLike | Sequence[PathLike],
    *,
    dec_key: bytes | None = None,
    dec_mode: str = "AES-GCM",
) -> dict[str, Tensor]:
    """Join the checkpoints of all ranks of a fine-tuning into one adapter.

    What tensor parallelism or a parallel optimizer has cut is joined as the strategy says, copies must be equal bit for
    bit, and the parameters of all pipeline stages are united. `write_trainable` writes the result as one file, which
    `load_trainable` reads.

    Args:
        files: The .ckpt file of each rank, in the order of the ranks, saved with `integrated_save=False`. Checksums
            beside a file are checked; a file without them gives an `UnverifiedCheckpointWarning`.
        strategy: The strategy file of the fine-tuning. For a pipeline, the files of its stages in their order, or the
            one that MindSpore's `merge_pipeline_strategys` has made of them.
        dec_key: The key of encrypted files.
        dec_mode: Their encryption: 'AES-GCM', 'AES-CBC' or 'SM4-CBC'.

    Returns:
        The whole parameters by their names in version 2, each in the dtype of its slices.

    Raises:
        TypeError: `files` or `strategy` holds something that is no path.
        InputError: A file does not exist, cannot be read or differs from its checksums; there are more or fewer files
            than devices; the files and the strategy do not hold the same parameters; slices do not fit the strategy; or
            copies differ.
    """
    ranks = _assign(list_paths("files", files), read_stages(list_paths("strategy", strategy)))
    joined = [_join_stage(stage_ranks, dec_key, dec_mode) for stage_ranks in ranks]
    _check_complete(ranks, joined)
    adapter = _unite(ranks, joined)
    warn_unverified(_paths(ranks))
    return adapter


def load_trainable_distributed(
    net: nn.Cell,
    base_files: Sequence[PathLike],
    base_strategy: PathLike | Sequence[PathLike],
    tuned_files: Sequence[PathLike],
    tuned_strategy: PathLike | Sequence[PathLike],
    *,
    dec_key: bytes | None = None,
    dec_mode: str = "AES-GCM",
) -> None:
    """Load a pretraining and a fine-tuning on many devices into a network on one device, both or nothing.

    The specification's Appendix A: MindSpore's `load_distributed_checkpoint` with the pretraining's checkpoints and
    strategy, then with the fine-tuning's. It only warns of what does not fit, and it may load by the end of a name; so
    everything is checked before, it loads into parameters made for it, and what it has joined is compared with what the
    strategies say before the network gets the first value. Beside the network, the memory must hold the parameters
    twice and the files of a stage once.

    The network must be frozen as it was for the fine-tuning. The base files must give every frozen parameter, save
    those of a delta method, and may give trainable ones and an optimizer's state, which is left out; the tuned files
    must give every trainable parameter and nothing else. The names that 1.x wrote are understood.

    Args:
        net: The network; it keeps its Parameter objects and gets new values.
        base_files: The .ckpt file of each rank of the pretraining, in the order of the ranks, saved with
            `integrated_save=False`. They must not be encrypted.
        base_strategy: The strategy file of the pretraining. For a pipeline, the files of its stages in their order, or
            the one that MindSpore's `merge_pipeline_strategys` has made of them.
        tuned_files: The .ckpt file of each rank of the fine-tuning, likewise. Checksums beside a file are checked; a
            file without them is loaded with an `UnverifiedCheckpointWarning`.
        tuned_strategy: The strategy of the fine-tuning, likewise.
        dec_key: The key of encrypted tuned files.
        dec_mode: Their encryption: 'AES-GCM', 'AES-CBC' or 'SM4-CBC'.

    Raises:
        TypeError: `net` is no Cell, or an argument for files holds something that is no path.
        InputError: As for `gather_adapter`; parameters are missing, unexpected, or of another shape or dtype than in
            the network, which the message lists; or MindSpore cannot join what a strategy describes. The network is
            unchanged.
    """
    check_network(net)
    base = _assign(list_paths("base_files", base_files), read_stages(list_paths("base_strategy", base_strategy)))
    tuned = _assign(list_paths("tuned_files", tuned_files), read_stages(list_paths("tuned_strategy", tuned_strategy)))
    trainable = {canonical_name(name): parameter for name, parameter in trainable_parameters(net).items()}
    own = _own_by_name(net)

    base_joined = [_join_stage(ranks, network=set(own)) for ranks in base]
    base_values = _unite(base, base_joined)
    check_fit(net, _expect_of_base(own, trainable, base_values), base_values, _paths(base))
    tuned_joined = [_join_stage(ranks, dec_key, dec_mode) for ranks in tuned]
    check_fit(net, trainable, _unite(tuned, tuned_joined), _paths(tuned))

    loaded: dict[str, Parameter] = {}
    for ranks, joined in zip(base, base_joined, strict=True):
        loaded |= _load_stage(ranks, joined)
    for ranks, joined in zip(tuned, tuned_joined, strict=True):
        loaded |= _load_stage(ranks, joined, dec_key, dec_mode)
    for name, value in loaded.items():
        own[name].set_data(value)
    warn_unverified(_paths(tuned))


def _own_by_name(net: nn.Cell) -> dict[str, Parameter]:
    """Return the parameters of a network by their names in version 2."""
    own: dict[str, Parameter] = {}
    for parameter in own_parameters(net):
        if own.setdefault(canonical_name(parameter.name), parameter) is not parameter:
            raise InputError(
                f"Several parameters of the network have the name {parameter.name!r}, and a file can hold only one of"
                " them; give every parameter a name of its own, for example with update_parameters_name."
            )
    return own


def _paths(several: list[_Ranks]) -> list[Path]:
    return [path for ranks in several for path in ranks.paths]


def _assign(paths: list[Path], stages: list[Stage]) -> list[_Ranks]:
    """Give each stage the checkpoints of its ranks."""
    devices = sum(stage.devices for stage in stages)
    if len(paths) != devices:
        strategies = ", ".join(dict.fromkeys(str(stage.file) for stage in stages))
        raise InputError(
            f"{len(paths)} checkpoints are given, and {strategies} is for {devices} devices; give the file of each"
            " rank, in the order of the ranks."
        )
    rest = iter(paths)
    return [_Ranks(stage, [next(rest) for _ in range(stage.devices)]) for stage in stages]


def _join_stage(
    ranks: _Ranks, dec_key: bytes | None = None, dec_mode: str = "AES-GCM", network: set[str] | None = None
) -> dict[str, Tensor]:
    """Return the whole parameters of a stage, by their names in the files.

    Args:
        ranks: The stage and its files.
        dec_key: The key of encrypted files.
        dec_mode: Their encryption.
        network: The names of the network's parameters: an optimizer's state beside them is left out.
    """
    contents = [read_checkpoint(path, dec_key, dec_mode) for path in ranks.paths]
    names = list(contents[0])
    for path, content in zip(ranks.paths, contents, strict=True):
        if differing := sorted(content.keys() ^ contents[0].keys()):
            raise InputError(
                f"{path} and {ranks.paths[0]} do not hold the same parameters: only one of them holds"
                f" {_list(differing)}; give the files that all ranks have saved at one step."
            )
    if network is not None:
        names = [name for name in names if not _is_state(name, contents[0][name], network)]
    if unplanned := sorted(set(names) - ranks.stage.layouts.keys()):
        raise InputError(
            f"{ranks.paths[0]} holds {_list(unplanned)}, of which {ranks.stage.file} says nothing; give checkpoints and"
            " strategy of one training, and for a pipeline all stages in their order."
        )
    return {name: _join(ranks, name, [content[name] for content in contents]) for name in names}


def _is_state(name: str, value: Tensor, network: set[str]) -> bool:
    """Tell whether an entry belongs to a training step: state of a parameter, or one number that is no parameter."""
    return canonical_name(name) not in network and (value.size == 1 or is_state_of(name, network))


def _join(ranks: _Ranks, name: str, held: list[Tensor]) -> Tensor:
    try:
        return Tensor(ranks.stage.layouts[name].join([value.asnumpy() for value in held]))
    except ValueError as error:
        raise InputError(
            f"{name} in {ranks.paths[0]} to {ranks.paths[-1]} does not fit {ranks.stage.file}: {error}; give the files"
            " of all ranks in their order, saved at one step with integrated_save=False, and their training's strategy."
        ) from error


def _check_complete(several: list[_Ranks], joined: list[dict[str, Tensor]]) -> None:
    """Check that the files give what the strategies list, except an optimizer's state."""
    given = {name for values in joined for name in values}
    listed = {name for ranks in several for name in ranks.stage.layouts}
    if missing := sorted(name for name in listed - given if not is_state_of(name, listed)):
        raise InputError(
            f"{', '.join(map(str, _paths(several)))} lack {_list(missing)}, which the strategy lists; give checkpoints"
            " and strategy of one training."
        )


def _unite(several: list[_Ranks], joined: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the parameters of all stages by their names in version 2; stages that share one must agree on it."""
    united: dict[str, Tensor] = {}
    for ranks, values in zip(several, joined, strict=True):
        for name, value in values.items():
            if not _are_equal(united.setdefault(canonical_name(name), value), value):
                raise InputError(
                    f"{ranks.paths[0]} gives {name} other values than the files before it; give the files that all"
                    " ranks have saved at one step."
                )
    return united


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype, one.get_bytes()) == (other.shape, other.dtype, other.get_bytes())


def _expect_of_base(
    own: dict[str, Parameter], trainable: dict[str, Parameter], values: dict[str, Tensor]
) -> dict[str, Parameter]:
    """Return the parameters that the base files must give, and of the others those that they do give."""
    return {
        name: parameter
        for name, parameter in own.items()
        if name in values or (name not in trainable and "mindpet_delta_" not in name)
    }


def _load_stage(
    ranks: _Ranks, joined: dict[str, Tensor], dec_key: bytes | None = None, dec_mode: str = "AES-GCM"
) -> dict[str, Parameter]:
    """Return what MindSpore loads from a stage's files, by the names in version 2, once it is what was joined."""
    shelf = nn.Cell()
    for name, value in joined.items():
        empty = Parameter(Tensor(np.zeros_like(value.asnumpy())), name=name)
        shelf.insert_param_to_cell(name, empty, check_name_contain_dot=False)
    files, strategy = [str(path) for path in ranks.paths], str(ranks.stage.file)
    try:
        load_distributed_checkpoint(shelf, files, None, strategy, dec_key=dec_key, dec_mode=dec_mode)
        wrong = [
            parameter.name for parameter in shelf.get_parameters() if not _are_equal(parameter, joined[parameter.name])
        ]
        cause = f"it joins {_list(wrong)} otherwise than the strategy says" if wrong else ""
    except Exception as error:  # MindSpore raises whatever it meets; the shelf takes the half that it has loaded.
        cause = " ".join(str(error).split())
    if cause:
        raise InputError(
            f"MindSpore's load_distributed_checkpoint cannot load {files[0]} to {files[-1]} with {strategy} ({cause})."
            " Nothing was loaded; gather_adapter joins tuned files without it, and transform_checkpoints base files."
        )
    return {canonical_name(parameter.name): parameter for parameter in shelf.get_parameters()}


def _list(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + rest
