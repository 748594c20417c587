"""The public names. A change here is a change of the interface: say so in the changelog."""

import importlib
from types import ModuleType

import pytest

PUBLIC = {
    "deepseek": ["DataLoader", "ModelEngine", "Optimizer", "Trainer", "__version__"],
    "deepseek.config": [
        "ConfigFileError",
        "DataConfig",
        "ModelConfig",
        "MultiDataConfig",
        "NoduleDataConfig",
        "OptimizerConfig",
        "RunConfig",
        "TableDataConfig",
        "TextDataConfig",
        "TrainerConfig",
        "TrainerSettings",
        "VolumeDataConfig",
        "dump_config",
        "json_schema",
        "load_config",
        "read_config",
        "resolve",
        "validate_settings",
    ],
    "deepseek.finance": [
        "Adaptation",
        "GrowingVocabulary",
        "GrownVocabulary",
        "Perplexity",
        "adapt",
        "grow_vocabulary",
    ],
    "deepseek.recsys": [
        "FactorizationMachine",
        "LogisticRegression",
        "MultiLayerPerceptron",
        "RealTimeCrosses",
        "Scorer",
        "read_movielens",
    ],
    "deepseek.recsys.tables": ["AdaGrad", "FTRL", "GrowingEmbedding", "RowAdam", "RowOptimizer"],
    "deepseek.medical": [
        "DetectionTask",
        "Findings",
        "Fingerprint",
        "Froc",
        "Interval",
        "Marks",
        "Means",
        "NoduleDataset",
        "ScanReport",
        "VolumeSettings",
        "bootstrap_interval",
        "configure",
        "dice_by_class",
        "find_scans",
        "hausdorff_mm",
        "match_marks",
        "predict_scans",
        "take_fingerprint",
    ],
    "deepseek.convert": [
        "Conversion",
        "Report",
        "convert",
        "deepseek_to_huggingface",
        "deepseek_to_pytorch",
        "family_names",
        "pytorch_to_deepseek",
        "verify_conversion",
        "write_state_dict",
    ],
    "deepseek.deploy": [
        "Calibration",
        "DynamicPruning",
        "Export",
        "Fusion",
        "KeepZeros",
        "Optimization",
        "Outcome",
        "Pruning",
        "Quantization",
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
    ],
}


@pytest.mark.parametrize("package", PUBLIC)
def test_a_package_has_its_public_names_and_no_others(package):
    module = importlib.import_module(package)
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    ]
    assert sorted(names) == sorted(PUBLIC[package])
