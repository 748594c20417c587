"""Terms that appear while a model is trained become tokens, at the end of epochs or after steps.

A run keeps one shape: new tokens take places of the vocabulary that stand for nothing yet (BERT's
`[unusedN]`, or those that `grow_vocabulary(..., reserve=N)` laid in). So every checkpoint holds the
same tensors, and the run resumes exactly: what is counted, and the tokenizer, are in the callback's
state. The rows are written between two steps, before the checkpoint of that boundary: this is the
one callback that writes into a model.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepseek.datasets import DataLoader, TextDataset, Tokenizer
from deepseek.datasets.tokenizer_growth import TermCounter, grow_tokenizer, reserved_tokens
from deepseek.errors import ConfigError
from deepseek.finance.token_rows import mean_of_parts
from deepseek.models.vocabulary_rows import fill_rows, vocabulary_rows
from deepseek.trainer.callbacks import Callback

if TYPE_CHECKING:
    from deepseek.trainer.step_values import StepResult
    from deepseek.trainer.trainer import Trainer


class GrowingVocabulary(Callback):
    """Makes tokens of terms that a stream of texts brings, at the end of epochs or after steps.

    The rows begin with the mean of the tokens that stood for the term, the optimizer's state of
    them with zeros. Training and validation data are tokenised anew; losses before and after are
    of other tokens, and cannot be compared.

    Args:
        stream: number of an epoch, or of `every_steps` steps, from 0 -> the texts that came in
            during it. For exact resume a function of the number; a live feed may give what it has.
        max_terms: new tokens at a boundary, at most.
        min_count: how often a term was seen since the run began, at least.
        every_epochs: boundaries are so many epochs apart.
        every_steps: boundaries are so many optimizer steps apart instead, as a run of one long
            epoch needs. What is left of the epoch is then drawn from all of its texts as they are
            tokenised now: in that epoch a text may come again, and another not.
        compounds: as for `grow_vocabulary`.

    Attributes:
        terms: of each boundary, (optimizer steps so far, the new tokens).

    Raises:
        ConfigError: at the beginning of the run: its data are no `TextDataset` whose tokenizer can
            change, it is divided between processes, or its optimizer keeps 8 bits.
    """

    def __init__(
        self,
        stream: Callable[[int], Iterable[str]],
        *,
        max_terms: int = 100,
        min_count: int = 5,
        every_epochs: int = 1,
        every_steps: int | None = None,
        compounds: bool = True,
    ) -> None:
        numbers = {"max_terms": max_terms, "every_epochs": every_epochs, "every_steps": every_steps}
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} is not >= 1", fix="give a positive number")
        if every_steps is not None and every_epochs != 1:
            raise ConfigError(
                f"every_epochs={every_epochs} beside every_steps={every_steps}",
                fix="leave one of them out",
            )
        self._stream, self._every, self._every_steps = stream, every_epochs, every_steps
        self._max_terms, self._min_count = max_terms, min_count
        self._compounds = compounds
        self._counts: dict[str, int] = {}
        self._num_epochs = 0
        self._content: str | None = None
        self._is_full = False
        self.terms: list[tuple[int, list[str]]] = []

    def on_fit_begin(self, trainer: "Trainer") -> None:
        """Check the run; a resumed one takes its tokenizer."""
        if trainer.world.is_distributed:
            raise ConfigError(
                f"GrowingVocabulary with parallel={trainer.plan.describe()}: new rows are written"
                " by one process",
                fix="train on one device, or grow the vocabulary beforehand: grow_vocabulary",
            )
        if trainer.recipe.algorithm == "adamw8bit":
            raise ConfigError(
                "GrowingVocabulary with optimizer='adamw8bit': rows of its state share a scale",
                fix="choose adamw",
            )
        for loader in (trainer.train_loader, trainer.val_loader):
            if loader is not None:
                _text_data(loader).check_tokenizer_may_change()
        vocabulary_rows(trainer.model.module)
        old = _text_data(trainer.train_loader).tokenizer
        TermCounter(old)
        if self._content is not None:
            _take(trainer, Tokenizer(self._content, old.source))

    def on_step_end(self, trainer: "Trainer", result: "StepResult") -> None:
        """Where so many steps are over, count what came in, and let the vocabulary grow."""
        if self._every_steps is not None and trainer.step % self._every_steps == 0:
            self._take_in(trainer, trainer.step // self._every_steps - 1, grows=True)

    def on_epoch_end(self, trainer: "Trainer", record: dict) -> None:
        """Count what came in; where a boundary is due, let the vocabulary grow."""
        if self._every_steps is None:
            self._num_epochs += 1
            grows = self._num_epochs % self._every == 0
            self._take_in(trainer, trainer.train_loader.epoch, grows=grows)

    def _take_in(self, trainer: "Trainer", number: int, *, grows: bool) -> None:
        old = _text_data(trainer.train_loader).tokenizer
        counter = TermCounter(old, self._counts, compounds=self._compounds)
        counter.update(self._stream(number))
        is_last = trainer.assembly.length.is_over(trainer.step)  # nobody would learn the rows
        if grows and not is_last:
            self._grow(trainer, old, counter)
        self._counts = counter.most_common()

    def _grow(self, trainer: "Trainer", old: Tokenizer, counter: TermCounter) -> None:
        found = counter.candidates(self._min_count)[: self._max_terms]
        if not found or self._is_full:
            return
        growth = grow_tokenizer(old, [each.text for each in found], fits_in=old.vocab_size)
        vocabulary = growth.tokenizer.vocabulary
        terms = [vocabulary[token] for token in growth.added]
        if len(terms) < len(found) and not reserved_tokens(growth.tokenizer):
            self._is_full = True
            trainer.warn(
                f"the vocabulary is full: {len(found) - len(terms)} terms have no place (lay more"
                " in: grow_vocabulary(..., reserve=N))"
            )
        if not terms:
            return
        sums, step = mean_of_parts(growth.added), trainer.assembly.step
        fill_rows(trainer.model.module, sums)
        if step.ema is not None:
            fill_rows(step.ema.average.engine.module, sums)
        for weight in vocabulary_rows(trainer.model.module).values():
            forget_rows(step.optimizer, weight, list(growth.added))
        counter.forget(terms)
        self._content = growth.tokenizer.to_json()
        self.terms.append((trainer.step, terms))
        _take(trainer, growth.tokenizer)
        message = f"{len(terms)} new tokens: {', '.join(terms[:8])}"
        trainer.folder.add_event("vocabulary", step=trainer.step, terms=terms, message=message)
        trainer.recorder.console.line(message)

    def state_dict(self) -> dict:
        """Return what was counted, the tokenizer and the terms."""
        return {
            "counts": self._counts,
            "num_epochs": self._num_epochs,
            "tokenizer": self._content,
            "is_full": self._is_full,
            "terms": [[step, terms] for step, terms in self.terms],
        }

    def load_state_dict(self, state: dict) -> None:
        """Take them back."""
        self._counts, self._num_epochs = dict(state["counts"]), state["num_epochs"]
        self._content, self._is_full = state["tokenizer"], state["is_full"]
        self.terms = [(step, list(terms)) for step, terms in state["terms"]]


def forget_rows(optimizer: torch.optim.Optimizer, weight: Tensor, tokens: Sequence[int]) -> None:
    """Set the optimizer's state of rows of a weight to zero."""
    for value in optimizer.state.get(weight, {}).values():
        if isinstance(value, Tensor) and value.ndim and len(value) == len(weight):
            value[list(tokens)] = 0


def _take(trainer: "Trainer", tokenizer: Tokenizer) -> None:
    """Let a run go on with another tokenizer of as many tokens."""
    for loader in (trainer.train_loader, trainer.val_loader):
        if loader is not None:
            loader.exchange(_text_data(loader).with_tokenizer(tokenizer))
    trainer.spec = trainer.train_loader.spec
    for engine in (trainer.model, trainer.trained.engine):
        engine.bind(trainer.spec)


def _text_data(loader: DataLoader) -> TextDataset:
    if not isinstance(loader.dataset, TextDataset):
        raise ConfigError(
            f"GrowingVocabulary needs texts, and the run has a {type(loader.dataset).__name__}",
            fix="train on a TextDataset",
        )
    return loader.dataset
