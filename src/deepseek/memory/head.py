"""The head of a model for tokens, apart from the rest of it.

Shapes: B batch, T tokens, D dim, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from deepseek.models.classifier import BlockModel
from deepseek.models.eval_mode import evaluating
from deepseek.models.pretrained import find_transformers_model


class Head(ABC):
    """What makes logits of each token alone, and a model can do without for a while."""

    @abstractmethod
    def left_out(self) -> AbstractContextManager[None]:
        """Return the context in which the model returns what its head takes, (B, T, D)."""

    @abstractmethod
    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the logits of (B, T, D), left out or not."""

    @abstractmethod
    def modules(self) -> list[nn.Module]:
        """Return the modules whose weights it uses."""

    def parameters(self) -> list[nn.Parameter]:
        """Return its trained weights as they are now, each once."""
        weights = [weight for module in self.modules() for weight in module.parameters()]
        return list({id(weight): weight for weight in weights if weight.requires_grad}.values())


class BlockHead(Head):
    """The head of one of our models.

    Args:
        model: one with logits for every token.
        names: of the modules that `classify` uses.
    """

    def __init__(self, model: BlockModel, names: Sequence[str]) -> None:
        self._model = model
        self._names = tuple(names)

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """See `Head`."""
        self._model.classify = _same  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield
        finally:
            del self._model.classify

    def __call__(self, hidden: Tensor) -> Tensor:
        """See `Head`."""
        return type(self._model).classify(self._model, hidden)

    def modules(self) -> list[nn.Module]:
        """See `Head`."""
        return [self._model.get_submodule(name) for name in self._names]


class PretrainedHead(Head):
    """The last linear of a model of transformers.

    Args:
        owner: the module that it is a part of.
        key: its name there.
    """

    def __init__(self, owner: nn.Module, key: str) -> None:
        self._owner, self._key = owner, key
        self._module = owner.get_submodule(key)
        self._nothing = nn.Identity()  # always the same one: a compiled graph knows it again

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """See `Head`."""
        self._owner._modules[self._key] = self._nothing
        try:
            yield
        finally:
            self._owner._modules[self._key] = self._module

    def __call__(self, hidden: Tensor) -> Tensor:
        """See `Head`."""
        return self._module(hidden)

    def modules(self) -> list[nn.Module]:
        """See `Head`."""
        return [self._module]


def _same(x: Tensor) -> Tensor:
    return x


def find_head(module: nn.Module, names: Sequence[str] = ()) -> Head | None:
    """Return the head of a model that has one for each token, `None` of any other.

    Args:
        module: one of ours, or one that is or holds a model of transformers.
        names: of the modules that `classify` of one of ours uses.
    """
    if isinstance(module, BlockModel):
        return BlockHead(module, names) if module.keeps_tokens else None
    found = find_transformers_model(module)
    head = None if found is None else found[1].get_output_embeddings()
    if head is None:
        return None
    path = next(name for name, each in module.named_modules() if each is head)
    owner, _, key = path.rpartition(".")
    return PretrainedHead(module.get_submodule(owner), key)


@torch.no_grad()
def why_not_apart(module: nn.Module, head: Head) -> str:
    """Return what else happens to logits, in words; empty if the head is the last thing.

    It is tried with three tokens. Of our own models, and without numbers, it is taken for granted.

    Args:
        module: whole, and on one device.
        head: of it.
    """
    if isinstance(head, BlockHead):
        return ""
    weight = next(module.parameters())
    if weight.is_meta or is_fake(weight):
        return ""
    tokens = torch.arange(1, 4, device=weight.device)[None]
    try:
        with evaluating(module):
            whole = module(tokens)
            with head.left_out():
                hidden = module(tokens)
            logits = head(hidden)
    except Exception as error:  # any model may do anything
        return f"its head cannot be left out: {error}"
    if logits.shape == whole.shape and torch.equal(logits.float(), whole.float()):
        return ""
    return "it changes logits behind its head (they are scaled or capped)"
