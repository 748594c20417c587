"""Ways to run a model, each behind the same three functions: convert, open, what is missing."""

from deepseek.deploy.runtimes.runtime import Conversion as Conversion
from deepseek.deploy.runtimes.runtime import Execution as Execution
from deepseek.deploy.runtimes.runtime import Runtime as Runtime
from deepseek.registry import Registry

RUNTIMES: Registry[type[Runtime]] = Registry(
    "runtime",
    {
        "eager": "deepseek.deploy.runtimes.in_torch:Eager",
        "compiled": "deepseek.deploy.runtimes.in_torch:Compiled",
    },
)
