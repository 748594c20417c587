"""Tokens of the vocabulary of a text, as far as files tell them without torch."""

import json
from pathlib import Path

from deepseek.config import TextDataConfig

MAX_TEXT_BYTES = 64 * 2**20
"""Of a text whose characters are counted."""
_TRAINED = ("bpe", "wordpiece")
_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")


def find_vocabulary(data: object) -> tuple[int, str]:
    """Return the tokens of the vocabulary, and a note on how they are known.

    Args:
        data: settings of the data of a run; of text, or else nothing is known.

    Returns:
        0 tokens where files do not tell.
    """
    if not isinstance(data, TextDataConfig):
        return 0, ""
    if data.tokenizer in _TRAINED:
        return data.vocab_size, (
            f"a vocabulary of {data.vocab_size:,} tokens, as many as data.vocab_size lets"
            f" {data.tokenizer} make; --vocab-size says otherwise"
        )
    try:
        count = _count_characters(data) if data.tokenizer == "characters" else _count_tokens(data)
    except (OSError, ValueError, KeyError, TypeError):
        return 0, ""  # training says what is wrong with the file
    return count, f"a vocabulary of {count:,} tokens, of data.tokenizer" if count else ""


def _count_characters(data: TextDataConfig) -> int:
    path = Path(data.train).expanduser()
    if path.suffix != ".txt" or path.stat().st_size > MAX_TEXT_BYTES:
        return 0
    return len(set(path.read_text(encoding=data.encoding)))


def _count_tokens(data: TextDataConfig) -> int:
    path = Path(data.tokenizer).expanduser()
    if path.is_dir():
        path = next((path / name for name in _FILES if (path / name).is_file()), path)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        return len(text.splitlines())
    content = json.loads(text)
    if path.name == "vocab.json":
        return max(content.values()) + 1
    entries = content["model"]["vocab"]
    numbers = list(entries.values()) if isinstance(entries, dict) else range(len(entries))
    added = [token["id"] for token in content.get("added_tokens", ())]
    return max([-1, *numbers, *added]) + 1
