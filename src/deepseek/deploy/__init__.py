"""Layer 4, result output: from a finished run to what people use.

The names below load on first use: a report is drawn without torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek.deploy.artefact import load_engine as load_engine
    from deepseek.deploy.formats import Export as Export
    from deepseek.deploy.formats import export as export
    from deepseek.deploy.fusion import Fusion as Fusion
    from deepseek.deploy.fusion import fuse as fuse
    from deepseek.deploy.optimization.optimize import optimize as optimize
    from deepseek.deploy.optimization.result import Optimization as Optimization
    from deepseek.deploy.pruning.dynamic import DynamicPruning as DynamicPruning
    from deepseek.deploy.pruning.prune import Pruning as Pruning
    from deepseek.deploy.pruning.prune import prune as prune
    from deepseek.deploy.pruning.semi_structured import KeepZeros as KeepZeros
    from deepseek.deploy.pruning.semi_structured import use_sparse_kernels as use_sparse_kernels
    from deepseek.deploy.quantization.aware import quantization_aware as quantization_aware
    from deepseek.deploy.quantization.quantize import Calibration as Calibration
    from deepseek.deploy.quantization.quantize import quantize as quantize
    from deepseek.deploy.quantization.result import Quantization as Quantization
    from deepseek.deploy.report import write_report as write_report
    from deepseek.deploy.runtimes import RUNTIMES as RUNTIMES
    from deepseek.deploy.scoring import Outcome as Outcome
    from deepseek.deploy.scoring import Scoring as Scoring
    from deepseek.deploy.scoring import find_items as find_items
    from deepseek.deploy.scoring import predict_to_file as predict_to_file

_LAZY = {
    "Calibration": "deepseek.deploy.quantization.quantize",
    "DynamicPruning": "deepseek.deploy.pruning.dynamic",
    "Export": "deepseek.deploy.formats",
    "Fusion": "deepseek.deploy.fusion",
    "KeepZeros": "deepseek.deploy.pruning.semi_structured",
    "Optimization": "deepseek.deploy.optimization.result",
    "Outcome": "deepseek.deploy.scoring",
    "Pruning": "deepseek.deploy.pruning.prune",
    "Quantization": "deepseek.deploy.quantization.result",
    "RUNTIMES": "deepseek.deploy.runtimes",
    "Scoring": "deepseek.deploy.scoring",
    "export": "deepseek.deploy.formats",
    "find_items": "deepseek.deploy.scoring",
    "fuse": "deepseek.deploy.fusion",
    "load_engine": "deepseek.deploy.artefact",
    "optimize": "deepseek.deploy.optimization.optimize",
    "predict_to_file": "deepseek.deploy.scoring",
    "prune": "deepseek.deploy.pruning.prune",
    "quantization_aware": "deepseek.deploy.quantization.aware",
    "quantize": "deepseek.deploy.quantization.quantize",
    "use_sparse_kernels": "deepseek.deploy.pruning.semi_structured",
    "write_report": "deepseek.deploy.report",
}
__all__ = [
    "Calibration",
    "DynamicPruning",
    "Export",
    "Fusion",
    "KeepZeros",
    "Optimization",
    "Outcome",
    "Pruning",
    "Quantization",
    "RUNTIMES",
    "Scoring",
    "export",
    "find_items",
    "fuse",
    "load_engine",
    "optimize",
    "predict_to_file",
    "prune",
    "quantization_aware",
    "quantize",
    "use_sparse_kernels",
    "write_report",
]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'deepseek.deploy' has no attribute {name!r}")
