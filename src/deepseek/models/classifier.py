"""The interface of our own architectures: what engine, file and trainer need beside `forward`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from deepseek.models.hints import ParallelHints


class Classifier(nn.Module, ABC):
    """An architecture that turns images or tokens into logits, built with or without a head.

    A subclass is a plain single-device module: it knows nothing of devices, ranks or training.

    Attributes:
        makes_logits: whether there are classes; without, the outputs are features, and
            `num_classes` stays `None`.
    """

    makes_logits = True

    @property
    @abstractmethod
    def config(self) -> dict:
        """The constructor's arguments, JSON-able."""

    @property
    @abstractmethod
    def hints(self) -> ParallelHints:
        """What the parts are for; the last name in `hints.head`, if any, makes the logits."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int | None, ...]:
        """Channels, height and width (pixels) of one image, or tokens; `None`: any size."""

    @property
    def outputs_beside(self) -> int:
        """Outputs of the head that are no class, such as a size."""
        return 0

    @abstractmethod
    def bind_classes(self, num_classes: int) -> None:
        """Build a head for `num_classes`, in place of one that is there."""


class BlockModel(Classifier):
    """A classifier that is a row of blocks, which a pipeline may cut between any two.

    `forward` is `classify(blocks(embed(inputs)))`, where every block takes `beside(inputs)` too.

    Attributes:
        keeps_tokens: whether there are logits for every token, and `classify` treats each alone.
        is_causal: whether tokens attend to those before them only.
        token_arguments: names in `beside` of what goes with the tokens of the stream, (B, T, ...).
        divides_tokens: whether this rank has some of the tokens between the blocks; set by what
            divides them.
    """

    blocks: nn.ModuleList
    keeps_tokens = False
    is_causal = False
    token_arguments: tuple[str, ...] = ()
    divides_tokens = False

    @abstractmethod
    def embed(self, inputs: Tensor) -> Tensor:
        """Return what the first block takes, (B, T, D).

        Raises:
            ConfigError: the inputs do not fit.
        """

    def count_tokens(self, inputs: Tensor) -> int:
        """Return T, the tokens of a sample in the blocks."""
        return inputs.shape[1]

    def beside(self, inputs: Tensor) -> Mapping[str, Tensor]:
        """Return what every block takes beside the stream, by the name of the argument."""
        del inputs
        return {}

    def beside_in(self, block: nn.Module) -> Mapping[str, object]:
        """Return what one block takes beside that."""
        del block
        return {}

    @abstractmethod
    def classify(self, x: Tensor) -> Tensor:
        """Return the logits of what the last block returns, (B, T, D).

        Raises:
            ConfigError: the model has no head yet.
        """

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits."""
        x, beside = self.embed(inputs), self.beside(inputs)
        for block in self.blocks:
            x = block(x, **beside, **self.beside_in(block))
        return self.classify(x)
