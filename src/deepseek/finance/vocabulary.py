"""A vocabulary that grows: terms of a corpus become tokens of a trained model.

Which terms: those that save most tokens (`tokenizer_growth`). They are written into the tokenizer
itself, their rows into embedding and output; the model learns nothing here. See `adapt` for that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from torch import nn

from deepseek.datasets import DataSpec, Tokenizer
from deepseek.datasets.tokenizer_growth import (
    Candidate,
    Growth,
    TermCounter,
    grow_tokenizer,
    reserved_tokens,
)
from deepseek.errors import ConfigError
from deepseek.finance.corpus import Corpus, read_corpus
from deepseek.finance.token_rows import as_word, mean_of_parts, read_vectors, similar_tokens
from deepseek.models import ModelEngine
from deepseek.models.text_batches import tokenizer_of
from deepseek.models.vocabulary_rows import count_rows, draw_rows, fill_rows, with_more_rows
from deepseek.registry import did_you_mean

Init = Literal["mean", "distribution", "auxiliary"]
NUM_EXAMPLES = 8


@dataclass(frozen=True)
class Lengths:
    """How long texts are under a tokenizer.

    Attributes:
        tokens_per_word: fertility; words are what blanks divide.
        mean_tokens: of a text.
        p95_tokens: 95 % of the texts have at most as many.
    """

    tokens_per_word: float
    mean_tokens: float
    p95_tokens: float


@dataclass(frozen=True)
class GrownVocabulary:
    """What `grow_vocabulary` returns.

    Attributes:
        engine: the model with the new rows.
        tokenizer: with the new tokens.
        terms: what became tokens, those that save most first.
        before, after: lengths of the texts of the corpus.
        num_in_free_places: tokens that took a place which stood for nothing.
        num_reserved: places that stand for nothing now.
        examples: (text, tokens before, tokens after).
        init: what the rows began with.
        why_fewer: than `max_terms`; empty where there are as many.
    """

    engine: ModelEngine = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    terms: tuple[Candidate, ...] = field(repr=False)
    before: Lengths
    after: Lengths
    num_in_free_places: int
    num_reserved: int
    examples: tuple[tuple[str, str, str], ...] = field(repr=False)
    init: str
    why_fewer: str = ""

    @property
    def saved(self) -> float:
        """By how much sequences are shorter, as a share."""
        return 1 - self.after.mean_tokens / self.before.mean_tokens

    def to_markdown(self) -> str:
        """Return the report."""
        rows = [
            ("tokens per word", "tokens_per_word", ".3f"),
            ("tokens per text, mean", "mean_tokens", ".1f"),
            ("tokens per text, 95 %", "p95_tokens", ".0f"),
        ]
        lines = [
            "# Vocabulary",
            "",
            f"{len(self.terms)} new tokens, {self.num_in_free_places} of them in places that stood"
            f" for nothing; {self.tokenizer.vocab_size} tokens now, {self.num_reserved} of them"
            f" free. Rows begin with: {self.init}. Sequences are {self.saved:.1%} shorter.",
            "",
            *([f"Fewer than asked for: {self.why_fewer}.", ""] if self.why_fewer else []),
            "| | before | after |",
            "|---|---|---|",
        ]
        lines += [
            f"| {title} | {getattr(self.before, name):{form}} |"
            f" {getattr(self.after, name):{form}} |"
            for title, name, form in rows
        ]
        lines += ["", "| term | kind | seen | tokens before |", "|---|---|---|---|"]
        lines += [
            f"| `{_cell(each.text)}` | {each.kind} | {each.count} | {len(each.parts)} |"
            for each in self.terms[:50]
        ]
        lines += ["", "## Examples", ""]
        for text, before, after in self.examples:
            lines += [f"- {_cell(text)}", f"  - before: `{before}`", f"  - after: `{after}`"]
        return "\n".join(lines) + "\n"

    def save(self, folder: str | Path) -> None:
        """Write `model.bin`, `tokenizer.json` and `vocabulary.md`."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        self.engine.save(place / "model.bin")
        self.tokenizer.save(place)
        (place / "vocabulary.md").write_text(self.to_markdown(), encoding="utf-8")


