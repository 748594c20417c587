"""Plans as text: `dp8-tp8-pp4`, the notation of `trainer.parallel`."""

from math import prod

from pydantic_core import PydanticCustomError

from deepseek.config.parallel import parse_plan
from deepseek.errors import ConfigError
from deepseek.planner.parallel_plan import ParallelPlan

AXES = ("dp_replicate", "dp_shard", "cp", "tp", "pp")
SHORT = {"dp_replicate": "dp", "dp_shard": "fsdp"}


def describe_axes(plan: ParallelPlan) -> str:
    """Return the axes with their degrees, `dp8-tp8-pp4`; `none` for one device."""
    parts = [
        f"{SHORT.get(axis, axis)}{getattr(plan, axis)}" for axis in AXES if getattr(plan, axis) > 1
    ]
    return "-".join(parts) or "none"


def name_family(plan: ParallelPlan) -> str:
    """Return the axes alone, `dp-tp-pp`; `none` for one device."""
    names = [SHORT.get(axis, axis) for axis in AXES if getattr(plan, axis) > 1]
    return "-".join(names) or "none"


def describe_pipeline(plan: ParallelPlan) -> str:
    """Return schedule and stages, `interleaved_1f1b x4`; `-` without a pipeline."""
    if plan.pp == 1:
        return "-"
    return plan.schedule + (f" x{plan.virtual_stages}" if plan.virtual_stages > 1 else "")


def shorten_pipeline(plan: ParallelPlan) -> str:
    """Return schedule and stages in the few letters of a table, `il_1f1b x4`."""
    return describe_pipeline(plan).replace("interleaved", "il").replace("_zero_bubble", "_zb")


def read_axes(text: str, num_gpus: int | None) -> dict[str, int]:
    """Return the degree of every axis that `text` asks for, 1 where it names none.

    Args:
        text: `dp8-tp8-pp4`; an axis without a number takes the GPUs that are left.
        num_gpus: of the cluster; `None`: as many as the plan needs.

    Raises:
        ConfigError: it is no plan, or needs another number of GPUs.
    """
    try:
        given = parse_plan(text)
    except PydanticCustomError as error:
        context = error.context or {}
        raise ConfigError(
            f"--plan {text}: {error.message()}", fix=str(context.get("fix", ""))
        ) from error
    if given.pop("ep", 1) != 1:
        raise ConfigError(
            f"--plan {text}: experts are not spread over ranks (ep) in the planner",
            fix="leave ep away; experts are costed on every rank of the other axes",
        )
    free = [axis for axis, degree in given.items() if degree == "auto"]
    fixed = prod(degree for degree in given.values() if isinstance(degree, int))
    if free and (num_gpus is None or len(free) > 1 or num_gpus % fixed):
        raise ConfigError(
            f"--plan {text}: {' and '.join(free)} without a number, and --gpus={num_gpus}"
            f" with {fixed} for the other axes",
            fix="give each axis a number, or one of them the rest of --gpus",
        )
    axes = {axis: given.get(axis, 1) for axis in AXES}
    whole = {
        axis: d if isinstance(d, int) else (num_gpus or 1) // fixed for axis, d in axes.items()
    }
    if num_gpus is not None and prod(whole.values()) != num_gpus:
        raise ConfigError(
            f"--plan {text} needs {prod(whole.values())} GPUs and --gpus={num_gpus}.",
            fix=f"say --gpus {prod(whole.values())}, or change a degree",
        )
    return whole
