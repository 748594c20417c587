import itertools

import pytest

from deepseek.errors import ConfigError
from deepseek.trainer import SCHEDULES, Schedule
from deepseek.trainer.schedule import resolve_warmup


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_every_schedule_rises_to_the_peak_and_never_above(name):
    schedule = Schedule(name, peak_lr=0.1, max_steps=100, warmup_steps=10, min_lr_share=0.01)
    rates = [schedule.lr(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(0.1)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(rates[10:]))
    if name != "constant":
        assert rates[100] == pytest.approx(0.001)


def test_cosine_is_half_way_down_in_the_middle():
    schedule = Schedule("cosine", 1.0, max_steps=100, warmup_steps=0, min_lr_share=0.0)
    assert schedule.lr(50) == pytest.approx(0.5)


def test_wsd_stays_before_it_decays():
    schedule = Schedule("wsd", 1.0, max_steps=100, warmup_steps=0, min_lr_share=0.0)
    assert schedule.lr(79) == 1.0
    assert schedule.lr(90) < 0.5


def test_warmup_is_steps_or_a_share():
    assert resolve_warmup(7, "cosine", 100) == 7
    assert resolve_warmup(0.1, "cosine", 100) == 10
    assert resolve_warmup("auto", "cosine", 100) == 5
    assert resolve_warmup("auto", "one_cycle", 100) == 30
    with pytest.raises(ConfigError, match="longer than the run"):
        resolve_warmup(101, "cosine", 100)