def grow_vocabulary(
    model: nn.Module,
    tokenizer: Tokenizer | None,
    corpus: Corpus,
    *,
    max_terms: int = 1000,
    min_count: int = 5,
    compounds: bool = True,
    init: Init = "mean",
    vectors: str | Path | None = None,
    reserve: int = 0,
    seed: int = 0,
    text_column: str | int = "text",
    document_per: Literal["file", "paragraph", "line"] = "line",
    encoding: str = "utf-8",
) -> GrownVocabulary:
    """Make tokens of the terms of a corpus that a tokenizer cuts to pieces most often.

    Args:
        model: an encoder, a GPT or a Llama, or a `ModelEngine` of one; it is not changed.
        tokenizer: of the model; `None`: the one that it carries.
        corpus: a path as `TextDataset` takes it, or texts.
        max_terms: new tokens at most.
        min_count: how often a term is seen at least.
        compounds: WordPiece: also what has punctuation inside, such as `$TSLA`, `2.5` or
            `https://t.co/`, which BERT's rules cut otherwise.
        init: rows begin with the "mean" of the tokens that stood for the term; drawn from the
            "distribution" of all rows; or from an "auxiliary" space of word vectors.
        vectors: file of word vectors as GloVe's, for `init="auxiliary"`.
        reserve: further places that stand for nothing yet, for terms that appear in training
            (`GrowingVocabulary`).
        seed: of rows that are drawn.
        text_column: of tables.
        document_per: what a text is in a `.txt` file.
        encoding: of `.txt`, `.csv` and `.tsv` files.

    Raises:
        ConfigError: the model or tokenizer cannot grow, or arguments contradict each other.
        DataError: there is no text, or word vectors cannot be read.
    """
    _check(init, vectors, max_terms, min_count)
    engine = ModelEngine.wrap(model)
    old = tokenizer if tokenizer is not None else own_tokenizer(engine)
    known = count_rows(engine)
    if old.vocab_size > known:
        raise ConfigError(
            f"the tokenizer has {old.vocab_size} tokens, the model a place for {known}",
            fix="give the tokenizer that the model was trained with",
        )
    texts = read_corpus(
        corpus, text_column=text_column, document_per=document_per, encoding=encoding
    )
    counter = TermCounter(old, compounds=compounds)
    counter.update(texts)
    wanted = counter.candidates(min_count)[:max_terms]
    growth = grow_tokenizer(old, [each.text for each in wanted], reserve=reserve)
    grown = with_more_rows(engine, max(known, growth.tokenizer.vocab_size))
    begin_rows(grown.module, growth, old, init=init, vectors=vectors, num_known=known, seed=seed)
    if engine.spec is not None and engine.spec.tokenizer is not None:
        grown.bind(renewed_spec(engine.spec, growth.tokenizer))
    vocabulary = growth.tokenizer.vocabulary
    added = {vocabulary[token] for token in growth.added}
    terms = tuple(each for each in wanted if each.text in added)
    return GrownVocabulary(
        grown, growth.tokenizer, terms, measure_lengths(old, texts),
        measure_lengths(growth.tokenizer, texts), growth.replaced,
        len(reserved_tokens(growth.tokenizer)), _examples(old, growth.tokenizer, texts), init,
        _why_fewer(max_terms, len(wanted), len(terms), min_count),
    )  # fmt: skip


def own_tokenizer(engine: ModelEngine) -> Tokenizer:
    """Return the tokenizer that a model carries.

    Raises:
        ConfigError: it carries none.
    """
    if engine.spec is None or engine.spec.tokenizer is None:
        raise ConfigError(
            f"the {engine.architecture!r} carries no tokenizer",
            fix="give the tokenizer that it was trained with: tokenizer=load_tokenizer(path)",
        )
    return tokenizer_of(engine.spec.tokenizer)


