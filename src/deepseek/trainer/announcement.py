"""The three lines at the start of a run: machine, model, data. Every derived number is in them."""

import torch

from deepseek.datasets import DataLoader, DataSpec
from deepseek.memory.low_precision import LowPrecisionAdamW
from deepseek.models import ModelEngine
from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.data import reduction
from deepseek.trainer.assembly import Assembly
from deepseek.trainer.console import MIB, format_count, format_seconds
from deepseek.trainer.run_folder import describe_device
from deepseek.version import __version__


def machine_line(device: torch.device, threads: int, run: str, seed: int, resumed: str) -> str:
    """Return the line on versions, machine and run; `threads` are what the CPU computes with."""
    parts = [
        f"deepseek {__version__}",
        f"torch {torch.__version__}",
        f"{describe_device(device)} ({threads} thread{'s' if threads > 1 else ''})"
        if device.type == "cpu"
        else describe_device(device),
        f"run {run}",
        f"seed {seed}",
    ]
    return " | ".join(parts + ([resumed] if resumed else []))


def model_line(engine: ModelEngine, assembly: Assembly, device: torch.device) -> str:
    """Return the line on the model and how it is trained."""
    total, trainable = assembly.num_parameters, assembly.num_trainable
    parts = [f"model  {engine.architecture}", f"{format_count(total)}params"]
    if trainable != total:
        parts.append(f"({format_count(trainable)}trainable)")
    if assembly.estimate:
        parts.append(f"{format_count(assembly.estimate.forward_flops)}FLOPs/sample")
    precision = assembly.precision
    dtype = assembly.step.parallel.weights.trained[0].local.dtype
    rounded = (
        " rounded stochastically" if isinstance(assembly.step.optimizer, LowPrecisionAdamW) else ""
    )
    weights = f"bf16{rounded}" if dtype is torch.bfloat16 else "fp32"
    parts.append(f"weights {weights}, computed in {precision.name} ({precision.reason})")
    if assembly.step.graph.is_static:
        parts.append("static graph, compiled in the first step")
    parts += _micro_batches(assembly)
    if assembly.channels_last:
        parts.append("channels-last")
    schedule, recipe = assembly.schedule, assembly.optimizer
    parts.append(
        f"{recipe.algorithm} lr {recipe.learning_rate:g} wd {recipe.weight_decay:g} "
        f"{schedule.name}, {_warmup(assembly)}"
    )
    return "  ".join(parts)


def _warmup(assembly: Assembly) -> str:
    """Return the warm-up as part of the run, which ends by steps, by the clock, or by both."""
    schedule, length = assembly.schedule, assembly.length
    if length.budget_s is None:
        return f"{schedule.warmup_steps} of {schedule.max_steps} steps warm-up"
    ends = f"{format_seconds(length.budget_s)} of time"
    if schedule.max_steps is not None:
        ends += f" or {schedule.max_steps} steps"
    share = schedule.warmup_share
    rise = f"{schedule.warmup_steps} steps" if share is None else f"{share:.0%}"
    return f"{rise} warm-up, {ends}"


def data_line(train: DataLoader, val: DataLoader | None, spec: DataSpec) -> str:
    """Return the line on the data."""
    parts = [f"data   train {train.num_samples:,}"]
    parts.append(f"val {val.num_samples:,}" if val is not None else "no validation data")
    if spec.class_names:
        counts = spec.class_counts
        spread = f" (min {min(counts):,} max {max(counts):,})" if counts else ""
        parts.append(f"classes {spec.num_classes}{spread}")
    parts += [_inputs(spec), f"batch {train.batch_size}", f"workers {train.num_processes}"]
    return "  ".join(parts)


def _inputs(spec: DataSpec) -> str:
    if spec.features is not None:
        ids, numbers = spec.features.ids, spec.features.numbers
        sequences = f", {len(spec.features.sequence)} sequences" if spec.features.sequence else ""
        return f"features {len(ids)} ids, {len(numbers)} numbers{sequences}"
    return "inputs " + "x".join(str(size) for size in spec.fields["inputs"].shape)


def _micro_batches(assembly: Assembly) -> list[str]:
    step = assembly.step
    shares = step.parallel.world.plan.num_shares
    num = -(-assembly.batch_size // (step.micro_batch_size * shares))
    if num == 1:
        return []
    parts = [f"{num} micro-batches of {step.micro_batch_size}"]
    if step.keep_graph and assembly.estimate is not None:
        per_sample = assembly.estimate.activation_bytes * assembly.activation_share
        extra = per_sample * (assembly.batch_size - step.micro_batch_size) / MIB
        parts.append(f"keep_graph holds all their graphs: {extra:,.0f} MiB more")
    return parts


def plan_line(parallel: ParallelModel, reason: str) -> str:
    """Return the line on who computes what, and how gradients are reduced.

    Args:
        parallel: the model as this rank computes it.
        reason: of the plan, where it was not given.
    """
    world, plan = parallel.world, parallel.world.plan
    parts = [f"parallel {plan.describe()}: {world.size} processes"]
    if plan.num_shares > 1:
        parts.append(f"{plan.num_shares} shares of each batch")
    if plan.pp > 1:
        stages = f"{plan.num_stages} stages"
        parts.append(
            f"{plan.settings.schedule} of {plan.num_micro_batches} micro-batches, {stages}"
        )
    if plan.tp > 1:
        divided = ["heads and features"]
        divided += ["tokens"] * plan.divides_tokens + ["vocabulary"] * parallel.divides_logits
        parts.append(f"tp divides {', '.join(divided)}")
    if plan.num_shares * plan.cp > 1:
        parts.append(reduction(world, by_blocks=bool(parallel.blocks())))
    return "  ".join([*parts, reason] if reason else parts)
