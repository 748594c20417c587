"""What a rank sends, in the planner's formulas."""

from dataclasses import replace

import pytest

from deepseek.planner import ParallelPlan, find_shape
from deepseek.planner.traffic import count_sent

GPT = find_shape("gpt3-175b")


def test_one_rank_sends_nothing():
    assert not any(count_sent(GPT, ParallelPlan()).values())


@pytest.mark.parametrize("axis", ["tp", "cp"])
def test_what_layers_send_grows_with_micro_batches(axis):
    plan = ParallelPlan(**{axis: 2}, num_micro_batches=2)
    once, twice = count_sent(GPT, plan), count_sent(GPT, replace(plan, num_micro_batches=4))
    assert once[axis] > 0
    assert twice[axis] == pytest.approx(2 * once[axis])
    others = {name: sent for name, sent in once.items() if name not in (axis, "data")}
    assert not any(others.values())


def test_a_sum_is_as_many_bytes_as_its_scatter_and_gather():
    whole = count_sent(GPT, ParallelPlan(tp=8, sequence_parallel=False))
    parts = count_sent(GPT, ParallelPlan(tp=8))
    # and inputs of a block's two halves, gathered once more for the gradients of weights
    assert parts["tp"] == pytest.approx(whole["tp"] * 10 / 8)


def test_shards_send_gradients_once_and_weights_twice():
    copies = count_sent(GPT, ParallelPlan(dp_replicate=8, gradient_bytes=4.0))["data"]
    plan = ParallelPlan(dp_shard=8, gradient_bytes=4.0, weight_bytes=4.0)
    assert count_sent(GPT, plan)["data"] == pytest.approx(copies * 3 / 2)
    assert count_sent(GPT, replace(plan, reshards=False))["data"] == pytest.approx(copies)


def test_the_ends_of_a_pipeline_send_half():
    plan = ParallelPlan(pp=8, num_micro_batches=8)
    sent = [count_sent(GPT, plan, rank)["pp"] for rank in range(8)]
    assert sent[0] == sent[-1] == pytest.approx(sent[1] / 2)
    turn = replace(plan, schedule="zbv_zero_bubble", virtual_stages=2)
    assert count_sent(GPT, turn)["pp"] == pytest.approx(2 * sent[0])
