import pytest

from deepseek.config.parallel import ParallelConfig
from deepseek.errors import ConfigError
from deepseek.planner import ParallelPlan
from deepseek.planner.plan_text import (
    describe_axes,
    describe_pipeline,
    name_family,
    read_axes,
    shorten_pipeline,
)


@pytest.mark.parametrize(
    "axes",
    [{}, {"dp_replicate": 2}, {"dp_shard": 4, "tp": 2}, {"dp_replicate": 2, "cp": 2, "pp": 4}],
)
def test_text_is_that_of_the_configuration_and_is_read_back(axes):
    plan = ParallelPlan(**axes)
    text = describe_axes(plan)
    assert text == ParallelConfig(**axes).describe()
    assert ParallelPlan(**read_axes(text, None)) == plan


def test_an_axis_without_a_number_takes_the_rest():
    assert read_axes("fsdp-tp2", 16)["dp_shard"] == 8


def test_families_are_axes_without_degrees():
    assert name_family(ParallelPlan(dp_shard=4, pp=2)) == "fsdp-pp"
    assert name_family(ParallelPlan()) == "none"


def test_pipelines_have_short_names():
    plan = ParallelPlan(pp=4, schedule="interleaved_1f1b", virtual_stages=2)
    assert describe_pipeline(plan) == "interleaved_1f1b x2"
    assert shorten_pipeline(plan) == "il_1f1b x2"
    assert describe_pipeline(ParallelPlan()) == "-"


@pytest.mark.parametrize(
    ("text", "num_gpus", "words"),
    [
        ("dp2-tpx", 8, "'tpx' is no axis"),
        ("dp2-tp2", 8, "needs 4 GPUs and --gpus=8"),
        ("fsdp-tp3", 8, "fsdp|dp_shard"),
        ("fsdp", None, "without a number"),
        ("dp-fsdp", 8, "dp_replicate and dp_shard without a number"),
        ("ep8", 8, "experts"),
    ],
)
def test_what_is_no_plan_is_refused(text, num_gpus, words):
    with pytest.raises(ConfigError, match=words):
        read_axes(text, num_gpus)
