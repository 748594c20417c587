"""The settings of `Trainer`: the same names whether they come from Python or from a file."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypedDict

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from deepseek.config.duration import Duration
from deepseek.config.lora import LoraConfig
from deepseek.config.memory import MemorySetting
from deepseek.config.memory_rules import (
    find_backward_problem,
    find_bf16_problem,
    find_norms_problem,
)
from deepseek.config.parallel import ParallelConfig
from deepseek.config.schedule import ScheduleName
from deepseek.config.settings import Auto, BetaPair, Number, Settings, Switch, Whole, unit

_PLAN_TEXT = {"type": "string", "examples": ["auto", "dp2-tp2-pp2", "fsdp8"]}
Precision = Literal["auto", "fp32", "bf16", "fp16", "fp8"]
Offload = Literal["none", "activations", "optimizer", "parameters"]
BadStepPolicy = Literal["abort", "skip", "rollback"]
AtLeastOne = Annotated[Whole, Field(ge=1)]
Ramp = tuple[AtLeastOne, AtLeastOne, AtLeastOne]
Rate = Annotated[Number, Field(gt=0)] | Auto
Warmup = Annotated[Whole, Field(ge=0)] | Annotated[Number, Field(ge=0, lt=1)] | Auto
OPTIMIZERS_WITH_MOMENTUM = frozenset({"sgd", "rmsprop", "muon"})
OPTIMIZERS_WITHOUT_BETAS = frozenset({"sgd", "rmsprop", "adagrad", "adadelta"})


class TrainerConfig(Settings):
    """How a model is trained: steps, optimizer, schedule, precision, what is kept."""

    batch_size: Whole = Field(default=32, ge=1, json_schema_extra=unit("samples"))
    """Samples per optimizer step, over all ranks and micro-batches together."""
    epochs: AtLeastOne | None = Field(
        default=10, json_schema_extra=unit("passes over the training data")
    )
    """Passes over the training data. `null` if `max_steps` or `time_budget` says when to stop."""
    max_steps: AtLeastOne | None = Field(default=None, json_schema_extra=unit("optimizer steps"))
    """Optimizer steps after which the run ends, even within an epoch. `null`: no such limit."""
    time_budget: Duration | None = None
    """Time a run may take, its evaluations and checkpoints included: `90s`, `20m`, `1h30m`. The
    schedule runs over it. Beside `epochs` or `max_steps`, what is over first ends the run; alone,
    `epochs` is `null`. `null`: no such limit."""
    optimizer: str = Field(default="adamw", min_length=1)
    """Name of the optimizer: `adamw`, `sgd`, ..."""
    lr: Rate = "auto"
    """Highest learning rate, reached after the warm-up. `auto`: by optimizer and model."""
    weight_decay: Annotated[Number, Field(ge=0)] | Auto = "auto"
    """Weight decay, per step and unit of learning rate. `auto`: usual for the optimizer."""
    momentum: Annotated[Number, Field(ge=0, lt=1)] | Auto = "auto"
    """Momentum of SGD; the Adam family has `betas` instead. `auto`: 0.9 for sgd and rmsprop."""
    betas: BetaPair | Auto = "auto"
    """Decay of the first and second moment, for the Adam family. `auto`: the optimizer's own."""
    schedule: ScheduleName = "cosine"
    """Shape of the learning rate between the warm-up and the end of the run: `constant`, `linear`,
    `cosine`, `polynomial`, `wsd`, `one_cycle`, or one of a plug-in."""
    warmup: Warmup = Field(default="auto", json_schema_extra=unit("optimizer steps"))
    """Rise of the learning rate from zero: steps if whole, a share of the run if below 1."""
    min_lr_share: Number = Field(default=0.01, ge=0, le=1, json_schema_extra=unit("share of lr"))
    """Learning rate at the end of the run, as a share of `lr`."""
    precision: Precision = "auto"
    """Number format of the mathematics. `auto`: bf16 where the chip has it. `fp8`: the linears, on
    Hopper and newer (extra `fp8`); the rest is bf16."""
    param_dtype: Literal["fp32", "bf16"] = "fp32"
    """Number format of the weights and their gradients. `bf16` halves both; updates are rounded
    stochastically, for adamw and adamw8bit (extra `memory`)."""
    optimizer_in_backward: Switch = False
    """Update each weight as soon as its gradient is there, and free that: the gradients of all
    weights never exist at once. Without clipping, accumulation and other processes."""
    offload: Offload = "none"
    """What an accelerator leaves in the memory of its host between uses. `activations`: all that
    `memory` keeps from forward to backward (a budget decides by itself). `optimizer`: the state of
    the optimizer, which comes back weight by weight; the numbers learnt are the same.
    `parameters`: under `fsdp` weights, gradients and that state; the host updates."""
    expandable_segments: Switch | Auto = "auto"
    """Let the allocator of CUDA grow its segments, which avoids fragmentation. `auto`: where
    `PYTORCH_ALLOC_CONF` does not say otherwise."""
    graph: Literal["dynamic", "static"] = "dynamic"
    """`static` captures forward pass and loss by `torch.compile` as one graph; `dynamic` runs them
    operator by operator."""
    memory: MemorySetting = "off"
    """What is kept from forward to backward; the rest is computed again. `off`: all. `pointwise`:
    not what norms, activation functions and casts make, which costs almost nothing. `selective`:
    nor what matrix products make for activation functions. `full`: only the inputs of each block.
    A number of bytes (`24GiB`) that a device may use at most, or a share of the activations
    (`0.6`), is kept to by the cheapest means."""
    remake_norms: Switch | Auto = "auto"
    """Whether `memory=pointwise` makes again what layer norms and RMS norms make. `auto`: not on a
    CUDA device, where they take longer than activation functions for less memory."""
    predict_memory: Switch = True
    """Predict the peak of memory at the start, and say after a few steps how far it was off. Of a
    model that ranks divide a step is walked on paper, which takes a second for some four blocks;
    a budget of `memory` predicts in any case."""
    loss_chunks: AtLeastOne = Field(default=1, json_schema_extra=unit("parts"))
    """Parts that the tokens of a language model are cut into for logits and loss: only one part's
    logits exist at a time, and nothing is computed twice."""
    compile_loss: Switch | Auto = "auto"
    """Compile the loss of a part with `loss_chunks` and `graph=dynamic`, of full micro-batches.
    `auto`: where one process computes on a CUDA device, unless numbers are to be the same to the
    bit (`deterministic`) or lengths grow (`sequence_length_ramp`)."""
    batch_size_ramp: Ramp | None = Field(default=None, json_schema_extra=unit("samples"))
    """Begin with batches of START samples, larger by INCREMENT in equal parts of the first TOTAL
    samples, up to `batch_size`: `[START, INCREMENT, TOTAL]`. `null`: none."""
    sequence_length_ramp: Ramp | None = Field(
        default=None, json_schema_extra=unit("tokens, tokens, optimizer steps")
    )
    """Cut sequences to START tokens, longer by INCREMENT in equal parts of the first TOTAL steps,
    up to their own length: `[START, INCREMENT, TOTAL]`. `null`: none."""
    grad_accum_steps: AtLeastOne | Auto = Field(default=1, json_schema_extra=unit("micro-batches"))
    """Micro-batches that one optimizer step is cut into; must divide `batch_size`. `auto`: as few
    as fit into memory, found by trying before the first step."""
    clip_grad_norm: Annotated[Number, Field(gt=0)] | None = 1.0
    """Largest L2 norm of the gradient; a longer one is scaled down. `null`: never."""
    ema_decay: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """Evaluate and save a moving average of the weights; share kept per step. `null`: none."""
    average_best: Annotated[Whole, Field(ge=2)] | None = Field(
        default=None, json_schema_extra=unit("evaluations")
    )
    """Average the weights of that many best evaluations at the end; the average is the run's model
    where it is as good as the best. `null`: do not."""
    layer_decay: Number = Field(default=1.0, gt=0, le=1, json_schema_extra=unit("share per block"))
    """Share of the learning rate that is left for each block between a weight and the head; 1:
    all learn alike."""
    unfreeze_every: AtLeastOne | Literal["epoch"] | None = Field(
        default=None, json_schema_extra=unit("optimizer steps")
    )
    """Let only what is behind the blocks learn at first, and one more block, from the last to the
    first, after each so many steps, or `epoch`. `null`: all learn at once."""
    lora: LoraConfig | None = None
    """Adapters that learn in place of the weights of the blocks: `{rank: 8}`. `null`: none."""
    keep_graph: Switch = False
    """Retain the autograd graph between the backward passes of a step, for models that carry
    state from one micro-batch to the next; costs the activations of all of them at once."""
    label_smoothing: Number = Field(default=0.0, ge=0, lt=1, json_schema_extra=unit("probability"))
    """Probability taken from the true class and spread over all classes."""
    loss: str | dict[str, Any] | None = None
    """Loss of a segmentation: `dice_ce`, `dice_focal`, `focal`, `tversky`; or with settings,
    `{name: tversky, alpha: 0.3, beta: 0.7}`. `null`: the task's own, `dice_ce`."""
    class_weights: Literal["balanced"] | list[Annotated[Number, Field(gt=0)]] | None = None
    """What a sample of each class counts in the loss: a number each, or `balanced`, by which all
    classes count the same. `null`: every sample 1."""
    weighting: str | dict[str, Any] = Field(default="auto", min_length=1)
    """What each of several tasks weighs: `equal`, `uncertainty`, `dwa`, `gradnorm`, `famo`,
    `pcgrad`, `cagrad`, `mgda`, `mgda_ub`; or with settings, `{name: cagrad, c: 0.4}`. `auto`:
    `equal`."""
    channels_last: Switch | Auto = "auto"
    """Memory order of images, `true` for NHWC. `auto`: where the model has convolutions."""
    eval_every: AtLeastOne | Literal["epoch"] = Field(
        default="epoch", json_schema_extra=unit("optimizer steps")
    )
    """Steps between evaluations on the validation data, or `epoch`."""
    checkpoint_every: AtLeastOne | Literal["epoch"] | None = Field(
        default="epoch", json_schema_extra=unit("optimizer steps")
    )
    """Steps between checkpoints, or `epoch`. `null`: none, the run cannot be resumed."""
    keep_checkpoints: Whole = Field(default=2, ge=1, json_schema_extra=unit("checkpoints"))
    """Checkpoints that stay on disk, newest first."""
    keep_every: AtLeastOne | None = Field(default=None, json_schema_extra=unit("optimizer steps"))
    """Checkpoints whose step is a multiple of this stay for good. `null`: none do."""
    keep_best: Switch = False
    """Keep the checkpoint with the best `monitor` too, to go on from it."""
    on_bad_step: BadStepPolicy = "abort"
    """On NaN, Inf or a spike, before the update: end the run, leave the batch out, or go back to
    the last checkpoint's weights and on past the batch."""
    max_bad_steps: Whole = Field(default=10, ge=1, json_schema_extra=unit("optimizer steps"))
    """More bad steps in a row than this end the run."""
    loss_spike: Annotated[Number, Field(gt=1)] | None = Field(
        default=None, json_schema_extra=unit("times the median of 64 steps")
    )
    """A loss above this is a bad step. `null`: only NaN and Inf are."""
    log_every: AtLeastOne | Auto = Field(default="auto", json_schema_extra=unit("optimizer steps"))
    """Steps between lines in `metrics.jsonl`; each costs one wait for the device."""
    early_stopping: AtLeastOne | None = Field(default=None, json_schema_extra=unit("evaluations"))
    """Evaluations without a better `monitor` after which the run stops. `null`: never."""
    monitor: str = Field(default="auto", min_length=1)
    """Metric that says which model is best, such as `val_accuracy`. `auto`: the task's own."""
    num_workers: Annotated[Whole, Field(ge=0)] | Auto = Field(
        default="auto", json_schema_extra=unit("processes")
    )
    """Processes that load and decode data. 0: in the training process itself."""
    worker_timeout_s: Number = Field(default=600.0, ge=0, json_schema_extra=unit("seconds"))
    """A loader process that takes longer for a batch is replaced; if it hangs again, the run ends
    and names the sample. 0: wait for ever."""
    device: str = Field(default="auto", min_length=1)
    """`cpu`, `cuda`, `cuda:1`, `mps`, ... `auto`: the first accelerator, else the CPU."""
    parallel: ParallelConfig = Field(
        default=ParallelConfig(dp_replicate="auto", planned=True),
        json_schema_extra=lambda schema: schema.update(
            anyOf=[{"$ref": schema.pop("$ref")}, _PLAN_TEXT]
        ),
    )
    """How the model is spread over processes, as axes or as text: `dp2-tp2-pp2`. `auto`: by the
    planner, for a known GPU and transformer; else the data over all processes that there are."""
    seed: Whole = Field(default=0, ge=0, lt=2**63)
    """Decides weights, order of the data and augmentation."""
    loggers: tuple[str, ...] = (
        "console",
        "jsonl",
        "tensorboard",
    )
    """Where progress is written: `console`, `jsonl`, `tensorboard`, `wandb`."""
    wandb_mode: Literal["online", "offline"] = "online"
    """Whether the `wandb` logger sends as it goes or keeps files for `wandb sync`."""
    profile: Switch = False
    """Measure where the time and the memory of a step go: trace, table and picture in `profile/`
    and in the report. Waits for the device within each step."""
    deterministic: Switch = False
    """Only deterministic kernels: the same bits on every run, at some cost in speed."""

    @property
    def micro_batch_size(self) -> int:
        """Samples of a forward pass, as set; `auto` tries the whole batch first."""
        return self.batch_size // (self.grad_accum_steps if self.grad_accum_steps != "auto" else 1)

    @model_validator(mode="before")
    @classmethod
    def _end_by_time_alone(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("time_budget") is not None:
            return {"epochs": None, **values}
        return values

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.epochs is None and self.max_steps is None and self.time_budget is None:
            raise PydanticCustomError(
                "contradiction",
                "epochs=null and max_steps=null: nothing says when the run ends",
                {
                    "keys": ["epochs", "max_steps", "time_budget"],
                    "fix": "give epochs, max_steps or time_budget",
                },
            )
        if self.grad_accum_steps != "auto" and self.batch_size % self.grad_accum_steps:
            raise PydanticCustomError(
                "contradiction",
                "grad_accum_steps={accum} does not divide batch_size={batch} samples",
                {
                    "accum": self.grad_accum_steps,
                    "batch": self.batch_size,
                    "keys": ["grad_accum_steps", "batch_size"],
                    "fix": "change batch_size or grad_accum_steps",
                },
            )
        if self.batch_size_ramp is not None and self.batch_size_ramp[0] > self.batch_size:
            raise PydanticCustomError(
                "contradiction",
                "batch_size_ramp begins at {start} samples, above batch_size={batch}",
                {
                    "start": self.batch_size_ramp[0],
                    "batch": self.batch_size,
                    "keys": ["batch_size_ramp", "batch_size"],
                    "fix": "begin with a smaller batch, or raise batch_size",
                },
            )
        if self.graph == "static" and self.keep_graph:
            raise PydanticCustomError(
                "contradiction",
                "graph=static and keep_graph=true: a compiled graph frees what it has used",
                {"keys": ["graph", "keep_graph"], "fix": "set graph=dynamic, or keep_graph=false"},
            )
        if self.betas != "auto" and self.optimizer.lower() in OPTIMIZERS_WITHOUT_BETAS:
            raise PydanticCustomError(
                "contradiction",
                "betas is set, but optimizer={optimizer} has no betas",
                {
                    "optimizer": self.optimizer,
                    "keys": ["betas"],
                    "fix": "remove betas (momentum belongs to sgd), or use adamw",
                },
            )
        if self.momentum != "auto" and self.optimizer.lower() not in OPTIMIZERS_WITH_MOMENTUM:
            raise PydanticCustomError(
                "contradiction",
                "momentum is set, but optimizer={optimizer} has no momentum",
                {
                    "optimizer": self.optimizer,
                    "keys": ["momentum"],
                    "fix": "remove momentum (betas belong to the Adam family), or use sgd",
                },
            )
        return self

    @model_validator(mode="after")
    def _save_what_can_be_saved(self) -> Self:
        problem = find_bf16_problem(self) or find_backward_problem(self) or find_norms_problem(self)
        if problem is not None:
            raise PydanticCustomError("contradiction", problem.text, problem.context)
        return self


class TrainerSettings(TypedDict, total=False):
    """The keyword arguments that `Trainer` hands to `TrainerConfig`, for editors and checkers."""

    batch_size: int
    epochs: int | None
    max_steps: int | None
    time_budget: str | None
    lr: float | Auto
    weight_decay: float | Auto
    momentum: float | Auto
    betas: tuple[float, float] | Auto
    schedule: str
    warmup: int | float | Auto
    min_lr_share: float
    precision: Precision
    param_dtype: Literal["fp32", "bf16"]
    optimizer_in_backward: bool
    offload: Offload
    expandable_segments: bool | Auto
    graph: Literal["dynamic", "static"]
    memory: str | float
    remake_norms: bool | Auto
    predict_memory: bool
    loss_chunks: int
    compile_loss: bool | Auto
    batch_size_ramp: tuple[int, int, int] | None
    sequence_length_ramp: tuple[int, int, int] | None
    grad_accum_steps: int | Auto
    clip_grad_norm: float | None
    ema_decay: float | None
    average_best: int | None
    layer_decay: float
    unfreeze_every: int | Literal["epoch"] | None
    lora: Mapping[str, object] | LoraConfig | None
    keep_graph: bool
    label_smoothing: float
    loss: str | dict[str, Any] | None
    class_weights: Literal["balanced"] | Sequence[float] | None
    weighting: str | dict[str, Any]
    channels_last: bool | Auto
    eval_every: int | Literal["epoch"]
    checkpoint_every: int | Literal["epoch"] | None
    keep_checkpoints: int
    keep_every: int | None
    keep_best: bool
    on_bad_step: BadStepPolicy
    max_bad_steps: int
    loss_spike: float | None
    log_every: int | Auto
    early_stopping: int | None
    monitor: str
    num_workers: int | Auto
    worker_timeout_s: float
    device: str
    parallel: str | Mapping[str, object] | ParallelConfig
    seed: int
    loggers: Sequence[str]
    wandb_mode: Literal["online", "offline"]
    profile: bool
    deterministic: bool
