import pytest
import torch

from deepseek.config import TrainerConfig, validate_settings
from deepseek.config.lora import LoraConfig
from deepseek.datasets import DataSpec, TokenDataset
from deepseek.models import GPT, ModelEngine, VisionTransformer
from deepseek.planner import Cluster, find_gpu, find_shape
from deepseek.trainer.auto_parallel import (
    STATE_BYTES,
    STATE_SHARE,
    ask_planner,
    choose_parallel,
    shape_of,
)
from deepseek.trainer.throughput import total_memory_bytes

CPU = torch.device("cpu")


def settings(**given) -> TrainerConfig:
    return validate_settings(TrainerConfig, {"batch_size": 256, **given})


def tokens(length=64) -> DataSpec:
    return TokenDataset(torch.arange(1000) % 50, length, [str(n) for n in range(50)]).spec


@pytest.fixture
def eight(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "8")


def test_a_small_model_is_copied(eight):
    engine = ModelEngine.wrap(torch.nn.Linear(4, 4))
    config, reason = choose_parallel(settings(), engine, tokens(), CPU)
    assert config.parallel.describe() == "dp"
    assert "0.0% of the memory" in reason


def test_a_model_whose_states_fill_the_memory_is_sharded(eight):
    share_bytes = total_memory_bytes(CPU) / 8 * STATE_SHARE
    with torch.device("meta"):
        model = torch.nn.Linear(1, int(share_bytes / STATE_BYTES) + 1, bias=False)
    engine = ModelEngine.wrap(model)
    config, reason = choose_parallel(settings(), engine, tokens(), CPU)
    assert config.parallel.describe() == "fsdp"
    assert f"{STATE_SHARE:.1%}" in reason
    whole, _ = choose_parallel(settings(optimizer="lamb"), engine, tokens(), CPU)
    assert whole.parallel.describe() == "dp"  # it needs whole weights


def test_a_plan_that_was_given_and_one_process_are_left_alone(eight, monkeypatch):
    engine = ModelEngine.wrap(torch.nn.Linear(4, 4))
    given = settings(parallel="dp4-tp2")
    assert choose_parallel(given, engine, tokens(), CPU) == (given, "")
    monkeypatch.setenv("WORLD_SIZE", "1")
    alone = settings()
    assert choose_parallel(alone, engine, tokens(), CPU) == (alone, "")


def test_other_settings_of_the_plan_are_kept(eight):
    engine = ModelEngine.wrap(torch.nn.Linear(4, 4))
    config, _ = choose_parallel(
        settings(parallel={"planned": True, "dp_replicate": "auto", "timeout_s": 7.0}),
        engine, tokens(), CPU,
    )  # fmt: skip
    assert config.parallel.timeout_s == 7.0
    assert not config.parallel.planned


def test_the_planner_divides_what_does_not_fit_one_gpu():
    shape = find_shape("llama2_13b", 4096)
    config = ask_planner(settings(graph="static"), shape, Cluster(find_gpu("h100"), 16))
    assert config is not None
    parallel = config.parallel
    assert parallel.num_processes == 16
    assert parallel.dp_shard * parallel.tp * parallel.pp > 1
    assert config.batch_size == 256


def test_a_policy_that_was_asked_for_is_kept():
    shape = find_shape("llama2_13b", 4096)
    config = ask_planner(settings(memory="full"), shape, Cluster(find_gpu("h100"), 16))
    assert config is not None
    assert config.memory == "full"


def test_what_must_wait_on_the_host_does_and_what_was_asked_to():
    cluster, shape = Cluster(find_gpu("h100"), 8), find_shape("llama3-70b")
    config = ask_planner(settings(graph="static"), shape, cluster)
    assert config is not None
    assert config.offload == "parameters"
    assert ask_planner(settings(offload="activations"), shape, cluster) is None
    small = find_shape("llama2_7b", 4096)
    for offload in ("none", "optimizer"):
        config = ask_planner(settings(offload=offload), small, cluster)
        assert config is not None
        assert config.offload == offload


@pytest.mark.parametrize(
    "fixed", [{"grad_accum_steps": 4}, {"optimizer": "muon"}, {"memory": 0.5}], ids=str
)
def test_the_planner_is_not_asked_where_it_may_not_choose(fixed):
    cluster = Cluster(find_gpu("h100"), 16)
    assert ask_planner(settings(**fixed), find_shape("llama2_13b", 4096), cluster) is None


def test_the_sizes_of_a_model_are_those_that_will_be_trained():
    spec = tokens(32)
    shape = shape_of(ModelEngine.wrap(GPT(64, 3, 96, 6)), spec)
    assert shape is not None
    assert (shape.num_layers, shape.dim, shape.heads) == (3, 96, 6)
    assert shape.context_length == 32  # of the data, not the most that the model takes
    assert shape.vocab_size == 64  # 50 padded
    assert shape.num_positions == 64  # all of them are weights
    assert shape.trained_share == 1
    adapted = shape_of(ModelEngine.wrap(GPT(64, 3, 96, 6)), spec, LoraConfig(rank=1))
    assert adapted is not None
    assert adapted.trained_share < 0.1
    assert shape_of(ModelEngine.wrap(torch.nn.Linear(4, 4)), spec) is None


def test_pictures_give_the_tokens_of_a_vit():
    model = VisionTransformer(
        image_size=32, patch_size=4, num_layers=2, dim=48, heads=3, channels=3
    )
    field = {"shape": [3, 32, 32], "dtype": "uint8"}
    spec = DataSpec.from_json({
        "task": "classification", "fields": {"inputs": field}, "class_names": ["a", "b"],
        "class_counts": [1, 1], "transform": None, "normalization": None,
    })  # fmt: skip
    shape = shape_of(ModelEngine.wrap(model), spec)
    assert shape is not None
    assert shape.context_length == 65
