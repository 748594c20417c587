"""New tokens inside a tokenizer's own file: words, tickers, numbers, beginnings of addresses.

A word that the vocabulary cuts to pieces costs `count x (pieces - 1)` tokens of a corpus: that is
what a new token for it saves, and how candidates are ordered (frequency x fragmentation; Hong et
al. 2021, AVocaDo, arXiv 2110.13434, choose by a fragment score, too). They become entries of the
model itself, with merges where it is BPE: tokenising has the speed of any vocabulary. Added tokens,
the library's usual way, are searched for in every text beforehand, which makes it slow.

BERT's rules cut a text at every punctuation mark, so that `$TSLA`, `2.5`, `#fed` and
`https://t.co/` could never be one token. Where such compounds are added, the cutting is written
as one pattern: the compounds that the vocabulary has, else exactly BERT's rules.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heapify, heappop, heappush
from typing import Any

from deepseek.datasets.tokenizer import Tokenizer, is_punctuation
from deepseek.errors import ConfigError
from deepseek.registry import import_extra

RESERVED = re.compile(r"\[unused\d+\]")
"""Places in a vocabulary that stand for nothing yet; BERT's have a thousand."""
MAX_COUNTED = 200_000
_PUNCTUATION = r"\p{P}$+<=>^`|~"
_COMPOUND = re.compile(
    r"https?://[\w.-]+/"
    r"|[$#][^\W\d_]\w*"
    r"|\$?(?<!\w)\d+(?:[.,]\d+)*(?:%|(?!\w))"
    r"|(?<!\w)(?:[^\W\d_]\.){2,}"
)


@dataclass(frozen=True)
class Candidate:
    """A string that could be a token.

    Attributes:
        text: as it would stand in the vocabulary.
        count: how often it was seen; of a word, outside the compounds that come before it.
        parts: the tokens that stand for it now.
        saved: tokens of the corpus that it saves beside the candidates before it.
    """

    text: str
    count: int
    parts: tuple[int, ...]
    saved: int

    @property
    def kind(self) -> str:
        """What it looks like: cashtag, number, address, compound or term."""
        bare = self.text.lstrip("Ġ▁")
        if bare.startswith("http"):
            return "address"
        if any(letter.isdigit() for letter in bare):
            return "number"
        if bare.startswith("$"):
            return "cashtag"
        return "compound" if is_compound(bare) else "term"


@dataclass(frozen=True)
class Growth:
    """A tokenizer that has grown.

    Attributes:
        tokenizer: with the new tokens.
        added: new token -> the tokens of the former vocabulary that stood for it.
        replaced: how many of them took a place that stood for nothing.
    """

    tokenizer: Tokenizer
    added: dict[int, tuple[int, ...]]
    replaced: int