def begin_rows(
    module: nn.Module,
    growth: Growth,
    old: Tokenizer,
    *,
    init: Init,
    vectors: str | Path | None,
    num_known: int,
    seed: int,
) -> None:
    """Give the new tokens of a grown tokenizer their first rows."""
    parts = growth.added
    if not parts:
        return
    if init == "distribution":
        draw_rows(module, sorted(parts), num_known, seed)
        return
    sums = mean_of_parts(parts)
    if init == "auxiliary" and vectors is not None:
        everything = (*old.vocabulary, *(growth.tokenizer.vocabulary[token] for token in parts))
        words = {word for text in everything if (word := as_word(text)) is not None}
        sums = similar_tokens(parts, old, growth.tokenizer, read_vectors(vectors, words))
    fill_rows(module, sums)


def renewed_spec(spec: DataSpec, tokenizer: Tokenizer) -> DataSpec:
    """Return a spec with a grown tokenizer; its classes follow where they are tokens."""
    content = tokenizer.to_json()
    if "language_modelling" not in spec.task or not spec.class_names:
        return replace(spec, tokenizer=content)
    names = tokenizer.vocabulary
    counts = (*spec.class_counts, *(0,) * (len(names) - len(spec.class_counts)))
    return replace(spec, tokenizer=content, class_names=names, class_counts=counts)


def measure_lengths(tokenizer: Tokenizer, texts: Sequence[str]) -> Lengths:
    """Return how long texts are under a tokenizer, the tokens around each left out."""
    lengths = np.array([len(tokens) for tokens in tokenizer.encode(texts, is_whole=False)])
    num_words = sum(len(text.split()) for text in texts)
    return Lengths(
        float(lengths.sum() / num_words), float(lengths.mean()), float(np.percentile(lengths, 95))
    )


def _check(init: str, vectors: str | Path | None, max_terms: int, min_count: int) -> None:
    problems = []
    if init not in get_args(Init):
        problems.append(f"init={init!r} is unknown ({did_you_mean(init, get_args(Init))})")
    if (init == "auxiliary") != (vectors is not None):
        problems.append(f"init={init!r} with vectors={vectors!r}: one needs the other")
    for name, value in (("max_terms", max_terms), ("min_count", min_count)):
        if value < 1:
            problems.append(f"{name}={value} is not >= 1")
    if problems:
        raise ConfigError("; ".join(problems), fix="correct the arguments of grow_vocabulary")


def _why_fewer(num_asked: int, num_wanted: int, num_added: int, min_count: int) -> str:
    """Return why there are fewer new tokens than were asked for."""
    reasons = []
    if num_wanted < num_asked:
        reasons.append(
            f"{num_wanted} terms of the corpus are of several tokens and were seen {min_count}"
            " times or more (give more text, or a lower min_count)"
        )
    if num_added < num_wanted:
        reasons.append(
            f"{num_wanted - num_added} cannot be joined from the tokens that stand for them"
        )
    return "; ".join(reasons)


def _examples(
    old: Tokenizer, new: Tokenizer, texts: Sequence[str]
) -> tuple[tuple[str, str, str], ...]:
    """Return short texts that became shorter most."""
    short = [text for text in texts[:2000] if len(text) <= 200]
    before, after = old.encode(short, is_whole=False), new.encode(short, is_whole=False)
    saved = np.array([len(a) - len(b) for a, b in zip(before, after, strict=True)], np.int64)
    chosen = np.argsort(-saved, kind="stable")[:NUM_EXAMPLES].tolist()
    return tuple(
        (short[n], _shown(old, before[n]), _shown(new, after[n])) for n in chosen if saved[n] > 0
    )


def _shown(tokenizer: Tokenizer, tokens: np.ndarray) -> str:
    return " ".join(tokenizer.vocabulary[token] for token in tokens.tolist())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
