"""Seconds of collectives: a bandwidth, and a latency for each step of a ring.

Ranks are numbered with `tp` innermost, then `cp`, `dp_shard`, `dp_replicate`, `pp`: neighbours
share a node. A ring over n ranks moves (n - 1) / n of the bytes through each link, twice for an
all-reduce. Where it leaves the node, rings of the other ranks there share the cards with it.
"""

from typing import NamedTuple

from deepseek.planner.cluster import Cluster
from deepseek.planner.constants import Calibration


class Ring(NamedTuple):
    """A group of ranks as a collective sees it."""

    size: int
    bytes_per_s: float
    latency_s: float
    """Of one gather or reduce-scatter."""

    def gather_s(self, num_bytes: float) -> float:
        """Seconds until each rank has all `num_bytes`; a reduce-scatter takes as long."""
        if self.size == 1:
            return 0.0
        return num_bytes * (self.size - 1) / self.size / self.bytes_per_s + self.latency_s

    def all_reduce_s(self, num_bytes: float) -> float:
        """Seconds until each rank has the sum of `num_bytes`."""
        return 2 * self.gather_s(num_bytes)


def make_ring(cluster: Cluster, size: int, stride: int, cal: Calibration) -> Ring:
    """The ring over `size` ranks that are `stride` apart."""
    per_node = cluster.gpus_per_node
    link = cluster.gpu.link_bandwidth * cal.link_share
    if size * stride <= per_node:
        return Ring(size, link, (size - 1) * cal.link_hop_s)
    inside = max(1, min(size, per_node // stride))
    node = cluster.node_bandwidth * cal.node_share
    # `per_node / inside` rings leave the node side by side.
    share = node * inside / per_node
    if cluster.cards_per_ring:
        share = min(share, node * cluster.cards_per_ring / per_node)
    num_nodes = -(-size // inside)
    latency_s = (inside - 1) * cal.link_hop_s + (num_nodes - 1) * cal.node_hop_s
    return Ring(size, min(link, share), latency_s)


def send_s(cluster: Cluster, num_bytes: float, distance: int, cal: Calibration) -> float:
    """Seconds of `num_bytes` from one rank to the one `distance` further on."""
    if distance < cluster.gpus_per_node:
        return num_bytes / (cluster.gpu.link_bandwidth * cal.link_share) + cal.link_hop_s
    card = cluster.node_bandwidth / cluster.gpus_per_node
    return num_bytes / (card * cal.node_share) + cal.node_hop_s


def exposed_s(
    cluster: Cluster, communication_s: float, num_bytes: float, compute_s: float, cal: Calibration
) -> float:
    """Seconds that communication of `num_bytes` for each rank, beside computation, adds to it.

    What is longer than the computation, and what the hidden part takes from it: processors, and
    memory traffic.
    """
    hidden_s = min(communication_s, compute_s)
    if hidden_s <= 0:
        return communication_s
    traffic_s = cal.overlap_passes * num_bytes / (cluster.gpu.memory_bandwidth * cal.hbm_share)
    tax_s = min(1.0, cal.overlap_share + traffic_s / communication_s) * hidden_s
    return communication_s - hidden_s + tax_s
