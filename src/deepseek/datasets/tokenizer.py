"""Text <-> tokens: Hugging Face `tokenizers`, read from local files, never from code.

A tokenizer is one JSON text, which a data spec and a model file carry. Besides it nothing is read:
no path that a file names, no class of a `tokenizer_config.json`.
"""

import json
import os
import re
import string
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deepseek.datasets.parallel_encoding import encode_in_threads
from deepseek.errors import ConfigError, DataError
from deepseek.registry import import_extra, nearest

if TYPE_CHECKING:
    import tokenizers

MAX_FILE_BYTES = 32 * 2**20
PAD, UNKNOWN, CLASSIFY, SEPARATE, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
END_OF_TEXT, BPE_PAD, BPE_MASK = "<|endoftext|>", "<|pad|>", "<|mask|>"
_ROLES = {
    "pad": (PAD, "<pad>", BPE_PAD),
    "mask": (MASK, "<mask>", BPE_MASK),
    "unk": (UNKNOWN, "<unk>"),
    "cls": (CLASSIFY, "<s>"),
    "sep": (SEPARATE, "</s>"),
    "bos": ("<s>",),
    "eos": (END_OF_TEXT, "</s>", "<|end_of_text|>"),
    "document": (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", SEPARATE),
}
"""What each special token is called by tokenizers that are in use."""
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")
"""Files of a folder that are read, the first that there is."""


class Words(NamedTuple):
    """A sentence that came in words: its tokens, and the number of the word that each is of."""

    tokens: np.ndarray
    words: np.ndarray


class Tokenizer:
    """Turns text into tokens, and back.

    Args:
        content: the JSON text of a `tokenizer.json`.
        source: where it came from, for messages.

    Raises:
        DataError: the text is too long, or no tokenizer.
    """

    def __init__(self, content: str, source: str = "the tokenizer") -> None:
        if len(content) > MAX_FILE_BYTES:
            raise DataError(
                f"{source} has {len(content)} characters, more than the {MAX_FILE_BYTES} that are"
                " read",
                fix="check that it is a tokenizer.json",
            )
        try:
            self._backend: tokenizers.Tokenizer = _library().Tokenizer.from_str(content)
        except Exception as error:  # the library raises nothing narrower
            raise DataError(
                f"{source} is no tokenizer: {str(error)[:200]}",
                fix="give a tokenizer.json of the tokenizers library",
            ) from error
        self.source = source
        # lengths are the data set's to decide
        self._backend.no_padding()
        self._backend.no_truncation()

    def __repr__(self) -> str:
        return f"Tokenizer({self.source!r}: {self.vocab_size} tokens)"

    def __reduce__(self):
        return Tokenizer, (self.to_json(), self.source)

    def to_json(self) -> str:
        """Return the whole tokenizer as text."""
        return self._backend.to_str()

    def save(self, path: str | os.PathLike) -> None:
        """Write a `tokenizer.json`, into `path` if that is a folder."""
        place = Path(path)
        place = place / "tokenizer.json" if place.is_dir() else place
        place.write_text(self.to_json(), encoding="utf-8")

    # -- the vocabulary ----------------------------------------------------------------------

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """The text of token 0, 1, ...; a number that the tokenizer leaves out is `<unused_N>`."""
        numbers = self._backend.get_vocab(with_added_tokens=True)
        by_number = {number: text for text, number in numbers.items()}
        size = max(by_number, default=-1) + 1
        if size > 16 * len(by_number) + 1024:
            raise DataError(
                f"{self.source} gives {len(by_number)} tokens the numbers 0 to {size - 1}",
                fix="get the tokenizer again",
            )
        return tuple(by_number.get(number, f"<unused_{number}>") for number in range(size))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones too."""
        return len(self.vocabulary)

    @cached_property
    def special_tokens(self) -> tuple[int, ...]:
        """Numbers of the tokens that stand for no text."""
        added = self._backend.get_added_tokens_decoder()
        return tuple(sorted(number for number, token in added.items() if token.special))

    @property
    def pad_token(self) -> int | None:
        """The token that fills sequences up."""
        return self._role("pad")

    @property
    def mask_token(self) -> int | None:
        """The token that hides another one."""
        return self._role("mask")

    @property
    def document_token(self) -> int | None:
        """The token between two documents."""
        return self._role("document")

    @property
    def named_tokens(self) -> dict[str, str]:
        """The texts of special tokens by what transformers calls them, `pad_token`, ..."""
        numbers = {role: self._role(role) for role in _ROLES if role != "document"}
        return {
            f"{role}_token": self.vocabulary[number]
            for role, number in numbers.items()
            if number is not None
        }

    def require(self, role: str, why: str) -> int:
        """Return the token for `pad`, `mask` or `document`.

        Raises:
            DataError: there is none.
        """
        number = self._role(role)
        if number is None:
            names = ", ".join(_ROLES[role])
            raise DataError(
                f"{self.source} has no {role} token ({names}), which {why}",
                fix="choose another tokenizer, or train one: train_tokenizer(files)",
            )
        return number

    def _role(self, role: str) -> int | None:
        for name in _ROLES[role]:
            number = self._backend.token_to_id(name)
            if number is not None:
                return number
        return None

    @cached_property
    def continues_word(self) -> np.ndarray:
        """Whether each token of the vocabulary goes on with the word before it, bool (V,)."""
        texts = self.vocabulary
        model = type(self._backend.model).__name__
        if model == "WordPiece":
            return np.array([text.startswith("##") for text in texts])
        found = np.array([not text.startswith(("Ġ", "▁", "Ċ")) for text in texts])
        found[list(self.special_tokens)] = False
        return found

    @cached_property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens that stand before and after a text, such as [CLS] and [SEP]."""
        word = next((text for text in self.vocabulary if text.isalnum()), None)
        if word is None:
            return (), ()
        bare, whole = (
            self._backend.encode(word, add_special_tokens=is_whole).ids
            for is_whole in (False, True)
        )
        start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), len(whole))
        return tuple(whole[:start]), tuple(whole[start + len(bare) :])

    @property
    def separator_token(self) -> int:
        """The token between two sentences: the one that ends a text.

        Raises:
            DataError: there is none.
        """
        if not self.frame[1]:
            raise DataError(
                f"{self.source} puts no token behind a text, and two sentences need one between",
                fix="choose a tokenizer such as WordPiece, which has [SEP]",
            )
        return self.frame[1][-1]

    # -- text -> tokens ----------------------------------------------------------------------

    def encode(self, texts: Sequence[str], *, is_whole: bool = True) -> list[np.ndarray]:
        """Return the tokens of each text, int64.

        Args:
            texts: any number of them; many are encoded by several threads.
            is_whole: put the tokens around each that the tokenizer puts around a text.

        Raises:
            DataError: a text has a character that the vocabulary lacks.
        """
        try:
            return encode_in_threads(self._backend, texts, add_special_tokens=is_whole)
        except Exception as error:  # the library raises nothing narrower
            raise self._explain(texts, error) from error

    def encode_words(self, sentences: Sequence[Sequence[str]]) -> list[Words]:
        """Return the tokens of sentences that are cut to words already, nothing around them."""
        found = []
        for words in sentences:
            text = " ".join(words)
            try:
                encoding = self._backend.encode(text, add_special_tokens=False)
            except Exception as error:
                raise self._explain(words, error) from error
            # by the last letter of a token: its first may be the blank before the word
            word_of = np.repeat(np.arange(len(words)), [len(word) + 1 for word in words])
            ends = np.array([end - 1 for _, end in encoding.offsets], np.int64)
            numbers = word_of[ends] if len(ends) else ends
            found.append(Words(np.array(encoding.ids, np.int64), numbers))
        return found

    def locate(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the tokens of a text, nothing around them, and where each starts and ends in it.

        Raises:
            DataError: the text has a character that the vocabulary lacks.
        """
        try:
            encoding = self._backend.encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises nothing narrower
            raise self._explain([text], error) from error
        return encoding.ids, encoding.offsets

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens; special ones have none."""
        return self._backend.decode([int(token) for token in tokens])

    def _explain(self, texts: Sequence[str], error: Exception) -> DataError:
        known = set(self.vocabulary)
        unknown = sorted({letter for text in texts for letter in text} - known)
        if "UNK" in str(error) and unknown:
            return DataError(
                f"the text has {len(unknown)} characters that are not of the vocabulary:"
                f" {unknown[:8]}",
                fix="make the tokenizer from all texts together, or train one of another kind",
            )
        return DataError(
            f"{self.source} cannot encode a text: {error}", fix="choose another tokenizer"
        )


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Read a tokenizer: a folder, a `tokenizer.json`, or a `vocab.txt` (WordPiece).

    A folder holds `tokenizer.json`; or `vocab.txt`; or `vocab.json` and `merges.txt` (byte-level
    BPE).

    Raises:
        DataError: nothing of the kind is there, or it cannot be read.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        for name in TOKENIZER_FILES:
            if (place / name).is_file():
                return load_tokenizer(place / name)
        raise DataError(
            f"{place} holds neither tokenizer.json, vocab.txt nor vocab.json",
            fix="give the folder of a tokenizer, or its file",
        )
    if place.name.endswith("vocab.txt"):
        return _load_wordpiece(place)
    if place.name == "vocab.json":
        return _load_byte_level(place)
    return Tokenizer(_read(place), str(place))


def make_character_tokenizer(texts: Iterable[str], *, has_documents: bool = False) -> Tokenizer:
    """Return a tokenizer whose tokens are the characters of `texts`, sorted.

    Args:
        texts: all that is to be encoded.
        has_documents: whether there is a token between documents, too; it is then the last.
    """
    library = _library()
    letters = sorted({letter for text in texts for letter in text})
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    backend = library.Tokenizer(library.models.WordLevel(vocabulary, unk_token=UNKNOWN))
    split = library.pre_tokenizers.Split(library.Regex(r"[\s\S]"), "isolated")
    backend.pre_tokenizer = split
    backend.decoder = library.decoders.Fuse()
    if has_documents:
        backend.add_special_tokens([END_OF_TEXT])
    return Tokenizer(backend.to_str(), "the characters of the text")


def train_tokenizer(
    texts: Iterable[str], kind: str = "bpe", vocab_size: int = 8192, *, lowercase: bool = True
) -> Tokenizer:
    """Train a tokenizer on texts.

    Papers: Sennrich et al. 2015, arXiv 1508.07909, on bytes as Radford et al. 2019; WordPiece as
    Devlin et al. 2018, arXiv 1810.04805.

    Args:
        texts: documents, lines or paragraphs. Those of files: `read_texts(path)`.
        kind: "bpe" (byte-level: no text is unknown) or "wordpiece" (BERT's rules and special
            tokens).
        vocab_size: tokens at most; a small text gives fewer.
        lowercase: WordPiece only: fold case and accents.

    Raises:
        ConfigError: the kind is unknown, or the vocabulary too small for it.
    """
    smallest = {"bpe": 259, "wordpiece": 32}
    if kind not in smallest:
        close = nearest(kind, smallest)
        raise ConfigError(
            f"kind={kind!r} is no tokenizer that can be trained",
            fix=f"did you mean {close[0]!r}?" if close else 'give "bpe" or "wordpiece"',
        )
    if vocab_size < smallest[kind]:
        raise ConfigError(
            f"vocab_size={vocab_size} is too small for {kind}: it begins with {smallest[kind]}",
            fix=f"give at least {smallest[kind]}",
        )
    if kind == "wordpiece":
        return _train_wordpiece(texts, vocab_size, lowercase=lowercase)
    library = _library()
    backend = library.Tokenizer(library.models.BPE())
    _dress_byte_level(backend)
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BPE_PAD, END_OF_TEXT, BPE_MASK],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(iter(texts), trainer)
    return Tokenizer(backend.to_str(), "the trained bpe tokenizer")


