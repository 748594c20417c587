"""A model as a service: HTTP in, predictions out, in batches.

The names below load on first use: the process of a model needs none of HTTP.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek.deploy.service.protection import Limits as Limits
    from deepseek.deploy.service.server import ServiceSettings as ServiceSettings
    from deepseek.deploy.service.server import serve as serve
    from deepseek.deploy.service.shelf import Pace as Pace

_LAZY = {
    "Limits": "deepseek.deploy.service.protection",
    "Pace": "deepseek.deploy.service.shelf",
    "ServiceSettings": "deepseek.deploy.service.server",
    "serve": "deepseek.deploy.service.server",
}
__all__ = ["Limits", "Pace", "ServiceSettings", "serve"]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'deepseek.deploy.service' has no attribute {name!r}")
