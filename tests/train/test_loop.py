import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.train import Callback

from mindpet.data.batches import Batches
from mindpet.train import loop
from mindpet.train.interrupt import catch_stop_signals
from mindpet.train.loop import Position, train
from mindpet.train.ranks import Ranks
from mindpet.train.step import StepOutcome, TrainStep
from mindpet.utils.exceptions import DivergedError

EPOCHS = 2


def _batches(kind=Batches):
    ids = [np.array([2, n, 3], np.int32) for n in range(5, 15)]
    return kind(ids, np.arange(10, dtype=np.int32) % 2, batch_size=4, widths=(3,), pad_id=0, seed=1)


class _Recorder(Callback):
    """Observes the loop and plays a MindSpore callback too."""

    def __init__(self):
        self.events = []
        self.records = []

    def before_compile(self, shape):
        self.events.append(f"compile {shape}")

    def after_step(self, record):
        self.events.append(f"step {record.step}")
        self.records.append(record)

    def after_epoch(self, epoch):
        self.events.append(f"epoch {epoch}")

    def save(self, position):
        self.events.append(f"state {position.epoch}:{position.step}")

    def step_end(self, run_context):
        args = run_context.original_args()
        self.events.append(f"saved {args.cur_epoch_num}:{args.cur_step_num} of {args.batch_num}")

    def end(self, run_context):
        self.events.append("end")


class _FakeStep:
    """Gives prepared outcomes and does something while a step runs."""

    def __init__(self, losses=None, during=None, value=1.0, **outcome):
        self.cell = SimpleNamespace(
            trainable_params=lambda: [Parameter(Tensor(np.full(2, value), mstype.float32), name="lora_a")]
        )
        self._losses = iter(losses or [1.0] * 100)
        self._during = during
        self._outcome = {"skipped": False, "loss_scale": 1.0} | outcome
        self.count = 0

    def __call__(self, batch):
        self.count += 1
        if self._during:
            self._during(self.count)
        return StepOutcome(next(self._losses), **self._outcome)


class _RememberingStep(_FakeStep):
    """Notes which texts it has seen."""

    def __init__(self, seen):
        super().__init__()
        self._seen = seen

    def __call__(self, batch):
        self._seen.append(batch.indices.tolist())
        return super().__call__(batch)


def _train(step, recorder, batches=None, **more):
    batches = batches or _batches()
    rates = [0.1] * (EPOCHS * batches.steps_per_epoch)
    return train(step, batches, epochs=EPOCHS, learning_rates=rates, callbacks=[recorder], observer=recorder, **more)


