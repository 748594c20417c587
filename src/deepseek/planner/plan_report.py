"""All that is said of a search: as text, as JSON, as settings of a run."""

from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

from deepseek.errors import ConfigError
from deepseek.planner.accuracy import describe_error
from deepseek.planner.cluster import Cluster
from deepseek.planner.explanation import (
    GIB,
    Loss,
    explain_changes,
    explain_families,
    find_worst_rank,
    say_overflow,
    say_plan,
)
from deepseek.planner.flops import count_parameters, model_flops_per_token
from deepseek.planner.hardware import GPUS
from deepseek.planner.model_source import ModelSource
from deepseek.planner.plan_text import describe_axes, describe_pipeline
from deepseek.planner.prediction import Prediction
from deepseek.planner.quantity import show_bytes, show_count
from deepseek.planner.run_settings import as_settings, to_yaml
from deepseek.planner.search import Candidate, Candidates, search
from deepseek.planner.search_space import SearchSpace
from deepseek.planner.shape import TransformerShape

_MFU = (
    "head counted, embedding lookup not, attention not halved"
    " for the causal mask, of the datasheet's dense peak"
)
MOST_DOUBLINGS = 10


@dataclass(frozen=True)
class PlanReport:
    """A search with what was asked.

    Attributes:
        source: the model.
        cluster: GPUs and links.
        batch_size: sequences of a step.
        space: what could be chosen.
        found: the plans.
        tokens: to train on; 0 where not asked.
    """

    source: ModelSource
    cluster: Cluster
    batch_size: int
    space: SearchSpace
    found: Candidates
    tokens: float = 0.0

    @property
    def shape(self) -> TransformerShape:
        """Sizes of the model."""
        return self.source.shape

    @property
    def mfu_convention(self) -> str:
        """What MFU counts."""
        frozen = ", 4 where it is frozen" if self.shape.trained_share < 1 else ""
        return f"MFU: 6 FLOPs per weight and token{frozen}, {_MFU}"

    @property
    def limit_bytes(self) -> float:
        """What a plan may take of a device."""
        return self.space.limit_bytes(self.cluster.gpu)

    @cached_property
    def losses(self) -> list[Loss]:
        """Families that lost to the choice."""
        return explain_families(self.found, self.cluster, self.space)

    @cached_property
    def changes(self) -> list[Loss]:
        """What one change of the choice would do."""
        best = self.found.best
        return explain_changes(self.shape, self.cluster, best, self.space) if best else []

    def shown(self, top: int) -> list[Candidate]:
        """Return the fastest `top`, and the choice where it is not among them."""
        shown, best = self.found.ranked[:top], self.found.best
        return shown if best is None or best in shown else [*shown[:-1], best]

    def describe_model(self) -> str:
        """Return the line about the model."""
        shape = self.shape
        count = count_parameters(shape)
        trained = ""
        if shape.trained_share < 1:
            trained = f" ({show_count(shape.trained_share * count)} of them trained)"
        return (
            f"{shape.name}: {show_count(count)} parameters{trained},"
            f" {show_count(model_flops_per_token(shape))}FLOP per token at"
            f" {shape.context_length:,} tokens"
        )

    def describe_cluster(self) -> str:
        """Return the line about cluster and batch."""
        cluster, tokens = self.cluster, self.batch_size * self.shape.context_length
        nodes = f", {cluster.node_bandwidth / 1e9:.4g} GB/s out of a node of"
        nodes += f" {cluster.gpus_per_node}"
        return (
            f"{cluster.num_gpus:,} x {cluster.gpu.name}"
            f"{nodes if cluster.num_gpus > cluster.gpus_per_node else ''}; steps of"
            f" {self.batch_size:,} sequences ({show_count(tokens)} tokens), {self.space.precision}"
            + ("" if "bf16" in cluster.gpu.matmul_flops else " (the GPU has no bf16)")
        )

    def describe_search(self) -> str:
        """Return how much was searched."""
        found = self.found
        return (
            f"{found.num_costed:,} plans of {found.num_layouts:,} layouts in {found.search_s:.1f} s"
            f"; {len(found.ranked):,} layouts fit {self.limit_bytes / GIB:.1f} of"
            f" {self.cluster.gpu.memory_bytes / GIB:.0f} GiB"
        )

    def describe_host(self) -> str:
        """Return what waits on the host, and how it comes and goes; empty where nothing does."""
        chosen, host = self.found.best or self.found.least, self.cluster.host
        if chosen is None or chosen.plan.offload == "none":
            return ""
        num_gpus = self.cluster.count_of_node
        words = (
            f"offload {chosen.plan.offload}: {num_gpus * chosen.prediction.host_bytes / GIB:,.0f}"
            f" of {num_gpus * host.memory_bytes / GIB:,.0f} GiB of the memory of a node with"
            f" {num_gpus} GPUs, {host.link_bandwidth / 1e9:.4g} GB/s and direction to each while"
            " all copy"
        )
        without = self.found.without_host
        if without is not None and self.found.best is not None:
            peak = without.prediction.peak_bytes
            words += (
                f"; nothing fits without: nearest {say_plan(without.plan)}, {peak / GIB:,.1f} of"
                f" {self.limit_bytes / GIB:.1f} GiB"
            )
        return f"{words}. No published row is of it."

    def describe_error(self) -> str:
        """Return how far the planner may be off, and where it is surely weaker than that."""
        words = [describe_error()]
        if self.space.precision == "fp8":
            words.append("fp8 rests on few published rows: 5 to 15 % either way.")
        best = self.found.best
        if best is not None and best.plan.cp > 1:
            words.append("No published row has cp: what rings of attention lose is not in it.")
        return " ".join(words)

    def count_days(self, prediction: Prediction) -> float:
        """Return the days that all tokens take."""
        rate = prediction.tokens_per_s_per_gpu * self.cluster.num_gpus
        return self.tokens / rate / 86400

    def count_usd(self, prediction: Prediction) -> float:
        """Return the price of all tokens."""
        hours = 24 * self.count_days(prediction) * self.cluster.num_gpus
        return hours * self.cluster.gpu_hour_usd

    def describe_need(self) -> str:
        """Return, where nothing fits, the plan that comes nearest and what it lacks."""
        least = self.found.least
        if least is None:
            return "no plan could be costed"
        peak = least.prediction.peak_bytes
        words = [
            f"nothing fits; nearest: {say_plan(least.plan)}: {show_bytes(peak)} of"
            f" {self.limit_bytes / GIB:.1f} GiB on each {self.cluster.gpu.name}"
        ]
        if peak <= self.limit_bytes:
            words = [f"nothing fits; nearest: {say_plan(least.plan)}: "]
            words[0] += say_overflow(least, self.cluster, self.space)
        lack = partial(self.space.lack_bytes, prediction=least.prediction)
        others = {name: replace(self.cluster, gpu=gpu) for name, gpu in GPUS.items()}
        enough = [name for name, cluster in others.items() if lack(cluster) == 0]
        if enough:
            words.append(f"it would fit on {', '.join(enough)}")
        more = self._find_enough_gpus()
        if more:
            words.append(f"{more:,} x {self.cluster.gpu.name} are enough for another layout")
        return "; ".join(words)

    def _find_enough_gpus(self) -> int:
        """The least multiple of the GPUs, by twos, on which something fits; 0 where none does."""
        if self.space.axes:
            return 0
        for doublings in range(1, MOST_DOUBLINGS + 1):
            cluster = replace(self.cluster, num_gpus=self.cluster.num_gpus * 2**doublings)
            try:
                if search(self.shape, cluster, self.batch_size, self.space).best:
                    return cluster.num_gpus
            except ConfigError:
                return 0  # the batch cannot be divided any further
        return 0

    def as_yaml(self) -> str:
        """Return the section `trainer:` for the choice.

        Raises:
            ConfigError: nothing fits.
        """
        best = self.found.best
        if best is None:
            raise ConfigError(f"--yaml: {self.describe_need()}.", fix="use more or larger GPUs")
        head = [
            f"# {self.describe_model()}",
            f"# {self.describe_cluster()}",
            f"# predicted: {best.prediction.step_s:.3g} s a step,"
            f" {show_bytes(best.prediction.peak_bytes)}, MFU {best.prediction.mfu:.1%}",
        ]
        if self.space.software != "deepseek":
            head.append(f"# predicted for {self.space.software}, not for this framework")
        if self.shape.trained_share < 1:
            head.append(
                "# predicted with frozen weights, and these settings freeze none: trainer.lora does"
            )
        return "\n".join(head) + "\n" + to_yaml(as_settings(best.plan))

    def as_json(self, top: int, explains: bool) -> dict[str, Any]:
        """Return what `--json` prints."""
        best = self.found.best
        out: dict[str, Any] = {
            "model": {
                **asdict(self.shape),
                "parameters": count_parameters(self.shape),
                "flops_per_token": model_flops_per_token(self.shape),
                "note": self.source.note,
            },
            "cluster": {
                "gpu": self.cluster.gpu.name,
                "num_gpus": self.cluster.num_gpus,
                "gpus_per_node": self.cluster.gpus_per_node,
                "node_bandwidth_bytes_per_s": self.cluster.node_bandwidth,
                "host_of_each_gpu": asdict(self.cluster.host),
            },
            "batch_size": self.batch_size,
            "memory_limit_bytes": self.limit_bytes,
            "num_costed": self.found.num_costed,
            "search_s": self.found.search_s,
            "mfu_convention": self.mfu_convention,
            "error": self.describe_error(),
            "best": self._candidate_json(best) if best else None,
            "plans": [self._candidate_json(candidate) for candidate in self.shown(top)],
        }
        if best is None:
            out["need"] = self.describe_need()
            least = self.found.least
            out["nearest"] = self._candidate_json(least) if least else None
        if explains:
            out["lost"] = [
                {"what": loss.name, "why": loss.why, **self._candidate_json(loss.candidate)}
                for loss in (*self.losses, *self.changes)
            ]
        return out

    def _candidate_json(self, candidate: Candidate) -> dict[str, Any]:
        plan, prediction = candidate.plan, candidate.prediction
        return {
            "plan": describe_axes(plan),
            "pipeline": describe_pipeline(plan),
            "settings": asdict(plan),
            "step_s": prediction.step_s,
            "time_s": prediction.time_s,
            "tokens_per_s_per_gpu": prediction.tokens_per_s_per_gpu,
            "mfu": prediction.mfu,
            "hfu": prediction.hfu,
            "peak_bytes": prediction.peak_bytes,
            "memory_bytes": prediction.memory[find_worst_rank(prediction)],
            "host_bytes_of_a_node": prediction.host_bytes * self.cluster.count_of_node,
            "days": self.count_days(prediction) if self.tokens else None,
            "usd": self.count_usd(prediction)
            if self.tokens and self.cluster.gpu_hour_usd
            else None,
        }
