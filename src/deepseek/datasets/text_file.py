"""The content of a `.txt` file: decoded with its faults named, and cut to documents."""

import re
from collections.abc import Iterator
from pathlib import Path

from deepseek.datasets.text_options import TextOptions
from deepseek.errors import ConfigError, DataError


def read_documents(file: Path, options: TextOptions) -> Iterator[tuple[str, str]]:
    """Yield the documents of a `.txt` file that are not empty, and their places."""
    content = read_text_file(file, options.encoding)
    if options.document_per == "file":
        if content.strip():
            yield content, str(file)
        return
    if options.document_per == "line":
        for number, line in enumerate(content.split("\n"), 1):
            if line.strip():
                yield line, f"{file}, line {number}"
        return
    line = 1
    for part in re.split(r"(\n[ \t]*(?:\n[ \t]*)+)", content):
        if part.strip():
            yield part.strip("\n"), f"{file}, line {line}"
        line += part.count("\n")


def read_text_file(file: Path, encoding: str) -> str:
    r"""Return a file's text, with `\n` at the end of every line.

    Raises:
        DataError: it cannot be read; names the first byte that is not of the encoding.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror or error}", fix="check the path"
        ) from error
    try:
        text = content.decode("utf-8-sig" if encoding in ("utf-8", "utf8") else encoding)
    except UnicodeDecodeError as error:
        at = error.start
        raise DataError(
            f"{file}, byte {at} (line {content[:at].count(10) + 1}): 0x{content[at]:02x} is not"
            f" {encoding}",
            fix="save the file as UTF-8, or name its encoding: encoding=latin-1",
        ) from error
    except LookupError as error:
        raise ConfigError(
            f"encoding={encoding!r} is unknown", fix='give one such as "utf-8" or "latin-1"'
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_pairs(text: str, whose: str) -> None:
    """Check that a text can be written as UTF-8: JSON may hold half of a surrogate pair.

    Args:
        text: the text.
        whose: where it stands, for messages.

    Raises:
        DataError: it cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{whose} holds half of a surrogate pair, {text[error.start]!r}, which UTF-8 cannot",
            fix="mend the text where it was cut",
        ) from None
