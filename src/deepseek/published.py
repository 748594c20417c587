"""Sizes of published transformers: what the zoo builds by name and the planner costs.

Sources: GPT-2 (Radford et al. 2019, table 2), GPT-3 (Brown et al. 2020, table 2.1), Llama 1 to 3.2
(Touvron et al. 2023; Grattafiori et al. 2024), Mistral (Jiang et al. 2023), Qwen2 and Qwen3 (Qwen
team 2024, 2025), BERT (Devlin et al. 2018, section 3) and its small relatives (Turc et al. 2019,
arXiv 1908.08962), ViT (Dosovitskiy et al. 2020, table 1; Touvron et al. 2020, table 1).

Pure data: nothing here needs torch.
"""

from typing import NamedTuple


class GPTSizes(NamedTuple):
    """A decoder with learned positions, GELU and layer norms.

    Attributes:
        num_layers: blocks.
        dim: width of a token.
        heads: of a block.
        vocab_size: tokens of the vocabulary.
        context_length: tokens of a sequence.
    """

    num_layers: int
    dim: int
    heads: int
    vocab_size: int
    context_length: int


class LlamaSizes(NamedTuple):
    """A decoder with rotary positions, gated features and RMS norms.

    Attributes:
        num_layers: blocks.
        dim: width of a token.
        heads: of queries.
        kv_heads: of keys and values.
        hidden_dim: features inside the feed-forward network.
        vocab_size: tokens of the vocabulary.
        context_length: tokens of a sequence.
        rope_theta: base of the rotary wavelengths.
        norm_eps: what the norms add to a mean square.
        tied: embedding and head are one matrix.
        qkv_bias: biases of queries, keys and values.
        rope_factor: by how much Llama 3.1's rule stretches wavelengths; 0: not at all.
        window: tokens that a token attends to, where that is less than all; 0: all.
        head_dim: width of a head; 0: `dim / heads`.
        qk_norm: norms of each head of queries and keys.
    """

    num_layers: int
    dim: int
    heads: int
    kv_heads: int
    hidden_dim: int
    vocab_size: int = 128_256
    context_length: int = 8192
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-5
    tied: bool = False
    qkv_bias: bool = False
    rope_factor: float = 0.0
    window: int = 0
    head_dim: int = 0
    qk_norm: bool = False


class EncoderSizes(NamedTuple):
    """An encoder over tokens or patches: blocks, width of a token, heads of a block."""

    num_layers: int
    dim: int
    heads: int


GPTS = {
    "gpt2-124m": GPTSizes(12, 768, 12, 50_257, 1024),
    "gpt2-medium": GPTSizes(24, 1024, 16, 50_257, 1024),
    "gpt2-large": GPTSizes(36, 1280, 20, 50_257, 1024),
    "gpt2-xl": GPTSizes(48, 1600, 25, 50_257, 1024),
    "gpt3-125m": GPTSizes(12, 768, 12, 50_257, 2048),
    "gpt3-350m": GPTSizes(24, 1024, 16, 50_257, 2048),
    "gpt3-760m": GPTSizes(24, 1536, 16, 50_257, 2048),
    "gpt3-1.3b": GPTSizes(24, 2048, 16, 50_257, 2048),  # 24 heads of 128 in the paper: a misprint
    "gpt3-2.7b": GPTSizes(32, 2560, 32, 50_257, 2048),
    "gpt3-6.7b": GPTSizes(32, 4096, 32, 50_257, 2048),
    "gpt3-13b": GPTSizes(40, 5120, 40, 50_257, 2048),  # dim 5,140 in the paper: the same
    "gpt3-175b": GPTSizes(96, 12_288, 96, 50_257, 2048),
}

_LLAMA_1 = {"vocab_size": 32_000, "context_length": 2048, "rope_theta": 1e4, "norm_eps": 1e-6}
_LLAMA_2 = {"vocab_size": 32_000, "context_length": 4096, "rope_theta": 1e4}
_QWEN_3 = {
    "vocab_size": 151_936, "context_length": 40_960, "rope_theta": 1e6, "norm_eps": 1e-6,
    "head_dim": 128, "qk_norm": True,
}  # fmt: skip
_QWEN_2 = {"rope_theta": 1e6, "norm_eps": 1e-6, "qkv_bias": True}
LLAMAS = {
    "llama-7b": LlamaSizes(32, 4096, 32, 32, 11_008, **_LLAMA_1),
    "llama-13b": LlamaSizes(40, 5120, 40, 40, 13_824, **_LLAMA_1),
    "llama-33b": LlamaSizes(60, 6656, 52, 52, 17_920, **_LLAMA_1),
    "llama-65b": LlamaSizes(80, 8192, 64, 64, 22_016, **_LLAMA_1),
    "llama2-7b": LlamaSizes(32, 4096, 32, 32, 11_008, **_LLAMA_2),
    "llama2-13b": LlamaSizes(40, 5120, 40, 40, 13_824, **_LLAMA_2),
    "llama2-34b": LlamaSizes(48, 8192, 64, 8, 22_016, **_LLAMA_2),
    "llama2-70b": LlamaSizes(80, 8192, 64, 8, 28_672, **_LLAMA_2),
    "llama3-1b": LlamaSizes(16, 2048, 32, 8, 8192, tied=True, rope_factor=32.0),
    "llama3-3b": LlamaSizes(28, 3072, 24, 8, 8192, tied=True, rope_factor=32.0),
    "llama3-8b": LlamaSizes(32, 4096, 32, 8, 14_336),
    "llama3-70b": LlamaSizes(80, 8192, 64, 8, 28_672),
    "llama3-405b": LlamaSizes(126, 16_384, 128, 8, 53_248, rope_factor=8.0),
    "mistral-7b": LlamaSizes(32, 4096, 32, 8, 14_336, 32_000, rope_theta=1e4, window=4096),
    "qwen2-0.5b": LlamaSizes(24, 896, 14, 2, 4864, 151_936, tied=True, **_QWEN_2),
    "qwen2-7b": LlamaSizes(28, 3584, 28, 4, 18_944, 152_064, **_QWEN_2),
    "qwen2-72b": LlamaSizes(80, 8192, 64, 8, 29_568, 152_064, **_QWEN_2),
    "qwen3-0.6b": LlamaSizes(28, 1024, 16, 8, 3072, tied=True, **_QWEN_3),
    "qwen3-8b": LlamaSizes(36, 4096, 32, 8, 12_288, **_QWEN_3),
    "qwen3-32b": LlamaSizes(64, 5120, 64, 8, 25_600, **_QWEN_3),
}

BERT_VOCAB_SIZE = 30_522
BERT_CONTEXT_LENGTH = 512
BERTS = {
    "tiny": EncoderSizes(2, 128, 2),
    "mini": EncoderSizes(4, 256, 4),
    "small": EncoderSizes(4, 512, 8),
    "medium": EncoderSizes(8, 512, 8),
    "base": EncoderSizes(12, 768, 12),
    "large": EncoderSizes(24, 1024, 16),
}
VITS = {
    "tiny": EncoderSizes(12, 192, 3),
    "small": EncoderSizes(12, 384, 6),
    "base": EncoderSizes(12, 768, 12),
    "large": EncoderSizes(24, 1024, 16),
    "huge": EncoderSizes(32, 1280, 16),
}


def gated_hidden_dim(dim: int) -> int:
    """Return Llama's features of a gated feed-forward network: 8/3 of `dim`, in whole 256s.

    Three matrices of these have as many weights as two of `4 * dim`.
    """
    return -(-(8 * dim // 3) // 256) * 256
