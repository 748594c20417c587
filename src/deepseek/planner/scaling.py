"""Step time and speed of one training on more and more GPUs, planned anew for each number."""

from dataclasses import replace
from typing import NamedTuple

from deepseek.errors import ConfigError
from deepseek.planner.cluster import Cluster
from deepseek.planner.search import Candidate, search
from deepseek.planner.search_space import SearchSpace
from deepseek.planner.shape import TransformerShape

MOST_GPUS = 16384


class ScalingPoint(NamedTuple):
    """The choice for a number of GPUs; `None` where nothing fits, or the batch does not divide."""

    num_gpus: int
    best: Candidate | None


def plan_sizes(
    shape: TransformerShape, cluster: Cluster, batch_size: int, space: SearchSpace
) -> list[ScalingPoint]:
    """Plan `shape` anew on powers of two times the odd part of the GPUs, up to 16,384.

    The batch stays, so the steps of all sizes learn the same.
    """
    odd = cluster.num_gpus // (cluster.num_gpus & -cluster.num_gpus)
    free = replace(space, axes={}, micro_batch_size=0, virtual_stages=0)
    points = []
    num_gpus = odd
    while num_gpus <= max(MOST_GPUS, cluster.num_gpus):
        points.append(ScalingPoint(num_gpus, _plan(shape, cluster, num_gpus, batch_size, free)))
        num_gpus *= 2
    return points


def _plan(
    shape: TransformerShape, cluster: Cluster, num_gpus: int, batch_size: int, space: SearchSpace
) -> Candidate | None:
    try:
        return search(shape, replace(cluster, num_gpus=num_gpus), batch_size, space).best
    except ConfigError:
        return None  # no layout of so many GPUs divides the batch: a gap in the picture