class _Clock:
    """Shows the seconds that were let pass."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def let_pass(self, seconds):
        self.now += seconds


class _TimedBatches(Batches):
    """Takes 2 seconds of `clock` to shuffle and to make a batch."""

    def epoch(self, number, start=0):
        self.clock.let_pass(2)
        for batch in super().epoch(number, start):
            yield batch
            self.clock.let_pass(2)


def test_a_step_knows_how_long_it_took_and_how_long_it_waited_for_its_batch(monkeypatch):
    clock, recorder = _Clock(), _Recorder()
    monkeypatch.setattr(loop, "time", clock)
    batches = _batches(_TimedBatches)
    batches.clock = clock
    assert _train(_FakeStep(during=lambda _: clock.let_pass(5)), recorder, batches)
    assert [(record.waited, record.seconds) for record in recorder.records] == [(2, 5)] * len(recorder.records)


def test_the_loop_tells_of_each_step_and_epoch_in_order():
    recorder = _Recorder()
    assert _train(_FakeStep(), recorder)
    assert recorder.events == [
        "compile (4, 3)",
        *["step 1", "saved 1:1 of 3", "step 2", "saved 1:2 of 3", "step 3", "saved 1:3 of 3", "epoch 1", "state 2:0"],
        *["step 4", "saved 2:4 of 3", "step 5", "saved 2:5 of 3", "step 6", "saved 2:6 of 3", "epoch 2", "state 3:0"],
        "end",
    ]
    assert [record.compiled for record in recorder.records] == [True, *[False] * 5]
    assert sum(record.texts for record in recorder.records) == 20, "filler rows are no texts"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_step_at_hand(number):
    recorder = _Recorder()

    def interrupt(count):
        if count == 2:
            os.kill(os.getpid(), number)

    assert not _train(_FakeStep(during=interrupt), recorder)
    assert recorder.events[-4:] == ["step 2", "saved 1:2 of 3", "state 1:2", "end"]


def test_a_rank_stops_when_any_rank_was_asked_to():
    class OtherIsAsked(Ranks):
        wishes = iter([False, False, True])

        def any(self, wish):
            assert not wish, "this rank was not asked"
            return next(self.wishes)

    recorder = _Recorder()
    assert not _train(_FakeStep(), recorder, ranks=OtherIsAsked(1, 2))
    assert recorder.events[-4:] == ["step 3", "saved 1:3 of 3", "state 1:3", "end"]


def test_a_state_is_saved_every_so_many_steps_and_after_each_epoch():
    recorder = _Recorder()
    assert _train(_FakeStep(), recorder, save_steps=2)
    states = [event for event in recorder.events if event.startswith(("state", "epoch"))]
    assert states == ["state 1:2", "epoch 1", "state 2:0", "state 2:1", "epoch 2", "state 3:0"]


@pytest.mark.parametrize("done", range(2 * 3 + 1))
def test_the_loop_goes_on_from_any_position(done):
    whole, rest = _Recorder(), _Recorder()
    seen, seen_again = [], []
    _train(_RememberingStep(seen), whole)
    assert _train(_RememberingStep(seen_again), rest, start=Position(done // 3 + 1, done % 3))
    assert seen_again == seen[done:]
    assert [record.step for record in rest.records] == list(range(done + 1, 7))
    steps = [event for event in whole.events if not event.startswith("compile")]
    assert [event for event in rest.events if not event.startswith("compile")] == (
        steps[steps.index(f"step {done + 1}") :] if done < 6 else []
    )


def test_an_evaluation_that_is_still_to_come_is_made_up_for():
    recorder = _Recorder()
    assert _train(_FakeStep(), recorder, start=Position(2, 3))
    assert recorder.events == ["epoch 2", "state 3:0", "end"]


def test_the_second_signal_acts_as_ever():
    with pytest.raises(KeyboardInterrupt), catch_stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)


def test_a_callback_may_ask_for_an_end():
    recorder = _Recorder()
    recorder.on_train_step_end = lambda context: context.request_stop()
    assert not _train(_FakeStep(), recorder)
    assert recorder.events == ["compile (4, 3)", "step 1", "state 1:1", "end"]


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (_FakeStep(losses=[1.0, float("nan")]), r"step 2: the loss is nan, at learning rate 0\.1; lower the learning"),
        (_FakeStep(losses=[float("inf")]), "step 1: the loss is inf"),
        (_FakeStep(value=np.nan), "step 3: lora_a is not finite"),
        (_FakeStep(skipped=True, loss_scale=1.0), "step 1: gradients overflow float16"),
    ],
)
def test_divergence_stops_the_run_before_anything_is_saved(step, said):
    recorder = _Recorder()
    with pytest.raises(DivergedError, match=said):
        _train(step, recorder)
    assert f"saved 1:{step.count} of 3" not in recorder.events


def test_no_state_is_saved_with_a_parameter_that_is_not_finite():
    recorder = _Recorder()
    with pytest.raises(DivergedError, match="step 1: lora_a is not finite"):
        _train(_FakeStep(value=np.nan), recorder, save_steps=1)
    assert not any(event.startswith("state") for event in recorder.events)


def test_a_skipped_step_is_no_divergence_while_the_scale_can_fall():
    assert _train(_FakeStep(losses=[float("inf")] * 6, skipped=True, loss_scale=1024.0), _Recorder())


class _Network(nn.Cell):
    """Logits (batch, 2) from the tokens; `gain` sets how large the gradients are."""

    def __init__(self, gain):
        super().__init__()
        self.weight = Parameter(Tensor(np.zeros((1, 2)), mstype.float16), name="weight")
        self.gain = gain

    def construct(self, input_ids, attention_mask, token_type_ids):
        feature = ops.expand_dims((input_ids * attention_mask).astype(mstype.float16).mean(axis=1), 1)
        return (feature * self.gain) * self.weight


def test_steps_reduce_the_loss_in_both_modes(mode):
    network = _Network(1.0)
    step = TrainStep(network, nn.SGD(network.trainable_params(), 0.01), scale_loss=False)
    batch = next(iter(_batches().epoch(0)))
    losses = [step(batch).loss for _ in range(5)]
    assert losses[0] == pytest.approx(np.log(2), rel=1e-3)
    assert losses[-1] < losses[0]


def test_an_overflow_skips_the_update_and_lowers_the_scale(mode):
    network = _Network(8.0)
    step = TrainStep(network, nn.SGD(network.trainable_params(), 0.01), scale_loss=True)
    batch = next(iter(_batches().epoch(0)))
    first = step(batch)
    assert first.skipped
    assert not network.weight.asnumpy().any()
    outcomes = [step(batch) for _ in range(12)]
    assert not outcomes[-1].skipped
    assert outcomes[-1].loss_scale < first.loss_scale
    assert network.weight.asnumpy().any()
