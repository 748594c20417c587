"""How many threads a model computes with, and how they wait for each other.

libgomp's threads spin while they wait. Where every core is wanted by somebody, that is time taken
from those who compute: ResNet-50 with two threads on two cores and one busy neighbour took 1,363 ms
a picture instead of 90. On a quiet machine spinning is faster: 47 ms, instead of 74.
"""

import os
from collections.abc import Mapping

from deepseek.launch.environment import THREADS, count_cores

WAIT_POLICY = "OMP_WAIT_POLICY"


def choose_threads(processes: int, environment: Mapping[str, str] = os.environ) -> int:
    """Return the threads of each of a model's processes: one core stays for HTTP."""
    given = environment.get(THREADS, "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return max(1, (count_cores() - 1) // processes)


def choose_wait_policy(num_threads: int, num_cores: int, load: float) -> str | None:
    """Return how libgomp's threads should wait, or `None` to leave that to it.

    Args:
        num_threads: of all models together.
        num_cores: that may be used.
        load: processes of others that want to run.
    """
    return "PASSIVE" if num_threads + 1 + load > num_cores + 0.5 else None


def thread_environment(num_threads: int, num_models: int) -> dict[str, str]:
    """Return what the process of a model is told before it imports torch.

    Args:
        num_threads: of each model.
        num_models: that compute at a time.
    """
    told = {THREADS: str(num_threads)}
    if WAIT_POLICY in os.environ or num_threads == 1:
        return told
    policy = choose_wait_policy(num_threads * num_models, count_cores(), os.getloadavg()[0])
    return told if policy is None else {**told, WAIT_POLICY: policy}
