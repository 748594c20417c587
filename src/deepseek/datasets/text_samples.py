"""What one sample is, for each task over texts: a piece of a row, or a text with what is around it.

Shapes: B samples, T tokens.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np
from typing_extensions import override

from deepseek.datasets.padding import Frame, put_in_frame
from deepseek.datasets.randomness import Draws
from deepseek.datasets.token_masking import TokenMasking
from deepseek.datasets.token_store import IGNORE_INDEX, TokenStore
from deepseek.errors import DataError

Rows = np.ndarray | list[np.ndarray]
_COUNTED_AT_ONCE = 1 << 24


class Samples(ABC):
    """Samples by number."""

    @property
    def lengths(self) -> np.ndarray | None:
        """Tokens of each sample, or `None` where all have as many."""
        return None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def get(self, positions: np.ndarray, seed: int, epoch: int) -> tuple[Rows, Rows]:
        """Return inputs and targets, int64; lists where lengths differ."""

    @abstractmethod
    def tokens(self, position: int) -> np.ndarray:
        """Return the tokens of a sample as they stand in the text."""

    @abstractmethod
    def count_classes(self, num_classes: int) -> np.ndarray:
        """Return how often each class is the target, int64 (C,)."""

    def classes(self) -> np.ndarray:
        """Return the class by which a split is even, int64 (N,)."""
        return np.zeros(len(self), np.int64)

    def fixed(self) -> "Samples":
        """Return the same samples, the same in every epoch."""
        return self

    def take(self, chosen: np.ndarray) -> "Samples":
        """Return a part of the samples, by a mask (N,)."""
        raise TypeError(f"{type(self).__name__} is not made of samples that can be chosen")


@dataclass(frozen=True)
class PackedTokens(Samples):
    """A row of tokens, cut to pieces of one length; the target of a token is the next.

    Attributes:
        row: tokens, (N,).
        length: T.
        random_offset: whether the row is cut elsewhere in each epoch.
        path: where the text comes from, for messages.

    Raises:
        DataError: the row does not fill one piece.
    """

    row: np.ndarray
    length: int
    random_offset: bool
    path: str

    def __post_init__(self) -> None:
        if len(self.row) <= self.length:
            raise DataError(
                f"{self.path}: {len(self.row)} tokens do not fill one sequence of {self.length} and"
                " its next token",
                fix="give more text, or a smaller sequence_length",
            )

    @property
    def _has_offset(self) -> bool:
        # one piece alone could not move
        return self.random_offset and len(self.row) >= 3 * self.length

    @override
    def __len__(self) -> int:
        room = self.length - 1 if self._has_offset else 0
        return (len(self.row) - 1 - room) // self.length

    @override
    def get(self, positions: np.ndarray, seed: int, epoch: int) -> tuple[Rows, Rows]:
        offset = Draws(seed, epoch).integer(0, self.length - 1) if self._has_offset else 0
        starts = positions * self.length + offset
        pieces = np.stack([self.row[start : start + self.length + 1] for start in starts.tolist()])
        pieces = pieces.astype(np.int64)
        return pieces[:, :-1].copy(), pieces[:, 1:].copy()

    @override
    def tokens(self, position: int) -> np.ndarray:
        return self.row[position * self.length : (position + 1) * self.length]

    @override
    def count_classes(self, num_classes: int) -> np.ndarray:
        counts = np.zeros(num_classes, np.int64)
        for start in range(0, len(self.row), _COUNTED_AT_ONCE):
            part = self.row[start : start + _COUNTED_AT_ONCE]
            counts += np.bincount(part, minlength=num_classes)
        return counts

    @override
    def fixed(self) -> "PackedTokens":
        return replace(self, random_offset=False)

    def split(self, share: float) -> tuple["PackedTokens", "PackedTokens"]:
        """Return all but the last share of the row, and the last share."""
        end = round(len(self.row) * (1 - share))
        return replace(self, row=self.row[:end]), replace(self, row=self.row[end:])


@dataclass(frozen=True)
class MaskedTexts(Samples):
    """Pieces of texts with some tokens hidden, which are the targets.

    Attributes:
        store: the texts.
        begins, ends: of each piece in the row of tokens, int64 (N,).
        frame: tokens before and after each piece.
        masking: hides tokens.
        draws_anew: whether other tokens are hidden in each epoch.
    """

    store: TokenStore
    begins: np.ndarray
    ends: np.ndarray
    frame: Frame
    masking: TokenMasking
    draws_anew: bool = True

    @classmethod
    def cut(
        cls, store: TokenStore, length: int, frame: Frame, masking: TokenMasking, path: str
    ) -> "MaskedTexts":
        """Cut every text to pieces that fit `length` with the frame."""
        room = length - len(frame[0]) - len(frame[1])
        counts = -(-store.lengths // room)
        if counts.sum() == 0:
            raise DataError(f"{path} holds no text", fix="check the path")
        first = np.repeat(np.cumsum(counts) - counts, counts)
        begins = np.repeat(store.starts[:-1], counts)
        begins = begins + (np.arange(len(begins)) - first) * room
        ends = np.minimum(begins + room, np.repeat(store.starts[1:], counts))
        return cls(store, begins, ends, frame, masking)

    @classmethod
    def pack(
        cls, store: TokenStore, length: int, frame: Frame, masking: TokenMasking, path: str
    ) -> "MaskedTexts":
        """Cut the row of all texts to pieces that fill `length` with the frame."""
        room = length - len(frame[0]) - len(frame[1])
        count = len(store.tokens) // room
        if count == 0:
            raise DataError(
                f"{path}: {len(store.tokens)} tokens do not fill one sequence of {length}",
                fix="give more text, a smaller sequence_length, or packed=False",
            )
        begins = np.arange(count, dtype=np.int64) * room
        return cls(store, begins, begins + room, frame, masking)

    @property
    @override
    def lengths(self) -> np.ndarray:
        return self.ends - self.begins + sum(map(len, self.frame))

    @override
    def __len__(self) -> int:
        return len(self.begins)

    @override
    def get(self, positions: np.ndarray, seed: int, epoch: int) -> tuple[Rows, Rows]:
        inputs, targets = [], []
        for position in positions.tolist():
            where = (seed, epoch if self.draws_anew else 0, int(self.begins[position]))
            hidden, found = self.masking.hide(self.tokens(position).astype(np.int64), where)
            inputs.append(put_in_frame(hidden, self.frame))
            targets.append(put_in_frame(found, self.frame, IGNORE_INDEX))
        return inputs, targets

    @override
    def tokens(self, position: int) -> np.ndarray:
        return self.store.tokens[self.begins[position] : self.ends[position]]

    @override
    def count_classes(self, num_classes: int) -> np.ndarray:
        counts = np.zeros(num_classes, np.int64)
        for begin, end in zip(self.begins.tolist(), self.ends.tolist(), strict=True):
            np.add.at(counts, self.store.tokens[begin:end], 1)
        return counts

    @override
    def fixed(self) -> "MaskedTexts":
        return replace(self, draws_anew=False)

    @override
    def take(self, chosen: np.ndarray) -> "MaskedTexts":
        return replace(self, begins=self.begins[chosen], ends=self.ends[chosen])


class LabelledTexts(Samples):
    """Texts with a class each, or one for each token; too long ones lose their end.

    Args:
        store: the texts and labels.
        length: tokens at most, the frame's too.
        frame: tokens before and after each text.
        per_token: whether labels are of tokens.
        rows: numbers of the texts; all by default.
        separator: the token between two sentences, of which the longer loses its end; `None`: a
            text is one.
    """

    def __init__(
        self, store: TokenStore, length: int, frame: Frame, per_token: bool,
        rows: np.ndarray | None = None, separator: int | None = None,
    ) -> None:  # fmt: skip
        self._store, self._length, self._frame = store, length, frame
        self._separator = separator
        self._per_token = per_token
        self._room = length - len(frame[0]) - len(frame[1])
        self._rows = np.arange(len(store)) if rows is None else rows

    @property
    @override
    def lengths(self) -> np.ndarray:
        whole = self._store.lengths[self._rows]
        return np.minimum(whole, self._room) + sum(map(len, self._frame))

    @override
    def __len__(self) -> int:
        return len(self._rows)

    @override
    def get(self, positions: np.ndarray, seed: int, epoch: int) -> tuple[Rows, Rows]:
        inputs = [
            put_in_frame(self.tokens(position), self._frame) for position in positions.tolist()
        ]
        if not self._per_token:
            labels = self._store.labels[self._rows[positions]]
            return inputs, labels.astype(np.float32) if self._has_numbers else labels
        targets = [
            put_in_frame(self._store.labels[self._span(position)], self._frame, IGNORE_INDEX)
            for position in positions.tolist()
        ]
        return inputs, targets

    @override
    def tokens(self, position: int) -> np.ndarray:
        if self._separator is None:
            return self._store.tokens[self._span(position)]
        row = self._rows[position]
        whole = self._store.tokens[slice(*self._store.starts[row : row + 2].tolist())]
        return cut_pair(whole, self._separator, self._room)

    @property
    def _has_numbers(self) -> bool:
        return self._store.labels.dtype == np.float64

    @override
    def count_classes(self, num_classes: int) -> np.ndarray:
        if self._has_numbers:
            return np.zeros(num_classes, np.int64)
        if not self._per_token:
            return np.bincount(self.classes(), minlength=num_classes)
        counts = np.zeros(num_classes, np.int64)
        for position in range(len(self)):
            labels = self._store.labels[self._span(position)]
            np.add.at(counts, labels[labels != IGNORE_INDEX], 1)
        return counts

    @override
    def classes(self) -> np.ndarray:
        is_even = self._per_token or self._has_numbers
        return super().classes() if is_even else self._store.labels[self._rows]

    @override
    def take(self, chosen: np.ndarray) -> "LabelledTexts":
        rows = self._rows[chosen]
        return LabelledTexts(
            self._store, self._length, self._frame, self._per_token, rows, self._separator
        )

    def _span(self, position: int) -> slice:
        row = self._rows[position]
        start, end = self._store.starts[row : row + 2].tolist()
        return slice(start, min(end, start + self._room))


def cut_pair(tokens: np.ndarray, separator: int, room: int) -> np.ndarray:
    """Return two sentences and the token between them within `room`: the longer loses its end."""
    if len(tokens) <= room:
        return tokens
    first = int((tokens == separator).argmax())
    second = len(tokens) - first - 1
    left = room - 1
    keeps = max(left - second, min(first, -(-left // 2)))
    return np.concatenate([tokens[:keeps], tokens[first : first + 1 + left - keeps]])