class TermCounter:
    """Counts the strings of texts that could be tokens, and the tokens of the texts.

    Args:
        tokenizer: cuts texts to words.
        counts: of an earlier count, to go on with.
        compounds: WordPiece: count what has punctuation inside, too.

    Raises:
        ConfigError: the tokenizer is neither WordPiece nor BPE, or does not cut texts to words.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        counts: Mapping[str, int] | None = None,
        *,
        compounds: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._content = _read_model(tokenizer)
        self._backend = _library().Tokenizer.from_str(tokenizer.to_json())
        self._finds_compounds = compounds and self._content["model"]["type"] == "WordPiece"
        self.words: Counter[str] = Counter(counts or {})
        self.num_words = self.num_tokens = 0

    def update(self, texts: Iterable[str]) -> None:
        """Count more texts."""
        normalizer, cutter = self._backend.normalizer, self._backend.pre_tokenizer
        compounds: Counter[str] = Counter()
        words: Counter[str] = Counter()
        for text in texts:
            normal = normalizer.normalize_str(text) if normalizer else text
            words.update(word for word, _ in cutter.pre_tokenize_str(normal))
            self.num_words += len(text.split())
            if self._finds_compounds:
                compounds.update(
                    found for word in normal.split() for found in _COMPOUND.findall(word)
                )
        self.num_tokens += sum(n * len(self._cut(word)) for word, n in words.items())
        self.words.update(words)
        self.words.update({text: n for text, n in compounds.items() if is_compound(text)})

    def _cut(self, word: str) -> tuple[int, ...]:
        return tuple(token.id for token in self._backend.model.tokenize(word))

    def candidates(self, min_count: int, max_length: int = 40) -> list[Candidate]:
        """Return the strings of several tokens, those that save most first.

        What a compound took saves nothing more: `marketscreener` counts where it stands without
        the `#` of a `#marketscreener` that is a better candidate.

        Args:
            min_count: how often a string was seen at least.
            max_length: its characters at most.
        """
        found = []
        for text, count in self.words.items():
            if count < min_count or len(text) > max_length:
                continue
            parts = self.parts(text)
            if len(parts) > 1:
                found.append(Candidate(text, count, parts, count * (len(parts) - 1)))
        return self._choose(found, min_count)

    def _choose(self, found: list[Candidate], min_count: int) -> list[Candidate]:
        """Return candidates in the order of what each saves beside those before it."""
        chosen: list[Candidate] = []
        words: set[str] = set()
        covered: Counter[str] = Counter()
        waiting = [(-each.saved, each.text, each) for each in found]
        heapify(waiting)
        while waiting:  # savings only fall: what is first with its own as they are now is the best
            before, text, each = heappop(waiting)
            pieces = self._pieces(text)
            count = each.count - covered[text]
            alone = sum((len(self._cut(p)) - 1) * n for p, n in pieces.items() if p in words)
            saved = count * (len(each.parts) - 1 - alone)
            if saved < -before:
                if saved > 0 and count >= min_count:
                    heappush(waiting, (-saved, text, each))
                continue
            chosen.append(replace(each, count=count, saved=saved))
            words.add(text)
            for piece, number in pieces.items():
                covered[piece] += number * count
        return chosen

    def _pieces(self, text: str) -> Counter[str]:
        """Return the words inside a compound of WordPiece; none of a word."""
        if self._content["model"]["type"] != "WordPiece" or not is_compound(text):
            return Counter()
        return Counter(word for word, _ in self._backend.pre_tokenizer.pre_tokenize_str(text))

    def forget(self, terms: Iterable[str]) -> None:
        """Leave out terms that are tokens now, also from the counts of the words inside them."""
        for term in terms:
            number = self.words.pop(term, 0)
            for piece, times in self._pieces(term).items():
                if piece in self.words:
                    self.words[piece] -= times * number

    def parts(self, text: str) -> tuple[int, ...]:
        """Return the tokens that stand for a string; none if one of them is unknown."""
        pieces = [text]  # BPE: in the letters that stand for bytes already
        if self._content["model"]["type"] == "WordPiece":
            pieces = [piece for piece, _ in self._backend.pre_tokenizer.pre_tokenize_str(text)]
        parts = tuple(number for piece in pieces for number in self._cut(piece))
        return () if self._unknown in parts else parts

    @cached_property
    def _unknown(self) -> int | None:
        name = self._content["model"].get("unk_token")
        return None if name is None else self._content["model"]["vocab"].get(name)

    def most_common(self) -> dict[str, int]:
        """Return the counts, the rarest left out where there are very many; JSON-able."""
        return dict(sorted(self.words.items(), key=lambda each: (-each[1], each[0]))[:MAX_COUNTED])


def reserved_tokens(tokenizer: Tokenizer) -> list[int]:
    """Return the places of the vocabulary that stand for nothing yet."""
    return [n for n, text in enumerate(tokenizer.vocabulary) if RESERVED.fullmatch(text)]


def grow_tokenizer(
    tokenizer: Tokenizer, terms: Sequence[str], *, reserve: int = 0, fits_in: int | None = None
) -> Growth:
    """Return the tokenizer with terms as tokens of their own.

    Places called `[unusedN]` are taken first; further tokens get the numbers after the last.

    Args:
        tokenizer: WordPiece or byte-level BPE; it is not changed.
        terms: as the tokenizer cuts words (`Candidate.text`), the most important first.
        reserve: new places that stand for nothing yet, behind the terms.
        fits_in: tokens at most; terms beyond are left out.

    Raises:
        ConfigError: the tokenizer is neither WordPiece nor BPE, or does not cut texts to words; or
            `reserve` is negative.
    """
    if reserve < 0:
        raise ConfigError(f"reserve={reserve} is below 0", fix="give 0 or more places")
    content = _read_model(tokenizer)
    model = content["model"]
    rows = _Rows(model["vocab"], content.get("added_tokens", ()), fits_in)
    if model["type"] == "WordPiece":
        added = _add_words(tokenizer, content, terms, rows)
    else:
        added = _add_merges(tokenizer, model, terms, rows)
    replaced = rows.replaced
    first = max((int(text[7:-1]) for text in model["vocab"] if RESERVED.fullmatch(text)), default=0)
    for number in range(first + 1, first + 1 + reserve):
        model["vocab"][f"[unused{number}]"] = rows.append()
    return Growth(Tokenizer(json.dumps(content), tokenizer.source), added, replaced)


class _Rows:
    """Numbers for new tokens: free places first, then those behind the last."""

    def __init__(self, vocab: dict[str, int], added: Iterable[Any], fits_in: int | None) -> None:
        self._vocab = vocab
        special = {token["content"] for token in added}
        self._next = max([*vocab.values(), *(token["id"] for token in added), -1]) + 1
        self._free = sorted(
            (number, text)
            for text, number in vocab.items()
            if RESERVED.fullmatch(text) and text not in special
        )[::-1]
        self._fits_in = fits_in
        self.replaced = 0

    def room(self) -> float:
        """Return how many can be had."""
        behind = float("inf") if self._fits_in is None else self._fits_in - self._next
        return len(self._free) + max(behind, 0)

    def take(self) -> int:
        """Return a number for a token."""
        if self._free:
            number, text = self._free.pop()
            del self._vocab[text]
            self.replaced += 1
            return number
        return self.append()

    def append(self) -> int:
        """Return the number behind the last."""
        self._next += 1
        return self._next - 1


def _add_words(
    tokenizer: Tokenizer, content: dict, terms: Sequence[str], rows: _Rows
) -> dict[int, tuple[int, ...]]:
    vocab = content["model"]["vocab"]
    counter = TermCounter(tokenizer)
    added = {}
    for term in terms:
        parts = counter.parts(term)
        if term in vocab or not parts or rows.room() < 1:
            continue
        vocab[term] = rows.take()
        added[vocab[term]] = parts
    compounds = [text for text in vocab if is_compound(text) and not text.startswith("##")]
    special = {token["content"] for token in content.get("added_tokens", ())}
    compounds = [c for c in compounds if c not in special and not RESERVED.fullmatch(c)]
    if compounds:
        _check_cutting(tokenizer, content["pre_tokenizer"])
        content["pre_tokenizer"] = {
            "type": "Split",
            "pattern": {"Regex": compound_pattern(compounds)},
            "behavior": "Removed",
            "invert": True,
        }
    return added


def _check_cutting(tokenizer: Tokenizer, cutter: Mapping | None) -> None:
    kind = None if cutter is None else cutter["type"]
    is_ours = cutter is not None and kind == "Split" and _END in cutter["pattern"].get("Regex", "")
    if kind != "BertPreTokenizer" and not is_ours:
        raise ConfigError(
            f"{tokenizer.source} cuts texts by {kind or 'no rule'}, so that terms with punctuation"
            " cannot become tokens",
            fix="leave them out, or take a tokenizer with BERT's rules",
        )


def _add_merges(
    tokenizer: Tokenizer, model: dict, terms: Sequence[str], rows: _Rows
) -> dict[int, tuple[int, ...]]:
    """Join the pieces of each term from the left; what lies between is a token as well."""
    vocab, merges = model["vocab"], model["merges"]
    is_text = bool(merges) and isinstance(merges[0], str)
    known = {tuple(pair.split(" ")) if is_text else tuple(pair) for pair in merges}
    counter = TermCounter(tokenizer)
    old = tokenizer.vocabulary
    added: dict[int, tuple[int, ...]] = {}
    for term in terms:
        parts = counter.parts(term)
        texts = [old[number] for number in parts]
        joined = ["".join(texts[:end]) for end in range(2, len(texts) + 1)]
        if len(parts) < 2 or joined[-1] != term or term in vocab:
            continue
        if sum(text not in vocab for text in joined) > rows.room():
            continue
        for place, whole in enumerate(joined):
            pair = ("".join(texts[: place + 1]), texts[place + 1])
            if pair not in known:
                known.add(pair)
                merges.append(" ".join(pair) if is_text else list(pair))
            if whole not in vocab:
                vocab[whole] = rows.take()
                added[vocab[whole]] = parts[: place + 2]
    return added


def is_compound(text: str) -> bool:
    """Return whether BERT's rules would cut a string at a mark inside it."""
    return len(text) > 1 and any(map(is_punctuation, text))


