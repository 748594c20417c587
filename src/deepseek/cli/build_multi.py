"""Settings of several tasks -> data sets and a model. Imported by commands when they run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from deepseek.config import (
    DataConfig,
    ModelConfig,
    MultiDataConfig,
    TextDataConfig,
    validate_settings,
)
from deepseek.datasets import DataSpec, JointDataset, MultiTaskDataset, Tokenizer
from deepseek.datasets.text_arguments import make_options
from deepseek.datasets.text_source import TextSource
from deepseek.datasets.tokenizer_choice import TRAINED, make_tokenizer
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine, MultiHead

TaskConfig = DataConfig | TextDataConfig
BuildOne = Callable[[TaskConfig, int, Tokenizer | None], tuple[Any, Any]]


def build_multi(
    config: MultiDataConfig, seed: int, build_one: BuildOne
) -> tuple[MultiTaskDataset, MultiTaskDataset | None]:
    """Return the training data and the validation data, `None` if there is to be none.

    Args:
        config: the section `data`.
        seed: of the run.
        build_one: makes training and validation data of a task, with a tokenizer if given.

    Raises:
        ConfigError: a task's settings are wrong, or only some tasks have validation data.
    """
    configs = {name: _settings_of(config, name) for name in config.tasks}
    tokenizer = _shared_tokenizer(list(configs.values()))
    built = {name: build_one(own, seed, tokenizer) for name, own in configs.items()}
    train = {name: parts[0] for name, parts in built.items()}
    val = {name: parts[1] for name, parts in built.items() if parts[1] is not None}
    if val and len(val) < len(train):
        raise ConfigError(
            f"only {', '.join(val)} of the tasks have validation data",
            fix="give val to all tasks, or data.val=null",
        )
    mixed = MultiTaskDataset(train, alpha=config.alpha, seed=seed)
    return mixed, MultiTaskDataset(val, seed=seed).evaluation_view() if val else None


def build_multi_model(
    config: ModelConfig, build: Callable[[ModelConfig], ModelEngine]
) -> MultiHead:
    """Return the model of several tasks around the one that is named, its heads still open."""
    if config.architecture == "encoder":
        config = config.model_copy(update={"args": {"outputs": "hidden", **config.args}})
    engine = build(config)
    return engine.module if isinstance(engine.module, MultiHead) else MultiHead.around(engine)


def build_multi_evaluation(
    spec: DataSpec,
    settings: Sequence[str],
    build_one: Callable[[DataSpec, Sequence[str]], Any],
) -> JointDataset:
    """Return data with labels of one task, as a model of several is evaluated on them.

    Args:
        spec: of the model.
        settings: `task=NAME`, and those of its data.
        build_one: makes data from the spec of one task and the other settings.

    Raises:
        ConfigError: no task is named.
    """
    named = [setting.removeprefix("task=") for setting in settings if setting.startswith("task=")]
    if len(named) != 1 or named[0] not in spec.tasks:
        raise ConfigError(
            f"the model has the tasks {', '.join(spec.tasks)}, and the data have labels of one",
            fix=f"say which: task={next(iter(spec.tasks))}",
        )
    name, own = named[0], spec.tasks[named[0]]
    alone = replace(
        spec, task=own.task, tasks={}, class_names=own.class_names, class_counts=own.class_counts,
        fields={"inputs": spec.fields["inputs"], "targets": own.fields["targets"]},
        separator_token=own.separator_token,
    )  # fmt: skip
    data = build_one(alone, [setting for setting in settings if setting != f"task={name}"])
    others = {task: other for task, other in spec.tasks.items() if task != name}
    labels = {task: _nothing(other, len(data)) for task, other in others.items()}
    names = {task: other.class_names for task, other in others.items() if other.class_names}
    return JointDataset(data, labels, own=name, class_names=names)


def _nothing(spec: DataSpec, count: int) -> np.ndarray:
    """Return labels that are all missing."""
    if spec.class_names:
        return np.full(count, -100, np.int64)
    return np.full((count, *spec.fields["targets"].shape), np.nan, np.float32)


def _settings_of(config: MultiDataConfig, name: str) -> TaskConfig:
    given: Mapping[str, Any] = {**config.shared, **config.tasks[name]}
    kinds = {"text": TextDataConfig, "image": DataConfig}
    kind = given.get("format", "image")
    if kind not in kinds:
        raise ConfigError(
            f"data.tasks.{name}.format={kind!r} cannot be one of several tasks",
            fix="give text or image",
        )
    val = {} if config.val == "auto" else {"val": config.val}
    val = {"val": None} if config.val is None else {**val, **given}
    try:
        return validate_settings(kinds[kind], {**given, **val})
    except ConfigError as error:
        raise ConfigError(f"data.tasks.{name}: {error.message}", fix=error.fix) from error


def _shared_tokenizer(configs: Sequence[TaskConfig]) -> Tokenizer | None:
    """Return the tokenizer that is made from the texts of all tasks; `None`: each has its own."""
    texts = [config for config in configs if isinstance(config, TextDataConfig)]
    kinds = {(config.tokenizer, config.vocab_size) for config in texts}
    if len(texts) < len(configs) or len(kinds) != 1:
        return None
    kind, vocab_size = kinds.pop()
    if kind not in (*TRAINED, "characters"):
        return None
    return make_tokenizer(kind, [_source(config) for config in texts], vocab_size)


def _source(config: TextDataConfig) -> TextSource:
    def given(column: str | int | None) -> str | int | None:
        return None if column == "auto" else column

    options = make_options(
        config.task, given(config.text_column), given(config.label_column), config.document_per,
        config.label_separator, config.encoding, config.pair_column,
    )  # fmt: skip
    return TextSource(config.train, options)
