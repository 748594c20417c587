"""A module in the mode `eval` for as long as it is asked something, and as it was afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

T = TypeVar("T")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Let a module and its parts be in the mode `eval`."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, was_training in modes:  # one by one: frozen batch norms stay in eval
            part.training = was_training


def each_evaluating(module: nn.Module, items: Iterator[T]) -> Iterator[T]:
    """Take items one by one, each in the mode `eval`: the caller has its turn as it was."""
    while True:
        with evaluating(module):
            item = next(items, None)
        if item is None:
            return
        yield item
