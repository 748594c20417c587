"""`parallel: auto`: which axes the processes of a run are laid out in.

```
known GPU, transformer of known sizes    the planner's best plan: degrees, micro-batches, recompute
else, states up to half of the memory    data parallel: copies
else                                     fully sharded
```
"""

import os
from typing import Literal

import torch

from deepseek.config import TrainerConfig, validate_settings
from deepseek.config.lora import LoraConfig
from deepseek.datasets import DataSpec
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.classifier import Classifier
from deepseek.models.zoo import name_of
from deepseek.parallel.plan import ELEMENTWISE
from deepseek.parallel.world import processes
from deepseek.planner import Cluster, SearchSpace, TransformerShape, choose_settings
from deepseek.planner.adapters import with_adapters
from deepseek.planner.hardware import match_gpu
from deepseek.planner.model_source import shape_of_own, with_rows
from deepseek.planner.parallel_plan import Offload, Recompute
from deepseek.planner.run_settings import MEMORY
from deepseek.trainer.planning import plan_run
from deepseek.trainer.throughput import total_memory_bytes

CHOSEN = ("parallel", "grad_accum_steps", "memory", "offload")
STATE_BYTES = 16
"""Of a weight in training: itself, its gradient and two moments, in float32."""
STATE_SHARE = 0.5
"""Of the memory that copies of weights and their states may fill: activations need the rest."""


def choose_parallel(
    config: TrainerConfig,
    engine: ModelEngine,
    spec: DataSpec,
    device: torch.device,
    *,
    varies_in_length: bool = False,
) -> tuple[TrainerConfig, str]:
    """Return settings in which a plan that was left to us is chosen, and why it was, in words.

    Args:
        config: settings; returned as they are where the plan was given.
        engine: the model, on any device.
        spec: what the data hold.
        device: of this process.
        varies_in_length: whether a batch is only as long as the longest of its samples.
    """
    _, num_processes = processes()
    if not config.parallel.planned or num_processes == 1:
        return config, ""
    per_host = int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))
    memory_bytes = total_memory_bytes(device)
    if device.type == "cuda":
        gpu = match_gpu(torch.cuda.get_device_name(device), memory_bytes)
        shape = shape_of(engine, spec, config.lora)
        if gpu is not None and shape is not None:
            cluster = Cluster(gpu, num_processes, per_host)
            chosen = ask_planner(config, shape, cluster)
            if chosen is not None and _works(chosen, engine, spec, varies_in_length):
                return chosen, f"chosen by the planner for {cluster.num_gpus} x {gpu.name}"
    else:
        memory_bytes //= per_host
    state_bytes = STATE_BYTES * engine.num_parameters
    share = state_bytes / memory_bytes
    reason = f"chosen: weights and their states as copies take {share:.1%} of the memory"
    shards = share > STATE_SHARE and config.optimizer.lower() in ELEMENTWISE
    return _changed(
        config, {"parallel": {"dp_shard" if shards else "dp_replicate": "auto"}}
    ), reason


def shape_of(
    engine: ModelEngine, spec: DataSpec, lora: LoraConfig | None = None
) -> TransformerShape | None:
    """Return the sizes of a transformer of ours as it will be trained, `None` for another model.

    Args:
        engine: the model, on any device, without the adapters that it will have.
        spec: what the data hold.
        lora: settings of the adapters.
    """
    module = engine.module
    name = name_of(module) if isinstance(module, Classifier) else None
    if name is None or "inputs" not in spec.fields:
        return None
    tokens = spec.fields["inputs"].shape
    try:
        shape = shape_of_own(name, engine.config, spec.num_classes if name == "gpt" else 0).shape
    except ConfigError:
        return None
    if len(tokens) == 1:
        shape = with_rows(shape, tokens[0])
    return shape if lora is None else with_adapters(shape, name, lora)


def ask_planner(
    config: TrainerConfig, shape: TransformerShape, cluster: Cluster
) -> TrainerConfig | None:
    """Return settings that follow the fastest plan that fits, or `None` where it may not choose.

    It may not where micro-batches or a budget of memory are fixed, or the optimizer needs whole
    weights.
    """
    # `off` is the default, and not a wish
    allowed: tuple[Recompute, ...] = tuple(
        policy for policy, name in MEMORY.items() if config.memory in ("off", name)
    )
    is_free = config.grad_accum_steps == 1 and config.optimizer.lower() in ELEMENTWISE
    if not is_free or not allowed or config.precision == "fp8":
        return None
    space = SearchSpace(
        precision=config.precision if config.precision in ("fp16", "fp32") else "bf16",
        policies=allowed,
        is_fused=config.graph == "static",
        offload=_offload(config),
    )
    try:
        chosen = choose_settings(shape, cluster, config.batch_size, space)
    except ConfigError:  # nothing fits, or divides: what to do then is told by who looks closer
        return None
    return _changed(config, {name: chosen[name] for name in CHOSEN if name in chosen})


def _offload(config: TrainerConfig) -> Literal["auto"] | Offload:
    """Return what waits on the host: what the settings say; `auto` where they say nothing."""
    if config.offload == "activations" or config.optimizer_in_backward:
        return "none"
    return "auto" if config.offload == "none" else config.offload


def _works(
    config: TrainerConfig, engine: ModelEngine, spec: DataSpec, varies_in_length: bool
) -> bool:
    """Return whether a run would take a plan: it knows more of the model than its sizes."""
    try:
        plan_run(config, engine, spec, varies_in_length=varies_in_length)
    except ConfigError:
        return False
    return True


def _changed(config: TrainerConfig, chosen: dict[str, object]) -> TrainerConfig:
    parallel = chosen["parallel"]
    if isinstance(parallel, dict):
        kept = config.parallel.model_dump(exclude={"planned", "dp_replicate"})
        chosen = {**chosen, "parallel": {**kept, **parallel}}
    return validate_settings(TrainerConfig, {**config.model_dump(), **chosen})
