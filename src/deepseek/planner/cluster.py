"""The machines of a plan: GPUs, how many, and the links between them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One accelerator.

    Attributes:
        name: as users write it, `h100`, `a100-80`.
        memory_bytes: of the device.
        peak_flops: datasheet, dense, per second, by precision (`bf16`, `fp16`, `fp8`, `fp32`).
        matmul_flops: what its best matrix product reaches, per second, by precision.
        memory_bandwidth: bytes per second, datasheet.
        link_bandwidth: bytes per second and direction to the GPUs of its node.
        num_sms: processors that tiles of a matrix product are spread over.
    """

    name: str
    memory_bytes: int
    peak_flops: dict[str, float]
    matmul_flops: dict[str, float]
    memory_bandwidth: float
    link_bandwidth: float
    num_sms: int


@dataclass(frozen=True)
class Cluster:
    """Nodes of equal GPUs.

    Attributes:
        gpu: of all of them.
        num_gpus: in all.
        gpus_per_node: that share the fast link.
        node_bandwidth: bytes per second and direction out of a node, all its cards together.
        gpu_hour_usd: price of one GPU for an hour; 0 where unknown.
    """

    gpu: Gpu
    num_gpus: int
    gpus_per_node: int = 8
    node_bandwidth: float = 200e9
    gpu_hour_usd: float = 0.0
