"""The interface of our own architectures: what engine, file and trainer need beside `forward`."""

from abc import ABC, abstractmethod

from torch import nn

from deepseek.models.hints import ParallelHints


class Classifier(nn.Module, ABC):
    """An architecture that turns images or tokens into logits, built with or without a head.

    A subclass is a plain single-device module: it knows nothing of devices, ranks or training.
    """

    @property
    @abstractmethod
    def config(self) -> dict:
        """The constructor's arguments, JSON-able."""

    @property
    @abstractmethod
    def hints(self) -> ParallelHints:
        """What the parts are for; the last name in `hints.head` is the linear that makes logits."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int | None, ...]:
        """Channels, height and width (pixels) of one image, or tokens; `None`: any size."""

    @abstractmethod
    def bind_classes(self, num_classes: int) -> None:
        """Build a head for `num_classes`, in place of one that is there."""