def _train_wordpiece(texts: Iterable[str], vocab_size: int, *, lowercase: bool) -> Tokenizer:
    library = _library()
    texts = list(texts) if isinstance(texts, Iterator) else texts
    special = [PAD, UNKNOWN, CLASSIFY, SEPARATE, MASK]
    backend = library.Tokenizer(library.models.WordPiece(unk_token=UNKNOWN))
    _dress_wordpiece(backend, 2, 3, lowercase=lowercase)
    letters: set[str] = set()
    for text in texts:
        letters.update(re.findall(r"(?<=\S)\S", backend.normalizer.normalize_str(text)))
    inside = [f"##{letter}" for letter in sorted(letters) if not is_punctuation(letter)]
    trainer = library.trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        # the library numbers letters inside words in the order of a hash table, another one in
        # each run, and breaks ties by number: so they are numbered beforehand
        special_tokens=[*special, *inside],
        show_progress=False,
    )
    backend.train_from_iterator(iter(texts), trainer)
    vocabulary = backend.get_vocab(with_added_tokens=True)
    trained = library.Tokenizer(library.models.WordPiece(vocabulary, unk_token=UNKNOWN))
    _dress_wordpiece(trained, 2, 3, lowercase=lowercase)
    trained.add_special_tokens(special)
    return Tokenizer(trained.to_str(), "the trained wordpiece tokenizer")


