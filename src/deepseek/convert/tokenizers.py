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
        report: gets a note on what is left out.
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
    task = "language_modelling"
    if not isinstance(engine.module, Decoder):
        task = _TASKS.get(str(config.get("outputs")), "features")
    sequence = FieldSpec((int(config["context_length"]),), "int64")
    targets = sequence
    if task == "sequence_classification":
        task, targets = _of_whole_texts(source, engine.num_classes, report)
    names = names if task in _LABELLED else ()
    return DataSpec(
        task=task,
        fields={"inputs": sequence, "targets": targets},
        class_names=names,
        class_counts=(0,) * len(names),
        tokenizer=content,
        pad_token=config.get("pad_token"),
    )  # fmt: skip


def _of_whole_texts(
    source: Source, num_outputs: int | None, report: Report
) -> tuple[str, FieldSpec]:
    """Return the task of a head over whole texts, as transformers takes it, and its targets."""
    problem = source.config.get("problem_type")
    if problem == "regression" or num_outputs == 1:
        shape = () if num_outputs in (None, 1) else (num_outputs,)
        return "sequence_regression", FieldSpec(shape, "float32")
    if problem == "multi_label_classification":
        report.notes.append(
            "problem_type=multi_label_classification: its classes do not exclude each other, and in"
            " the probabilities that `predict` gives they do: they sum to 1"
        )
    return "sequence_classification", FieldSpec((), "int64")


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
