"""Named shapes of published models.

Those that the zoo builds are in `deepseek.published`; of others only the shape is known: Megatron
(Shoeybi et al. 2019; Narayanan et al. 2021, table 1; Korthikanti et al. 2022, table 3), MPT
(MosaicML 2023), Mixtral (Jiang et al. 2024), Qwen 3 (Qwen team 2025). Names are `family-size`.
"""

from dataclasses import replace

from deepseek.errors import ConfigError
from deepseek.planner.shape import TransformerShape
from deepseek.published import GPTS, LLAMAS, GPTSizes, LlamaSizes
from deepseek.registry import did_you_mean

MEGATRON_VOCAB_SIZE = 51_200


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


def _published_gpt(name: str, sizes: GPTSizes) -> TransformerShape:
    layers, dim, heads, vocab, length = sizes
    # GPT-3's published step times are Megatron's, whose vocabulary is padded
    vocab = MEGATRON_VOCAB_SIZE if name.startswith("gpt3") else vocab
    return _gpt(name, layers, dim, heads, vocab, length)


def _published_llama(name: str, sizes: LlamaSizes) -> TransformerShape:
    return _llama(name, *sizes[:7], is_tied=sizes.tied, head_dim=sizes.head_dim)


def _mpt(name: str, layers: int, dim: int, heads: int) -> TransformerShape:
    """As a GPT, without dropout."""
    return replace(_gpt(name, layers, dim, heads, 50368, 2048), dropout=False)


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
_FURTHER = (
    _gpt("gpt3-20b", 44, 6144, 48, MEGATRON_VOCAB_SIZE, 2048),
    _llama("mixtral-8x7b", 32, 4096, 32, 8, 14336, 32000, num_experts=8, active_experts=2),
    _llama("mixtral-8x22b", 56, 6144, 48, 8, 16384, 32768, num_experts=8, active_experts=2),
)

PRESETS: dict[str, TransformerShape] = {
    shape.name: shape
    for shape in (
        *(_published_gpt(name, sizes) for name, sizes in GPTS.items()),
        *(_published_llama(name, sizes) for name, sizes in LLAMAS.items()),
        *(_gpt(*sizes, vocab=MEGATRON_VOCAB_SIZE, length=2048) for sizes in _MEGATRON),
        *(_mpt(*sizes) for sizes in _MPT),
        *_FURTHER,
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
            f"model={name!r} is not among the named shapes, which are of transformers.",
            fix=f"{did_you_mean(name, PRESETS)} Or give its sizes; the memory of any other model is"
            " predicted by deepseek train CONFIG --dry-run",
        )
    return replace(shape, context_length=context_length) if context_length else shape
