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
        context_length: tokens of a sequence that it was trained on.
        rope_theta: base of the rotary wavelengths.
        norm_eps: what the norms add to a mean square.
        head_dim: width of a head; `dim / heads` where 0.
        tied: embedding and head are one matrix.
        qkv_bias: biases of queries, keys and values.
        rope_factor: by how much Llama 3.1's rule stretches wavelengths; 1: not at all.
        normalises_queries: norms of queries and keys, which only the planner knows of.
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
    head_dim: int = 0
    tied: bool = False
    qkv_bias: bool = False


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
}
