from types import SimpleNamespace
from typing import get_args

import pytest
from torch.distributed.pipelining.schedules import get_schedule_class

from deepseek.parallel.pipeline import SCHEDULES
from deepseek.planner.parallel_plan import Schedule
from deepseek.planner.pipeline import (
    bubble_share,
    divide_layers,
    find_head_rank,
    list_in_flight,
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


def held(*settings):
    return [max(moment.held for moment in rank) for rank in list_in_flight(*settings)]


def test_1f1b_holds_as_many_as_there_are_stages_to_come():
    assert held("1f1b", 4, 1, 16) == [4, 3, 2, 1]


def test_gpipe_holds_all():
    assert held("gpipe", 4, 1, 16) == [16, 16, 16, 16]


@pytest.mark.parametrize(("pp", "chunks"), [(8, 3), (35, 3), (4, 2)])
def test_interleaved_first_rank_holds_what_korthikanti_says(pp, chunks):
    first = held("interleaved_1f1b", pp, chunks, 1000)[0]
    assert first == pytest.approx(pp * (1 + (pp - 1) / (pp * chunks)))


def test_no_rank_holds_more_micro_batches_than_there_are():
    for schedule in get_args(Schedule):
        assert max(held(schedule, 8, 2, 3)) <= 3


def follow(passes):
    """Return the most (held, waiting) passes, most held and most waiting, of an order of them."""
    now, most = [0, 0], set()
    for kind in passes:
        now[0] += {"F": 1, "W": -1}.get(kind, 0)
        now[1] += {"I": 1, "W": -1}.get(kind, 0)
        most.add(tuple(now))
    return max(most), max(most, key=lambda each: (each[1], each[0]))


@pytest.mark.parametrize("schedule", ["interleaved_zero_bubble", "zbv_zero_bubble"])
@pytest.mark.parametrize("pp", [2, 4])
def test_zero_bubble_ranks_hold_and_put_off_what_torch_says(schedule, pp):
    stages = [SimpleNamespace(group_size=pp)] * 2
    cls = get_schedule_class(SCHEDULES[schedule])
    for rank in range(pp):
        torchs = object.__new__(cls)
        torchs.__dict__.update(
            pp_group_size=pp, n_local_stages=len(stages), num_stages=2 * pp,
            _n_microbatches=4 * pp, microbatches_per_round=pp,
        )  # fmt: skip
        order = torchs._calculate_single_rank_operations(rank)
        found = follow(action.computation_type.value for action in order if action is not None)
        moments = list_in_flight(schedule, pp, 2, 4 * pp)[rank]
        assert set(found) <= {(2 * each.held, 2 * each.waiting) for each in moments}