def is_punctuation(letter: str) -> bool:
    """Return whether BERT's rules make a word of the letter."""
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")


def _load_wordpiece(path: Path) -> Tokenizer:
    library = _library()
    lines = _read(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    vocabulary = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    missing = [name for name in (UNKNOWN, CLASSIFY, SEPARATE) if name not in vocabulary]
    if missing:
        raise DataError(
            f"{path} lacks {', '.join(missing)}, so it is no vocabulary of BERT's kind",
            fix="give the tokenizer.json of that tokenizer",
        )
    backend = library.Tokenizer(library.models.WordPiece(vocabulary, unk_token=UNKNOWN))
    settings = _read_settings(path.parent)
    special = [name for name in (PAD, UNKNOWN, CLASSIFY, SEPARATE, MASK) if name in vocabulary]
    has_capitals = any(text != text.lower() for text in vocabulary if not text.startswith("["))
    lowercase = settings.get("do_lower_case", not has_capitals)
    strips_accents = settings.get("strip_accents")
    _dress_wordpiece(
        backend, vocabulary[CLASSIFY], vocabulary[SEPARATE], lowercase=bool(lowercase),
        strips_accents=None if strips_accents is None else bool(strips_accents),
        separates_chinese=bool(settings.get("tokenize_chinese_chars", True)),
    )  # fmt: skip
    backend.add_special_tokens(special)
    return Tokenizer(backend.to_str(), str(path))


def _load_byte_level(path: Path) -> Tokenizer:
    library = _library()
    merges = path.with_name("merges.txt")
    try:
        vocabulary = json.loads(_read(path))
        pairs = [
            tuple(line.split(" "))
            for line in _read(merges).splitlines()
            if line and not line.startswith("#version")
        ]
        backend = library.Tokenizer(library.models.BPE(vocabulary, pairs))
    except DataError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise DataError(
            f"{path} and {merges.name} are no byte-level BPE: {str(error)[:200]}",
            fix="give the tokenizer.json of that tokenizer",
        ) from error
    _dress_byte_level(backend)
    special = [name for names in _ROLES.values() for name in names if name in vocabulary]
    backend.add_special_tokens(special)
    return Tokenizer(backend.to_str(), str(path.parent))


def _dress_byte_level(backend: Any) -> None:
    library = _library()
    backend.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = library.decoders.ByteLevel()


def _dress_wordpiece(
    backend: Any,
    classify: int,
    separate: int,
    *,
    lowercase: bool,
    strips_accents: bool | None = None,
    separates_chinese: bool = True,
) -> None:
    """Give BERT's rules; accents go with capitals where `strips_accents` is `None`."""
    library = _library()
    backend.normalizer = library.normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strips_accents, handle_chinese_chars=separates_chinese
    )
    backend.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    backend.post_processor = library.processors.TemplateProcessing(
        single=f"{CLASSIFY} $A {SEPARATE}",
        special_tokens=[(CLASSIFY, classify), (SEPARATE, separate)],
    )
    backend.decoder = library.decoders.WordPiece()


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(
                f"{path} is larger than the {MAX_FILE_BYTES} bytes that are read of a tokenizer",
                fix="check that it is a tokenizer",
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", fix="check the path") from error


def _read_settings(folder: Path) -> dict:
    """Return `tokenizer_config.json`, of which only plain settings are looked at."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(_read(path))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}", fix="get it again") from error
    return found if isinstance(found, dict) else {}


def _library() -> Any:
    return import_extra("tokenizers", "text")
