"""The interface of a family: weights that are spelled alike and computed by one of our models."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from deepseek.convert.mapping import Leftover, Rule
from deepseek.convert.report import Assumption
from deepseek.errors import CheckpointError, ConfigError


class Shapes:
    """The shapes of a state dict, below a prefix.

    Args:
        shapes: name -> sizes, all of them.
        prefix: what stands before the names of the backbone.
        source: where they come from, for messages.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], prefix: str, source: object) -> None:
        self.all = shapes
        self.prefix = prefix
        self.source = source

    def has(self, name: str) -> bool:
        """Return whether the backbone has a tensor."""
        return self.prefix + name in self.all

    def size(self, name: str, dim: int) -> int:
        """Return a size of a tensor of the backbone.

        Raises:
            CheckpointError: there is no such tensor, or it has fewer dims.
        """
        shape = self.all.get(self.prefix + name)
        if shape is None or len(shape) <= dim:
            found = "is missing" if shape is None else f"has the shape {tuple(shape)}"
            raise CheckpointError(
                f"{self.source}: {self.prefix + name} {found}, and it says the size of the model",
                fix="give the whole state dict of the model",
            )
        return shape[dim]

    def head_size(self, *names: str) -> int | None:
        """Return the rows of the first of these that there is, by their full names."""
        return next((self.all[name][0] for name in names if len(self.all.get(name, ()))), None)

    def count(self, before: str) -> int:
        """Return how many numbered parts there are: `before` + 0, 1, ... + dot.

        Raises:
            CheckpointError: there is none, or a number is left out.
        """
        pattern = re.compile(re.escape(self.prefix + before) + r"(\d{1,5})\.")
        numbers = {int(found[1]) for name in self.all if (found := pattern.match(name))}
        if not numbers or numbers != set(range(len(numbers))):
            missing = sorted(set(range(max(numbers, default=0) + 1)) - numbers)
            raise CheckpointError(
                f"{self.source}: of the layers {self.prefix}{before}N the numbers"
                f" {missing[:8]} are missing",
                fix="give the whole state dict of the model",
            )
        return len(numbers)


@dataclass(frozen=True)
class Requirement:
    """A key of a configuration that our model computes with these values only.

    Attributes:
        key: of `config.json`.
        values: that are computed; the first is the library's default where the key is absent.
    """

    key: str
    values: tuple[object, ...]


class Family(ABC):
    """How a library spells a model, and what our model is called that computes the same.

    Attributes:
        name: such as "bert".
        aliases: other values of `model_type` for models that are spelled and computed the same.
        layout: whose spelling: "huggingface", "timm" or "torchvision".
        architecture: our own.
        prefixes: that may stand before the backbone, the one to write first.
        anchors: names, without prefix, that every model of the family has.
        published_heads: heads of published models by (num_layers, dim): what weights do not tell.
        unknown: arguments that weights do not tell.
        fresh_parts: beginnings of names of ours that may begin fresh where the user says what for.
        head_dim: features of a head, usually.
        likely_heads: heads of most models by `dim`, where they have not that many features each.
        requirements: on `config.json`.
        leftovers: tensors that may be left out; patterns of names without the prefix of a wrapper.
        old_spellings: pairs of an old part of a name and what it is called now.
        in_memory: pairs of a part of a name in files and in modules, where the two differ.
    """

    name: str
    aliases: tuple[str, ...] = ()
    layout: str
    architecture: str
    prefixes: tuple[str, ...] = ("",)
    anchors: tuple[str, ...]
    published_heads: Mapping[tuple[int, int], int] = {}
    head_dim: int = 64
    likely_heads: Mapping[int, int] = {}
    unknown: tuple[str, ...] = ("heads", "norm_eps")
    fresh_parts: tuple[str, ...] = ()
    requirements: tuple[Requirement, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    old_spellings: tuple[tuple[str, str], ...] = ()
    in_memory: tuple[tuple[str, str], ...] = ()

    @property
    def title(self) -> str:
        """Name and layout."""
        return f"{self.name} ({self.layout})"

    def fits(self, shapes: Shapes) -> bool:
        """Return whether weights with these shapes, which have the anchors, are of the family."""
        del shapes
        return True

    @abstractmethod
    def args_from_shapes(self, shapes: Shapes, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of our architecture that shapes and names tell, `num_classes` too.

        Args:
            shapes: of the weights.
            given: what the user or a configuration says, some of which shapes need.
        """

    def args_from_values(self, state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
        """Return the arguments of our architecture that the numbers themselves tell."""
        del state, prefix
        return {}

    def asked(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments without which nothing can be computed, and their likely values."""
        del args
        return {}

    def args_from_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of our architecture that a `config.json` tells."""
        del config
        return {}

    def notes(self, config: Mapping[str, Any], shapes: Shapes) -> list[str]:
        """Return what a reader must know: what our model does otherwise, or takes for granted.

        Args:
            config: of `config.json`; empty where there is none.
            shapes: of the weights.
        """
        del config, shapes
        return []

    def defaults(self, args: Mapping[str, Any]) -> list[Assumption]:
        """Return what the library that wrote the weights takes where nothing is said."""
        del args
        return []

    @abstractmethod
    def rules(self, args: Mapping[str, Any], prefix: str) -> list[Rule]:
        """Return the table of names for a model with these arguments."""

    @abstractmethod
    def can_write(self, args: Mapping[str, Any]) -> bool:
        """Return whether a model of ours with these arguments can be written in this spelling."""

    def add_constants(self, state: dict[str, Tensor], args: Mapping[str, Any]) -> None:
        """Add tensors that the library has and our model does without, to what is written.

        Args:
            state: in the family's spelling; changed in place.
            args: of our model.
        """
        del state, args

    def written_prefix(self, args: Mapping[str, Any]) -> str:
        """Return the prefix under which the library looks for the backbone."""
        del args
        return self.prefixes[0]

    def config_json(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Return the `config.json` of a model with these arguments.

        Raises:
            ConfigError: the layout has none.
        """
        raise ConfigError(
            f"a model spelled as {self.layout} does has no config.json",
            fix="write its state dict: deepseek_to_pytorch(engine)",
        )

    @abstractmethod
    def reference(self, args: Mapping[str, Any], config: Mapping[str, Any]) -> nn.Module:
        """Return a model of the library that the spelling is from, with fresh weights.

        Args:
            args: of our architecture.
            config: values of a `config.json` that go before ours.
        """

    def exact_buffers(self, module: nn.Module, args: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return what constants of the library's model were before they were rounded, by name.

        Args:
            module: of the library, perhaps cast to half precision with all its buffers.
            args: of our architecture.
        """
        del module, args
        return {}

    def run(self, module: nn.Module, inputs: Tensor, args: Mapping[str, Any]) -> Tensor:
        """Return what the library's model computes that ours should: logits, or features."""
        del args
        return module(inputs)


def read_size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return a positive integer of a `config.json`.

    Raises:
        CheckpointError: it is missing or something else.
    """
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(
            f"config.json has {key}={value!r}, which is not a positive integer",
            fix="copy the folder again, or mend the value",
        )
    return value


def read_number(config: Mapping[str, Any], key: str, default: float) -> float:
    """Return a number of a `config.json` in 0 <= number < 1, such as a probability.

    Raises:
        CheckpointError: it is something else.
    """
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise CheckpointError(
            f"config.json has {key}={value!r}, which is not a number in 0 <= {key} < 1",
            fix="copy the folder again, or mend the value",
        )
    return float(value)
