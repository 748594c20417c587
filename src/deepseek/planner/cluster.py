"""The machines of a plan: GPUs, how many, and the links between them."""

from dataclasses import dataclass, replace

from deepseek.errors import ConfigError


@dataclass(frozen=True)
class Host:
    """What a node has beside its GPUs, divided by their number.

    Attributes:
        link_bandwidth: bytes per second and direction to a GPU, while all GPUs of the node copy.
        memory_bandwidth: bytes per second of the host's memory.
        memory_bytes: of it.
    """

    link_bandwidth: float
    memory_bandwidth: float
    memory_bytes: float


USUAL_HOST = Host(15.75e9, 51.2e9, 128 * 2**30)
"""Of a GPU that nothing is said of: the one of a DGX A100."""


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
        node_bandwidth: bytes per second and direction out of the usual node of 8 such GPUs.
        is_power_limited: whether a long run of products draws more than it may, and slows down.
        host: its share of the usual node.
    """

    name: str
    memory_bytes: int
    peak_flops: dict[str, float]
    matmul_flops: dict[str, float]
    memory_bandwidth: float
    link_bandwidth: float
    num_sms: int
    node_bandwidth: float = 200e9
    is_power_limited: bool = False
    host: Host = USUAL_HOST

    def __hash__(self) -> int:
        # The tables of rates are dicts, which have no hash of their own.
        return hash((self.name, self.memory_bytes, self.memory_bandwidth, self.num_sms))


@dataclass(frozen=True)
class Cluster:
    """Nodes of equal GPUs.

    Attributes:
        gpu: of all of them.
        num_gpus: in all.
        gpus_per_node: that share the fast link.
        node_bandwidth: bytes per second and direction out of a node, all its cards together; 0
            for what is usual with this GPU (an eighth of `Gpu.node_bandwidth` for each).
        gpu_hour_usd: price of one GPU for an hour; 0 where unknown.
        cards_per_ring: network cards of a node that one ring through several GPUs of it can use;
            0 for all. Software of 2021 sent what a ring carries from node to node through one.
        host_bytes: memory of a node's host; 0 for what is usual with this GPU.
    """

    gpu: Gpu
    num_gpus: int
    gpus_per_node: int = 8
    node_bandwidth: float = 0.0
    gpu_hour_usd: float = 0.0
    cards_per_ring: int = 0
    host_bytes: float = 0.0

    def __post_init__(self) -> None:
        if self.num_gpus < 1 or self.gpus_per_node < 1:
            raise ConfigError(
                f"num_gpus={self.num_gpus} and gpus_per_node={self.gpus_per_node}"
                " must be 1 or more.",
                fix="count the GPUs of the cluster and those of one node",
            )
        if self.node_bandwidth == 0:
            usual = self.gpu.node_bandwidth * self.gpus_per_node / 8
            object.__setattr__(self, "node_bandwidth", usual)
        if self.node_bandwidth < 0:
            raise ConfigError(
                f"node_bandwidth={self.node_bandwidth} must not be negative.",
                fix="give bytes per second and direction, all cards of a node together",
            )

    @property
    def count_of_node(self) -> int:
        """GPUs of a node that are there."""
        return min(self.num_gpus, self.gpus_per_node)

    @property
    def host(self) -> Host:
        """The share of a GPU in the host of its node."""
        if not self.host_bytes:
            return self.gpu.host
        return replace(self.gpu.host, memory_bytes=self.host_bytes / self.count_of_node)
