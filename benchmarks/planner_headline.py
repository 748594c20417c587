"""A 100-billion-parameter GPT, 72 hours by full sharding: how close to 18 does a hybrid plan come?

```
python benchmarks/planner_headline.py            # on paper: nothing is measured here
```
For each cluster the number of tokens is what fully sharded data parallelism (the best micro-batch
and recomputation) is predicted to train on in 72 hours. The same tokens on the same GPUs, with the
same batch, are then planned with every axis. The bound is what no plan can pass: all FLOPs of the
model at the rate that the best matrix products of a long run reach, and nothing else.
"""

import argparse
from dataclasses import dataclass

from deepseek.planner import Cluster, TransformerShape, find_gpu
from deepseek.planner.constants import CALIBRATION
from deepseek.planner.explanation import say_plan
from deepseek.planner.flops import count_parameters, model_flops_per_token
from deepseek.planner.search import Candidate, search
from deepseek.planner.search_space import SearchSpace, Software

HOURS, WANTED_HOURS = 72.0, 18.0
BATCH_SIZE = 1024
MODEL = TransformerShape(
    "gpt-100b",
    num_layers=80,
    dim=10240,
    heads=80,
    vocab_size=51200,
    context_length=2048,
    has_biases=True,
    has_positions=True,
)
CLUSTERS = (
    # GPU, how many, bytes per second out of a node of 8, what that is
    ("a100-80", 512, 200e9, "8 cards of 200 Gbit/s a node, the usual"),
    ("a100-80", 512, 25e9, "2 cards of 100 Gbit/s a node"),
    ("a100-80", 512, 12.5e9, "1 card of 100 Gbit/s a node"),
    ("h100", 512, 400e9, "8 cards of 400 Gbit/s a node, the usual"),
    ("h100", 512, 25e9, "1 card of 200 Gbit/s a node"),
)
FIXED = {
    "full sharding": {"dp_replicate": 1, "cp": 1, "tp": 1, "pp": 1},
    "sharding in groups": {"cp": 1, "tp": 1, "pp": 1},
    "hybrid": {},
}
"""Axes that are held at 1, by kind of plan."""


@dataclass(frozen=True)
class Comparison:
    """One cluster: the best plan of each kind, and the bound, for the same tokens."""

    cluster: Cluster
    words: str
    plans: dict[str, Candidate]

    @property
    def tokens(self) -> float:
        """What full sharding trains on in 72 hours."""
        steps = HOURS * 3600 / self.plans["full sharding"].prediction.step_s
        return steps * BATCH_SIZE * MODEL.context_length

    def hours(self, kind: str) -> float:
        """Of a kind of plan, for the same tokens."""
        full, other = self.plans["full sharding"].prediction, self.plans[kind].prediction
        return HOURS * other.step_s / full.step_s

    @property
    def ceiling(self) -> float:
        """MFU of a run that is nothing but its best matrix products."""
        gpu = self.cluster.gpu
        share = CALIBRATION.matmul_share
        share *= CALIBRATION.power_share if gpu.is_power_limited else 1.0
        return share * gpu.matmul_flops["bf16"] / gpu.peak_flops["bf16"]

    @property
    def bound_hours(self) -> float:
        """Hours at the ceiling, with causal attention done for half of its FLOPs."""
        flops = model_flops_per_token(MODEL)
        halved = 6.0 * MODEL.num_layers * MODEL.heads * MODEL.head_dim * MODEL.context_length
        rate = self.ceiling * self.cluster.gpu.peak_flops["bf16"] * self.cluster.num_gpus
        return self.tokens * (flops - halved) / rate / 3600


def compare(software: Software) -> list[Comparison]:
    """Plan every cluster with the axes of each kind of plan."""
    rows = []
    for name, num_gpus, bandwidth, words in CLUSTERS:
        cluster = Cluster(find_gpu(name), num_gpus, node_bandwidth=bandwidth)
        plans = {}
        for kind, axes in FIXED.items():
            space = SearchSpace(software=software, axes=axes)
            best = search(MODEL, cluster, BATCH_SIZE, space).best
            if best is None:
                raise SystemExit(f"{kind} does not fit {num_gpus} x {name}")
            plans[kind] = best
        rows.append(Comparison(cluster, words, plans))
    return rows


def describe(row: Comparison) -> str:
    """The lines of one cluster."""
    cluster = row.cluster
    lines = [
        f"{cluster.num_gpus} x {cluster.gpu.name}, {cluster.node_bandwidth / 1e9:g} GB/s out of a"
        f" node ({row.words}); {row.tokens / 1e9:,.0f}B tokens"
    ]
    for kind, candidate in row.plans.items():
        prediction, hours = candidate.prediction, row.hours(kind)
        lines.append(
            f"  {kind:<19} {hours:>6.1f} h  {HOURS / hours:>5.2f}x  MFU {prediction.mfu:>5.1%}"
            f"  {say_plan(candidate.plan)}"
        )
    lines.append(
        f"  {'bound':<19} {row.bound_hours:>6.1f} h  {HOURS / row.bound_hours:>5.2f}x"
        f"  products alone, at {row.ceiling:.0%} of the peak"
    )
    verdict = "reached" if row.hours("hybrid") <= WANTED_HOURS else "missed"
    if row.bound_hours > WANTED_HOURS:
        verdict = "out of reach of any plan"
    return "\n".join([*lines, f"  {WANTED_HOURS:g} h: {verdict}"])


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description="72 hours by full sharding against a hybrid plan.")
    parser.add_argument("--software", choices=("deepseek", "megatron"), default="deepseek")
    arguments = parser.parse_args()
    print(
        f"{MODEL.name}: {count_parameters(MODEL) / 1e9:.1f}B parameters, steps of {BATCH_SIZE}"
        f" sequences of {MODEL.context_length} tokens, bf16, as run by {arguments.software}"
    )
    for row in compare(arguments.software):
        print(f"\n{describe(row)}")


if __name__ == "__main__":
    main()
