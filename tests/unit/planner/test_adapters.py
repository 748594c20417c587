"""Frozen weights: neither gradients, nor states, nor the products that would make them."""

from dataclasses import replace

import pytest

from deepseek.config.lora import LoraConfig
from deepseek.errors import ConfigError
from deepseek.planner import Cluster, ParallelPlan, find_gpu, find_shape, predict
from deepseek.planner.adapters import count_adapters, with_adapters
from deepseek.planner.flops import count_parameters, model_flops_per_token
from deepseek.planner.model_source import find_model, shape_of_own
from deepseek.planner.traffic import count_sent

LLAMA, H100 = find_shape("llama3-8b"), find_gpu("h100")
SIZES = {"num_layers": 2, "dim": 32, "heads": 4}
ARGS = {
    "gpt": {"context_length": 16, "num_classes": 65, **SIZES},
    "llama": {"context_length": 16, "num_classes": 64, "kv_heads": 2, "tied": True, **SIZES},
    "vit": {"image_size": 8, "patch_size": 2, "channels": 1, "num_classes": 5, **SIZES},
    "encoder": {"context_length": 16, "vocab_size": 50, "num_classes": 5, **SIZES},
}


@pytest.mark.parametrize("targets", ["auto", ["attn.proj"], ["attn.qkv", "fc1"]])
@pytest.mark.parametrize("name", ARGS)
def test_adapters_are_counted_as_they_are_built(name, targets):
    from deepseek.models import ModelEngine
    from deepseek.models.lora import add_lora

    if name == "llama" and targets != "auto":
        targets = ["attn.q", "attn.proj", "up"]
    engine = ModelEngine(architecture=name, **ARGS[name])
    add_lora(engine, 3, targets=None if targets == "auto" else targets)
    built = sum(p.numel() for n, p in engine.named_parameters() if "lora_" in n)
    lora, shape = LoraConfig(rank=3, targets=targets), shape_of_own(name, ARGS[name]).shape
    assert count_adapters(shape, name, lora) == built
    trained = sum(p.numel() for p in engine.parameters() if p.requires_grad)
    share = with_adapters(shape, name, lora).trained_share
    # heads and norms have biases that the shapes leave out
    assert share * count_parameters(shape) == pytest.approx(trained, abs=6 * 32)


def test_a_configuration_with_adapters_is_read(tmp_path):
    path = tmp_path / "model_config.yaml"
    args = "".join(f"    {key}: {value}\n" for key, value in ARGS["gpt"].items())
    path.write_text(
        f"data:\n  train: corpus.txt\nmodel:\n  architecture: gpt\n  args:\n{args}"
        "trainer:\n  lora: {rank: 2}\n"
    )
    shape = find_model(str(path)).shape
    plain = shape_of_own("gpt", ARGS["gpt"]).shape
    assert shape.trained_share == with_adapters(plain, "gpt", LoraConfig(rank=2)).trained_share < 1


@pytest.mark.parametrize(
    "plan", [ParallelPlan(), ParallelPlan(dp_shard=4), ParallelPlan(dp_replicate=4)]
)
def test_what_is_frozen_has_no_gradient_no_state_and_no_traffic(plan):
    cluster = Cluster(H100, plan.world_size)
    whole = predict(LLAMA, cluster, plan)
    part = predict(LLAMA, cluster, plan, trainable=0.25)
    one, other = whole.memory[0], part.memory[0]
    assert other["gradients"] == one["gradients"] / 4
    assert other["weights"] == one["weights"]
    weights = count_parameters(LLAMA) / plan.dp_shard
    assert one["optimizer"] - other["optimizer"] == pytest.approx(0.75 * 8 * weights)
    assert part.time_s["dp"] <= whole.time_s["dp"]
    assert part.time_s["optimizer"] < whole.time_s["optimizer"]
    sent = [count_sent(replace(LLAMA, trained_share=t), plan)["data"] for t in (1.0, 0.25)]
    assert sent[1] < sent[0] or plan.world_size == 1


def test_almost_all_frozen_takes_two_thirds_of_the_products():
    cluster, plan = Cluster(H100, 1), ParallelPlan()
    whole, part = (predict(LLAMA, cluster, plan, trainable=n) for n in (1.0, 1e6))
    ratio = part.time_s["compute"] / whole.time_s["compute"]
    assert 0.66 < ratio < 0.8  # attention's core, norms and loss stay as they are
    flops = [model_flops_per_token(replace(LLAMA, trained_share=t)) for t in (1.0, 1e-4)]
    assert 0.66 < flops[1] / flops[0] < 0.75


def test_a_share_and_a_number_mean_the_same():
    cluster, plan = Cluster(H100, 1), ParallelPlan()
    by_share = predict(LLAMA, cluster, plan, trainable=0.01)
    by_number = predict(LLAMA, cluster, plan, trainable=0.01 * count_parameters(LLAMA))
    assert by_share == by_number
    assert predict(LLAMA, cluster, plan, trainable=1.0) == predict(LLAMA, cluster, plan)


@pytest.mark.parametrize("trainable", [0, -1.0])
def test_nothing_trained_is_refused(trainable):
    with pytest.raises(ConfigError, match="is no share"):
        predict(LLAMA, Cluster(H100, 1), ParallelPlan(), trainable=trainable)
