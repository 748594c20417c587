"""What a machine gives, and what training with our defaults reaches of it: `deepseek bench`.

The names below load on first use: the command's help needs no torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek.bench.machine_bench import bench_machine as bench_machine
    from deepseek.bench.page import write_page as write_page
    from deepseek.bench.result import BenchResult as BenchResult
    from deepseek.bench.result import Rate as Rate
    from deepseek.bench.result import TrainingRate as TrainingRate

_LAZY = {
    "BenchResult": "deepseek.bench.result",
    "Rate": "deepseek.bench.result",
    "TrainingRate": "deepseek.bench.result",
    "bench_machine": "deepseek.bench.machine_bench",
    "write_page": "deepseek.bench.page",
}
__all__ = ["BenchResult", "Rate", "TrainingRate", "bench_machine", "write_page"]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
