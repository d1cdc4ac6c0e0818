import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn
from mindspore import dtype as mstype

from mindpet.data.batches import Batches
from mindpet.train.cluster import devices_to_launch, require_devices, with_devices_of_the_cluster
from mindpet.train.evaluate import run_batches
from mindpet.train.ranks import ALONE, Ranks, join_ranks
from mindpet.train.settings import FinetuneSettings, load_settings
from mindpet.utils.dropout import Dropout
from mindpet.utils.exceptions import InputError

COUNTS = [1, 2, 3, 4]


def _batches(texts=50):
    lengths = np.random.default_rng(0).integers(3, 9, texts)
    encoded = [np.full(length, number + 5, np.int32) for number, length in enumerate(lengths)]
    return Batches(encoded, np.arange(texts, dtype=np.int32) % 3, batch_size=12, widths=(4, 8), pad_id=0, seed=2)


def _of_all(count):
    return [Ranks(number, count) for number in range(count)]


@pytest.mark.parametrize("count", COUNTS)
def test_the_ranks_parts_cover_each_batch_and_do_not_overlap(count):
    for epoch in range(2):
        seen = []
        for batch in _batches().epoch(epoch):
            parts = [rank.part_of(batch) for rank in _of_all(count)]
            assert {part.input_ids.shape for part in parts} == {(12 // count, batch.input_ids.shape[1])}
            for whole, *pieces in zip(batch, *parts, strict=True):
                np.testing.assert_array_equal(np.concatenate(pieces), whole)
            seen += [index for part in parts for index in part.indices if index >= 0]
        assert sorted(seen) == list(range(50)), "each text once"


@pytest.mark.parametrize("count", COUNTS)
def test_the_mean_over_the_ranks_is_the_mean_over_the_texts_whatever_the_fillers(count):
    losses = np.random.default_rng(1).random(50)
    weights = []
    for batch in _batches().epoch(0):
        own = [rank.part_of(batch).indices for rank in _of_all(count)]
        means = [np.mean(losses[part[part >= 0]]) if (part >= 0).any() else 0.0 for part in own]
        weights.append([rank.weight_of(batch) for rank in _of_all(count)])
        joined = np.mean(np.multiply(weights[-1], means))
        assert joined == pytest.approx(np.mean(losses[batch.indices[batch.indices >= 0]]))
    assert count == 1 or any(set(of_a_batch) != {1.0} for of_a_batch in weights), "some batch has fillers"


class _Sums(nn.Cell):
    """Two numbers a text: the sum of its tokens and their count."""

    def construct(self, input_ids, attention_mask, token_type_ids):
        tokens = (input_ids * attention_mask).sum(axis=1, keepdims=True)
        return tokens.astype(mstype.float32) * Tensor([[1.0, 0.0]]) + attention_mask.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("count", COUNTS)
def test_evaluations_of_all_ranks_add_up_to_that_of_one_process(monkeypatch, count):
    monkeypatch.setattr(Ranks, "sum", lambda self, values: values)
    parts = [run_batches(_Sums(), _batches(), rank) for rank in _of_all(count)]
    np.testing.assert_array_equal(sum(parts), run_batches(_Sums(), _batches(), ALONE))


def _mask(rank, rows, step=3, seed=1, layer=0):
    dropout = Dropout(0.4)
    dropout.use_mask(Parameter(Tensor(step, mstype.int32), requires_grad=False), seed, layer, rank)
    return dropout.mask((rows, 2, 40)).asnumpy()


def test_each_rank_has_its_part_of_the_whole_batchs_mask(mode):
    whole = _mask(0, 12)
    np.testing.assert_array_equal(np.concatenate([_mask(rank, 4) for rank in range(3)]), whole)
    masks = [_mask(rank, 4) for rank in range(3)] + [_mask(1, 4, step=4), _mask(1, 4, seed=2), _mask(1, 4, layer=1)]
    assert len({mask.tobytes() for mask in masks}) == len(masks)
    np.testing.assert_array_equal(_mask(2, 4), masks[2])
    assert 0.5 < np.mean(masks[2] > 0) < 0.7


def test_mindspores_own_masks_have_another_seed_on_each_rank():
    dropouts = [Dropout(0.4) for _ in range(3)]
    for rank, dropout in enumerate(dropouts):
        dropout.use_rank(rank)
    assert len({dropout.dropout.attrs["Seed1"] for dropout in dropouts}) == 3


def test_a_process_on_its_own_meets_nobody(monkeypatch):
    monkeypatch.delenv("MS_ROLE", raising=False)
    ranks = join_ranks(1)
    assert (ranks.number, ranks.count, ranks.is_first) == (0, 1, True)
    assert ranks.mean(0.1) == 0.1
    assert ranks.any(True) and not ranks.any(False)
    ranks.meet()
    ranks.require_same("anything")


@pytest.fixture
def cluster_of_two(monkeypatch):
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")
    monkeypatch.setenv("MS_WORKER_NUM", "2")


def test_a_rank_that_read_other_things_is_refused():
    class Other(Ranks):
        def sum(self, values):
            return values + 1

    with pytest.raises(InputError, match="rank 1: model, data, settings"):
        Other(1, 2).require_same("something")


def test_devices_come_from_the_cluster_unless_given(cluster_of_two):
    assert with_devices_of_the_cluster(FinetuneSettings()).devices == 2
    assert with_devices_of_the_cluster(FinetuneSettings(devices=4)).devices == 4
    assert devices_to_launch(FinetuneSettings(devices=2)) == 1, "they are started already"
    require_devices(FinetuneSettings(devices=2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"devices": 3, "batch_size": 6}, "devices: 3, but the processes started are 2; use"),
        ({"devices": 1}, "devices: 1, but the processes started are 2"),
        ({"devices": 2, "batch_size": 7}, "batch_size: 7 texts cannot be shared equally by 2 devices"),
    ],
)
def test_devices_that_do_not_fit_the_cluster_are_refused(cluster_of_two, changes, said):
    with pytest.raises(InputError, match=said):
        require_devices(FinetuneSettings(**changes))


def test_a_process_on_its_own_cannot_be_two(monkeypatch):
    monkeypatch.delenv("MS_ROLE", raising=False)
    with pytest.raises(InputError, match=r"devices: 2, but the processes started are 1; use .*finetune --devices 2"):
        require_devices(FinetuneSettings(devices=2))


def test_a_resumed_run_is_launched_with_its_own_devices(monkeypatch, tmp_path):
    monkeypatch.delenv("MS_ROLE", raising=False)
    (tmp_path / "settings.yaml").write_text("devices: 2\n")
    given = {"out": tmp_path, "resume": True}
    assert devices_to_launch(FinetuneSettings(**given)) == 2
    assert devices_to_launch(FinetuneSettings(out=tmp_path)) == 1
    with pytest.raises(InputError, match=r"devices: 4 was given, but the run in .* has 2"):
        devices_to_launch(FinetuneSettings(devices=4, **given))


def test_settings_refuse_a_batch_that_cannot_be_shared(tmp_path):
    with pytest.raises(InputError, match="batch_size: 32 texts cannot be shared equally by 3 devices; choose a mult"):
        load_settings(None, {"devices": 3})
    assert load_settings(None, {"devices": 4}).devices == 4
