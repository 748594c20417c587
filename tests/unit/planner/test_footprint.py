from dataclasses import replace

import pytest

from deepseek.planner import ParallelPlan, find_shape, predict
from deepseek.planner.flops import count_parameters
from deepseek.planner.footprint import count_block_bytes
from deepseek.planner.search_space import SearchSpace, adapt_plan

PLAN = ParallelPlan(attention="plain", sequence_parallel=False)
GPT = find_shape("gpt3-6.7b")
TOKENS = 2048


@pytest.mark.parametrize("tp", [1, 2, 8])
@pytest.mark.parametrize("samples", [1, 4])
def test_activations_are_those_of_korthikanti(tp, samples):
    s, b, h, a = TOKENS, samples, GPT.dim, GPT.heads
    unit = s * b * h
    plan = replace(PLAN, tp=tp, micro_batch_size=samples)
    scores = 5 * a * s / h / tp
    assert count_block_bytes(GPT, plan).kept == pytest.approx(unit * (10 + 24 / tp + scores))
    sp = replace(plan, sequence_parallel=True)
    assert count_block_bytes(GPT, sp).kept == pytest.approx(unit * (34 / tp + scores))
    selective = replace(sp, recompute="selective")
    assert count_block_bytes(GPT, selective).kept == pytest.approx(unit * 34 / tp)
    full = replace(plan, recompute="full")
    assert count_block_bytes(GPT, full).kept == pytest.approx(unit * 2)


@pytest.mark.parametrize(
    ("name", "everything", "pointwise"), [("mpt-7b", 32, 12), ("llama3-8b", 41, 18)]
)
def test_flash_attention_keeps_no_scores(name, everything, pointwise):
    shape = find_shape(name)
    unit = shape.context_length * shape.dim
    plan = ParallelPlan()
    kept = count_block_bytes(shape, plan).kept / unit
    less = count_block_bytes(shape, replace(plan, recompute="pointwise")).kept / unit
    assert kept == pytest.approx(everything, abs=0.05)
    assert kept - less == pytest.approx(pointwise)


def test_mixed_precision_adam_takes_18_bytes_a_weight(a100s):
    memory = predict(GPT, a100s(1), ParallelPlan()).memory[0]
    stored = memory["weights"] + memory["gradients"] + memory["optimizer"]
    assert stored == 18 * count_parameters(GPT)


def test_zero_divides_only_the_optimizer(a100s):
    plan = ParallelPlan(dp_replicate=8)
    plain = predict(GPT, a100s(8), plan).memory[0]
    zero = predict(GPT, a100s(8), replace(plan, shards_optimizer=True)).memory[0]
    assert zero["optimizer"] == plain["optimizer"] / 8
    assert zero["weights"] == plain["weights"]


def test_full_sharding_divides_all_stored_bytes(a100s):
    one = predict(GPT, a100s(1), ParallelPlan()).memory[0]
    shards = predict(GPT, a100s(8), ParallelPlan(dp_shard=8)).memory[0]
    assert shards["gradients"] == one["gradients"] / 8
    # The fp32 master is the weight; 16-bit copies are gathered into buffers.
    assert shards["weights"] + shards["optimizer"] == pytest.approx(one["optimizer"] / 8)
    assert shards["buffers"] > 0


@pytest.mark.parametrize("recompute", ["none", "pointwise", "full"])
def test_autocast_leaves_what_goes_from_block_to_block_in_fp32(recompute):
    plan = ParallelPlan(recompute=recompute, micro_batch_size=2)
    tokens = 2 * GPT.context_length * GPT.dim
    half = count_block_bytes(GPT, plan).kept
    # each block keeps what its two norms take; recomputed as one, what it takes itself
    kept = count_block_bytes(GPT, replace(plan, stream_bytes=4.0)).kept
    assert kept - half == (1 if recompute == "full" else 2) * 2 * tokens


@pytest.mark.parametrize(("software", "shards", "stream"), [
    ("deepseek", 1, 4), ("deepseek", 8, 2), ("megatron", 1, 2),
])  # fmt: skip
def test_a_plan_of_ours_knows_whether_weights_are_cast_by_autocast(software, shards, stream):
    plan = adapt_plan(ParallelPlan(dp_shard=shards), SearchSpace(software=software))
    assert plan.stream == stream


def test_each_pipeline_rank_has_its_own_memory(a100s):
    plan = ParallelPlan(pp=4, num_micro_batches=8)
    prediction = predict(GPT, a100s(4), plan)
    activations = [rank["activations"] for rank in prediction.memory]
    assert activations == sorted(activations, reverse=True)
    assert [rank["logits"] > 0 for rank in prediction.memory] == [False, False, False, True]
    assert prediction.peak_bytes == max(sum(rank.values()) for rank in prediction.memory)
