from typing import get_args

import pytest

from deepseek.planner.parallel_plan import Schedule
from deepseek.planner.pipeline import (
    bubble_share,
    count_in_flight,
    divide_layers,
    find_head_rank,
)


def test_layers_that_do_not_divide_go_to_the_middle():
    assert divide_layers(10, 4, 1, "1f1b") == (2, 3, 3, 2)
    assert sum(divide_layers(126, 8, 2, "interleaved_1f1b")) == 126


def test_v_shape_gives_the_first_rank_both_ends():
    # Stages 0 to 7 have 1 block each but for stage 3 with 2: rank 3 has stages 3 and 4.
    assert divide_layers(9, 4, 2, "zbv_zero_bubble") == (2, 2, 2, 3)
    assert find_head_rank(4, "zbv_zero_bubble") == 0
    assert find_head_rank(4, "1f1b") == 3


@pytest.mark.parametrize(
    ("schedule", "stages", "share"),
    [
        ("gpipe", 1, 1),
        ("1f1b", 1, 1),
        ("interleaved_1f1b", 4, 1 / 4),
        ("looped_bfs", 2, 1 / 2),
        ("interleaved_zero_bubble", 2, 1 / 6),
        ("zbv_zero_bubble", 2, 0),
    ],
)
def test_bubble_of_each_schedule(schedule, stages, share):
    assert bubble_share(schedule, stages) == pytest.approx(share)


def test_1f1b_holds_as_many_as_there_are_stages_to_come():
    assert count_in_flight("1f1b", 4, 1, 16) == (4, 3, 2, 1)


def test_gpipe_holds_all():
    assert count_in_flight("gpipe", 4, 1, 16) == (16, 16, 16, 16)


@pytest.mark.parametrize(("pp", "chunks"), [(8, 3), (35, 3), (4, 2)])
def test_interleaved_first_rank_holds_what_korthikanti_says(pp, chunks):
    held = count_in_flight("interleaved_1f1b", pp, chunks, 1000)[0]
    assert held == pytest.approx(pp * (1 + (pp - 1) / (pp * chunks)))


def test_no_rank_holds_more_micro_batches_than_there_are():
    for schedule in get_args(Schedule):
        assert max(count_in_flight(schedule, 8, 2, 3)) <= 3
