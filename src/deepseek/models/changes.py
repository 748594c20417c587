"""What was done to the modules of a model after its architecture was built: cut, quantised.

A model file holds the changes as tables; each has a `kind` and what its function needs to make the
same modules again, empty, before the weights are loaded. Data only: no names of classes.
"""

import importlib
from collections.abc import Sequence

from torch import nn

from deepseek.errors import CheckpointError

_KINDS: dict[str, str] = {
    "pruned": "deepseek.models.cut:apply_cut",
    "folded": "deepseek.models.folding:apply_folding",
    "lora": "deepseek.models.lora:apply_lora",
    "quantised": "deepseek.models.quantized:apply_quantization",
    "quantisation-aware": "deepseek.models.quantization_aware:apply_fake_quantization",
}
"""Kind -> `module:function` of `function(module, table)`, which changes the module in place.

It raises `ValueError` or `KeyError` where the table does not fit the module."""


def apply_changes(module: nn.Module, changes: Sequence[dict], source: object) -> None:
    """Change a module as those of a file were, in place; device and weights come later.

    Args:
        module: as its architecture builds it, possibly on the meta device.
        changes: in the order they were made.
        source: what is named in errors.

    Raises:
        CheckpointError: a change is of an unknown kind, or does not fit.
    """
    for change in changes:
        kind = change.get("kind")
        if not isinstance(kind, str) or kind not in _KINDS:
            raise CheckpointError(
                f"{source} holds a model with a change of the kind {kind!r}, which this library"
                " does not know",
                fix="pip install --upgrade deepseek-framework",
            )
        path, _, name = _KINDS[kind].partition(":")
        try:
            getattr(importlib.import_module(path), name)(module, change)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{source}: the model in it cannot be {kind} as it says: {error}",
                fix="save the model anew, from where it was changed",
            ) from error
