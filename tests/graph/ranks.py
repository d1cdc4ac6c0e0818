"""What the ranks of a distributed training would save, cut from whole values by a strategy file."""

import json
from collections import defaultdict
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore.parallel import build_searched_strategy

from mindpet.graph import write_trainable

STRATEGIES = Path(__file__).parent / "strategies"
SLICES = json.loads((STRATEGIES / "slices.json").read_text())


def strategy_of(name):
    """Return the strategy file of a planned case, or the list with those of its stages."""
    return sorted(STRATEGIES.glob(f"{name}_stage?.ckpt")) if "pipeline" in name else STRATEGIES / f"{name}.ckpt"


def stages_of(name):
    strategy = strategy_of(name)
    return strategy if isinstance(strategy, list) else [strategy]


def read_layout(message):
    """Return a layout as (grid, cuts, shares); an axis is cut by axes of the grid, which are counted from the front."""
    grid = list(message.dev_matrix[0].dim)
    maps = [list(axes.dim) for axes in message.tensor_map]
    maps = [[axis] for axis in maps[0]] if len(maps) == 1 else [axes for axes in maps if axes]
    return grid, [[len(grid) - 1 - axis for axis in axes if axis >= 0] for axes in maps], message.opt_weight_shard_size


def cut(whole, grid, cuts, shares=0):
    """Return what each device holds: the axes of the grid cut one after the other, then sharers cut the copies."""
    ranks = np.arange(np.prod(grid)).reshape(grid)
    held = dict.fromkeys(ranks.flat, whole)
    for axis, cutters in enumerate(cuts):
        for cutter in cutters:
            for number, across in enumerate(np.moveaxis(ranks, cutter, 0)):
                for rank in across.flat:
                    held[rank] = np.split(held[rank], grid[cutter], axis)[number]
    if shares:
        held = dict(_share(held, ranks, {cutter for cutters in cuts for cutter in cutters}, shares))
    return [held[rank] for rank in ranks.flat]


def _share(held, ranks, cutters, shares):
    holders = defaultdict(list)
    for position, rank in np.ndenumerate(ranks):
        holders[tuple(position[axis] for axis in cutters)].append(rank)
    for group in holders.values():
        share = len(group) if shares < 0 else shares
        for number, rank in enumerate(group):
            yield rank, np.split(held[rank], share)[number % share]


def cut_for(file, values):
    """Return for each rank of the strategy file's stage what it holds of the values that the file lists."""
    contents = defaultdict(dict)
    for name, message in build_searched_strategy(str(file)).items():
        if name in values:
            for rank, part in enumerate(cut(values[name], *read_layout(message))):
                contents[rank][name] = part
    return [contents[rank] for rank in sorted(contents)]


def save_ranks(folder, name, values, save):
    """Save what each rank of a planned case holds, by `save(content, file)`, and return the files."""
    folder.mkdir(exist_ok=True)
    contents = [content for file in stages_of(name) for content in cut_for(file, values)]
    files = [folder / f"rank_{rank}.ckpt" for rank in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        save({key: ms.Tensor(value) for key, value in content.items()}, file)
    return files


def save_plainly(content, file):
    """Save as MindSpore does, without checksums."""
    ms.save_checkpoint([{"name": name, "data": value} for name, value in content.items()], str(file))


def random_values(network, seed=0):
    """Return values of all parameters of a network, by name."""
    generator = np.random.default_rng(seed)
    return {
        parameter.name: generator.normal(size=parameter.shape).astype(parameter.asnumpy().dtype)
        for parameter in network.get_parameters()
    }


def rewrite(file, change):
    """Change the content of a checkpoint, and its checksums if it has any."""
    content = change(dict(ms.load_checkpoint(str(file))))
    sums = file.with_name(file.name + ".sha256.json")
    save = write_trainable if sums.exists() else save_plainly
    file.unlink()
    sums.unlink(missing_ok=True)
    save(content, file)


def without(name):
    return lambda content: {key: value for key, value in content.items() if key != name}


def with_value(name, value):
    return lambda content: content | {name: ms.Tensor(value)}
