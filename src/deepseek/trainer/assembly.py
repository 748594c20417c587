"""From settings to a step that can be taken: every `auto` is resolved here, once."""

import copy
import math
from dataclasses import dataclass
from functools import partial

import torch

from deepseek.config import TrainerConfig
from deepseek.config.duration import parse_duration
from deepseek.datasets import DataLoader, DataSpec
from deepseek.datasets.ramp import Ramp
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.lora import add_lora
from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.data import leaves_weights_out
from deepseek.parallel.plan import Plan
from deepseek.parallel.world import World
from deepseek.trainer.boundary import Boundary
from deepseek.trainer.device import choose_cpu_threads
from deepseek.trainer.ema import ExponentialMovingAverage
from deepseek.trainer.estimate import StepEstimate, estimate_step
from deepseek.trainer.fp8 import convert_linears
from deepseek.trainer.graph import StepGraph
from deepseek.trainer.growing import check_growing
from deepseek.trainer.guard import BadStep, Guard
from deepseek.trainer.joint_loss import JointLoss, check_joint
from deepseek.trainer.labelled import counts_labels_alone
from deepseek.trainer.layer_pace import LayerPace, choose_pace
from deepseek.trainer.loss_parts import check_parts, compiles_loss, head_here
from deepseek.trainer.memory_budget import choose_policy
from deepseek.trainer.memory_format import prefers_channels_last, put_channels_last
from deepseek.trainer.micro_batches import MicroBatches
from deepseek.trainer.multi_task import MultiTask
from deepseek.trainer.optimizer import Optimizer, check_trainable
from deepseek.trainer.precision import Precision, cast_weights, resolve_precision
from deepseek.trainer.run_length import RunLength
from deepseek.trainer.schedule import Schedule, resolve_warmup, warmup_share
from deepseek.trainer.step import TrainStep
from deepseek.trainer.task import Task
from deepseek.trainer.update import check_offload, choose_update, state_bytes_on_device

MAX_AUTO_LOG_EVERY = 50


@dataclass(frozen=True)
class Assembly:
    """A `TrainStep` and what was derived on the way to it."""

    step: TrainStep
    optimizer: Optimizer
    schedule: Schedule
    length: RunLength
    precision: Precision
    channels_last: bool
    log_every: int
    num_epochs: int | None
    batch_size: int
    estimate: StepEstimate | None
    activation_share: float
    cpu_threads: int
    sequence_ramp: Ramp | None
    num_parameters: int
    num_trainable: int
    optimizer_bytes: int


def recipe_from(config: TrainerConfig, optimizer: Optimizer | None) -> Optimizer:
    """Return the given recipe, or the one that the settings describe."""
    if optimizer is not None:
        return optimizer
    momentum = config.momentum
    if momentum == "auto":
        momentum = 0.9 if config.optimizer.lower() in ("sgd", "rmsprop") else None
    return Optimizer(
        config.optimizer,
        config.lr,
        config.weight_decay,
        momentum=momentum,
        betas=None if config.betas == "auto" else config.betas,
    )


def assemble(
    engine: ModelEngine,
    task: Task,
    spec: DataSpec,
    recipe: Optimizer,
    config: TrainerConfig,
    loader: DataLoader,
    world: World,
) -> Assembly:
    """Put a bound engine on its device, or its part on this rank's, and build its step."""
    device = world.device
    task.place(device)
    check_offload(config, world)
    check_parts(task, engine, config, world.plan)
    if isinstance(task, MultiTask):
        check_joint(task, engine.module, world.plan, config)
    max_steps, num_epochs = count_steps(config, loader)
    micro_batch_size = world.plan.micro_batch_size
    estimate, precision = resolve_arithmetic(engine, spec, config, world.plan, device)
    check_growing(engine.module, config, world, precision)
    channels_last = _place(engine, config, precision, world)
    parameters = list(engine.parameters())
    check_trainable(engine.module)
    pace = choose_pace(config, engine, loader)
    averaged = copy.deepcopy(engine) if config.ema_decay else None
    parallel = _spread(engine, task, config, precision, world)
    ema = None
    if averaged is not None and config.ema_decay:
        average = _spread(averaged, task, config, precision, world, trains=False)
        ema = ExponentialMovingAverage(parallel, average, config.ema_decay)
    optimizer = _bind(recipe, parallel, config, pace)
    schedule = Schedule(
        config.schedule,
        recipe.learning_rate,
        max_steps,
        resolve_warmup(config.warmup, config.schedule, max_steps),
        config.min_lr_share,
        warmup_share(config.warmup, config.schedule),
    )
    budget_s = None if config.time_budget is None else parse_duration(config.time_budget)
    step = _build_step(engine, task, config, loader, parallel, optimizer, schedule, precision, ema)
    step.channels_last = channels_last
    share = 1.0 if precision.name == "fp32" else 0.5
    threads = torch.get_num_threads()
    trained = [weight.local for weight in parallel.weights.trained]
    if estimate and device.type == "cpu":
        forward_flops = estimate.forward_flops * micro_batch_size
        threads = choose_cpu_threads(forward_flops, estimate.num_ops)
    return Assembly(
        step,
        recipe,
        schedule,
        RunLength(max_steps, budget_s),
        precision,
        channels_last,
        _log_every(config, loader),
        num_epochs,
        config.batch_size,
        estimate,
        share,
        threads,
        sequence_ramp(config, spec),
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        state_bytes_on_device(config, recipe, trained),
    )


