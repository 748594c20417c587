import pytest

from deepseek.planner import Cluster, find_gpu


@pytest.fixture
def a100s():
    """A function that makes a cluster of so many A100-80."""
    return lambda num_gpus, **links: Cluster(find_gpu("a100-80"), num_gpus, **links)
