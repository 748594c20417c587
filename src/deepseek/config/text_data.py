"""The settings of text: where it is, what makes tokens of it, what is learnt from it."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from deepseek.config.data import DataConfig
from deepseek.config.multi_data import MultiDataConfig
from deepseek.config.nodule_data import NoduleDataConfig
from deepseek.config.settings import Auto, Number, Settings, Switch, Whole, unit
from deepseek.config.table_data import TableDataConfig
from deepseek.config.volume_data import VolumeDataConfig

ColumnSetting = Annotated[Whole, Field(ge=0)] | Annotated[str, Field(min_length=1)]


class TextDataConfig(Settings):
    """Training and validation data: text."""

    format: Literal["text"] = "text"
    """Kind of data."""
    train: str = Field(min_length=1)
    """Path of the training data: a file, a folder or a pattern."""
    val: Annotated[Number, Field(gt=0, lt=1)] | Annotated[str, Field(min_length=1)] | None = Field(
        default="auto", json_schema_extra=unit("share of the training data")
    )
    """Validation data: a path, or a share of `train`: the end of a language model's text, else of
    every class. `auto`: 0.1. `null`: none.
    """
    task: Literal[
        "language_modelling",
        "masked_language_modelling",
        "sequence_classification",
        "sequence_regression",
        "token_classification",
    ] = "language_modelling"
    """What is learnt from the text."""
    tokenizer: str = Field(min_length=1)
    """Path of a tokenizer, or one that is made from `train`: `characters`, `bpe`, `wordpiece`."""
    vocab_size: Whole = Field(default=8192, ge=32, json_schema_extra=unit("tokens"))
    """Tokens at most of `bpe` and `wordpiece`."""
    sequence_length: Whole = Field(default=256, ge=1, json_schema_extra=unit("tokens"))
    """Tokens of a sample: at most, or for a language model exactly."""
    text_column: ColumnSetting = "auto"
    """Column with the text, by name, or by number from 0 where there is no header. `auto`: `text`,
    or `tokens` for token classification.
    """
    label_column: ColumnSetting = "auto"
    """Column with the label. `auto`: `label`, or `ner_tags` for token classification."""
    pair_column: ColumnSetting | None = None
    """Column with the second sentence, where a class or a number is of two. `null`: there is none.
    """
    class_names: list[str] | None = None
    """The classes in the order of their numbers. `null`: from the data."""
    document_per: Literal["auto", "file", "paragraph", "line"] = "auto"
    """What a document is in a `.txt` file. `auto`: the file for a language model, else a line."""
    label_separator: str | None = Field(default=None, min_length=1)
    """What stands before the label at the end of each line of a `.txt` file."""
    encoding: str = Field(default="utf-8", min_length=1)
    """Encoding of text files and CSV."""
    attend_across_documents: Switch = True
    """Language modelling: whether a token sees the documents before its own in the same row."""
    random_offset: Switch = True
    """Language modelling: whether the training text is cut elsewhere in each epoch."""
    masking: Literal["tokens", "words", "spans"] = "tokens"
    """Masked language modelling: what is hidden: single tokens, whole words, or spans of words."""
    mask_share: Annotated[Number, Field(gt=0, lt=1)] = 0.15
    """Masked language modelling: share of the tokens that is to be found."""
    packed: Switch = False
    """Masked language modelling: whether samples run over the ends of texts, so that each is full.
    """
    padding: Literal["batch", "sequence_length"] = "batch"
    """How far samples are filled up: to the longest of a batch of similar ones, or all alike."""
    cache: str = Field(default="auto", min_length=1)
    """Where tokens are kept: a folder, `off`, or `auto`: the user's cache folder."""
    num_workers: Annotated[Whole, Field(ge=0)] | Auto = Field(
        default="auto", json_schema_extra=unit("processes")
    )
    """Processes that prepare batches. 0: the training process itself."""


def _format_of(value: Any) -> str:
    given = value.get("format") if isinstance(value, dict) else getattr(value, "format", None)
    known = ("table", "text", "volume", "nodules", "multi")
    return given if given in known else "image"


AnyDataConfig = Annotated[
    Annotated[DataConfig, Tag("image")]
    | Annotated[TextDataConfig, Tag("text")]
    | Annotated[VolumeDataConfig, Tag("volume")]
    | Annotated[NoduleDataConfig, Tag("nodules")]
    | Annotated[MultiDataConfig, Tag("multi")]
    | Annotated[TableDataConfig, Tag("table")],
    Discriminator(_format_of),
]
"""The settings of pictures, or of what else `format` says."""