def adapt(engine: ModelEngine, config: TrainerConfig, plan: Plan) -> None:
    """Give a bound engine the adapters that the settings want, in place.

    Raises:
        ConfigError: it has some already, no linears for them, or is to be divided by `tp`.
    """
    wanted = config.lora
    if wanted is None:
        return
    if plan.tp > 1:
        raise ConfigError(
            f"tp={plan.tp} and lora: ranks do not divide adapters", fix="use dp or fsdp"
        )
    alpha = None if wanted.alpha == "auto" else wanted.alpha
    targets = None if wanted.targets == "auto" else wanted.targets
    add_lora(engine, wanted.rank, alpha, wanted.dropout, targets)


def resolve_arithmetic(
    engine: ModelEngine, spec: DataSpec, config: TrainerConfig, plan: Plan, device: torch.device
) -> tuple[StepEstimate | None, Precision]:
    """Return what a step of an undivided model costs, where that can be told, and its precision."""
    inputs, estimate = spec.fields.get("inputs"), None
    if inputs is not None:
        # pictures come as uint8 and are normalised before the module
        dtype = torch.int64 if inputs.dtype == "int64" else torch.float32
        estimate = estimate_step(engine.module, inputs.shape, dtype)
    step_flops = estimate.step_flops(plan.micro_batch_size) if estimate else None
    has_bf16 = config.param_dtype == "bf16"
    wanted = "bf16" if has_bf16 and config.precision == "auto" else config.precision
    return estimate, resolve_precision(wanted, device, step_flops)


def _build_step(
    engine: ModelEngine,
    task: Task,
    config: TrainerConfig,
    loader: DataLoader,
    parallel: ParallelModel,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    precision: Precision,
    ema: ExponentialMovingAverage | None,
) -> TrainStep:
    world = parallel.world
    is_static = "static" in (config.graph, engine.graph) and not world.is_distributed
    micro_batches = MicroBatches(engine, parallel)
    weightwise, in_backward = choose_update(config, parallel, optimizer)
    joint, loss = None, partial(micro_batches.loss, task) if world.is_distributed else None
    if isinstance(task, MultiTask):
        task.weighting.begin(task.names, loader.count_batches(0), config.seed)
        joint = JointLoss(task, parallel)
        loss = joint.losses
    return TrainStep(
        engine,
        task,
        optimizer,
        schedule,
        precision,
        parallel=parallel,
        boundary=Boundary(parallel.buffers(), loader),
        guard=Guard(
            parallel.weights.named_trained(), optimizer, config.loss_spike,
            partial(agree_on_bad, world),
        ),
        ema=ema,
        graph=StepGraph(
            engine, task, is_static=is_static,
            loss=loss,  # pyright: ignore[reportArgumentType]  # outputs by task
            forward=lambda inputs: parallel.forward(inputs),  # it may be wrapped anew
            memory=choose_policy(config, engine, parallel),
            loss_chunks=config.loss_chunks,
            head=head_here(parallel) if config.loss_chunks > 1 else None,
            labels_alone=counts_labels_alone(engine, task, world.plan, is_static),
            compiles_loss=compiles_loss(config, world, precision),
        ),
        micro_batch_size=world.plan.micro_batch_size,
        clip_grad_norm=config.clip_grad_norm,
        keep_graph=config.keep_graph,
        device=world.device,
        channels_last=False,
        weightwise=weightwise,
        in_backward=in_backward,
        joint=joint,
    )  # fmt: skip


def _spread(
    engine: ModelEngine,
    task: Task,
    config: TrainerConfig,
    precision: Precision,
    world: World,
    *,
    trains: bool = True,
) -> ParallelModel:
    """Return the engine as this rank computes it."""
    wanted = config.parallel.vocab_parallel
    if wanted is True and not task.takes_divided_logits:
        raise ConfigError(
            "vocab_parallel=true, and the task cannot take logits that are divided by classes"
            " (label smoothing, or a task of another kind than language modelling)",
            fix="set vocab_parallel to auto, or label_smoothing to 0",
        )
    return ParallelModel(
        engine,
        world,
        dtype=None if precision.name == "fp32" else precision.compute_dtype,
        compiles=world.is_distributed and "static" in (config.graph, engine.graph),
        takes_divided_logits=task.takes_divided_logits and wanted is not False,
        has_unused=trains and _leaves_weights_out(engine, world),
        wraps=trains and not config.optimizer_in_backward,
        offloads=config.offload == "parameters",
    )


