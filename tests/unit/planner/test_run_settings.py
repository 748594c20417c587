import pytest
from ruamel.yaml import YAML

from deepseek.config import TrainerConfig
from deepseek.errors import ConfigError
from deepseek.parallel.plan import BatchFacts, ModelFacts, resolve_plan
from deepseek.planner import Cluster, ParallelPlan, find_gpu, find_shape
from deepseek.planner.run_settings import as_settings, choose_settings, to_yaml
from deepseek.planner.search import search
from deepseek.planner.search_space import ALL_SCHEDULES, SearchSpace


def read(text):
    """The section as the configuration reads it; `memory` where this version has it."""
    settings = YAML(typ="safe").load(text)["trainer"]
    memory = settings.pop("memory")
    assert memory in ("off", "pointwise", "selective", "full")
    if "memory" in TrainerConfig.model_fields:
        settings["memory"] = memory
    return TrainerConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("name", "num_gpus", "batch"),
    [("gpt2-124m", 1, 32), ("llama2-7b", 8, 256), ("gpt3-175b", 256, 512), ("gpt3-20b", 24, 96)],
)
def test_the_settings_of_every_plan_are_accepted_and_are_that_plan(name, num_gpus, batch):
    shape, cluster = find_shape(name), Cluster(find_gpu("a100-80"), num_gpus)
    found = search(shape, cluster, batch, SearchSpace(schedules=ALL_SCHEDULES))
    facts = ModelFacts(
        shape.name, num_blocks=shape.num_layers, heads=shape.heads,
        key_value_heads=shape.kv_heads, sequence_length=shape.context_length, has_context=True,
        widths=(("fc1", shape.hidden_dim),),
    )  # fmt: skip
    for candidate in found.ranked:
        plan = candidate.plan
        config = read(to_yaml(as_settings(plan)))
        assert config.parallel.num_processes == num_gpus
        given = BatchFacts(
            config.batch_size, config.grad_accum_steps, "adamw", config.precision, config.graph
        )
        resolved = resolve_plan(config.parallel, num_gpus, facts, given)
        assert resolved.num_micro_batches == plan.num_micro_batches
        assert config.batch_size == plan.batch_size
        assert resolved.divides_tokens == (plan.tp > 1 and plan.sequence_parallel)


def test_policies_have_the_names_of_the_configuration():
    memory = {
        policy: as_settings(ParallelPlan(recompute=policy))["memory"]
        for policy in ("none", "pointwise", "selective", "full")
    }
    assert memory == {
        "none": "off", "pointwise": "pointwise", "selective": "selective", "full": "full"
    }  # fmt: skip


def test_what_the_run_would_refuse_is_refused():
    with pytest.raises(ConfigError, match="fp8"):
        as_settings(ParallelPlan(dp_shard=8, precision="fp8"))


def test_the_best_settings_are_chosen_or_the_lack_is_told():
    cluster = Cluster(find_gpu("h100"), 8)
    settings = choose_settings(find_shape("llama2-7b"), cluster, 256)
    assert settings["parallel"] == {"dp_shard": 8}
    with pytest.raises(ConfigError, match="no plan of 8 x h100 fits llama3-70b"):
        choose_settings(find_shape("llama3-70b"), cluster, 256, SearchSpace(offload="none"))
    assert choose_settings(find_shape("llama3-70b"), cluster, 256)["offload"] == "parameters"
