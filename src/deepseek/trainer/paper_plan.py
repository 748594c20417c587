"""What the analytic planner says of a run that is walked on paper."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deepseek.datasets import DataSpec
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.attention import MAX_EXPLICIT_SCORES
from deepseek.models.classifier import Classifier
from deepseek.models.zoo import name_of
from deepseek.parallel.plan import Plan
from deepseek.planner import Cluster, ParallelPlan, find_gpu, predict
from deepseek.planner.model_source import ModelSource, shape_of_own, with_rows
from deepseek.planner.parallel_plan import EagerBytes, Recompute
from deepseek.planner.predict import train_some
from deepseek.planner.run_settings import MEMORY
from deepseek.planner.shape import TransformerShape
from deepseek.planner.traffic import count_sent

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer

GPU = "h100"
"""Bytes do not depend on it."""
_RECOMPUTE: dict[str, Recompute] = {memory: recompute for recompute, memory in MEMORY.items()}


@dataclass(frozen=True)
class Forecast:
    """Figures of `deepseek.planner` for one rank.

    Attributes:
        memory: bytes by category at the peak.
        sent: bytes that the rank sends in a step, by axis.
        note: what the planner takes for something else; may be empty.
    """

    memory: dict[str, float]
    sent: dict[str, float]
    note: str


def find_source(engine: ModelEngine, spec: DataSpec, notes: list[str]) -> ModelSource | None:
    """Return the sizes of a model as the planner takes them; `None` for one that it does not know.

    Args:
        engine: whole, and with its head.
        spec: what the data hold; rows of tokens are as long as they make them.
        notes: told why there are none.
    """
    module = engine.module
    name = name_of(module) if isinstance(module, Classifier) else None
    try:
        source = shape_of_own(name or engine.architecture, engine.config)
    except ConfigError as error:
        notes.append(f"no figures of the planner: {error.message}")
        return None
    inputs = spec.fields.get("inputs")
    if inputs is None or len(inputs.shape) != 1:  # pictures are no rows
        return source
    return replace(source, shape=with_rows(source.shape, inputs.shape[0]))


def forecast(trainer: "Trainer", source: ModelSource | None, notes: list[str]) -> Forecast | None:
    """Return what the planner predicts for this rank; `None` for a plan that it does not know.

    Args:
        trainer: assembled.
        source: the model.
        notes: told why there is none.
    """
    if source is None:
        return None
    shape = train_some(source.shape, _count_trained(trainer))
    plan = plan_of(trainer, shape)
    try:
        predicted = predict(shape, Cluster(find_gpu(GPU), plan.world_size), plan)
    except ConfigError as error:
        notes.append(f"no figures of the planner: {error.message}")
        return None
    rank = trainer.world.coordinate("pp")
    memory = _by_category(predicted.memory[rank], plan)
    return Forecast(memory, count_sent(shape, plan, rank), source.note)


def _count_trained(trainer: "Trainer") -> float:
    """Return the weights that are trained, by their number; 1.0, all of them, if none is frozen."""
    assembly = trainer.assembly
    is_whole = assembly.num_trainable == assembly.num_parameters
    return 1.0 if is_whole else float(assembly.num_trainable)


def plan_of(trainer: "Trainer", shape: TransformerShape) -> ParallelPlan:
    """Return the plan of a run in the planner's words, operator by operator as on a CPU."""
    plan, assembly = trainer.plan, trainer.assembly
    is_half = assembly.precision.name != "fp32"
    trained = assembly.step.parallel.weights.trained
    num_trained = sum(weight.local.numel() for weight in trained)
    return ParallelPlan(
        dp_replicate=plan.dp_replicate, dp_shard=plan.dp_shard, tp=plan.tp, pp=plan.pp, cp=plan.cp,
        sequence_parallel=plan.divides_tokens, schedule=plan.settings.schedule,
        virtual_stages=plan.stages_per_rank, micro_batch_size=plan.micro_batch_size,
        num_micro_batches=plan.num_micro_batches,
        recompute=_RECOMPUTE[assembly.step.graph.memory.name],
        precision="bf16" if is_half else "fp32",
        weight_bytes=2.0 if is_half else 4.0, master_bytes=4.0 if is_half else 0.0,
        state_bytes=assembly.optimizer_bytes / max(1, num_trained),
        is_fused=False, adds_in_product=False, overlaps_dp=plan.pp == 1, keeps_gathered=True,
        stream_bytes=4.0 if plan.dp_shard == 1 else 0.0,
        eager=_eager_on_cpu(shape, plan, is_half=is_half),
    )  # fmt: skip


def _eager_on_cpu(shape: TransformerShape, plan: Plan, *, is_half: bool) -> EagerBytes:
    """Return what `deepseek.models.attention` and autocast keep on a CPU."""
    item = 2.0 if is_half else 4.0
    queries = shape.context_length if plan.cp == 1 else -(-shape.context_length // (2 * plan.cp))
    score, work = 0.0, 0.0
    if queries * shape.context_length <= MAX_EXPLICIT_SCORES:
        # probabilities; with dropout its mask, and what it leaves of them
        kept = 3 if shape.dropout else 1
        score, work = item * kept, item * (1 if shape.dropout else 2)
    elif shape.dropout:  # there is no kernel: torch's own operators, in fp32
        score, work = 12.0, 4.0
    return EagerBytes(mask=item, score=score, score_work=work)


def _by_category(memory: dict[str, float], plan: ParallelPlan) -> dict[str, float]:
    """Count master weights as weights, which they are here, and their casts as buffers.

    Where something is recomputed casts are made again, but in a pipeline, whose step is one
    autocast that keeps them.
    """
    is_sharded = plan.dp_shard > 1
    has_casts = plan.recompute == "none" or plan.pp > 1
    if is_sharded or not plan.master_bytes:
        return memory
    count = memory["weights"] / plan.weight_bytes
    return memory | {
        "weights": count * plan.master_bytes,
        "optimizer": memory["optimizer"] - count * plan.master_bytes,
        "buffers": memory["buffers"] + has_casts * count * plan.weight_bytes,
    }
