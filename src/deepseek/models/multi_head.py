"""One model of several tasks: a trunk that they share, and a head for each.

A head is a linear on the trunk's features. Where the trunk is an `Encoder` with `outputs="hidden"`,
whose features are a vector for each token, a head of samples pools the first token before, as
BERT's own does (Devlin et al. 2018, arXiv 1810.04805), and a head of tokens takes them all.

Shapes: B batch, T tokens, D width of the features, K outputs of a head.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.checks import check_positive, check_share
from deepseek.models.classifier import Classifier
from deepseek.models.decoder import Decoder
from deepseek.models.dropout import Dropout
from deepseek.models.encoder import INIT_STD, Encoder, Pooler
from deepseek.models.hints import ParallelHints

if TYPE_CHECKING:
    from deepseek.datasets.spec import DataSpec

PER = ("sample", "token")


class TaskHead(nn.Module):
    """From the features of the trunk to the outputs of one task.

    Args:
        dim: D.
        outputs: K.
        pools: whether the features are tokens, of which the first stands for the sample.
        dropout: probability, before the linear.
        like: where and in which dtype its weights are.
    """

    def __init__(self, dim: int, outputs: int, pools: bool, dropout: float, like: Tensor) -> None:
        super().__init__()
        self.pooler = Pooler(dim, dropout, "tanh") if pools else None
        self.dropout = Dropout(0.0 if pools else dropout)
        self.linear = nn.Linear(dim, outputs)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=INIT_STD)
                nn.init.zeros_(part.bias)
        self.to(device=like.device, dtype=like.dtype)

    def forward(self, features: Tensor) -> Tensor:
        """Return the outputs, (B, K) or (B, T, K)."""
        if self.pooler is not None:
            features = self.pooler(features)
        return self.linear(self.dropout(features))


class MultiHead(Classifier):
    """A trunk and a head for each task; `forward` returns the outputs by the name of the task.

    Args:
        trunk: name of an architecture: an encoder, or a model of pictures.
        trunk_args: its arguments.
        heads: task -> `{"outputs": K, "per": "sample" | "token"}`; by default what the data ask
            for, once they are bound.
        dropout: probability before each head's linear.
        num_classes: must be `None`: each head has its own.

    Attributes:
        features: of the newest forward pass in training after `keep_features`, else `None`.

    Raises:
        ConfigError: the trunk has no features to hang heads on, or a head is not described so.

    Example:
        >>> model = MultiHead(
        ...     "resnet", {"num_layers": 8}, {"kind": {"outputs": 3}, "size": {"outputs": 1}}
        ... )
        >>> {name: tuple(y.shape) for name, y in model(torch.zeros(2, 3, 32, 32)).items()}
        {'kind': (2, 3), 'size': (2, 1)}
    """

    makes_logits = False  # of one set of classes, that is

    def __init__(
        self,
        trunk: str,
        trunk_args: Mapping[str, object] | None = None,
        heads: Mapping[str, Mapping] | None = None,
        dropout: float = 0.0,
        num_classes: int | None = None,
    ) -> None:
        if num_classes is not None:
            raise _no_classes(num_classes)
        from deepseek.models.zoo import build_model  # the zoo has this class, too

        args = dict(trunk_args or {})
        if trunk == "encoder":
            args.setdefault("outputs", "hidden")
        self._start(build_model(trunk, None, args), trunk, args, dropout, None)
        self.build_heads(heads or {})

    def _start(
        self, trunk: nn.Module, name: str | None, args: dict, dropout: float, dim: int | None
    ) -> None:
        nn.Module.__init__(self)
        check_share(dropout=dropout)
        self._config = {"trunk": name, "trunk_args": args, "heads": {}, "dropout": dropout}
        self.dim = _open(trunk, name) if dim is None else dim
        self.trunk = trunk
        self.gives_tokens = isinstance(trunk, Encoder) and trunk.config["outputs"] == "hidden"
        self.heads = nn.ModuleDict()
        self._keeps_features = False
        self.features: Tensor | None = None

    @classmethod
    def around(cls, trunk: nn.Module, dim: int | None = None, dropout: float = 0.0) -> "MultiHead":
        """Return a model around a trunk that exists, with its weights and without its own head.

        Args:
            trunk: a `ModelEngine` as it was built, one of our models, or any module that returns
                features (B, D).
            dim: D, of a module that is not ours.
            dropout: probability before each head's linear.

        Raises:
            ConfigError: as the class; or `dim` is missing; or the trunk was changed since it was
                built (pruned, adapted, quantised), which the file of the whole could not hold.
        """
        from deepseek.models.engine import ModelEngine

        engine = ModelEngine.wrap(trunk)
        if engine.changes:
            kinds = ", ".join(dict.fromkeys(change["kind"] for change in engine.changes))
            raise ConfigError(
                f"the trunk was changed since it was built ({kinds}), which the file of the whole"
                " could not hold",
                fix="give merge_lora(engine) of a model with adapters, else the model as it was"
                " before, and change the whole once it is trained",
            )
        if engine.is_foreign == (dim is None):
            raise ConfigError(
                f"dim={dim} for a trunk that is"
                f" {'not ours' if engine.is_foreign else 'ours, and knows it'}",
                fix="give dim, the width of the features, for a module of your own only",
            )
        args = {key: value for key, value in engine.config.items() if key != "num_classes"}
        model = cls.__new__(cls)
        name = None if engine.is_foreign else engine.architecture
        model._start(engine.module, name, args, dropout, dim)
        return model

    @property
    def config(self) -> dict:
        """The constructor's arguments, JSON-able."""
        return {**self._config, "num_classes": None}

    @property
    def hints(self) -> ParallelHints:
        """Those of the trunk that do not divide its layers."""
        if not isinstance(self.trunk, Classifier):
            return ParallelHints()
        own = self.trunk.hints
        return replace(
            ParallelHints(prefers_channels_last=own.prefers_channels_last),
            blocks=tuple(f"trunk.{name}" for name in own.blocks),
            embeddings=tuple(f"trunk.{name}" for name in own.embeddings),
            no_weight_decay=tuple(f"trunk.{name}" for name in own.no_weight_decay),
        )

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """That of the trunk; empty where it is not ours and may be anything."""
        if isinstance(self.trunk, Classifier):
            return self.trunk.input_shape
        if self._config["trunk"] is None:
            return ()
        from deepseek.models.zoo import timm_input_shape

        return timm_input_shape(self.trunk, self._config["trunk_args"])

    def bind_classes(self, num_classes: int) -> None:
        """Refuse: each head has classes of its own.

        Raises:
            ConfigError: always.
        """
        raise _no_classes(num_classes)

    def bind_tasks(self, tasks: "Mapping[str, DataSpec]") -> None:
        """Build the heads that data ask for; those that are there must be the same, in any order.

        Raises:
            ConfigError: they are others, or a task needs a vector for each token.
        """
        wanted = {name: head_of(spec) for name, spec in tasks.items()}
        if not self.heads:
            self.build_heads(wanted)
        elif wanted != self._config["heads"]:
            raise ConfigError(
                f"the model has the heads {self._config['heads']}, the data ask for {wanted}",
                fix="leave heads out, or give those of the data",
            )
        else:
            self.order_heads(tasks)

    def order_heads(self, names: Iterable[str]) -> None:
        """Put the heads in the order of names, which are theirs: outputs are joined in it."""
        heads = self._config["heads"]
        self._config["heads"] = {name: heads[name] for name in names}
        self.heads = nn.ModuleDict({name: self.heads[name] for name in names})

    def note_trunk(self) -> None:
        """Take over into the config what has been changed of a trunk of ours."""
        if isinstance(self.trunk, Classifier):
            args = {k: v for k, v in self.trunk.config.items() if k != "num_classes"}
            known = self._config["trunk_args"]
            self._config["trunk_args"] = {**known, "type_separator": args.get("type_separator")}

    def build_heads(self, heads: Mapping[str, Mapping]) -> None:
        """Build heads in place of those that are there.

        Raises:
            ConfigError: a head is not described by `outputs` and `per`.
        """
        like = next(p for p in self.trunk.parameters() if p.is_floating_point())
        dropout = self._config["dropout"]
        known: dict[str, dict] = {}
        for name, given in heads.items():
            outputs, per = given.get("outputs"), given.get("per", "sample")
            if set(given) - {"outputs", "per"} or per not in PER or "." in name:
                raise ConfigError(
                    f"heads.{name}={dict(given)} is no head",
                    fix='give {"outputs": K, "per": "sample" or "token"}, and names without dots',
                )
            check_positive(outputs=outputs)  # pyright: ignore[reportArgumentType]
            if per == "token" and not self.gives_tokens:
                raise ConfigError(
                    f"task {name!r} needs a vector for each token, and the trunk gives one for a"
                    " sample",
                    fix='take an Encoder with outputs="hidden" as trunk',
                )
            known[name] = {"outputs": outputs, "per": per}
        self._config["heads"] = known
        self.heads = nn.ModuleDict(
            {
                name: TaskHead(
                    self.dim, head["outputs"], self.gives_tokens and head["per"] == "sample",
                    dropout, like,
                )
                for name, head in known.items()
            }
        )  # fmt: skip

    def keep_features(self) -> None:
        """Keep the features of each forward pass in training, as `features`."""
        self._keeps_features = True

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return the outputs of each task, (B, K) or (B, T, K).

        Raises:
            ConfigError: if the model has no heads yet.
        """
        if not self.heads:
            raise ConfigError(
                "MultiHead has no heads to compute outputs with",
                fix="give heads, or let Trainer learn them from the data set",
            )
        features = self.trunk(inputs)
        self.features = features if self._keeps_features and self.training else None
        return {name: head(features) for name, head in self.heads.items()}


def trunk_config(config: Mapping) -> Mapping:
    """Return the arguments of what takes the inputs: of a model of several tasks, its trunk's."""
    return config.get("trunk_args", config)