_WORD = rf"[^\s{_PUNCTUATION}]+"
_END = rf"|{_WORD}|[{_PUNCTUATION}]"


def compound_pattern(compounds: Sequence[str]) -> str:
    """Return the pattern of what a text is cut to: compounds, else words and single marks.

    A compound that ends in a letter or digit ends where the word does. Words that begin like none
    of the compounds, which are most, are matched first: the search for compounds costs them
    nothing.
    """
    tree: dict[str, dict] = {}
    for text in compounds:
        node = tree
        for letter in text:
            node = node.setdefault(letter, {})
        node[""] = {}
    marks = "".join(sorted(re.escape(first) for first in tree if not first.isalpha()))
    begins: dict[str, str] = {}
    for first in sorted(filter(str.isalpha, tree)):
        seconds = "".join(sorted(map(re.escape, tree[first])))
        begins[seconds] = begins.get(seconds, "") + first
    rare = [f"[{marks}]"] * bool(marks) + [f"[{a}][{b}]" for b, a in begins.items()]
    return (
        rf"(?!{'|'.join(rare)}){_WORD}|(?![{marks or ' '}])[{_PUNCTUATION}]"
        rf"|(?:{_branches(tree, '')}){_END}"
    )


def _branches(node: dict[str, dict], last: str) -> str:
    found = [
        re.escape(letter) + _branches(below, letter)
        for letter, below in sorted(node.items())
        if letter
    ]
    if "" in node:  # the longest first, so the end comes last
        found.append("" if is_punctuation(last) else rf"(?!{_WORD})")
    return found[0] if len(found) == 1 else f"(?:{'|'.join(found)})"


def _read_model(tokenizer: Tokenizer) -> dict:
    content = json.loads(tokenizer.to_json())
    kind = content["model"].get("type")
    if kind not in ("WordPiece", "BPE"):
        raise ConfigError(
            f"{tokenizer.source} is a {kind} tokenizer, whose vocabulary cannot grow",
            fix="take a WordPiece or BPE tokenizer, or train one: train_tokenizer(texts)",
        )
    if content.get("pre_tokenizer") is None:  # as of SentencePiece: a text is one word
        raise ConfigError(
            f"{tokenizer.source} does not cut texts to words, so its vocabulary cannot grow",
            fix="take a tokenizer with a pre_tokenizer, or train one: train_tokenizer(texts)",
        )
    return content


def _library() -> Any:
    return import_extra("tokenizers", "text")
