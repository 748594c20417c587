"""The check of `model.args` that reading a configuration needs from the layer that knows models."""

from collections.abc import Sequence
from typing import Any

from deepseek.errors import ConfigError

TAKEN = {
    "allow_pickle": "",
    "architecture": ": it is model.architecture",
    "graph": "",
    "num_classes": ": it follows from the data",
    "pretrained": ": it is model.pretrained",
    "weights": ": it is model.weights",
}
"""Keywords of `ModelEngine` that a file may not set as arguments of an architecture, and why."""


def check_args(architecture: str, args: dict[str, Any]) -> Sequence[tuple[str, str, str | None]]:
    """Return (argument, what is wrong, suggestion) of each argument that `architecture` refuses.

    An argument of "" means the architecture itself.
    """
    from deepseek.models.zoo import check_model_args

    taken = [
        (name, "is not an argument of an architecture", f"leave args.{name} out{advice}")
        for name, advice in TAKEN.items()
        if name in args
    ]
    try:
        return taken or check_model_args(architecture, args)
    except ConfigError as error:
        return [("", error.message, error.fix)]