def head_of(spec: "DataSpec") -> dict:
    """Return the head that the data of one task ask for."""
    outputs = spec.num_classes
    if not outputs:
        shape = spec.fields["targets"].shape
        outputs = shape[0] if shape else 1
    return {
        "outputs": outputs,
        "per": "token" if spec.task == "token_classification" else "sample",
    }


def _open(trunk: nn.Module, name: str | None) -> int:
    """Take the head off a trunk of the zoo, and return the width of what it then gives."""
    if not isinstance(trunk, Classifier):
        trunk.reset_classifier(0)  # pyright: ignore[reportCallIssue]  # timm's convention
        width = getattr(trunk, "head_hidden_size", None) or trunk.num_features
        return int(width)  # pyright: ignore[reportArgumentType]
    if isinstance(trunk, Encoder) and trunk.config["outputs"] == "hidden":
        return trunk.config["dim"]
    if not isinstance(trunk, Decoder) and trunk.makes_logits:
        trunk.bind_classes(1)
        heads = [part for part in trunk.hints.head if _is_linear(trunk, part)]
        widths = {trunk.get_submodule(part).in_features for part in heads}
        if len(widths) == 1:
            for part in heads:
                parent, _, own = part.rpartition(".")
                setattr(trunk.get_submodule(parent), own, nn.Identity())
            return int(widths.pop())  # pyright: ignore[reportArgumentType]
    raise ConfigError(
        f"{name or type(trunk).__name__} gives no vector that heads could be hung on",
        fix='take a model of pictures, or an Encoder with outputs="hidden" or "sequence"',
    )


def _is_linear(trunk: nn.Module, name: str) -> bool:
    try:
        part = trunk.get_submodule(name)
    except AttributeError:
        return False
    return isinstance(part, nn.Linear) and part.out_features == 1


def _no_classes(num_classes: int) -> ConfigError:
    return ConfigError(
        f"num_classes={num_classes}, and each head of a MultiHead has classes of its own",
        fix="leave num_classes out, and give heads",
    )
