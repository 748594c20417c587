"""One way to spread a training over devices: the thing that is costed and searched."""

from dataclasses import dataclass
from typing import Literal

Recompute = Literal["none", "pointwise", "selective", "full"]
Precision = Literal["bf16", "fp16", "fp8", "fp32"]
Attention = Literal["flash", "flash1", "plain"]
Offload = Literal["none", "optimizer", "parameters"]
Schedule = Literal[
    "gpipe", "1f1b", "interleaved_1f1b", "looped_bfs", "interleaved_zero_bubble", "zbv_zero_bubble"
]


@dataclass(frozen=True)
class EagerBytes:
    """What PyTorch keeps where it computes operator by operator, in bytes of a number.

    Attributes:
        mask: of dropout: one on a GPU; as what is dropped from, on a CPU.
        score: of all that is kept of a score of attention that is no single kernel, as on a CPU for
            few tokens and with dropout; 0 where it is.
        score_work: of the gradients of such a score.
    """

    mask: float = 1.0
    score: float = 0.0
    score_work: float = 0.0


@dataclass(frozen=True)
class ParallelPlan:
    """Degrees of the axes and how a batch is cut under them.

    Attributes:
        dp_replicate: copies of the model.
        dp_shard: ranks that weights, gradients and optimizer state are divided between (ZeRO-3).
        tp: ranks of a block; sequence_parallel: its tokens divided where features are whole.
        pp: ranks that the blocks are divided between; `virtual_stages` on each.
        cp: ranks of a sequence.
        micro_batch_size: samples of a forward pass on one rank.
        num_micro_batches: of a step, on each rank (accumulation, or the pipeline's).
        recompute: `none`; `pointwise`: norms, activations, casts; `selective`: with `plain`
            attention its core (Korthikanti et al. 2022), with `flash`, which keeps no scores, the
            same as `pointwise` and `selective_products`; `full`: whole blocks.
        selective_products: share of products that `selective` beside `flash` computes again;
            every second one in PyTorch's stock policy, 0 if products are always kept.
        recompute_share: of the blocks that `recompute` applies to.
        stops_early: a full recomputation leaves out the last product of a block, whose output
            nothing needs: PyTorch from 2.1 on, without reentrance; Megatron computes it.
        precision: of matrix products.
        attention: `flash` keeps no matrix of scores (FlashAttention 2 and later, cuDNN); `flash1`
            is its first version, slower; `plain` writes scores to memory.
        reshards: with `dp_shard`, whether weights are freed after a block and gathered again; None:
            without a pipeline, as this framework and torchtitan do.
        master_bytes, gradient_bytes, state_bytes: per weight, beside its compute copy of
            `weight_bytes`.
        shards_optimizer: master weights and state are divided between all copies (ZeRO-1,
            "distributed optimizer").
        is_fused: norms, activations and rotations are single kernels (compiled, or written so);
            eager ones pass over memory several times.
        is_loss_fused: cross-entropy is one kernel that keeps logits once and overwrites them with
            their gradient (Megatron, flash-attn); PyTorch's own keeps copies in fp32.
        keeps_gathered: what ranks of `tp` and `cp` gather is kept for the backward pass, in which
            Megatron gathers it again.
        stream_bytes: of a number that goes from block to block; 0: as `precision` says. Autocast
            leaves it in fp32, where weights that are fully sharded are cast with what they take.
        adds_in_product: the product that makes a weight's gradient adds it to the sum over
            micro-batches; otherwise a kernel of its own does. Of no effect with `dp_shard`.
        overlaps_dp: gradients are reduced while backward runs, not after it.
        overlaps_tp: tensor-parallel communication runs beside the products it feeds.
        eager: what is kept beside what fused kernels keep, and by torch's pipelines; None: nothing.
        offload: what waits in the memory of the host. `optimizer`: its state, which comes to the
            device and goes back for each update; `parameters`, with `dp_shard`: the parts of
            weights, gradients and state, which the host updates (`deepseek.planner.host`).
    """

    dp_replicate: int = 1
    dp_shard: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    sequence_parallel: bool = True
    schedule: Schedule = "1f1b"
    virtual_stages: int = 1
    micro_batch_size: int = 1
    num_micro_batches: int = 1
    recompute: Recompute = "none"
    precision: Precision = "bf16"
    attention: Attention = "flash"
    reshards: bool | None = None
    weight_bytes: float = 2.0
    gradient_bytes: float = 4.0
    master_bytes: float = 4.0
    state_bytes: float = 8.0
    selective_products: float = 0.5
    recompute_share: float = 1.0
    stops_early: bool = True
    shards_optimizer: bool = False
    is_fused: bool = True
    is_loss_fused: bool = False
    keeps_gathered: bool = False
    stream_bytes: float = 0.0
    adds_in_product: bool = True
    overlaps_dp: bool = True
    overlaps_tp: bool = False
    eager: EagerBytes | None = None
    offload: Offload = "none"

    @property
    def frees_weights(self) -> bool:
        """`reshards`, decided."""
        return self.pp == 1 if self.reshards is None else self.reshards

    @property
    def puts_off_weights(self) -> bool:
        """Whether gradients of weights wait for a pause of the pipeline.

        Blocks that are recomputed go backward as a whole: each weight would recompute its block.
        """
        return self.pp > 1 and "zero_bubble" in self.schedule and self.recompute != "full"

    @property
    def item_bytes(self) -> int:
        """Bytes of a number that products read and make."""
        return 4 if self.precision == "fp32" else 2

    @property
    def stream(self) -> float:
        """`stream_bytes`, decided."""
        return self.stream_bytes or self.item_bytes

    @property
    def world_size(self) -> int:
        """Number of devices."""
        return self.dp_replicate * self.dp_shard * self.tp * self.pp * self.cp

    @property
    def batch_size(self) -> int:
        """Sequences of an optimizer step over all ranks."""
        shares = self.dp_replicate * self.dp_shard
        return shares * self.micro_batch_size * self.num_micro_batches
