"""The interface of models that take the features of a table rather than one tensor.

```
model(batch) -> logits (B,)              where there is one label
             -> {label: logits (B,)}     where there are several
```
`batch` holds `sparse`, `dense`, `sequence.NAME` and `length.NAME`, as
`deepseek.datasets.FeatureEncoder` makes them.
"""

from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor

from deepseek.datasets.spec import DataSpec
from deepseek.errors import ConfigError
from deepseek.models.classifier import Classifier
from deepseek.models.embedder import Batch, Embedder, FeatureLayout
from deepseek.models.hints import ParallelHints
from deepseek.models.model_file import check_spec

FIELDS = ("sparse", "dense")
PREFIXES = ("sequence.", "length.")


class TableModel(Classifier):
    """A model of tables: built when it is known what the features are.

    A subclass hands its own arguments to this constructor, by name, and makes its modules in
    `build`.

    Args:
        layout: what a batch holds, as JSON; `None`: `bind_features` says so later.
        num_classes: always `None`; the labels of the data say what the outputs are.
        config: the other arguments of the constructor, JSON-able.
    """

    makes_logits = False
    own_task: str | None = None
    """Name of the task that training takes; `None`: what the labels ask for."""

    def __init__(self, layout: Mapping | None, num_classes: int | None, **config: object) -> None:
        super().__init__()
        if num_classes is not None:
            raise ConfigError(
                f"num_classes={num_classes}, and the outputs of {type(self).__name__} are the"
                " labels of its table",
                fix="leave num_classes out",
            )
        self._arguments = config
        self.layout: FeatureLayout | None = None
        if layout is not None:
            self._build(FeatureLayout.from_json(layout))

    def _build(self, layout: FeatureLayout) -> None:
        self.layout = layout
        self.build(layout)

    @abstractmethod
    def build(self, layout: FeatureLayout) -> None:
        """Make the modules.

        Raises:
            ConfigError: the model cannot take these features.
        """

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        """Return the logits of a batch, (B,); by label where there are several."""

    def bind_features(self, spec: DataSpec, known: DataSpec | None = None) -> None:
        """Make the modules for what a table holds, or check that they fit.

        Args:
            spec: of the data.
            known: of the data that the model was trained on before, if any.

        Raises:
            ConfigError: the data are no table, or other features than those it was built for, or
                their vocabularies are too long for a model file.
        """
        if spec.features is None:
            raise ConfigError(
                f"{type(self).__name__} takes the features of a table, and the data are of the kind"
                f" {spec.task!r}",
                fix="give an InteractionDataset, or another model",
            )
        layout = FeatureLayout.of(spec.features)
        if self.layout is None:
            check_spec(spec)
            self._build(layout)
        elif self.layout != layout or (known is not None and known.features != spec.features):
            raise ConfigError(
                f"the features of the data are not those that this {type(self).__name__} was built"
                f" for: {_difference(self.layout, layout)}",
                fix="give the data the feature spec of the model: features=model.spec.features",
            )

    @property
    def config(self) -> dict:
        """The constructor's arguments, JSON-able."""
        layout = None if self.layout is None else self.layout.to_json()
        return {**self._arguments, "layout": layout, "num_classes": None}

    @property
    def hints(self) -> ParallelHints:
        """What the parts are for: no weight decay for vectors, rare ones would fade."""
        names = [name for name, _ in self.named_parameters() if "embedder." in f".{name}"]
        tables = [
            f"{name}.table"
            for name, module in self.named_modules()
            if isinstance(module, Embedder) and module.table is not None
        ]
        return ParallelHints(no_weight_decay=tuple(names), row_tables=tuple(tables))

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """Nothing: a batch is several tensors."""
        return ()

    def bind_classes(self, num_classes: int) -> None:
        """Refuse: the labels of the data say what the outputs are.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"{type(self).__name__} has no head for {num_classes} classes",
            fix="give it a table whose labels are yes or no, or numbers",
        )


def _difference(own: FeatureLayout, other: FeatureLayout) -> str:
    for name, size in {**own.ids, **own.sequences}.items():
        found = {**other.ids, **other.sequences}.get(name)
        if found != size:
            return f"{name} has {'no' if found is None else found} ids, not {size}"
    return "they differ in names, order, vocabularies or means"


def inputs_of(batch: Batch) -> Tensor | dict[str, Tensor]:
    """Return what a model takes of a batch: `inputs`, or the features of a table."""
    if "inputs" in batch:
        return batch["inputs"]
    return {name: value for name, value in batch.items() if is_feature(name)}


def is_feature(name: str) -> bool:
    """Return whether a field of a batch is one of features."""
    return name in FIELDS or name.startswith(PREFIXES)


def shape_of_inputs(inputs: Tensor | Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return the shape of one tensor, or those of several in a row; the first number is B."""
    if isinstance(inputs, Tensor):
        return tuple(inputs.shape)
    return tuple(size for tensor in inputs.values() for size in tensor.shape)
