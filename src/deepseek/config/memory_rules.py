"""Which settings that save memory cannot be combined with what, and what to set instead."""

from typing import TYPE_CHECKING, LiteralString, NamedTuple

if TYPE_CHECKING:
    from deepseek.config.trainer import TrainerConfig

BF16_OPTIMIZERS = ("adamw", "adamw8bit")


class Contradiction(NamedTuple):
    """What is wrong, with `{names}` of the context in it; `context` has `keys` and `fix`."""

    text: LiteralString
    context: dict[str, object]


def find_bf16_problem(config: "TrainerConfig") -> Contradiction | None:
    """Return what weights in bf16 cannot be combined with."""
    if config.param_dtype != "bf16":
        return None
    if config.optimizer.lower() not in BF16_OPTIMIZERS:
        return Contradiction(
            "param_dtype=bf16 with optimizer={optimizer}, which rounds to the nearest: updates that"
            " are smaller than the distance of two numbers would be lost",
            {
                "optimizer": config.optimizer,
                "keys": ["param_dtype", "optimizer"],
                "fix": "use adamw or adamw8bit, which round stochastically, or param_dtype=fp32",
            },
        )
    if config.precision not in ("auto", "bf16"):
        return Contradiction(
            "param_dtype=bf16 with precision={precision}",
            {
                "precision": config.precision,
                "keys": ["param_dtype", "precision"],
                "fix": "set precision to bf16 or auto, or param_dtype=fp32",
            },
        )
    if config.ema_decay is not None:
        return Contradiction(
            "param_dtype=bf16 with ema_decay={decay}: an average in bf16 stands still",
            {
                "decay": config.ema_decay,
                "keys": ["param_dtype", "ema_decay"],
                "fix": "remove ema_decay, or set param_dtype=fp32",
            },
        )
    return None


def find_backward_problem(config: "TrainerConfig") -> Contradiction | None:
    """Return what needs the gradients of all weights before the first is updated."""
    if not config.optimizer_in_backward:
        return None
    wanted: tuple[tuple[str, object, object, str], ...] = (
        ("grad_accum_steps", config.grad_accum_steps, 1, "adds up gradients before an update"),
        ("clip_grad_norm", config.clip_grad_norm, None, "needs the norm of the whole gradient"),
        ("on_bad_step", config.on_bad_step, "abort", "takes back a step before its update"),
        ("loss_spike", config.loss_spike, None, "judges a step before its update"),
        ("layer_decay", config.layer_decay, 1, "updates layers by rates of their own"),
        ("unfreeze_every", config.unfreeze_every, None, "updates layers by rates of their own"),
        ("keep_graph", config.keep_graph, False, "goes backward through weights that have changed"),
    )
    for name, value, needed, why in wanted:
        if value != needed:
            shown = {None: "null", False: "false"}.get(needed, needed)  # pyright: ignore[reportArgumentType, reportCallIssue]
            return Contradiction(
                "optimizer_in_backward=true, and {name}={value} {why}",
                {
                    "name": name, "value": str(value).lower(), "why": why,
                    "keys": ["optimizer_in_backward", name],
                    "fix": f"set {name} to {shown}, or optimizer_in_backward to false",
                },
            )  # fmt: skip
    for name, value, why in (
        ("precision", "fp16", "looks for overflows before an update"),
        ("optimizer", "lamb", "needs the norm of the whole gradient"),
    ):
        if str(getattr(config, name)).lower() == value:
            return Contradiction(
                "optimizer_in_backward=true, and {name}={value} {why}",
                {
                    "name": name, "value": value, "why": why,
                    "keys": ["optimizer_in_backward", name],
                    "fix": f"use another {name}, or set optimizer_in_backward to false",
                },
            )  # fmt: skip
    return None


def find_norms_problem(config: "TrainerConfig") -> Contradiction | None:
    """Return where `remake_norms` would be ignored."""
    is_pointwise = config.memory == "pointwise" and config.graph == "dynamic"
    if config.remake_norms == "auto" or is_pointwise:
        return None
    return Contradiction(
        "remake_norms={remake} with memory={memory} and graph={graph}: it is a part of"
        " memory=pointwise, operator by operator",
        {
            "remake": str(config.remake_norms).lower(),
            "memory": str(config.memory),
            "graph": config.graph,
            "keys": ["remake_norms", "memory"],
            "fix": "set remake_norms to auto, or memory to pointwise and graph to dynamic",
        },
    )
