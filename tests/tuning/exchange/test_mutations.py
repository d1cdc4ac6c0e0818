"""Seeded changes of a saved adapter, by one who knows nothing of its checksums: refused, or without consequence."""

import contextlib
import json
import random
import shutil
import warnings

import numpy as np
import pytest

import mindpet
from mindpet.utils.exceptions import InputError
from tests.tuning.exchange import damage
from tests.tuning.exchange.networks import Stack, adapter_values, lora, outputs, snapshot, trained

FILES = (damage.CONFIG, damage.TENSORS, "README.md")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Three adapters: the one to be changed, one with other values, and one of another base."""
    folder = tmp_path_factory.mktemp("adapters")
    originals = {
        "original": trained(Stack(), lora()),
        "other values": trained(Stack(), lora(), seed=2),
        "other base": trained(Stack(seed=4), lora(lora_alpha=7)),
    }
    for name, network in originals.items():
        mindpet.save_adapter(network, folder / name, base="base")
    return folder, originals["original"]


def flip_bits(folder, generator):
    path = folder / generator.choice(FILES)
    data = bytearray(path.read_bytes())
    for _ in range(generator.choice((1, 1, 2, 8))):
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    path.write_bytes(data)


def flip_bits_of_the_header(folder, generator):
    path = folder / damage.TENSORS
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    data[generator.randrange(8 + length)] ^= 1 << generator.randrange(8)
    path.write_bytes(data)


def set_bytes(folder, generator):
    path = folder / generator.choice(FILES)
    data = bytearray(path.read_bytes())
    start = generator.randrange(len(data))
    data[start : start + generator.choice((1, 4, 64))] = generator.randbytes(generator.choice((0, 1, 4, 64)))
    path.write_bytes(data)


def cut(folder, generator):
    path = folder / generator.choice(FILES)
    data = path.read_bytes()
    path.write_bytes(data[: generator.randrange(len(data))])


def lengthen(folder, generator):
    with (folder / generator.choice(FILES)).open("ab") as file:
        file.write(generator.choice((b"\0", b" ", b"\n", b"{}", generator.randbytes(32))))


def exchange_file(folder, generator):
    other = folder.parent / generator.choice(("other values", "other base"))
    shutil.copy(other / (name := generator.choice(FILES)), folder / name)


def remove_file(folder, generator):
    (folder / generator.choice(FILES)).unlink()


def edit_config(folder, generator):
    config = damage.read_config(folder)
    edit_json(config, generator)
    damage.write_config(folder, config)


def edit_scale(folder, generator):
    config = damage.read_config(folder)
    method = config["methods"][0]
    field = generator.choice(("lora_alpha", "r"))
    method[field] = generator.choice((method[field] + 1, method[field] * 1.0000001, 1, -1, None, "6", True, 1e300))
    damage.write_config(folder, config)


def edit_record(folder, generator):
    tensors, metadata = damage.read_tensors(folder)
    content = json.loads(metadata["mindpet"])
    edit_json(content, generator)
    damage.write_tensors(folder, tensors, {"mindpet": json.dumps(content)})


def edit_metadata(folder, generator):
    tensors, metadata = damage.read_tensors(folder)
    text = metadata.pop("mindpet")
    metadata |= generator.choice(({"mindpeft": text}, {}, {"mindpet": ""}, {"mindpet": text[::-1]}, {"mindpet": "[]"}))
    damage.write_tensors(folder, tensors, metadata)


def edit_tensors(folder, generator):
    names = list(damage.read_tensors(folder)[0])
    first, second = generator.sample(names, 2)
    dtype = generator.choice((np.float16, np.float64, np.int32, np.float32))
    edits = (
        lambda tensors: tensors.pop(first),
        lambda tensors: tensors.update({first + "x": tensors.pop(first)}),
        lambda tensors: tensors.update({f"copy.{first}": tensors[first]}),
        lambda tensors: tensors.update({first: tensors[second], second: tensors[first]}),
        lambda tensors: tensors.update({first: tensors[first].astype(dtype)}),
        lambda tensors: tensors.update({first: tensors[first].T}),
        lambda tensors: tensors.update({first: tensors[first] * np.float32(1.0000002)}),
        lambda tensors: tensors.update({first: -tensors[first]}),
        lambda tensors: tensors.update({first: np.full_like(tensors[first], generator.choice((0, np.nan, np.inf)))}),
    )
    damage.edit_tensors(folder, generator.choice(edits), is_signed=False)


def repeat_key(folder, generator):
    path = folder / damage.CONFIG
    lines = path.read_text().splitlines()
    keyed = [number for number, line in enumerate(lines) if line.rstrip().endswith(",") and '": ' in line]
    number = generator.choice(keyed)
    lines.insert(number, lines[number])
    path.write_text("\n".join(lines))


def edit_json(value, generator):
    """Change one thing somewhere in a JSON object."""
    places = list(places_of(value))
    holder, key = generator.choice(places)
    old = holder[key]
    if isinstance(holder, dict) and generator.random() < 0.3:
        generator.choice(
            (
                lambda: holder.pop(key),
                lambda: holder.update({f"{key}_": holder.pop(key)}),
                lambda: holder.update(new=old),
            )
        )()
        return
    choices = [None, [], {}, "x", 0, True, [old]]
    if isinstance(old, str):
        choices += [old[:-1], old + "a", old[::-1], old.upper()]
    if isinstance(old, int | float) and not isinstance(old, bool):
        choices += [old + 1, -old, old * 1.0000001, float(old), str(old)]
    holder[key] = generator.choice(choices)


def places_of(value):
    """Yield each (holder, key) of a JSON value."""
    keys = range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ()
    for key in list(keys):
        yield value, key
        yield from places_of(value[key])


MUTATIONS = (
    flip_bits,
    flip_bits_of_the_header,
    set_bytes,
    cut,
    lengthen,
    exchange_file,
    remove_file,
    edit_config,
    edit_scale,
    edit_record,
    edit_metadata,
    edit_tensors,
    repeat_key,
)


def check_mutations(adapters, seeds):
    """Check each seed's mutation, and return how many were refused."""
    folder, original = adapters
    expected = adapter_values(original), outputs(original), scales(original)
    plain, attached = Stack(), trained(Stack(), lora(), seed=3)
    refused = 0
    for seed in seeds:
        generator = random.Random(seed)
        mutation = MUTATIONS[seed % len(MUTATIONS)]
        shutil.rmtree(folder / "changed", ignore_errors=True)
        shutil.copytree(folder / "original", folder / "changed")
        mutation(folder / "changed", generator)
        if mutation is not exchange_file and generator.random() < 0.5:
            with contextlib.suppress(
                OSError, ValueError, TypeError
            ):  # then nothing but the file's own checksums is left
                damage.bind(folder / "changed")
        network = generator.choice((plain, attached))
        before = snapshot(network)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                report = mindpet.load_adapter(network, folder / "changed")
        except InputError:
            refused += 1
            assert snapshot(network) == before, (seed, mutation.__name__)
            continue
        found = adapter_values(network), outputs(network), scales(network)
        assert found[0] == expected[0], (seed, mutation.__name__)
        np.testing.assert_array_equal(found[1], expected[1])
        assert found[2] == expected[2], (seed, mutation.__name__)
        assert report.is_verified and report.outcome.difference == 0, (seed, mutation.__name__)
        plain, attached = Stack(), trained(Stack(), lora(), seed=3)
    return refused


def scales(network):
    return [
        float(np.asarray(getattr(cell.scaling, "asnumpy", lambda cell=cell: cell.scaling)()))
        for cell in (network.first, network.second)
    ]


def test_some_mutations_are_refused_or_without_consequence(adapters):
    assert 0 < check_mutations(adapters, range(39)) <= 39


@pytest.mark.slow
@pytest.mark.usefixtures("one_by_one")
def test_a_thousand_mutations_are_refused_or_without_consequence(adapters):
    refused = check_mutations(adapters, range(1000, 2000))
    assert 700 < refused < 1000  # the rest changed nothing but the card or an unimportant text