def _leaves_weights_out(engine: ModelEngine, world: World) -> bool:
    """Return whether a model of the user's has weights that the loss does not depend on."""
    given = world.plan.settings.unused_parameters
    if given != "auto":
        return given
    if not world.is_distributed or not engine.is_foreign or engine.spec is None:
        return False
    if (field := engine.spec.fields.get("inputs")) is None:
        return False
    inputs = torch.zeros((2, *field.shape), dtype=getattr(torch, field.dtype), device=engine.device)
    return leaves_weights_out(engine, inputs)


def _bind(
    recipe: Optimizer, parallel: ParallelModel, config: TrainerConfig, pace: LayerPace | None
) -> torch.optim.Optimizer:
    engine, rounds = parallel.engine, config.param_dtype == "bf16"
    fixed = frozenset(engine.hints.no_weight_decay)
    if not parallel.world.is_distributed:
        return recipe.bind(engine.module, fixed, seed=config.seed, rounds=rounds, pace=pace)
    weights = parallel.weights.named_trained()
    return recipe.bind_weights(weights, fixed, seed=config.seed, rounds=rounds, pace=pace)


def agree_on_bad(world: World, found: BadStep | None) -> BadStep | None:
    """Return the bad step that the lowest rank has found, on every rank."""
    if not world.is_distributed:
        return found
    named = world.exchange(None if found is None else [found.kind, found.detail])
    for rank, each in enumerate(named):
        if each is not None:
            return BadStep(each[0], f"rank {rank}: {each[1]}")
    return None


def _place(engine: ModelEngine, config: TrainerConfig, precision: Precision, world: World) -> bool:
    """Put the model on its device, in its formats; return whether images are channels-last."""
    channels_last = config.channels_last
    if channels_last == "auto":
        channels_last = prefers_channels_last(engine.module) and not world.plan.uses_fsdp
    if channels_last and world.plan.uses_fsdp:
        raise ConfigError(
            f"channels_last=true with parallel={world.plan.describe()}: torch divides weights that"
            " lie in a row only",
            fix="set channels_last to auto, or copy the model instead: parallel=dp",
        )
    if config.param_dtype == "bf16":
        cast_weights(engine.module, shards=world.plan.uses_fsdp)
    if not world.is_distributed:  # else each rank takes its part, block by block
        engine.place(world.device)
    if precision.name == "fp8":
        convert_linears(engine.module)
    if channels_last:
        put_channels_last(engine)
    return channels_last


def _log_every(config: TrainerConfig, loader: DataLoader) -> int:
    if config.log_every != "auto":
        return config.log_every
    return max(1, min(MAX_AUTO_LOG_EVERY, loader.count_batches(0) // 10))


def count_steps(config: TrainerConfig, loader: DataLoader) -> tuple[int | None, int | None]:
    """Return (optimizer steps of the run, epochs it touches), `None` where time alone decides."""
    if config.epochs is None and config.max_steps is None:
        return None, None
    if loader.ramp is None:
        steps_per_epoch = loader.count_batches(0)
        by_epochs = None if config.epochs is None else config.epochs * steps_per_epoch
        max_steps = min(steps for steps in (by_epochs, config.max_steps) if steps is not None)
        return max_steps, -(-max_steps // steps_per_epoch)
    num_steps = epoch = 0
    limit = config.max_steps if config.max_steps is not None else math.inf
    while num_steps < limit and (config.epochs is None or epoch < config.epochs):
        num_steps += loader.count_batches(epoch)
        epoch += 1
    return int(min(num_steps, limit)), epoch


def sequence_ramp(config: TrainerConfig, spec: DataSpec) -> Ramp | None:
    """Return the length of the sequences by step, or `None` where they keep their own.

    Raises:
        ConfigError: the inputs are not sequences.
    """
    if config.sequence_length_ramp is None:
        return None
    field = spec.fields.get("inputs")
    if field is None or len(field.shape) != 1 or field.dtype != "int64":
        found = "a table" if field is None else f"shape {field.shape}, {field.dtype}"
        raise ConfigError(
            f"sequence_length_ramp={config.sequence_length_ramp}, but the inputs are not sequences"
            f" of tokens: {found}",
            fix="remove sequence_length_ramp",
        )
    return Ramp(*config.sequence_length_ramp, field.shape[0])


def choose_batch_size(given: int | None, data) -> int:
    """Return the one batch size there is.

    Raises:
        ConfigError: a bound `DataLoader` says otherwise.
    """
    if not isinstance(data, DataLoader):
        return 32 if given is None else given
    if given is not None and given != data.batch_size:
        raise ConfigError(
            f"batch_size={given} but the DataLoader has batch_size={data.batch_size}",
            fix="give it in one place",
        )
    return data.batch_size
