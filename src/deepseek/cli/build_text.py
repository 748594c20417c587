"""Settings of text -> data sets. Imported by commands when they run: it brings torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepseek.config import TextDataConfig, validate_settings
from deepseek.datasets import DataSpec, TextDataset, Tokenizer
from deepseek.errors import ConfigError

AUTO_VAL_SHARE = 0.1


def build_text(
    config: TextDataConfig, seed: int, tokenizer: Tokenizer | None = None
) -> tuple[TextDataset, TextDataset | None]:
    """Return the training data and the validation data, `None` if there is to be none.

    The validation data have the tokenizer and the classes of the training data.

    Args:
        config: the settings.
        seed: of the run.
        tokenizer: in place of the one that the settings name.

    Raises:
        ConfigError: if the validation data are the training data.
    """
    given = config.tokenizer if tokenizer is None else tokenizer
    train = _dataset(config, config.train, given, seed, config.class_names)
    val = AUTO_VAL_SHARE if config.val == "auto" else config.val
    if val is None:
        return train, None
    if not isinstance(val, str):
        return train.split(val)
    check_apart(config.train, val, "file")
    names = train.class_names if "classification" in config.task else None
    held_back = _dataset(config, val, train.tokenizer, seed, names)
    return train, held_back.evaluation_view()


def check_apart(train: str, val: str, kind: str) -> None:
    """Refuse validation data that are the training data.

    Args:
        train: path of the training data.
        val: path of the validation data.
        kind: what a path is of, in words.

    Raises:
        ConfigError: if they are the same.
    """
    if Path(val).resolve() == Path(train).resolve():
        raise ConfigError(
            f"data.val={val} is data.train: the result would be too good",
            fix=f"give data.val another {kind}, or a share such as 0.1",
        )


def build_text_evaluation(spec: DataSpec, path: str, settings: Sequence[str]) -> TextDataset:
    """Return the data at `path` as a model of text was trained on such.

    Args:
        spec: of the model.
        path: of the data.
        settings: `key=value` of `TextDataConfig`, which say how files are read.

    Raises:
        ConfigError: a setting is unknown, or follows from the model, or the second sentences of a
            model of pairs are not named.
    """
    given: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key in ("task", "tokenizer", "sequence_length", "class_names", "train"):
            raise ConfigError(
                f"{setting} is no setting of how text is read",
                fix="give settings such as label_column=sentiment; the others follow from the"
                " model",
            )
        is_number = value.isdecimal() and key.endswith("_column")
        given[key] = int(value) if is_number else value
    config = validate_settings(
        TextDataConfig,
        {
            **given,
            "train": path,
            "tokenizer": "of the model",
            "task": spec.task,
            "sequence_length": spec.fields["inputs"].shape[0],
        },
    )
    if spec.separator_token is not None and config.pair_column in (None, "auto"):
        raise ConfigError(
            "the model is of two sentences, and pair_column, where the second stand, is not given",
            fix="name that column: pair_column=...",
        )
    if spec.document_token is not None:
        config = config.model_copy(update={"attend_across_documents": False})
    tokenizer = Tokenizer(spec.tokenizer or "", "the tokenizer of the model")
    names = spec.class_names if "classification" in spec.task else None
    return _dataset(config, path, tokenizer, 0, names).evaluation_view()


def _dataset(
    config: TextDataConfig,
    path: str,
    tokenizer: str | Tokenizer,
    seed: int,
    class_names: Sequence[str] | None,
) -> TextDataset:
    return TextDataset(
        path,
        config.task,
        tokenizer=tokenizer,
        sequence_length=config.sequence_length,
        text_column=None if config.text_column == "auto" else config.text_column,
        label_column=None if config.label_column == "auto" else config.label_column,
        pair_column=None if config.pair_column == "auto" else config.pair_column,
        class_names=class_names,
        document_per=config.document_per,
        label_separator=config.label_separator,
        encoding=config.encoding,
        attend_across_documents=config.attend_across_documents,
        random_offset=config.random_offset,
        masking=config.masking,
        mask_share=config.mask_share,
        packed=config.packed,
        padding=config.padding,
        vocab_size=config.vocab_size,
        seed=seed,
        cache=config.cache,
    )
