"""Features that one label of several may see: what another one must not know.

That somebody is a husband says that he is married, and much of what he earns. The tower of his
income sees it; the experts, which both labels share, do not.

Shapes: B batch, W numbers that the features of a sample are, C those that all labels see, E of an
expert.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.embedder import Embedder, FeatureLayout
from deepseek.registry import did_you_mean


class OwnFeatures(nn.Module):
    """Parts what `Embedder.flat` returns into what all labels see, and what single ones do.

    Args:
        embedder: makes the features; its numbers have no vectors.
        own: label -> names of features; one may belong to several labels. `None`: all see all.

    Attributes:
        width: C.

    Raises:
        ConfigError: there is no such label or feature, or none is left for all labels.
    """

    def __init__(self, embedder: Embedder, own: Mapping[str, Sequence[str]] | None) -> None:
        super().__init__()
        own = own or {}
        _check(own, embedder.layout)
        places = _places(embedder)
        columns = {label: [n for name in own[label] for n in places[name]] for label in own}
        hidden = {n for each in columns.values() for n in each}
        common = [n for n in range(embedder.width) if n not in hidden]
        if not common:
            raise ConfigError(
                "own_features leave no feature that all labels see", fix="leave some of them out"
            )
        self.width = len(common)
        self._widths = {label: len(each) for label, each in columns.items()}
        self._buffers_of = {label: f"own_{number}" for number, label in enumerate(columns)}
        self.register_buffer("shared", torch.tensor(common), persistent=False)
        for label, each in columns.items():
            self.register_buffer(self._buffers_of[label], torch.tensor(each), persistent=False)

    def width_of(self, label: str) -> int:
        """Return how many numbers `beside` adds for a label."""
        return self._widths.get(label, 0)

    def common(self, features: Float[Tensor, "B W"]) -> Float[Tensor, "B C"]:
        """Return what all labels see."""
        return features[:, self.get_buffer("shared")] if self._widths else features

    def beside(
        self, x: Float[Tensor, "B E"], features: Float[Tensor, "B W"], label: str
    ) -> Float[Tensor, "B ..."]:
        """Return the vector of a label with its own features beside it."""
        if label not in self._widths:
            return x
        return torch.cat([x, features[:, self.get_buffer(self._buffers_of[label])]], 1)


def checked_own_features(own: object) -> dict[str, list[str]] | None:
    """Return `own_features` as JSON has them.

    Raises:
        ConfigError: it is no mapping from labels to lists of names.
    """
    if own is None:
        return None
    if isinstance(own, Mapping) and all(
        isinstance(names, Sequence) and not isinstance(names, str) and names
        for names in own.values()
    ):
        return {str(label): [str(name) for name in names] for label, names in own.items()}
    raise ConfigError(
        f"own_features={own!r} says not which features belong to which label",
        fix="write own_features: {LABEL: [FEATURE, ...]}",
    )


def _check(own: Mapping[str, Sequence[str]], layout: FeatureLayout) -> None:
    features = [*layout.ids, *layout.sequences, *layout.numbers]
    for label, names in own.items():
        if label not in layout.labels:
            raise ConfigError(
                f"own_features are for {label!r}, which is no label",
                fix=did_you_mean(label, layout.labels),
            )
        for name in names:
            if name not in features:
                raise ConfigError(
                    f"own_features of {label} name {name!r}, which is no feature",
                    fix=did_you_mean(name, features),
                )


def _places(embedder: Embedder) -> dict[str, list[int]]:
    """Return the columns of `flat` of each feature; those of a number with its indicator's."""
    layout, places, start = embedder.layout, {}, 0
    sizes = dict.fromkeys([*layout.ids, *layout.sequences], embedder.embedding_dim)
    for name, size in {**sizes, **dict.fromkeys(layout.numbers, 1)}.items():
        places[name] = list(range(start, start + size))
        start += size
    for name in layout.numbers:
        places[name] += places.get(f"{name}.missing", [])
    return places
