import pytest

from mindpet.train.journal import Follower, Journal
from mindpet.train.record import StepRecord
from mindpet.train.task import Metric


class _Quiet:
    """Stands for what a journal tells: a folder and a screen."""

    def __getattr__(self, name):
        return lambda *arguments: None


def _journal(steps):
    journal = Journal(_Quiet(), _Quiet(), Metric("accuracy"), measure=lambda: 0.5, save_state=lambda position: None)
    for number, (seconds, compiled) in enumerate(steps, start=1):
        journal.after_step(StepRecord(number, 1, 0.1, 0.1, 8, seconds, compiled, False, 1.0, waited=0.25))
    return journal


def test_what_compiling_added_is_counted_beyond_a_usual_step():
    timings = _journal([(3.0, True), (0.5, False), (1.0, False), (2.0, True)]).timings()
    assert timings["step_ms_median"] == pytest.approx(750)
    assert timings["compile_seconds"] == pytest.approx(3.0 - 0.75 + 2.0 - 0.75)
    assert timings["train_seconds"] == pytest.approx(6.5)
    assert timings["waiting_share"] == pytest.approx(1.0 / (1.0 + 4 * 0.75))


def test_what_a_usual_step_takes_is_not_known_where_every_step_compiled():
    timings = _journal([(3.0, True), (2.0, True)]).timings()
    assert timings["step_ms_median"] is None
    assert timings["compile_seconds"] is None
    assert timings["waiting_share"] is None
    assert timings["train_seconds"] == 5.0


def test_a_follower_only_takes_part_in_measuring():
    measured = []
    follower = Follower(lambda: measured.append(1) or 0.5)
    follower.before_compile((8, 7))
    follower.after_step(None)
    follower.save(None)
    assert not measured
    follower.after_epoch(1)
    assert measured == [1]
