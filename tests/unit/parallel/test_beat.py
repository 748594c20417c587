from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.parallel.beat import Beat, describe_silence

SUM = "the sum of loss and gradient norm"
DATA = "the data of the next batch"
GROUPS = {"0": "all ranks", "7": "tp"}
LIMIT = "the limit is trainer.parallel.timeout_s"
WAITING = Beat(
    number=130, step=41, phase=SUM, age_s=121.4, stack=["step.py:9 in measure"],
    entered={"0": 84}, waits=("0", "gloo:all_reduce", 84),
)  # fmt: skip
LATE = Beat(
    number=129, step=41, phase=DATA, age_s=122.0,
    stack=["trainer.py:1 in _loop", "loader.py:2 in next", "disk.py:3 in read"],
    entered={"0": 83}, waits=None,
)  # fmt: skip


def alive(beats):
    """The same beats a few seconds ago."""
    return {rank: replace(beat, number=beat.number - 3) for rank, beat in beats.items()}


def told(own, beats, before=None, rank=0):
    return describe_silence(rank, own, alive(beats) if before is None else before, beats, GROUPS)


def test_a_rank_that_has_not_come_is_named_with_what_it_is_at():
    text = told(WAITING, {1: WAITING, 2: LATE, 3: WAITING})
    assert text == (
        f"rank 0 waits for 121 s ({LIMIT}): step 42, {SUM}, in gloo:all_reduce number 84 of all"
        f" ranks\n  rank 2 has not come: it is at step 42, {DATA}, for 122 s: disk.py:3 in read <"
        " loader.py:2 in next < trainer.py:1 in _loop"
    )


def test_a_rank_that_does_not_beat_is_named_with_where_it_was():
    beats = {1: WAITING, 2: LATE}
    text = told(WAITING, beats, before={**alive(beats), 2: LATE})
    assert (
        "rank 2 does not answer: stopped, or its host is gone; it was at step 42, the data" in text
    )
    assert "has not come" not in text
    assert "rank 1 " not in text


def test_a_silent_rank_is_named_before_a_late_one():
    beats = {1: LATE, 2: WAITING, 3: LATE}
    lines = told(WAITING, beats, before={**alive(beats), 3: LATE}).splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == [
        "  rank 3 does not answer",
        "  rank 1 has not come",
    ]


def test_a_rank_that_is_itself_the_late_one_says_so():
    text = told(LATE, {0: WAITING, 2: WAITING}, rank=1)
    assert text == (
        f"this rank, 1, is at step 42, {DATA}, for 122 s: disk.py:3 in read < loader.py:2 in next <"
        f" trainer.py:1 in _loop; rank 0, 2 wait for it ({LIMIT})"
    )


def test_one_rank_waits_and_two_wait():
    assert "; rank 0 waits for it" in told(LATE, {0: WAITING}, rank=1)
    assert "; rank 0, 2 wait for it" in told(LATE, {0: WAITING, 2: WAITING}, rank=1)


def test_a_rank_in_an_earlier_step_is_late_also_without_a_recorder():
    own = replace(WAITING, entered={}, waits=None)
    behind = replace(own, step=40)
    assert "rank 1 has not come: it is at step 41" in told(own, {1: behind})
    assert told(behind, {0: own}, rank=1).startswith("this rank, 1, is at step 41")


def test_a_collective_that_was_entered_is_no_delay():
    ahead = replace(LATE, entered={"0": 84})  # it went through, and is at the next batch
    assert "has not come" not in told(WAITING, {1: ahead})


def test_collectives_are_compared_within_their_group():
    own = replace(WAITING, waits=("7", "gloo:all_reduce", 5), entered={"0": 84, "7": 5})
    late = replace(LATE, entered={"0": 84, "7": 4})
    text = told(own, {1: late})
    assert "in gloo:all_reduce number 5 of tp" in text
    assert "rank 1 has not come" in text


def test_a_group_without_a_name_is_given_by_its_number():
    own = replace(WAITING, waits=("12", "gloo:broadcast", 3))
    assert "in gloo:broadcast number 3 of group 12" in told(own, {1: LATE})


def test_where_all_are_at_the_same_their_places_are_told():
    text = told(WAITING, {1: WAITING, 2: WAITING})
    assert text.count(f"is at step 42, {SUM}, in gloo:all_reduce number 84, for 121 s") == 2


def test_where_nothing_is_known_nobody_is_blamed():
    text = told(WAITING, {})
    assert text.startswith(f"rank 0 waits for 121 s ({LIMIT}): step 42, {SUM}")
    assert "this rank" not in text
    assert "does not answer" not in text
    assert "has not come" not in text


def test_where_nothing_is_known_it_says_so():
    assert told(WAITING, {}).splitlines()[1:] == ["  nothing is known of the other ranks"]


@pytest.mark.parametrize(("num_late", "num_left_out"), [(8, 0), (9, 1), (12, 4)])
def test_a_list_that_is_cut_off_says_so(num_late, num_left_out):
    lines = told(WAITING, dict.fromkeys(range(1, num_late + 1), LATE)).splitlines()[1:]
    shown = [line.split(":")[0] for line in lines[:8]]
    assert shown == [f"  rank {rank} has not come" for rank in range(1, 9)]
    assert lines[8:] == [f"  ... and {num_left_out} more"] * (num_left_out > 0)


def test_long_lists_of_waiting_ranks_are_cut_off():
    text = told(LATE, {rank: WAITING for rank in range(1, 20)})
    assert "rank 1, 2, 3, 4, 5, 6, 7, 8, ... wait for it" in text


PLACES = st.tuples(st.text(min_size=1, max_size=3), st.text(max_size=9), st.integers(0, 2**40))


@settings(deadline=None)
@given(
    st.builds(
        Beat,
        number=st.integers(0),
        step=st.integers(0),
        phase=st.text(),
        age_s=st.floats(0, 1e9),
        stack=st.lists(st.text(), max_size=3),
        entered=st.dictionaries(st.text(), st.integers(0), max_size=3),
        waits=st.none() | PLACES,
    )
)
def test_a_beat_survives_its_text(beat):
    assert Beat.from_json(beat.to_json()) == beat
    assert Beat.from_json(beat.to_json().encode()) == beat
