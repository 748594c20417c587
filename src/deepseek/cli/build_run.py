"""`RunConfig` -> data sets, model and trainer: the one place where settings become objects.

Imported by commands when they run, never at start-up: it brings torch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from deepseek.cli.build_multi import (
    build_multi,
    build_multi_evaluation,
    build_multi_model,
)
from deepseek.cli.build_nodules import build_nodule_evaluation, build_nodules
from deepseek.cli.build_tables import build_table_evaluation, build_tables
from deepseek.cli.build_text import (
    AUTO_VAL_SHARE,
    build_text,
    build_text_evaluation,
    check_apart,
)
from deepseek.cli.build_volumes import build_volume_evaluation, build_volumes
from deepseek.config import (
    DataConfig,
    ModelConfig,
    MultiDataConfig,
    NoduleDataConfig,
    RunConfig,
    TableDataConfig,
    TextDataConfig,
    VolumeDataConfig,
)
from deepseek.datasets import DataSpec, ImageDataset, JointDataset, MultiTaskDataset, Tokenizer
from deepseek.datasets.loader import LabelledDataset
from deepseek.errors import ConfigError
from deepseek.medical.nodule_cubes import holds_nodule_cubes
from deepseek.medical.nodule_dataset import NoduleDataset
from deepseek.models import ModelEngine
from deepseek.models.volume_detector import finds_centers
from deepseek.models.volume_segmenter import takes_volumes
from deepseek.trainer import Trainer

AnyConfig = (
    DataConfig
    | MultiDataConfig
    | NoduleDataConfig
    | TableDataConfig
    | TextDataConfig
    | VolumeDataConfig
)
AnyDataset = LabelledDataset | NoduleDataset | MultiTaskDataset | JointDataset
VAL_FOLDERS = ("val", "validation", "test")


def build_data(config: AnyConfig, seed: int) -> tuple[AnyDataset, AnyDataset | None]:
    """Return the training data and the validation data, `None` if there is to be none.

    Raises:
        ConfigError: if the validation data are the training data.
    """
    if isinstance(config, MultiDataConfig):
        return build_multi(config, seed, _build_task)
    if isinstance(config, TextDataConfig):
        return build_text(config, seed)
    if isinstance(config, VolumeDataConfig):
        return build_volumes(config, seed)
    if isinstance(config, TableDataConfig):
        return build_tables(config, seed)
    if isinstance(config, NoduleDataConfig):
        return build_nodules(config, seed)
    return _build_pictures(config, seed)


def _build_task(
    config: DataConfig | TextDataConfig, seed: int, tokenizer: Tokenizer | None
) -> tuple[AnyDataset, AnyDataset | None]:
    if isinstance(config, TextDataConfig):
        return build_text(config, seed, tokenizer)
    return _build_pictures(config, seed)


def _build_pictures(config: DataConfig, seed: int) -> tuple[ImageDataset, ImageDataset | None]:
    train = _dataset(config, config.train, config.transform, seed)
    val = _validation_source(config)
    if val is None:
        return train, None
    if isinstance(val, str):
        check_apart(config.train, val, "folder")
        transform = _val_transform(config) or train.evaluation_transform
        return train, _dataset(config, val, transform, seed, train.class_names)
    train, held_back = train.split(val)
    transform = _val_transform(config)
    return train, held_back if transform is None else held_back.with_transform(transform)


def build_model(config: ModelConfig, *, on_paper: bool = False) -> ModelEngine:
    """Return the model, on the CPU, its head still open where the data decide the classes.

    Args:
        config: the section `model`.
        on_paper: without numbers in its weights, on the meta device; where an architecture needs
            numbers to be built, with fresh ones.
    """
    if on_paper:
        try:
            with torch.device("meta"):
                return ModelEngine(config.architecture, **config.args)
        except (RuntimeError, NotImplementedError):
            return ModelEngine(config.architecture, **config.args)
    return ModelEngine(
        config.architecture, pretrained=config.pretrained, weights=config.weights, **config.args
    )


def build_trainer(
    config: RunConfig, *, run_dir: Path | None, resume: Path | None, on_paper: bool = False
) -> Trainer:
    """Return the trainer of a run.

    Args:
        config: resolved settings.
        run_dir: folder of a new run; the next free `OUTPUT/NAME-N` if `None`.
        resume: run folder or checkpoint folder to go on from.
        on_paper: for a dry run: a model without numbers, on the CPU.
    """
    train_data, val_data = build_data(config.data, config.seed)
    torch.manual_seed(config.seed)  # the weights too are the seed's
    build = partial(build_model, on_paper=on_paper)
    is_multi = isinstance(config.data, MultiDataConfig)
    model = build_multi_model(config.model, build) if is_multi else build(config.model)
    settings = {name: getattr(config.trainer, name) for name in type(config.trainer).model_fields}
    if on_paper:
        settings["device"] = "cpu"
    return Trainer(
        model,
        train_data,
        val_data,
        run_dir=run_dir,
        output=config.output,
        name=config.name,
        resume=resume,
        run_config=config,
        **settings,
    )


def build_evaluation_data(
    engine: ModelEngine, path: str, settings: Sequence[str] = ()
) -> AnyDataset:
    """Return the labelled data at `path`, prepared as the model expects.

    Args:
        engine: knows what it was trained on.
        path: of the data.
        settings: how text or a table is read, as in `data`: `label_column=sentiment`; of a model of
            several tasks `task=NAME`, too.

    Raises:
        ConfigError: if the model file does not say how its inputs are prepared.
        DataError: if the data hold a class that the model does not know.
    """
    spec = engine.spec
    if spec is not None and spec.tasks and spec.features is None:
        return build_multi_evaluation(
            spec, settings, lambda own, rest: _evaluation_data(own, path, rest)
        )
    return _evaluation_data(spec, path, settings)


def _evaluation_data(spec: DataSpec | None, path: str, settings: Sequence[str]) -> AnyDataset:
    if spec is not None and spec.tokenizer is not None:
        return build_text_evaluation(spec, path, settings)
    if spec is not None and spec.features is not None:
        return build_table_evaluation(spec, path, settings)
    if settings:
        raise ConfigError(
            f"{' '.join(settings)} would be ignored: the model was not trained on text or a table",
            fix="leave them out",
        )
    if spec is not None and finds_centers(spec):
        return build_nodule_evaluation(spec, path)
    if spec is not None and takes_volumes(spec):
        is_cubes = holds_nodule_cubes(path)
        return (build_nodule_evaluation if is_cubes else build_volume_evaluation)(spec, path)
    if spec is None or spec.transform is None:
        raise ConfigError(
            "the model file has no transform: it was trained with a Python callable",
            fix="evaluate it from Python, with the data set that has the callable",
        )
    return ImageDataset(
        path,
        transform=spec.transform,
        channels=spec.fields["inputs"].shape[0],
        class_names=spec.class_names,
        allow_one_class=True,
    )


def _dataset(
    config: DataConfig,
    path: str,
    transform: str | Callable,
    seed: int,
    class_names: Sequence[str] | None = None,
) -> ImageDataset:
    return ImageDataset(
        path,
        transform=transform,
        class_names=class_names,
        channels=config.channels,
        on_bad_sample=config.on_bad_sample,
        max_bad_share=config.max_bad_share,
        seed=seed,
    )


def _validation_source(config: DataConfig) -> str | float | None:
    if config.val != "auto":
        return config.val
    train = Path(config.train)
    siblings = (train.parent / name for name in VAL_FOLDERS)
    # A lone `data/test` beside `data/images` may be anything; beside `data/train` it is meant.
    found = [path for path in siblings if path.is_dir()] if train.name == "train" else []
    return str(found[0]) if found else AUTO_VAL_SHARE


def _val_transform(config: DataConfig) -> str | None:
    return None if config.val_transform == "auto" else config.val_transform
