"""Weights that low-rank adapters learn, counted as `deepseek.models.lora` makes them.

Paper: Hu et al. 2021 (LoRA), arXiv 2106.09685. The adapters' own weights are not added to those of
the model; their two thin products are taken for the share of the gradients of weights.
"""

from dataclasses import replace

from deepseek.config.lora import LoraConfig
from deepseek.planner.flops import count_weights
from deepseek.planner.shape import TransformerShape


def with_adapters(shape: TransformerShape, architecture: str, lora: LoraConfig) -> TransformerShape:
    """Return `shape` with all of its weights frozen but adapters and what is behind the blocks.

    Args:
        shape: sizes of a model of this library.
        architecture: its name, which says what its linears are called.
        lora: the settings of the adapters.
    """
    weights = count_weights(shape)
    trained = count_adapters(shape, architecture, lora) + weights.head
    if architecture == "encoder":  # a linear before the head: a pooler's, or a transformation's
        trained += shape.dim * (shape.dim + 1)
    return replace(shape, trained_share=min(1.0, trained / weights.total))


def count_adapters(shape: TransformerShape, architecture: str, lora: LoraConfig) -> int:
    """Return the weights of all adapters: inputs and outputs of each linear, times the rank."""
    linears = _list_linears(shape, architecture)
    if lora.targets != "auto":
        ends = tuple(f".{end}" for end in lora.targets)
        linears = {n: size for n, size in linears.items() if f".blocks.0.{n}".endswith(ends)}
    return shape.num_layers * lora.rank * sum(linears.values())


def _list_linears(shape: TransformerShape, architecture: str) -> dict[str, int]:
    """Inputs and outputs together of each linear of a block, by its name in the block."""
    dim, hidden = shape.dim, shape.hidden_dim
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if architecture == "llama":
        return {
            "attn.q": dim + q, "attn.k": dim + kv, "attn.v": dim + kv, "attn.proj": q + dim,
            "mlp.gate": dim + hidden, "mlp.up": dim + hidden, "mlp.down": hidden + dim,
        }  # fmt: skip
    return {
        "attn.qkv": dim + q + 2 * kv, "attn.proj": q + dim,
        "fc1": dim + hidden, "fc2": hidden + dim,
    }  # fmt: skip
