"""What a model's parts are for, as data: parallelism and memory policies stay outside the model.

A name is a fully qualified module name as in `named_modules()`, relative to the model; inside
`column_linears`, `row_linears` and `fused_heads` it is relative to one block (an element of the
list called `blocks`).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ParallelHints:
    """Names of a model's parts, for tensor, pipeline and recompute policies and for the planner.

    Attributes:
        blocks: module lists whose elements are run one after another: what a pipeline cuts, what is
            recomputed or sharded as one unit. In order of execution.
        column_linears: linears of a block whose output features can be divided between ranks.
        row_linears: linears of a block whose input features can be divided between ranks; their
            outputs are summed.
        fused_heads: column linears whose output is several equal groups of heads in a row -> number
            of groups. `{"attn.qkv": 3}` means that queries, keys and values are each to be cut by
            heads.
        head_norms: norms of a block that take each head by itself, (B, H, T, E): where heads are
            divided between ranks, each has the gradient of its own.
        heads: number of attention heads of a block, a multiple of the tensor-parallel degree; 0
            without attention.
        kv_heads: heads of keys and values, a multiple of that degree, too; as many where 0.
        row_tables: embeddings whose rows can be divided between ranks.
        embeddings: modules that come before the first block.
        head: modules that come after the last block, in order. A head that is not built yet is
            named all the same.
        no_weight_decay: parameters (full names) that weight decay should leave alone, beside biases
            and norms.
        prefers_channels_last: whether the model is faster with `torch.channels_last` memory
            (convolutions).
    """

    blocks: tuple[str, ...] = ()
    column_linears: tuple[str, ...] = ()
    row_linears: tuple[str, ...] = ()
    fused_heads: tuple[tuple[str, int], ...] = ()
    head_norms: tuple[str, ...] = ()
    heads: int = 0
    kv_heads: int = 0
    row_tables: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    no_weight_decay: tuple[str, ...] = ()
    prefers_channels_last: bool = False
