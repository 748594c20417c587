"""Published sizes have the published numbers of parameters, counted on the meta device."""

import inspect

import pytest
import torch

from deepseek.models import ModelEngine, list_models
from deepseek.models.presets import published_presets
from deepseek.models.zoo import ARCHITECTURES
from deepseek.planner import PRESETS
from deepseek.planner.flops import count_parameters
from deepseek.published import BERTS, GPTS, LLAMAS


def build(name, num_classes):
    entry = ARCHITECTURES.get(name)
    with torch.device("meta"):
        return entry.build(**{**entry.preset, "num_classes": num_classes})


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # numel of the released checkpoints
        ("llama2-7b", 6_738_415_616),
        ("llama2-13b", 13_015_864_320),
        ("llama2-70b", 68_976_648_192),
        ("llama3-8b", 8_030_261_248),
        ("llama3-70b", 70_553_706_496),
        ("llama3-1b", 1_235_814_400),
        ("llama3-3b", 3_212_749_824),
        ("llama3-405b", 405_853_388_800),
        ("mistral-7b", 7_241_732_096),
        ("qwen2-0.5b", 494_032_768),
        ("qwen2-7b", 7_615_616_512),
        ("qwen2-72b", 72_706_203_648),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-32b", 32_762_123_264),
    ],
)
def test_llamas_have_the_weights_of_the_released_checkpoints(name, published):
    module = build(name.replace("-", "_"), LLAMAS[name].vocab_size)
    assert count(module) == published
    assert module.head.out_features == LLAMAS[name].vocab_size  # no padding


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("gpt2-124m", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_gpt_2_lacks_the_biases_of_linears_and_pads_its_vocabulary(name, published):
    sizes = GPTS[name]
    module = build(name.replace("-", "_"), sizes.vocab_size)
    padding = (module.head.out_features - sizes.vocab_size) * sizes.dim
    # of queries, keys, values, and their projection; of both linears of the feed-forward network
    biases = sizes.num_layers * (3 + 1 + 4 + 1) * sizes.dim
    has_biases = module.blocks[0].fc1.bias is not None
    assert count(module) - padding + (not has_biases) * biases == published
    assert 0 <= padding < 64 * sizes.dim


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("gpt3-125m", 0.125), ("gpt3-350m", 0.356), ("gpt3-760m", 0.760), ("gpt3-1.3b", 1.316),
        ("gpt3-2.7b", 2.651), ("gpt3-6.7b", 6.658), ("gpt3-13b", 12.853), ("gpt3-175b", 174.6),
    ],
)  # fmt: skip
def test_gpt_3_has_the_weights_of_the_paper(name, billions):
    """Brown et al. 2020, table D.1: parameters in millions, as its authors count them."""
    module = build(name.replace("-", "_"), GPTS[name].vocab_size)
    assert count(module) / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize("size", BERTS)
def test_encoders_have_the_weights_of_the_released_berts(size):
    published = {
        "tiny": 4_385_920, "mini": 11_170_560, "small": 28_763_648, "medium": 41_373_184,
        "base": 109_482_240, "large": 335_141_888,
    }  # fmt: skip
    assert count(build(f"encoder_{size}", None)) == published[size]


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # timm 1.0, results/model_metadata-in1k.csv
        ("vit_tiny_patch16_224", 5_717_416),
        ("vit_small_patch16_224", 22_050_664),
        ("vit_base_patch16_224", 86_567_656),
        ("vit_base_patch32_224", 88_224_232),
        ("vit_large_patch16_224", 304_326_632),
        ("vit_huge_patch14_224", 632_045_800),
    ],
)
def test_vision_transformers_have_the_weights_of_the_released_ones(name, published):
    assert count(build(name, 1000)) == published


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)
def test_small_resnets_have_the_weights_of_the_paper(depth, millions):
    """He et al. 2015, table 6."""
    assert count(build(f"resnet{depth}", 10)) / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize(
    ("depth", "published"),
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_large_resnets_are_timms(depth, published):
    """As torchvision.models counts them."""
    with torch.device("meta"):
        engine = ModelEngine(f"resnet{depth}", num_classes=1000)
    assert engine.num_parameters == published
    assert type(engine.module).__module__.startswith("timm.")


def test_every_preset_is_a_name_of_arguments_that_its_class_takes():
    names = list_models(own_only=True)
    for name, entry in published_presets().items():
        assert name in names
        assert set(entry.preset) <= set(inspect.signature(entry.build).parameters), name


# the planner leaves out biases of queries, keys and values, and norms of heads
_PLAIN = [name for name, sizes in LLAMAS.items() if not (sizes.qkv_bias or sizes.qk_norm)]


@pytest.mark.parametrize("name", _PLAIN)
def test_the_planner_counts_what_the_zoo_builds(name):
    module = build(name.replace("-", "_"), LLAMAS[name].vocab_size)
    assert count_parameters(PRESETS[name]) == count(module)


def test_u_nets_grow_with_their_names():
    sizes = [
        count(build(f"unet3d_{size}", 3)) for size in ("tiny", "small", "base", "medium", "large")
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < 1e5
    assert sizes[-1] > 1e8
