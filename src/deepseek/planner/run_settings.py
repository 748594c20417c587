"""A plan as settings of a run: what `deepseek plan --yaml` prints and `parallel="auto"` takes."""

from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from deepseek.errors import ConfigError
from deepseek.planner.cluster import Cluster
from deepseek.planner.parallel_plan import ParallelPlan, Recompute
from deepseek.planner.plan_text import AXES
from deepseek.planner.search import search
from deepseek.planner.search_space import SearchSpace
from deepseek.planner.shape import TransformerShape

MEMORY: dict[Recompute, str] = {
    "none": "off",
    "pointwise": "pointwise",
    "selective": "selective",
    "full": "full",
}
"""Policies of recomputation by their names in `trainer.memory`."""


def as_settings(plan: ParallelPlan) -> dict[str, Any]:
    """Return the settings of `trainer` that make a run follow `plan`.

    Raises:
        ConfigError: the run would refuse it.
    """
    if plan.precision == "fp8" and plan.world_size > 1:
        raise ConfigError(
            "precision=fp8 on several processes: deepseek train refuses it.",
            fix="plan in bf16, or take the numbers without --yaml",
        )
    if plan.offload != "none" and plan.precision == "fp16":
        raise ConfigError(
            f"offload={plan.offload} with precision=fp16: deepseek train refuses it.",
            fix="plan in bf16, or take the numbers without --yaml",
        )
    parallel: dict[str, Any] = {
        axis: getattr(plan, axis) for axis in AXES if getattr(plan, axis) > 1
    }
    if plan.pp > 1:
        parallel |= {"schedule": plan.schedule, "micro_batches": plan.num_micro_batches}
        parallel["stages_per_rank"] = plan.virtual_stages
    if plan.tp > 1:
        parallel["sequence_parallel"] = plan.sequence_parallel
    return {
        "batch_size": plan.batch_size,
        "grad_accum_steps": 1 if plan.pp > 1 else plan.num_micro_batches,
        "precision": plan.precision,
        "graph": "static" if plan.is_fused else "dynamic",
        "parallel": parallel or "none",
        "memory": MEMORY[plan.recompute],
    } | ({} if plan.offload == "none" else {"offload": plan.offload})


def choose_settings(
    shape: TransformerShape,
    cluster: Cluster,
    batch_size: int,
    space: SearchSpace = SearchSpace(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """Return the settings of `trainer` for the best plan on all GPUs of `cluster`.

    Raises:
        ConfigError: nothing fits; the message says what is missing.
    """
    found = search(shape, cluster, batch_size, space)
    if found.best is None:
        least = found.least
        need = least.prediction.peak_bytes / 2**30 if least else float("nan")
        raise ConfigError(
            f"no plan of {cluster.num_gpus} x {cluster.gpu.name} fits {shape.name}: the least needs"
            f" {need:.1f} GiB of {space.limit_bytes(cluster.gpu) / 2**30:.1f} GiB.",
            fix="use more GPUs, or larger ones",
        )
    return as_settings(found.best.plan)


def to_yaml(settings: dict[str, Any]) -> str:
    """Return `settings` as the section `trainer:` of a configuration.

    `"off"` is quoted: a reader of YAML 1.1 takes it for false.
    """
    out, values = StringIO(), dict(settings)
    if values.get("memory") == "off":
        values["memory"] = DoubleQuotedScalarString("off")
    writer = YAML()
    writer.default_flow_style = False
    writer.dump({"trainer": values}, out)
    return out.getvalue()
