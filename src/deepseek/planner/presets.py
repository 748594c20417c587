"""Named shapes of published models.

Sources: GPT-2 (Radford et al. 2019), GPT-3 (Brown et al. 2020, table 2.1), Megatron (Shoeybi et
al. 2019; Narayanan et al. 2021, table 1; Korthikanti et al. 2022, table 3), Llama 1 to 3 (Touvron
et al. 2023; Dubey et al. 2024), MPT (MosaicML 2023), Mistral and Mixtral (Jiang et al. 2023, 2024),
Qwen 2 and 3 (Qwen team 2024, 2025). Names are `family-size`.
"""

from dataclasses import replace

from deepseek.errors import ConfigError
from deepseek.planner.shape import TransformerShape
from deepseek.registry import did_you_mean


def _gpt(name: str, layers: int, dim: int, heads: int, vocab: int, length: int) -> TransformerShape:
    """GELU, biases, learned positions, dropout."""
    return TransformerShape(
        name,
        layers,
        dim,
        heads,
        vocab,
        length,
        has_biases=True,
        has_positions=True,
        dropout=True,
    )


def _llama(
    name: str,
    layers: int,
    dim: int,
    heads: int,
    kv_heads: int,
    hidden: int,
    vocab: int = 128256,
    length: int = 8192,
    **other: int | bool,
) -> TransformerShape:
    """RMS norms, SwiGLU, rotary positions, no biases."""
    shape = TransformerShape(
        name, layers, dim, heads, vocab, length, kv_heads, hidden, is_gated=True, is_tied=False
    )
    return replace(shape, **other) if other else shape  # pyright: ignore[reportArgumentType]


def _mpt(name: str, layers: int, dim: int, heads: int) -> TransformerShape:
    """As a GPT, without dropout."""
    return replace(_gpt(name, layers, dim, heads, 50368, 2048), dropout=False)


_GPT_2 = (
    ("gpt2-124m", 12, 768, 12),
    ("gpt2-medium", 24, 1024, 16),
    ("gpt2-large", 36, 1280, 20),
    ("gpt2-xl", 48, 1600, 25),
)
_GPT_3 = (
    ("gpt3-125m", 12, 768, 12),
    ("gpt3-350m", 24, 1024, 16),
    ("gpt3-760m", 24, 1536, 16),
    ("gpt3-1.3b", 24, 2048, 16),
    ("gpt3-2.7b", 32, 2560, 32),
    ("gpt3-6.7b", 32, 4096, 32),
    ("gpt3-13b", 40, 5120, 40),
    ("gpt3-20b", 44, 6144, 48),
    ("gpt3-175b", 96, 12288, 96),
)
_MEGATRON = (
    ("megatron-1.7b", 24, 2304, 24),
    ("megatron-3.6b", 30, 3072, 32),
    ("megatron-7.5b", 36, 4096, 32),
    ("megatron-18b", 40, 6144, 48),
    ("megatron-22b", 48, 6144, 64),
    ("megatron-39b", 48, 8192, 64),
    ("megatron-76b", 60, 10240, 80),
    ("megatron-145b", 80, 12288, 96),
    ("megatron-175b", 96, 12288, 96),
    ("megatron-310b", 96, 16384, 128),
    ("megatron-530b", 105, 20480, 128),
    ("megatron-1t", 128, 25600, 160),
)
_MPT = (
    ("mpt-125m", 12, 768, 12),
    ("mpt-350m", 24, 1024, 16),
    ("mpt-760m", 24, 1536, 12),
    ("mpt-1b", 24, 2048, 16),
    ("mpt-3b", 32, 2560, 20),
    ("mpt-7b", 32, 4096, 32),
    ("mpt-13b", 40, 5120, 40),
    ("mpt-30b", 48, 7168, 56),
    ("mpt-70b", 80, 8192, 64),
)
_LLAMAS = (
    _llama("llama-7b", 32, 4096, 32, 32, 11008, 32000, 2048),
    _llama("llama-13b", 40, 5120, 40, 40, 13824, 32000, 2048),
    _llama("llama-33b", 60, 6656, 52, 52, 17920, 32000, 2048),
    _llama("llama-65b", 80, 8192, 64, 64, 22016, 32000, 2048),
    _llama("llama2-7b", 32, 4096, 32, 32, 11008, 32000, 4096),
    _llama("llama2-13b", 40, 5120, 40, 40, 13824, 32000, 4096),
    _llama("llama2-34b", 48, 8192, 64, 8, 22016, 32000, 4096),
    _llama("llama2-70b", 80, 8192, 64, 8, 28672, 32000, 4096),
    _llama("llama3-1b", 16, 2048, 32, 8, 8192, is_tied=True),
    _llama("llama3-3b", 28, 3072, 24, 8, 8192, is_tied=True),
    _llama("llama3-8b", 32, 4096, 32, 8, 14336),
    _llama("llama3-70b", 80, 8192, 64, 8, 28672),
    _llama("llama3-405b", 126, 16384, 128, 8, 53248),
    _llama("mistral-7b", 32, 4096, 32, 8, 14336, 32000),
    _llama("mixtral-8x7b", 32, 4096, 32, 8, 14336, 32000, num_experts=8, active_experts=2),
    _llama("mixtral-8x22b", 56, 6144, 48, 8, 16384, 32768, num_experts=8, active_experts=2),
    _llama("qwen2-0.5b", 24, 896, 14, 2, 4864, 151936, is_tied=True),
    _llama("qwen2-7b", 28, 3584, 28, 4, 18944, 152064),
    _llama("qwen2-72b", 80, 8192, 64, 8, 29568, 152064),
    _llama("qwen3-8b", 36, 4096, 32, 8, 12288, 151936),
    _llama("qwen3-32b", 64, 5120, 64, 8, 25600, 151936, head_dim=128),
)

PRESETS: dict[str, TransformerShape] = {
    shape.name: shape
    for shape in (
        *(_gpt(*sizes, vocab=50257, length=1024) for sizes in _GPT_2),
        *(_gpt(*sizes, vocab=51200, length=2048) for sizes in _GPT_3),
        *(_gpt(*sizes, vocab=51200, length=2048) for sizes in _MEGATRON),
        *(_mpt(*sizes) for sizes in _MPT),
        *_LLAMAS,
    )
}


def find_shape(name: str, context_length: int = 0) -> TransformerShape:
    """The preset called `name`, with `context_length` tokens where that is not 0.

    Raises:
        ConfigError: there is no such name.
    """
    shape = PRESETS.get(name.lower().replace("_", "-"))
    if shape is None:
        raise ConfigError(
            f"model={name!r} is not among the named shapes.",
            fix=f"{did_you_mean(name, PRESETS)} Or give its sizes",
        )
    return replace(shape, context_length=context_length) if context_length else shape
