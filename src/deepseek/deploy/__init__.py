"""Layer 4, result output: from a finished run to what people use.

The names below load on first use: a report is drawn without torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek.deploy.dynamic_pruning import DynamicPruning as DynamicPruning
    from deepseek.deploy.fusion import Fusion as Fusion
    from deepseek.deploy.fusion import fuse as fuse

_LAZY = {
    "DynamicPruning": "deepseek.deploy.dynamic_pruning",
    "Fusion": "deepseek.deploy.fusion",
    "fuse": "deepseek.deploy.fusion",
}
__all__ = ["DynamicPruning", "Fusion", "fuse"]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'deepseek.deploy' has no attribute {name!r}")
