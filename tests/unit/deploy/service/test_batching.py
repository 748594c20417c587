import threading
import time

import numpy as np
import pytest

from deepseek.deploy.service.batching import BatchClock, Batcher

LATER = 1e12


def make(**settings):
    return Batcher(**{"max_batch": 8, "target_s": 10.0, **settings})


def of(batch):
    return [(entry.request, entry.row) for entry in batch]


def test_a_lonely_sample_does_not_wait_for_others():
    batcher = make()
    batcher.add(7, np.ones((1, 2)), LATER)
    assert of(batcher.take()) == [(7, 0)]


def test_who_waits_for_a_sample_is_woken_by_it_and_by_the_end():
    batcher, taken = make(), []
    thread = threading.Thread(target=lambda: taken.extend((batcher.take(), batcher.take())))
    thread.start()
    batcher.add(1, np.ones((1, 2)), LATER)
    while len(taken) < 1 and thread.is_alive() and not batcher._is_closed:
        batcher.close()
    thread.join(10)
    assert taken[-1] == []


def test_what_waits_is_taken_together_and_no_more_than_the_limit():
    batcher = make(max_batch=3)
    batcher.add(1, np.ones((2, 4)), LATER)
    batcher.add(2, np.ones((3, 4)), LATER)
    assert of(batcher.take()) == [(1, 0), (1, 1), (2, 0)]
    assert of(batcher.take()) == [(2, 1), (2, 2)]


def test_a_batch_has_one_shape_and_the_others_keep_their_place():
    batcher = make()
    for request, width in enumerate((4, 2, 4, 2)):
        batcher.add(request, np.ones((1, width)), LATER)
    assert of(batcher.take()) == [(0, 0), (2, 0)]
    assert of(batcher.take()) == [(1, 0), (3, 0)]


def test_rows_of_tokens_are_filled_up_where_a_token_for_that_is_known():
    batcher = make(pad=9)
    for request, width in enumerate((8, 16, 64)):
        batcher.add(request, np.ones((1, width), np.int64), LATER)
    batch = batcher.take()
    assert of(batch) == [(0, 0), (1, 0)]  # 64 would be 8 and seven times as much for nothing
    stacked = batcher.stack(batch)
    assert stacked.shape == (2, 16)
    assert (stacked[0, 8:] == 9).all()
    assert of(batcher.take()) == [(2, 0)]


def test_who_has_waited_too_long_is_not_computed():
    batcher = make()
    batcher.add(1, np.ones((1, 2)), time.monotonic() - 1)
    batcher.add(2, np.ones((1, 2)), LATER)
    assert of(batcher.take()) == [(2, 0)]


def test_a_batch_that_would_take_longer_than_the_target_is_smaller():
    batcher = make(target_s=0.030, max_batch=32)
    for count in (1, 4, 16, 2, 32):
        batcher.clock.note(count, 0.010 + 0.002 * count)
    batcher.add(1, np.ones((32, 2)), LATER)
    assert len(batcher.take()) == 10


def test_the_clock_finds_the_line_that_times_lie_on():
    clock = BatchClock()
    assert clock.seconds(8) == 0
    assert clock.largest(0.01, 32) == 32  # nothing known: tried
    for count in (1, 4, 16, 2, 32):
        clock.note(count, 0.010 + 0.002 * count)
    assert clock.seconds(8) == pytest.approx(0.026)
    assert clock.largest(0.030, 32) == 10
    assert clock.largest(0.001, 32) == 1


def test_batches_of_one_size_are_taken_as_all_per_sample():
    clock = BatchClock()
    for _ in range(3):
        clock.note(4, 0.4)
    assert clock.seconds(8) == pytest.approx(0.8)
