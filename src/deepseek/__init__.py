"""deepseek: train any PyTorch model, on a laptop or on a cluster, and take it into production.

One library, one command, four layers: data preprocessing (`deepseek.datasets`), model
computation (`deepseek.models`), optimisation and scheduling (`deepseek.trainer`), result output
(`deepseek.deploy`).
The names below load on first use: `import deepseek` does not import torch.
"""

import importlib
from typing import TYPE_CHECKING

from deepseek.version import __version__ as __version__

if TYPE_CHECKING:
    from deepseek.datasets import DataLoader as DataLoader
    from deepseek.models import ModelEngine as ModelEngine
    from deepseek.trainer import Optimizer as Optimizer
    from deepseek.trainer import Trainer as Trainer

_LAZY = {
    "DataLoader": "deepseek.datasets",
    "ModelEngine": "deepseek.models",
    "Optimizer": "deepseek.trainer",
    "Trainer": "deepseek.trainer",
}
__all__ = ["DataLoader", "ModelEngine", "Optimizer", "Trainer", "__version__"]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'deepseek' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
