import pytest

from deepseek.planner import PRESETS, TransformerShape, find_shape
from deepseek.planner.flops import (
    count_active_parameters,
    count_parameters,
    layers_forward_flops_per_token,
    model_flops_per_token,
)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # transformers: sum of numel of the released checkpoints
        ("gpt2-124m", 124_439_808),
        ("gpt2-xl", 1_557_611_200),
        ("llama-7b", 6_738_415_616),
        ("llama2-70b", 68_976_648_192),
        ("llama3-8b", 8_030_261_248),
        ("llama3-70b", 70_553_706_496),
        ("llama3-405b", 405_853_388_800),
        ("mistral-7b", 7_241_732_096),
        ("mixtral-8x7b", 46_702_792_704),
        # mosaicml/llm-foundry, scripts/train/benchmarking
        ("mpt-125m", 125_311_488),
        ("mpt-7b", 6_658_859_008),
        ("mpt-70b", 64_862_437_376),
    ],
)
def test_parameters_of_named_models_are_those_published(name, published):
    assert count_parameters(find_shape(name)) == published


@pytest.mark.parametrize(
    ("name", "billions"),
    [("megatron-39b", 39.1), ("megatron-145b", 145.6), ("megatron-1t", 1008.0)],
)
def test_parameters_of_megatron_sizes_round_to_those_of_the_paper(name, billions):
    assert count_parameters(find_shape(name)) / 1e9 == pytest.approx(billions, abs=0.05)


def test_model_flops_are_6n_and_attention():
    shape = TransformerShape("tiny", 3, 64, 4, 100, 32)
    matrices = 3 * 12 * 64 * 64
    others = 100 * 64 + 32 * 0 + 7 * 64
    assert model_flops_per_token(shape) == 6 * (matrices + others) + 12 * 3 * 64 * 32


def test_flops_with_full_recomputation_are_those_of_the_sc21_paper():
    shape = find_shape("megatron-530b")
    s, h, layers, vocab = 2048, shape.dim, shape.num_layers, shape.vocab_size
    paper = 96 * s * layers * h * h * (1 + s / (6 * h) + vocab / (16 * layers * h))
    ours = s * (model_flops_per_token(shape) + layers_forward_flops_per_token(shape))
    assert ours == pytest.approx(paper, rel=2e-3)


def test_lookup_and_idle_experts_are_not_counted():
    shape = find_shape("mixtral-8x7b")
    assert count_active_parameters(shape) < count_parameters(shape) / 3
    dense = find_shape("llama3-8b")
    assert count_parameters(dense) - count_active_parameters(dense) == 128256 * 4096


def test_names_of_presets_are_their_keys():
    assert all(shape.name == name for name, shape in PRESETS.items())
