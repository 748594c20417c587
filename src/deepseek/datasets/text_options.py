"""What a user says about the content of text files, beside their path."""

from dataclasses import dataclass
from typing import Literal

Column = str | int
DocumentPer = Literal["file", "paragraph", "line"]


@dataclass(frozen=True)
class TextOptions:
    """What the user says about the content, beside its path.

    Attributes:
        text_column: with the text, by name, or by number from 0 in a table without a header.
        label_column: with the label, likewise; `None` where labels are not read.
        document_per: what a document is in a `.txt` file.
        label_separator: what stands before the label at the end of a line of a `.txt` file.
        encoding: of `.txt`, `.csv`, `.tsv` and `.conll` files.
        in_words: whether a text is a list of words, with a label for each.
        pair_column: with the second of two sentences; `None` where a text is one.
        has_numbers: whether a label is a number rather than a class.
    """

    text_column: Column = "text"
    label_column: Column | None = None
    document_per: DocumentPer = "file"
    label_separator: str | None = None
    encoding: str = "utf-8"
    in_words: bool = False
    pair_column: Column | None = None
    has_numbers: bool = False

    @property
    def columns(self) -> dict[str, Column]:
        """The columns in use, by the argument that names them."""
        named = {
            "text_column": self.text_column,
            "label_column": self.label_column,
            "pair_column": self.pair_column,
        }
        return {name: column for name, column in named.items() if column is not None}
