"""Texts as samples: language modelling, masked language modelling, classification.

A text is tokenised once (`TokenStore`). What is random in a sample is a function of (seed, epoch,
index); see `TextDataset.evaluation_view` for samples without randomness.

Shapes: B batch, T tokens of the longest sample of the batch.
"""

import copy
import os
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from deepseek.datasets.cache_folder import cache_folder
from deepseek.datasets.padding import fits_closely, pad_rows
from deepseek.datasets.randomness import current_epoch, permutation
from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.datasets.text_arguments import (
    PADDED_TASKS,
    WHOLE_TASKS,
    Masking,
    Padding,
    TextTask,
    check_arguments,
    make_options,
)
from deepseek.datasets.text_options import Column, DocumentPer
from deepseek.datasets.text_samples import (
    LabelledTexts,
    MaskedTexts,
    PackedTokens,
    Rows,
    Samples,
)
from deepseek.datasets.text_source import TextSource
from deepseek.datasets.token_masking import SHARE, TokenMasking
from deepseek.datasets.token_store import IGNORE_INDEX, TokenStore, open_store
from deepseek.datasets.tokenizer import Tokenizer
from deepseek.datasets.tokenizer_choice import choose_tokenizer
from deepseek.datasets.tokenizer_growth import reserved_tokens
from deepseek.errors import ConfigError, DataError


