"""Which rank does what, decided and checked before any process group exists.

```
ParallelConfig, number of processes  ->  Plan        every `auto` resolved
Plan, ModelFacts, BatchFacts         ->  problems    all of them, in words
problems                             ->  ConfigError with the nearest plans that do work
```
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from deepseek.config.parallel import AXES, ParallelConfig
from deepseek.datasets.padding import MULTIPLE
from deepseek.errors import ConfigError
from deepseek.models import ParallelHints
from deepseek.models.classifier import BlockModel
from deepseek.models.table_model import TableModel
from deepseek.parallel.huggingface import pretrained_facts
from deepseek.parallel.tensor import drops

MULTI_STAGE = frozenset(
    {"interleaved_1f1b", "looped_bfs", "interleaved_zero_bubble", "zbv_zero_bubble"}
)
# torch's optimizers and timm's that treat every number by itself: they may see a part of a weight
ELEMENTWISE = frozenset(
    {"sgd", "adam", "adamw", "adamw8bit", "nadamw", "adagrad", "rmsprop", "lion", "adan"}
)  # fmt: skip
NUM_SHOWN_PLANS = 3


@dataclass(frozen=True)
class ModelFacts:
    """What a plan asks of a model.

    Attributes:
        name: of its class, for messages.
        heads: attention heads of a block; 0 where they are not known.
        num_blocks: that a pipeline may cut between; 0 where it may not.
        widths: features of each linear that tensor parallelism divides, by name.
        has_context: whether its attention can be divided by tokens.
        sequence_length: tokens of a sample in the blocks, where known.
        num_experts: 0 without.
        counts_batches: whether a forward pass in training changes its buffers (running statistics).
        scalar: name of a weight without dims; empty if there is none.
        key_value_heads: of a block, where they are fewer than heads; 0 where not known.
        no_tp: why tensor parallelism cannot divide it, in words, where that is known.
        no_pp: why a pipeline cannot cut it.
        drops: whether it has dropout, or the like.
        is_pretrained: whether it is a Hugging Face model, divided by its own plans.
        has_row_tables: whether it is a model of tables, whose embeddings are divided by rows.
    """

    name: str
    heads: int = 0
    num_blocks: int = 0
    widths: tuple[tuple[str, int], ...] = ()
    has_context: bool = False
    sequence_length: int | None = None
    num_experts: int = 0
    counts_batches: bool = False
    scalar: str = ""
    key_value_heads: int = 0
    no_tp: str = ""
    no_pp: str = ""
    drops: bool = False
    is_pretrained: bool = False
    has_row_tables: bool = False


@dataclass(frozen=True)
class BatchFacts:
    """What a plan asks of the settings of a run."""

    batch_size: int
    grad_accum_steps: int | str = 1
    optimizer: str = "adamw"
    precision: str = "auto"
    graph: str = "dynamic"
    keep_graph: bool = False
    ramps_sequence: bool = False
    varies_in_length: bool = False


@dataclass(frozen=True)
class Plan:
    """Degrees of the axes, resolved, and how a batch is cut under them.

    Attributes:
        settings: as given.
        stages_per_rank: stages of the pipeline on each rank.
        num_micro_batches: of a step, on each rank.
        micro_batch_size: samples of a forward pass.
        divides_tokens: whether ranks of `tp` divide tokens where features are whole.
    """

    settings: ParallelConfig
    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    pp: int = 1
    ep: int = 1
    stages_per_rank: int = 1
    num_micro_batches: int = 1
    micro_batch_size: int = 1
    divides_tokens: bool = False

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return math.prod(getattr(self, axis) for axis in AXES)

    @property
    def num_shares(self) -> int:
        """Parts that every batch is cut into, one for each group of ranks that see the same."""
        return self.dp_replicate * self.dp_shard

    @property
    def num_stages(self) -> int:
        """Stages of the pipeline, over all ranks."""
        return self.pp * self.stages_per_rank

    @property
    def is_v_shaped(self) -> bool:
        """Whether a pipeline goes there and back: its first rank has the last stage, too."""
        return self.pp > 1 and self.settings.schedule == "zbv_zero_bubble"

    @property
    def is_distributed(self) -> bool:
        """Whether there is more than one process."""
        return self.world_size > 1

    @property
    def divides_weights(self) -> bool:
        """Whether a rank holds a part of a weight, and not all of it."""
        return self.tp > 1 or (self.uses_fsdp and self.dp_shard * self.cp > 1)

    @property
    def uses_fsdp(self) -> bool:
        """Whether gradients are reduced by `fully_shard`, and not by DDP or our own buckets.

        DDP does not know DTensors: copies of a model that `tp` divides are shards of size one.
        """
        has_copies = self.dp_replicate * self.cp > 1
        return self.dp_shard > 1 or (self.tp > 1 and has_copies and self.pp == 1)

    def describe(self) -> str:
        """Return the axes as text, `dp2-tp2-pp2`."""
        return self.settings.model_copy(
            update={axis: getattr(self, axis) for axis in AXES}
        ).describe()


def facts_of(
    module: nn.Module, hints: ParallelHints, sequence_length: int | None = None
) -> ModelFacts:
    """Return what a plan asks of a model."""
    name = type(module).__name__
    counts = any(map(_counts_batches, module.modules()))
    scalar = next((name for name, p in module.named_parameters() if p.ndim == 0), "")
    if isinstance(module, BlockModel):
        first = module.blocks[0]
        sizes = dict.fromkeys(hints.column_linears, "out_features")
        sizes |= dict.fromkeys(hints.row_linears, "in_features")
        widths = tuple(
            (linear, int(getattr(first.get_submodule(linear), size)))
            for linear, size in sizes.items()
        )
        return ModelFacts(
            name, hints.heads, len(module.blocks), widths, has_context=True,
            sequence_length=sequence_length, counts_batches=counts, scalar=scalar,
            key_value_heads=hints.kv_heads, drops=drops(module),
        )  # fmt: skip
    if (foreign := pretrained_facts(module)) is not None:
        return ModelFacts(
            name, counts_batches=counts, scalar=scalar, is_pretrained=True, **vars(foreign)
        )
    num_blocks = len(module) if isinstance(module, nn.Sequential) else 0
    return ModelFacts(
        name, num_blocks=num_blocks, counts_batches=counts, scalar=scalar,
        has_row_tables=isinstance(module, TableModel),
    )  # fmt: skip


def _counts_batches(module: nn.Module) -> bool:
    has_statistics = bool(getattr(module, "track_running_stats", False))
    return has_statistics or type(module).__name__ in ("_SpectralNorm", "SpectralNorm")


def resolve_plan(
    settings: ParallelConfig, world_size: int, model: ModelFacts, batch: BatchFacts
) -> Plan:
    """Return the plan for a number of processes.

    Raises:
        ConfigError: it cannot work; the message has every reason, and the nearest plans that can.
    """
    degrees = {axis: getattr(settings, axis) for axis in AXES}
    fixed = math.prod(degree for degree in degrees.values() if degree != "auto")
    for axis, degree in degrees.items():
        if degree == "auto":
            degrees[axis] = max(1, world_size // fixed)
    plan = Plan(settings, **degrees)
    problems = []
    if plan.world_size != world_size:
        axes = " x ".join(f"{axis}={n}" for axis, n in degrees.items() if n != 1)
        problems.append(
            f"parallel={settings.describe()} is for {plan.world_size}"
            f" process{'es' * (plan.world_size > 1)}{axes and f' ({axes})'}, and there"
            f" {'is' if world_size == 1 else 'are'} {world_size}"
        )
    plan = _cut_batch(plan, model, batch)
    problems += list(_problems(plan, model, batch))
    if not problems:
        return plan
    raise ConfigError("; ".join(problems), fix=_advice(plan, world_size, model, batch))


def _cut_batch(plan: Plan, model: ModelFacts, batch: BatchFacts) -> Plan:
    """Return the plan with its micro-batches, as many as the pipeline needs."""
    per_stage = plan.settings.stages_per_rank
    if per_stage == "auto":
        per_stage = 2 if plan.pp > 1 and plan.settings.schedule in MULTI_STAGE else 1
    share = -(-batch.batch_size // plan.num_shares)
    accum = batch.grad_accum_steps if isinstance(batch.grad_accum_steps, int) else 1
    count = plan.settings.micro_batches
    if plan.pp == 1:
        count = accum
    elif count == "auto":
        stages = plan.pp * per_stage
        least = max(accum, stages)
        multiples = [n for n in range(least, share + 1) if n % plan.pp == 0]
        even = [n for n in multiples if share % n == 0]
        # twice the stages halve the share of time that a stage waits at both ends of a step
        roomy = [n for n in even if n >= 2 * stages]
        count = next(iter(roomy or even or multiples), least)
    return replace(
        plan,
        stages_per_rank=per_stage,
        num_micro_batches=count,
        micro_batch_size=max(1, -(-share // count)),
        divides_tokens=_divides_tokens(plan, model, batch),
    )


def _divides_tokens(plan: Plan, model: ModelFacts, batch: BatchFacts) -> bool:
    wanted = plan.settings.sequence_parallel
    if plan.tp == 1 or wanted is False:
        return False
    return wanted is True or _tokens_fit(plan, model, batch)


def _tokens_fit(plan: Plan, model: ModelFacts, batch: BatchFacts) -> bool:
    """Return whether `tp` divides the tokens that a rank of `cp` has, in every step."""
    if model.sequence_length is None or batch.ramps_sequence:
        return False
    if batch.varies_in_length and MULTIPLE % (plan.cp * plan.tp):
        return False
    return -(-model.sequence_length // plan.cp) % plan.tp == 0


def _problems(plan: Plan, model: ModelFacts, batch: BatchFacts) -> Iterator[str]:
    settings = plan.settings
    if plan.pp == 1:
        for name, instead in (("micro_batches", "grad_accum_steps"), ("stages_per_rank", "pp")):
            if getattr(settings, name) != "auto":
                yield f"{name}={getattr(settings, name)} without a pipeline: use {instead}"
    if not plan.is_distributed:
        return
    if settings.compression != "none" and plan.num_shares * plan.cp == 1:
        yield f"compression={settings.compression}, but no gradients are reduced between ranks"
    yield from _batch_problems(plan, batch)
    if plan.tp > 1:
        yield from _tensor_problems(plan, model, batch)
        if model.is_pretrained:
            yield from _foreign_problems(plan, batch)
    if plan.pp > 1:
        yield from _pipeline_problems(plan, model, batch)
    if plan.cp > 1:
        if not model.has_context:
            yield (
                f"cp={plan.cp}: the attention of {model.name} cannot be divided by tokens (only"
                " that of this library's transformers can)"
            )
        elif model.sequence_length is not None and model.sequence_length < plan.cp:
            yield f"cp={plan.cp} ranks for sequences of {model.sequence_length} tokens"
    if plan.ep > 1 and model.num_experts == 0:
        yield f"ep={plan.ep}, but {model.name} has no experts"
    if plan.divides_weights and batch.optimizer not in ELEMENTWISE:
        yield (
            f"optimizer={batch.optimizer} needs whole weights, and dp_shard or tp divide them (one"
            f" of {', '.join(sorted(ELEMENTWISE))} does not)"
        )
    if plan.uses_fsdp and model.scalar:
        yield f"dp_shard cannot divide {model.scalar}, a scalar: give it the shape (1,)"
    if plan.settings.compression == "powersgd" and (plan.uses_fsdp or plan.pp > 1):
        yield "compression=powersgd works with dp_replicate alone"


def _batch_problems(plan: Plan, batch: BatchFacts) -> Iterator[str]:
    if batch.batch_size < plan.num_shares:
        yield (
            f"batch_size={batch.batch_size} is below the {plan.num_shares} ranks that samples are"
            " shared out between"
        )
    if isinstance(batch.grad_accum_steps, str):
        yield "grad_accum_steps=auto tries one device at a time: give a number"
    elif plan.pp == 1 and batch.grad_accum_steps > -(-batch.batch_size // plan.num_shares):
        yield (
            f"grad_accum_steps={batch.grad_accum_steps} for a rank's share of"
            f" {-(-batch.batch_size // plan.num_shares)} samples (batch_size={batch.batch_size})"
        )
    if batch.keep_graph:
        yield "keep_graph=true: gradients are reduced while the graph is freed"
    if batch.precision == "fp8":
        yield "precision=fp8 on several processes"
    if batch.ramps_sequence and (plan.pp > 1 or plan.cp > 1):
        yield "sequence_length_ramp needs pp=1 and cp=1"


def _tensor_problems(plan: Plan, model: ModelFacts, batch: BatchFacts) -> Iterator[str]:
    if model.no_tp:
        yield f"tp={plan.tp}: {model.no_tp}"
        return
    if not (model.widths or model.has_row_tables):
        yield (
            f"tp={plan.tp}: {model.name} does not say which of its linears can be divided"
            " (ParallelHints)"
        )
        return
    if plan.settings.sequence_parallel is True and not _tokens_fit(plan, model, batch):
        yield (
            f"sequence_parallel=true: tp={plan.tp} must divide the tokens of a rank in every step,"
            f" and sequences of {model.sequence_length} tokens"
            + (" that grow by sequence_length_ramp" if batch.ramps_sequence else "")
            + (" at most" if batch.varies_in_length else "")
            + (f" on cp={plan.cp}" if plan.cp > 1 else "")
            + " do not let it"
        )
    if model.heads % plan.tp:
        yield f"tp={plan.tp} does not divide heads={model.heads}"
    if model.drops and batch.graph == "static":  # torch 2.14: it cannot trace a stream of its own
        yield (
            f"tp={plan.tp} with graph=static and dropout, for which each rank draws numbers of its"
            " own within a block (set graph=dynamic, or dropout to 0)"
        )
    if model.key_value_heads % plan.tp:
        yield f"tp={plan.tp} does not divide key_value_heads={model.key_value_heads}"
    for name, width in model.widths:
        if width % plan.tp:
            yield f"tp={plan.tp} does not divide the {width} features of {name}"


def _foreign_problems(plan: Plan, batch: BatchFacts) -> Iterator[str]:
    if batch.graph == "static":  # torch 2.14: wrong gradients behind a layer divided and compiled
        yield f"graph=static with tp={plan.tp} for a Hugging Face model"
    if plan.settings.sequence_parallel is True:
        yield "sequence_parallel=true: a tp plan of Hugging Face divides no tokens"


def _pipeline_problems(plan: Plan, model: ModelFacts, batch: BatchFacts) -> Iterator[str]:
    schedule = plan.settings.schedule
    if model.no_pp:
        yield f"pp={plan.pp}: {model.no_pp}"
    elif model.num_blocks == 0:
        yield (
            f"pp={plan.pp}: {model.name} is no row of blocks (ParallelHints.blocks, or an"
            " nn.Sequential)"
        )
    elif model.num_blocks < plan.num_stages:
        yield (
            f"{plan.num_stages} stages ({plan.pp} ranks x {plan.stages_per_rank}) for"
            f" {model.num_blocks} blocks"
        )
    if batch.varies_in_length:
        yield (
            f"pp={plan.pp}: stages send activations of one shape, and batches differ in length"
            " (give the data padding=sequence_length)"
        )
    if plan.num_micro_batches < plan.num_stages:
        yield (
            f"micro_batches={plan.num_micro_batches} are fewer than the {plan.num_stages} stages"
            " of the pipeline"
        )
    if plan.num_micro_batches > -(-batch.batch_size // plan.num_shares):
        yield (
            f"{plan.num_micro_batches} micro-batches in a share of"
            f" {-(-batch.batch_size // plan.num_shares)} samples (batch_size={batch.batch_size})"
        )
    if schedule in MULTI_STAGE and plan.num_micro_batches % plan.pp:
        yield (
            f"schedule={schedule}: pp={plan.pp} does not divide"
            f" micro_batches={plan.num_micro_batches}"
        )
    if schedule in MULTI_STAGE and plan.stages_per_rank < 2:
        yield f"schedule={schedule} needs stages_per_rank of at least 2"
    if schedule == "zbv_zero_bubble" and plan.stages_per_rank != 2:
        yield f"schedule={schedule} needs stages_per_rank=2, not {plan.stages_per_rank}"
    if schedule not in MULTI_STAGE and plan.stages_per_rank > 1:
        yield f"schedule={schedule} has one stage per rank, not {plan.stages_per_rank}"
    if "zero_bubble" in schedule and batch.graph == "static":
        yield f"schedule={schedule} splits the backward pass, which graph=static has as one"
    if model.counts_batches:
        yield (
            f"pp={plan.pp}: a pipeline's trial pass would spoil the running statistics of"
            f" {model.name} (batch, instance or spectral norm)"
        )


def _advice(plan: Plan, world_size: int, model: ModelFacts, batch: BatchFacts) -> str:
    found = []
    for degrees in _factorisations(world_size, len(AXES)):
        # the text that is advised stands for the whole setting
        degrees = dict(zip(AXES, degrees, strict=True))
        other = _cut_batch(Plan(ParallelConfig(), **degrees), model, batch)
        if next(_problems(other, model, batch), None) is None:
            found.append((_distance(plan, other), other.describe()))
    plans = [text for _, text in sorted(found)[:NUM_SHOWN_PLANS]]
    parts = []
    if plan.world_size != world_size and next(_problems(plan, model, batch), None) is None:
        parts.append(f"start {plan.world_size} with deepseek launch --nproc {plan.world_size} ...")
    if plans:
        count = f"{world_size} process{'es' * (world_size > 1)}"
        parts.append(f"set parallel={' or '.join(plans)}, which would work with {count}")
    return ", or ".join(parts) or "use one process, or change what the message names"


def _distance(one: Plan, other: Plan) -> float:
    return sum(abs(math.log2(getattr(one, axis) / getattr(other, axis))) for axis in AXES)


def _factorisations(number: int, count: int) -> Iterator[tuple[int, ...]]:
    if count == 1:
        yield (number,)
        return
    for first in range(1, number + 1):
        if number % first == 0:
            for rest in _factorisations(number // first, count - 1):
                yield (first, *rest)
