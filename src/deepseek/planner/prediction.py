"""What `predict` says of a plan."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Prediction:
    """Time and memory of one optimizer step.

    Attributes:
        step_s: seconds.
        time_s: parts that add up to `step_s`: `compute`, `recompute`, `tp`, `cp`, `pp` and `dp`
            (communication that nothing hides), `bubble`, `optimizer`, `host` (copies to and from
            its memory that nothing hides, and what it computes; 0 without `offload`).
        tokens_per_s_per_gpu: trained.
        mfu: share of the datasheet peak that model FLOPs make, without recomputation; 6N + full
            (not halved) attention, head counted, embedding lookup not.
        hfu: the same with recomputed FLOPs.
        memory: bytes by category on each pipeline rank, first to last: `weights`, `gradients`,
            `optimizer`, `activations`, `logits`, `buffers`.
        peak_bytes: largest sum over ranks.
        host_bytes: of the host's memory for each GPU, on the rank that needs most of it.
        fits: whether both are there: of the device less what the driver and fragmentation take, of
            the GPU's share of the host less what the host needs itself.
        model_flops_per_s: of one GPU, in the convention of `mfu`.
    """

    step_s: float
    time_s: dict[str, float]
    tokens_per_s_per_gpu: float
    mfu: float
    hfu: float
    memory: list[dict[str, float]] = field(repr=False)
    peak_bytes: float
    fits: bool
    model_flops_per_s: float = 0.0
    host_bytes: float = 0.0
