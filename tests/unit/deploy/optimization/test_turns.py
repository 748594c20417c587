import time

import pytest

from deepseek.deploy.optimization.turns import MAX_OTHERS, Round, summarise, take_turns


def test_turns_tell_which_is_faster():
    rounds = take_turns(lambda: time.sleep(0.02), lambda: time.sleep(0.08), 0.5)
    timing = summarise(rounds)
    assert timing.num_rounds >= 3
    assert 1.5 < timing.ratio < 8
    assert timing.quartiles[0] <= timing.seconds <= timing.quartiles[1]


def test_rounds_in_which_others_used_the_machine_do_not_count():
    quiet = [Round(1.0, 2.0, 0.0)] * 3
    noisy = [Round(9.0, 2.0, MAX_OTHERS + 0.01)] * 20
    timing = summarise([*noisy, *quiet])
    assert (timing.seconds, timing.ratio, timing.num_rounds) == (1.0, 2.0, 3)
    assert timing.is_quiet


def test_without_quiet_rounds_the_quieter_half_counts_and_this_is_said():
    rounds = [Round(1.0 + at, 2.0, 0.2 + 0.1 * at) for at in range(8)]
    timing = summarise(rounds)
    assert not timing.is_quiet
    assert timing.num_rounds == 4
    assert timing.seconds == pytest.approx(2.5)


def test_the_error_of_a_ratio_falls_with_the_rounds():
    few = [Round(1.0, 2.0 + 0.1 * (at % 3), 0.0) for at in range(6)]
    assert summarise(few * 16).error == pytest.approx(summarise(few).error / 4, rel=0.4)
