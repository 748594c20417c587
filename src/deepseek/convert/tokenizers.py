"""Tokenizers and names of classes of a Hugging Face folder, into a data spec and back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepseek.convert.report import Report
from deepseek.convert.source import Source
from deepseek.datasets import DataSpec
from deepseek.datasets.spec import FieldSpec
from deepseek.datasets.tokenizer import TOKENIZER_FILES, load_tokenizer
from deepseek.errors import DataError, MissingExtraError
from deepseek.models import ModelEngine
from deepseek.models.decoder import Decoder
from deepseek.models.text_batches import tokenizer_of

_TASKS = {
    "sequence": "sequence_classification",
    "tokens": "token_classification",
    "vocabulary": "masked_language_modelling",
}
_LABELLED = ("sequence_classification", "token_classification")


def text_spec(
    engine: ModelEngine, source: Source, names: tuple[str, ...], report: Report
) -> DataSpec | None:
    """Return what a folder tells of the text that its model takes; `None` without a tokenizer.

    Args:
        engine: of the folder's model.
        source: the folder.
        names: of the classes.
        report: gets a note on what is left out, or means something else.
    """
    if not any(name in source.files for name in TOKENIZER_FILES):
        return None
    try:
        tokenizer = load_tokenizer(Path(source.name))
        content = tokenizer.to_json()
    except (DataError, MissingExtraError) as error:
        report.notes.append(f"without its tokenizer: {error.message}")
        return None
    config = engine.config
    task = _task_of(engine, source.config, report)
    sequence = FieldSpec((int(config["context_length"]),), "int64")
    names = names if task in _LABELLED else ()
    targets = sequence
    if task == "sequence_classification":
        targets = FieldSpec((), "int64")
    elif task == "sequence_regression":
        count = engine.num_classes or 1
        targets = FieldSpec(() if count == 1 else (count,), "float32")
    return DataSpec(
        task=task,
        fields={"inputs": sequence, "targets": targets},
        class_names=names,
        class_counts=(0,) * len(names),
        tokenizer=content,
        pad_token=config.get("pad_token"),
    )


def _task_of(engine: ModelEngine, config: Mapping[str, Any], report: Report) -> str:
    if isinstance(engine.module, Decoder):
        return "language_modelling"
    task = _TASKS.get(str(engine.config.get("outputs")), "features")
    if task != "sequence_classification":
        return task
    problem = config.get("problem_type")
    # transformers, too, takes one label for a number
    if problem == "regression" or engine.num_classes == 1:
        return "sequence_regression"
    if problem == "multi_label_classification":
        report.notes.append(
            "config.json has problem_type=multi_label_classification: its classes do not exclude"
            " each other, and the probabilities of predict, which add up to 1, do"
        )
    return task


def class_names(config: Mapping[str, Any], count: int | None) -> tuple[str, ...]:
    """Return the names of `id2label` of a `config.json`, where it has one for each class."""
    table = config.get("id2label")
    if count is None or not isinstance(table, dict):
        return ()
    # a module's own configuration has numbers, what was JSON has texts
    names = tuple(str(table.get(str(i)) or table.get(i) or "") for i in range(count))
    return names if all(names) and len(set(names)) == count else ()


def tokenizer_files(engine: ModelEngine) -> dict[str, bytes]:
    """Return the files of an engine's tokenizer that transformers' `AutoTokenizer` reads."""
    content = engine.spec.tokenizer if engine.spec else None
    if content is None:
        return {}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": engine.config["context_length"],
        **tokenizer_of(content).named_tokens,
    }
    return {
        "tokenizer.json": content.encode(),
        "tokenizer_config.json": json.dumps(settings, indent=2).encode(),
    }
