"""What waits in the memory of the host."""

from dataclasses import replace

import pytest

from deepseek.config import TrainerConfig
from deepseek.errors import ConfigError
from deepseek.planner import (
    Cluster,
    ParallelPlan,
    SearchSpace,
    find_gpu,
    find_shape,
    predict,
    search,
)
from deepseek.planner.explanation import explain_changes
from deepseek.planner.flops import count_parameters
from deepseek.planner.hardware import GPUS
from deepseek.planner.run_settings import as_settings
from deepseek.planner.scaling import plan_sizes
from deepseek.planner.search_space import OFFLOADS

LLAMA, H100 = find_shape("llama3-8b"), find_gpu("h100")
SHARDS = ParallelPlan(dp_shard=8, micro_batch_size=2, recompute="full")
STATE = 8.0


def predict_on(plan, gpu=H100):
    return predict(LLAMA, Cluster(gpu, 8), plan)


def test_a_state_on_the_host_leaves_the_device_but_for_one_weight():
    kept, moved = predict_on(SHARDS), predict_on(replace(SHARDS, offload="optimizer"))
    state = STATE * count_parameters(LLAMA) / 8
    assert moved.host_bytes == kept.memory[0]["optimizer"] == state
    largest = LLAMA.vocab_size * LLAMA.dim
    assert moved.memory[0]["optimizer"] == STATE * largest / 8
    for name in ("weights", "gradients", "activations", "buffers"):
        assert moved.memory[0][name] == kept.memory[0][name]
    # both ways in order with the updates: nothing hides them
    rate = 0.8 * H100.host.link_bandwidth
    assert moved.step_s - kept.step_s == pytest.approx(2 * state / rate)
    assert moved.time_s["host"] == pytest.approx(2 * state / rate)


def test_parameters_on_the_host_leave_what_is_gathered():
    moved = predict_on(replace(SHARDS, offload="parameters"))
    memory = moved.memory[0]
    assert memory["weights"] == memory["gradients"] == memory["optimizer"] == 0
    assert memory["buffers"] == predict_on(SHARDS).memory[0]["buffers"] > 0
    # fp32 weights, gradients and two moments
    assert moved.host_bytes == 16 * count_parameters(LLAMA) / 8
    assert moved.time_s["optimizer"] == 0


def test_copies_beside_a_long_pass_cost_less_than_they_last():
    rate = 0.8 * H100.host.link_bandwidth
    plan = replace(SHARDS, offload="parameters", micro_batch_size=4)
    copies_s = 3 * 4 * count_parameters(LLAMA) / 8 / rate  # of weights twice, of gradients
    memory = 0.5 * H100.host.memory_bandwidth
    update_s = (4 * 4 + 2 * 12) * count_parameters(LLAMA) / 8 / memory
    hidden = predict_on(plan).time_s["host"] - update_s
    assert 0 < hidden < 0.5 * copies_s


def test_adding_up_on_the_host_is_waited_for():
    plan = replace(SHARDS, offload="parameters")
    once, twice = (predict_on(replace(plan, num_micro_batches=n)) for n in (1, 2))
    gradients = 4 * count_parameters(LLAMA) / 8
    copies_s = gradients / (0.8 * H100.host.link_bandwidth)
    assert twice.time_s["host"] - once.time_s["host"] > copies_s


@pytest.mark.parametrize("offload", OFFLOADS)
def test_a_faster_link_is_never_slower(offload):
    fast = replace(H100, host=replace(H100.host, link_bandwidth=450e9))
    plan = replace(SHARDS, offload=offload)
    assert predict_on(plan, fast).step_s < predict_on(plan).step_s


def test_every_gpu_has_a_host():
    for gpu in GPUS.values():
        assert 7e9 < gpu.host.link_bandwidth < gpu.memory_bandwidth
        assert gpu.host.memory_bytes > 0.9 * gpu.memory_bytes
        assert gpu.host.memory_bandwidth < gpu.memory_bandwidth


@pytest.mark.parametrize("change", [{"dp_shard": 1, "dp_replicate": 8}, {"dp_shard": 4, "tp": 2}])
def test_parameters_wait_under_full_sharding_alone(change):
    plan = replace(SHARDS, offload="parameters", **change)
    with pytest.raises(ConfigError, match="offload=parameters with dp_shard="):
        predict_on(plan)


def test_what_fits_is_not_offloaded():
    found = search(LLAMA, Cluster(H100, 8), 64)
    assert {c.plan.offload for c in found.ranked} == {"none"}
    assert found.without_host is None


def test_where_nothing_fits_the_host_is_tried_and_said():
    shape, cluster = find_shape("llama3-70b"), Cluster(H100, 8)
    found = search(shape, cluster, 64)
    assert found.best.plan.offload == "parameters"
    space = SearchSpace()
    assert found.without_host.prediction.peak_bytes > space.limit_bytes(H100)
    changes = {loss.name: loss for loss in explain_changes(shape, cluster, found.best, space)}
    assert not changes["offload none"].fits
    assert search(shape, cluster, 64, replace(space, offload="none")).best is None


def test_the_memory_of_the_host_is_not_without_end():
    small = replace(H100, host=replace(H100.host, memory_bytes=32 * 2**30))
    found = search(find_shape("llama3-70b"), Cluster(small, 8), 64)
    assert found.best is None
    assert found.least.prediction.peak_bytes > 0


def test_more_gpus_of_a_node_share_its_memory():
    shape, cluster = find_shape("llama3-70b"), Cluster(H100, 4, host_bytes=1.2 * 2**40)
    assert cluster.host.memory_bytes == 0.3 * 2**40
    assert replace(cluster, num_gpus=16).host.memory_bytes == 0.15 * 2**40
    space = SearchSpace()
    points = {point.num_gpus: point.best for point in plan_sizes(shape, cluster, 64, space)}
    shared = search(shape, Cluster(H100, 8, host_bytes=1.2 * 2**40), 64, space)
    assert points[8] == shared.best


@pytest.mark.parametrize("space", [SearchSpace(software="megatron"), SearchSpace(precision="fp16")])
def test_what_could_not_run_is_not_tried(space):
    assert search(find_shape("llama3-70b"), Cluster(H100, 8), 64, space).without_host is not None
    assert search(find_shape("llama3-70b"), Cluster(H100, 8), 64, space).best is None


@pytest.mark.parametrize("offload", OFFLOADS)
def test_a_run_is_told_to_offload(offload):
    settings = as_settings(replace(SHARDS, offload=offload))
    assert TrainerConfig.model_validate(settings).offload == offload
    assert "offload" not in as_settings(SHARDS)
    with pytest.raises(ConfigError, match="precision=fp16"):
        as_settings(replace(SHARDS, offload=offload, precision="fp16"))
