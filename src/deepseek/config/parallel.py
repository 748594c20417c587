"""How a model is spread over processes: `parallel: dp2-tp2-pp2`, or its axes one by one."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from deepseek.config.settings import Auto, Number, Settings, Switch, Whole, unit

Degree = Annotated[Whole, Field(ge=1)] | Auto
PipelineSchedule = Literal[
    "gpipe", "1f1b", "interleaved_1f1b", "looped_bfs", "interleaved_zero_bubble", "zbv_zero_bubble"
]
AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp", "ep")
"""From the slowest link to the fastest: neighbours in the last axis are neighbours in a host."""
_SHORT = {"dp": "dp_replicate", "ddp": "dp_replicate", "fsdp": "dp_shard"}
_WORD = re.compile(r"([a-z_]+?)_?(\d+)?")


class ParallelConfig(Settings):
    """Degrees of the axes of the device mesh; their product is the number of processes.

    A text stands for it as well: `dp2-tp2-pp2`; an axis without a number (`fsdp-tp2`) takes the
    processes that are left, and `auto` spreads the data over all of them. `dp` and `fsdp` are
    short for `dp_replicate` and `dp_shard`.
    """

    planned: Switch = False
    """What `auto` stands for: the planner chooses degrees, micro-batches and recomputation for a
    known GPU and transformer; elsewhere `dp`, or `fsdp` where weights and their states fill half of
    the memory."""
    dp_replicate: Degree = Field(default=1, json_schema_extra=unit("processes"))
    """Copies of the model; each takes its part of every batch."""
    dp_shard: Degree = Field(default=1, json_schema_extra=unit("processes"))
    """Ranks that weights, gradients and optimizer state are divided between (ZeRO-3); each takes
    its part of every batch."""
    cp: Degree = Field(default=1, json_schema_extra=unit("processes"))
    """Ranks that the tokens of a sequence are divided between."""
    tp: Degree = Field(default=1, json_schema_extra=unit("processes"))
    """Ranks that the heads and hidden features of a block are divided between."""
    pp: Degree = Field(default=1, json_schema_extra=unit("processes"))
    """Ranks that the blocks are divided between, in order."""
    ep: Degree = Field(default=1, json_schema_extra=unit("processes"))
    """Ranks that experts are divided between, where the model has any."""
    schedule: PipelineSchedule = "1f1b"
    """Order of forward and backward passes in a pipeline."""
    micro_batches: Annotated[Whole, Field(ge=1)] | Auto = Field(
        default="auto", json_schema_extra=unit("micro-batches")
    )
    """Micro-batches that are in a pipeline in each step. `auto`: `grad_accum_steps`, or more if
    the stages would idle otherwise."""
    stages_per_rank: Annotated[Whole, Field(ge=1)] | Auto = Field(
        default="auto", json_schema_extra=unit("stages")
    )
    """Stages of a pipeline on each rank. `auto`: what the schedule needs, 1 or 2."""
    sequence_parallel: Switch | Auto = "auto"
    """With `tp`: divide tokens, too, where features are whole. `auto`: where `tp` divides the
    number of tokens."""
    vocab_parallel: Switch | Auto = "auto"
    """With `tp`: keep the logits divided between ranks up to the loss. `auto`: where the task can
    take them so."""
    unused_parameters: Switch | Auto = "auto"
    """Whether some weights get no gradient in some steps, which `dp_replicate` must know. `auto`:
    tried in one pass before the first step."""
    compression: Literal["none", "bf16", "powersgd"] = "none"
    """What gradients are compressed to on their way between ranks; `powersgd` needs `dp_replicate`
    alone (Vogels et al. 2019, arXiv 1905.13727)."""
    bucket_mib: Annotated[Number, Field(gt=0)] = Field(default=25.0, json_schema_extra=unit("MiB"))
    """Gradients that are reduced together while the backward pass goes on."""
    algorithm: Literal["auto", "ring", "tree"] = "auto"
    """Of NCCL's all-reduce. Gloo has its ring only."""
    start_timeout_s: Annotated[Number, Field(gt=0)] = Field(
        default=600.0, json_schema_extra=unit("seconds")
    )
    """Longest wait of a rank for the others until its first step is done, and where it writes."""
    timeout_s: Annotated[Number, Field(gt=0)] = Field(
        default=120.0, json_schema_extra=unit("seconds")
    )
    """Longest wait of a rank for the others afterwards; then the run ends and says who was
    missing."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        if isinstance(given, str):
            return parse_plan(given)
        if isinstance(given, bool | int | float | list | tuple):
            raise PydanticCustomError(
                "told",
                "{given} is no plan",
                {"given": repr(given), "fix": "write axes and degrees such as dp4 or dp2-tp2"},
            )
        return given

    @model_validator(mode="after")
    def _agree(self) -> "ParallelConfig":
        fixed = [a for a in AXES if getattr(self, a) != ("auto" if a == "dp_replicate" else 1)]
        if self.planned and fixed:
            raise PydanticCustomError(
                "contradiction",
                "planned=true and {axis}={degree}: the planner chooses all degrees",
                {
                    "axis": fixed[0],
                    "degree": getattr(self, fixed[0]),
                    "keys": ["planned", fixed[0]],
                    "fix": "leave planned out, or the degrees",
                },
            )
        free = [axis for axis in AXES if getattr(self, axis) == "auto"]
        if len(free) > 1:
            raise PydanticCustomError(
                "contradiction",
                "{first}=auto and {second}=auto: only one axis can take the processes that are"
                " left",
                {
                    "first": free[0],
                    "second": free[1],
                    "keys": free[:2],
                    "fix": f"give {free[0]} or {free[1]} a number",
                },
            )
        return self

    @property
    def num_processes(self) -> int | None:
        """How many processes it takes, where that is fixed."""
        degrees = [getattr(self, axis) for axis in AXES]
        return None if "auto" in degrees else math.prod(degrees)

    def __repr__(self) -> str:
        return self.describe()

    def describe(self) -> str:
        """Return the axes as text, `dp2-tp2-pp2`; `none` for one process."""
        if self.planned:
            return "auto"
        short = {"dp_replicate": "dp", "dp_shard": "fsdp"}
        order = ("dp_replicate", "dp_shard", "cp", "tp", "pp", "ep")
        parts = []
        for axis in order:
            degree = getattr(self, axis)
            if degree != 1:
                parts.append(short.get(axis, axis) + ("" if degree == "auto" else str(degree)))
        return "-".join(parts) or "none"


def parse_plan(text: str) -> dict[str, int | str | bool]:
    """Return the axes that a text such as `dp2-tp2-pp2`, `fsdp`, `auto` or `none` names."""
    plan: dict[str, int | str | bool] = {}
    word = text.strip().lower()
    if word in ("none", ""):
        return plan
    if word == "auto":
        return {"dp_replicate": "auto", "planned": True}
    for part in word.split("-"):
        match = _WORD.fullmatch(part)
        axis = _SHORT.get(match[1], match[1]) if match else part
        if match is None or axis not in AXES or axis in plan or _is_zero(match[2]):
            raise PydanticCustomError(
                "told",
                "{part} is there twice" if axis in plan else "{part} is no axis with its degree",
                {
                    "part": repr(part),
                    "fix": "write axes and degrees such as dp2-tp2-pp2 (dp, fsdp, cp, tp, pp, ep;"
                    " each once), or auto",
                },
            )
        plan[axis] = int(match[2]) if match[2] else "auto"
    return plan


def _is_zero(digits: str | None) -> bool:
    return digits is not None and int(digits) == 0