class TextDataset(torch.utils.data.Dataset):
    """Texts, as a task needs them.

    Args:
        path: what is there is detected: a `.txt`, `.jsonl`, `.csv`, `.tsv`, `.parquet` or `.conll`
            file; a folder of files of one kind, or a pattern such as `part-*.jsonl`; for
            classification a folder with a folder of `.txt` files for each class; or a data set
            saved by Hugging Face's `save_to_disk`. Or, without labels, a list of texts.
        task: "language_modelling", "masked_language_modelling", "sequence_classification",
            "sequence_regression" (a number for each text) or "token_classification".
        tokenizer: a `Tokenizer`; the path of one (`load_tokenizer`); "characters", those of these
            texts; or "bpe" or "wordpiece", trained on these texts.
        sequence_length: tokens of a sample at most; of a language model's exactly.
        text_column: of tables, by name, or by number from 0 where there is no header; "text", or
            "tokens" for token classification.
        label_column: likewise; "label", or "ner_tags".
        pair_column: with the second sentence, where a class or a number is of two; the token that
            ends a text stands between them, and those behind it are of type 1 in an `Encoder`.
        class_names: forces the classes and their order; by default they come from the data.
        document_per: what a document is in a `.txt` file: the "file", a "paragraph" (up to an empty
            line) or a "line"; "auto": the file for a language model, else the line.
        label_separator: what stands before the label at the end of each line of a `.txt` file.
        encoding: of `.txt`, `.csv`, `.tsv` and `.conll` files.
        attend_across_documents: language modelling: whether a token sees the documents before its
            own in the same row.
        random_offset: language modelling: cut the row elsewhere in each epoch.
        masking: masked language modelling: hide single "tokens", whole "words", or "spans" of them.
        mask_share: masked language modelling: share of the tokens that is to be found, in (0, 1).
        packed: masked language modelling: let samples run over the ends of texts, so that each is
            full; else a sample is of one text.
        padding: "batch": up to the longest sample of a batch, which is made of samples of similar
            length; "sequence_length": all alike, as a static graph or a pipeline needs.
        vocab_size: tokens at most, where a tokenizer is trained.
        seed: of hidden tokens and offsets.
        cache: where tokens are kept: "auto" (the user's cache folder, or `DEEPSEEK_CACHE`), a
            folder, or "off".

    Raises:
        DataError: there is no text, a label fits no class, or the tokenizer lacks a token.
        ConfigError: an argument is out of its range, or not of this task.
    """

    is_light = True

    def __init__(
        self,
        path: str | os.PathLike | Sequence[str],
        task: str = "language_modelling",
        *,
        tokenizer: Tokenizer | str | os.PathLike,
        sequence_length: int = 256,
        text_column: Column | None = None,
        label_column: Column | None = None,
        pair_column: Column | None = None,
        class_names: Sequence[str] | None = None,
        document_per: DocumentPer | str = "auto",
        label_separator: str | None = None,
        encoding: str = "utf-8",
        attend_across_documents: bool = True,
        random_offset: bool = True,
        masking: Masking | str = "tokens",
        mask_share: float = SHARE,
        packed: bool = False,
        padding: Padding | str = "batch",
        vocab_size: int = 8192,
        seed: int = 0,
        cache: str | os.PathLike = "auto",
    ) -> None:
        check_arguments(
            task, sequence_length, document_per, padding,
            attend_across_documents=attend_across_documents, masking=masking,
            mask_share=mask_share, packed=packed, label_column=label_column,
            pair_column=pair_column, class_names=class_names,
        )  # fmt: skip
        self.task = cast(TextTask, task)
        self.sequence_length = sequence_length
        self.seed = seed
        options = make_options(
            self.task, text_column, label_column, document_per, label_separator, encoding,
            pair_column,
        )  # fmt: skip
        self._source = TextSource(path, options)
        self.tokenizer = choose_tokenizer(
            tokenizer, self._source, options, vocab_size, cache_folder(cache, "tokens"),
            keeps_apart=not attend_across_documents,
        )  # fmt: skip
        self._separator = None if pair_column is None else self.tokenizer.separator_token
        self._options, self._class_names, self._cache = options, class_names, cache
        self._attends_across = attend_across_documents
        self._padding, self._packed = padding, packed
        self._fits_closely = fits_closely()
        self._masking, self._mask_share = masking, mask_share
        self._random_offset = random_offset
        self._is_part = self._is_fixed = False
        self._take_texts()

    def _take_texts(self) -> None:
        self._store = open_store(
            self._source, self.tokenizer, self._options, self._class_names, self._cache,
            self._document_token(),
        )  # fmt: skip
        _check_tokens(self._store, self.tokenizer)
        self._samples = self._make_samples()
        self.spec = self._make_spec()

    def _make_samples(self) -> Samples:
        store, tokenizer, length = self._store, self.tokenizer, self.sequence_length
        if self.task == "language_modelling":
            return PackedTokens(store.tokens, length, self._random_offset, self._source.path)
        tokenizer.require("pad", "fills sequences up")
        if self.task == "masked_language_modelling":
            special = np.array(tokenizer.special_tokens, np.int64)
            no_text = np.union1d(special, reserved_tokens(tokenizer))
            masking = TokenMasking(
                tokenizer.require("mask", "hides the tokens to be found"),
                np.setdiff1d(np.arange(tokenizer.vocab_size), no_text),
                None if self._masking == "tokens" else tokenizer.continues_word,
                self._mask_share,
                in_spans=self._masking == "spans",
                special_tokens=special if self._packed else None,
            )
            make = MaskedTexts.pack if self._packed else MaskedTexts.cut
            return make(store, length, tokenizer.frame, masking, self._source.path)
        per_token = self.task == "token_classification"
        return LabelledTexts(store, length, tokenizer.frame, per_token, separator=self._separator)

    def _document_token(self) -> int | None:
        """Return what stands before each document of a language model."""
        if self._packed:
            return self.tokenizer.require("document", "packed=True puts between texts")
        if self.task != "language_modelling":
            return None
        if not self._attends_across:
            return self.tokenizer.require("document", "attend_across_documents=False needs")
        return self.tokenizer.document_token

    # -- what the set holds ------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._samples)

    def __repr__(self) -> str:
        return (
            f"TextDataset({self._source.path!r}: {self._source.layout}, {self.task},"
            f" {len(self)} samples of up to {self.sequence_length} tokens,"
            f" {self.tokenizer.vocab_size} in the vocabulary)"
        )

    @property
    def layout(self) -> str:
        """What the path was taken for: ".txt files", "class folders of text", ..."""
        return self._source.layout

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of class 0, 1, ...; for language models the vocabulary."""
        if self.task in ("language_modelling", "masked_language_modelling"):
            return self.tokenizer.vocabulary
        return self._store.class_names

    @property
    def lengths(self) -> np.ndarray | None:
        """Tokens of each sample, int64 (N,), where batches are made by length; else `None`."""
        return self._samples.lengths if self._padding == "batch" else None

    @property
    def targets(self) -> np.ndarray:
        """Class of each sample, int64 (N,), where there is one for each; else zeros."""
        return self._samples.classes()

    def text(self, index: int) -> str:
        """Return the text of a sample, as the tokenizer sees it."""
        return self.tokenizer.decode(self._samples.tokens(self._check_index(index)))

    def _make_spec(self) -> DataSpec:
        sequence = FieldSpec((self.sequence_length,), "int64")
        target = FieldSpec((), "float32" if self.task == "sequence_regression" else "int64")
        return DataSpec(
            task=self.task,
            fields={
                "inputs": sequence,
                "targets": target if self.task in WHOLE_TASKS else sequence,
            },
            class_names=self.class_names,
            class_counts=tuple(self._samples.count_classes(len(self.class_names)).tolist()),
            tokenizer=self.tokenizer.to_json(),
            pad_token=self.tokenizer.pad_token if self.task in PADDED_TASKS else None,
            document_token=None if self._attends_across else self._document_token(),
            separator_token=self._separator,
        )

    # -- samples -----------------------------------------------------------------------------

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        batch, _ = self.get_batch([self._check_index(index)], current_epoch())
        return {"inputs": batch["inputs"][0], "targets": batch["targets"][0]}

    def get_batch(
        self, indices: Sequence[int], epoch: int
    ) -> tuple[dict[str, Tensor], list[tuple[int, str]]]:
        """Return `inputs` (B, T), `targets` (B, T) or (B,), and `index` (B,); none is ever bad."""
        positions = np.array([self._check_index(index) for index in indices], np.int64)
        inputs, targets = self._samples.get(positions, self.seed, epoch)
        pad = self.tokenizer.pad_token or 0
        batch = {
            "inputs": self._to_tensor(inputs, pad),
            "targets": self._to_tensor(targets, IGNORE_INDEX),
            "index": torch.from_numpy(positions),
        }
        return batch, []

    def _to_tensor(self, rows: Rows, fill: int) -> Tensor:
        if not isinstance(rows, list):
            return torch.from_numpy(rows)
        return pad_rows(
            rows, self.sequence_length, fill, to_length=self._padding == "sequence_length",
            closely=self._fits_closely,
        )  # fmt: skip

    # -- views -------------------------------------------------------------------------------

    def evaluation_view(self) -> "TextDataset":
        """Return the same texts without what is drawn anew each epoch: offsets, hidden tokens."""
        view = copy.copy(self)
        view._is_fixed = True
        view._samples = self._samples.fixed()
        view.spec = view._make_spec()
        return view

    def check_tokenizer_may_change(self) -> None:
        """Refuse what cannot have another tokenizer.

        Raises:
            ConfigError: this is a part that `split` returned: samples end elsewhere, so that the
                parts would no longer be apart.
        """
        if self._is_part:
            raise ConfigError(
                "a part of a split cannot change its tokenizer: samples of one part would come to"
                " lie in the other",
                fix="read training and validation data from paths of their own",
            )

    def with_tokenizer(self, tokenizer: Tokenizer) -> "TextDataset":
        """Return the same texts as tokens of another tokenizer.

        Raises:
            ConfigError: it may not change: `check_tokenizer_may_change`.
        """
        self.check_tokenizer_may_change()
        view = copy.copy(self)
        view.tokenizer = tokenizer
        if self._separator is not None:
            view._separator = tokenizer.separator_token
        view._take_texts()
        return view.evaluation_view() if self._is_fixed else view

    def split(
        self, share: float = 0.1, seed: int | None = None
    ) -> tuple["TextDataset", "TextDataset"]:
        """Return (training, validation) parts, the second as its `evaluation_view`.

        A language model's validation part is the end of the text; else the same share of every
        class is taken, by the seed.

        Args:
            share: for validation, 0..1.
            seed: which texts; the data set's own by default.
        """
        if not 0 < share < 1:
            raise ConfigError(f"share={share} is not between 0 and 1", fix="give a share like 0.1")
        samples = self._samples
        if isinstance(samples, PackedTokens):
            parts = samples.split(share)
        else:
            is_validation = self._draw(share, self.seed if seed is None else seed)
            parts = samples.take(~is_validation), samples.take(is_validation)
            if not all(len(part) for part in parts):
                raise DataError(
                    f"{self._source.path}: splitting {len(self)} texts leaves a part empty",
                    fix="give more texts, or another share",
                )
        return self._part(parts[0]), self._part(parts[1]).evaluation_view()

    def take(self, chosen: np.ndarray) -> "TextDataset":
        """Return some of the samples, by a mask (N,); not those of a language model."""
        return self._part(self._samples.take(chosen))

    def _part(self, samples: Samples) -> "TextDataset":
        view = copy.copy(self)
        view._samples, view._is_part = samples, True
        view.spec = view._make_spec()
        return view

    def _draw(self, share: float, seed: int) -> np.ndarray:
        classes = self._samples.classes()
        chosen = np.zeros(len(classes), bool)
        for number in np.unique(classes).tolist():
            members = np.flatnonzero(classes == number)
            count = min(max(round(share * len(members)), 1), len(members) - 1)
            chosen[members[permutation(len(members), seed, number)[: max(count, 0)]]] = True
        return chosen

    def _check_index(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            # IndexError, not ours: Python's iteration over a sequence ends by it.
            raise IndexError(f"index={index} is outside a data set of {len(self)} samples")
        return int(index) % len(self)


def _check_tokens(store: TokenStore, tokenizer: Tokenizer) -> None:
    for start in range(0, len(store.tokens), 1 << 24):
        highest = int(store.tokens[start : start + (1 << 24)].max())
        if highest >= tokenizer.vocab_size:
            raise DataError(
                f"token {highest} is not of the vocabulary of {tokenizer.vocab_size}",
                fix="remove the cached tokens, or set cache to off",
            )
