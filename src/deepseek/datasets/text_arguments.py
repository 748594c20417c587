"""The arguments of `TextDataset`: what may be given, and with which task."""

from collections.abc import Sequence
from typing import Literal, cast, get_args

from deepseek.datasets.text_options import Column, DocumentPer, TextOptions
from deepseek.datasets.token_masking import SHARE
from deepseek.errors import ConfigError
from deepseek.registry import did_you_mean

TextTask = Literal[
    "language_modelling",
    "masked_language_modelling",
    "sequence_classification",
    "sequence_regression",
    "token_classification",
]
Padding = Literal["batch", "sequence_length"]
Masking = Literal["tokens", "words", "spans"]
PADDED_TASKS = frozenset(get_args(TextTask)) - {"language_modelling"}
WHOLE_TASKS = frozenset({"sequence_classification", "sequence_regression"})
LABELLED_TASKS = WHOLE_TASKS | {"token_classification"}


def check_arguments(
    task: str,
    sequence_length: int,
    document_per: str,
    padding: str,
    *,
    attend_across_documents: bool,
    masking: str,
    mask_share: float,
    packed: bool,
    label_column: Column | None,
    pair_column: Column | None,
    class_names: Sequence[str] | None,
) -> None:
    """Check the arguments, all at once.

    Raises:
        ConfigError: one is out of its range, or would be ignored.
    """
    if task not in get_args(TextTask):
        raise ConfigError(
            f"task={task!r} is not known for text", fix=did_you_mean(task, get_args(TextTask))
        )
    problems = []
    smallest = 1 if task == "language_modelling" else 8
    if sequence_length < smallest:
        problems.append(f"sequence_length={sequence_length!r} is not >= {smallest}")
    if document_per not in ("auto", *get_args(DocumentPer)):
        problems.append(f"document_per={document_per!r} is none of auto, file, paragraph, line")
    if padding not in get_args(Padding):
        problems.append(f"padding={padding!r} is neither batch nor sequence_length")
    if not attend_across_documents and task != "language_modelling":
        problems.append(f"attend_across_documents=False would be ignored by {task}")
    if masking not in get_args(Masking):
        problems.append(f"masking={masking!r} is none of {', '.join(get_args(Masking))}")
    if not 0 < mask_share < 1:
        problems.append(f"mask_share={mask_share!r} is not between 0 and 1")
    if task != "masked_language_modelling":
        for name, value, default in (
            ("masking", masking, "tokens"),
            ("mask_share", mask_share, SHARE),
            ("packed", packed, False),
        ):
            if value != default:
                problems.append(f"{name}={value!r} would be ignored by {task}")
    given = {"label_column": label_column, "class_names": class_names, "pair_column": pair_column}
    taken = {"label_column"} if task in LABELLED_TASKS else set()
    taken |= {"pair_column"} if task in WHOLE_TASKS else set()
    taken |= {"class_names"} if "classification" in task else set()
    for name, value in given.items():
        if value is not None and name not in taken:
            problems.append(f"{name}={value!r} would be ignored by {task}")
    if problems:
        raise ConfigError("; ".join(problems), fix="correct the arguments of TextDataset")


def make_options(
    task: TextTask,
    text_column: Column | None,
    label_column: Column | None,
    document_per: str,
    label_separator: str | None,
    encoding: str,
    pair_column: Column | None,
) -> TextOptions:
    """Return how files are read for a task."""
    in_words = task == "token_classification"
    if task in LABELLED_TASKS and label_column is None:
        label_column = "ner_tags" if in_words else "label"
    if text_column is None:
        text_column = "tokens" if in_words else "text"
    if document_per == "auto":
        document_per = "file" if task == "language_modelling" else "line"
    return TextOptions(
        text_column, label_column, cast(DocumentPer, document_per), label_separator, encoding,
        in_words, pair_column, task == "sequence_regression",
    )  # fmt: skip
