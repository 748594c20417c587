"""What our decoder-only transformers have in common: a vocabulary, and tokens that see none later.

The vocabulary is padded inside the embedding to a multiple of 64, which makes the last product
faster and lets tensor parallelism divide it. Sharing the weight of embedding and head: Press & Wolf
2017, arXiv 1608.05859.

Shapes: B batch, T tokens, D dim, V rows of the vocabulary, K tokens of the vocabulary.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping

from jaxtyping import Float, Int
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.checks import check_fits, check_positive, missing_head
from deepseek.models.classifier import BlockModel
from deepseek.models.kv_cache import KeyValueCache

VOCABULARY_MULTIPLE = 64
INIT_STD = 0.02


class TrimVocabulary(nn.Module):
    """Leaves the logits out that pad a vocabulary of `num_classes`."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, logits: Float[Tensor, "B T V"]) -> Float[Tensor, "B T K"]:
        """Return the first `num_classes` logits."""
        return logits[..., : self.num_classes]


def reset_blocks(blocks: nn.ModuleList, ends: tuple[str, ...]) -> None:
    """Begin linears normal, and smaller by `sqrt(2 num_layers)` where a branch ends.

    Radford et al. 2019 (GPT-2), section 2.3.

    Args:
        blocks: of a decoder.
        ends: the names of the linears at the ends of branches.
    """
    for name, module in blocks.named_modules():
        if isinstance(module, nn.Linear):
            std = INIT_STD / math.sqrt(2 * len(blocks)) if name.endswith(ends) else INIT_STD
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _padded(num_classes: int) -> int:
    return -(-num_classes // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


class Decoder(BlockModel):
    """A row of causal blocks over tokens: the logits of the next token at every position.

    Every block takes `cache`, a `LayerCache` or `None`.

    Attributes:
        tok_embed: from tokens to vectors; `None` before `bind_classes`.
        norm: before the head.
        head: from vectors to logits; `None` before `bind_classes`.
        trim: leaves the padding of the vocabulary out.
        context_length: tokens that it sees at most.
        kv_shapes: of each block: heads of keys and values, and the width of a head.
    """

    keeps_tokens = True
    is_causal = True
    tok_embed: nn.Embedding | None
    norm: nn.LayerNorm | nn.RMSNorm
    head: nn.Linear | None
    trim: nn.Module | None
    _config: dict

    @property
    def config(self) -> dict:
        """The constructor's arguments, JSON-able."""
        return dict(self._config)

    @property
    def input_shape(self) -> tuple[None]:
        """Any number of tokens up to `context_length`."""
        return (None,)

    @property
    def context_length(self) -> int:
        """Tokens that it sees at most."""
        return self._config["context_length"]

    @property
    @abstractmethod
    def kv_shapes(self) -> list[tuple[int, int]]:
        """Of each block: heads of keys and values, and the width of a head.

        They may differ: some heads may have been cut.
        """

    @property
    def is_tied(self) -> bool:
        """Whether embedding and head share their weight."""
        return True

    def bind_classes(self, num_classes: int) -> None:
        """Build token embedding and head for a vocabulary.

        Raises:
            ConfigError: if `num_classes` is not positive.
        """
        check_positive(num_classes=num_classes)
        like = self.norm.weight
        num_rows = _padded(num_classes)
        dim = self._config["dim"]
        self.tok_embed = nn.Embedding(num_rows, dim, device=like.device, dtype=like.dtype)
        nn.init.normal_(self.tok_embed.weight, std=INIT_STD)
        self.head = nn.Linear(dim, num_rows, bias=False, device=like.device, dtype=like.dtype)
        if self.is_tied:
            self.head.weight = self.tok_embed.weight
        else:
            nn.init.normal_(self.head.weight, std=INIT_STD)
        self.trim = TrimVocabulary(num_classes)
        self._config["num_classes"] = num_classes

    def narrow(self, num_classes: int) -> None:
        """Keep the first rows of token embedding and head, those of a vocabulary.

        Published weights have more rows than their tokenizer has tokens.

        Raises:
            ConfigError: there are fewer rows, or they are quantised or adapted.
        """
        check_positive(num_classes=num_classes)
        embedding, head, known = self.tok_embed, self.head, self._config["num_classes"]
        if known is None or num_classes > known:
            raise ConfigError(
                f"the model has rows for num_classes={known} tokens, the data have {num_classes}",
                fix="take the tokenizer that the weights were trained with, or train a new model",
            )
        if type(embedding) is not nn.Embedding or type(head) is not nn.Linear:
            raise ConfigError(
                f"the model has num_classes={known}, the data {num_classes} classes, and its head"
                f" is a {type(head).__name__}",
                fix="bind the data before the model is quantised or given adapters",
            )
        num_rows = _padded(num_classes)
        if num_rows < len(head.weight):
            for part in (embedding, head):
                rows = part.weight[:num_rows].detach().clone()
                part.weight = nn.Parameter(rows, part.weight.requires_grad)
            if self.is_tied:
                head.weight = embedding.weight
            embedding.num_embeddings = head.out_features = num_rows
        self.trim = TrimVocabulary(num_classes)
        self._config["num_classes"] = num_classes

    @abstractmethod
    def embed(
        self, inputs: Int[Tensor, "B T"], positions: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Return what the first block takes.

        Args:
            inputs: tokens.
            positions: of each; 0, 1, ... by default.
        """

    def beside(
        self, inputs: Int[Tensor, "B T"], positions: Int[Tensor, "B T"] | None = None
    ) -> Mapping[str, Tensor]:
        """Return what every block takes beside the stream, by the name of the argument."""
        del inputs, positions
        return {}

    def embed_tokens(self, inputs: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Return the vectors of tokens, without their positions.

        Raises:
            ConfigError: if the model has no vocabulary yet, or there are too many tokens.
        """
        if self.tok_embed is None:
            raise missing_head(type(self).__name__)
        check_fits(inputs.shape[1], self.context_length)
        return self.tok_embed(inputs)

    def classify(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T K"]:
        """Return the logits of the token after each.

        Raises:
            ConfigError: if the model has no vocabulary yet.
        """
        if self.head is None or self.trim is None:
            raise missing_head(type(self).__name__)
        return self.trim(self.head(self.norm(x)))

    def make_cache(self, batch_size: int, num_slots: int) -> KeyValueCache:
        """Return an empty cache for `num_slots` tokens in each of `batch_size` rows."""
        like = self.norm.weight
        shapes = [(batch_size, heads, num_slots, width) for heads, width in self.kv_shapes]
        return KeyValueCache.empty(shapes, device=like.device, dtype=like.dtype)

    def run_cached(
        self,
        inputs: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"],
        cache: KeyValueCache,
        length: int | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return what the head takes for new tokens, and keep their keys and values.

        Args:
            inputs: new tokens.
            positions: of each in its row.
            cache: what `make_cache` returned, with the tokens before; changed in place.
            length: slots that are looked at; all by default.
        """
        x, beside = self.embed(inputs, positions), self.beside(inputs, positions)
        for block, layer in zip(self.blocks, cache.layers(positions, length), strict=True):
            x = block(x, cache=layer, **beside)
        return x
