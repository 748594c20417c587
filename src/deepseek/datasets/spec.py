"""What a data set holds, as plain data that a model file can carry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from deepseek.config.features import FeatureSpec
from deepseek.datasets.normalization import Normalization
from deepseek.datasets.table_reading import TableOptions
from deepseek.errors import CheckpointError, ConfigError

_TEXT_KEYS = ("tokenizer", "pad_token", "document_token", "separator_token")
_OTHER_KEYS = ("tasks", "features", "reading", "min_score")
"""What stands in a file only where there is such a thing, so that older versions read the rest."""


@dataclass(frozen=True)
class FieldSpec:
    """One field of a sample: its shape without the batch dim, and its dtype by name ("uint8")."""

    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        if not all(_is_int(size) and size >= 0 for size in self.shape):
            raise ConfigError(
                f"shape={self.shape!r} of a field has a size that is not an integer >= 0",
                fix="give the shape of one sample, such as (3, 224, 224)",
            )
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ConfigError(
                f"dtype={self.dtype!r} of a field is not the name of a torch dtype",
                fix='give a name such as "uint8", "float32" or "int64"',
            )

    def to_json(self) -> dict:
        """Return a JSON-able dict; `from_json` reads it back."""
        return {"shape": list(self.shape), "dtype": self.dtype}

    @classmethod
    def from_json(cls, content: Mapping) -> "FieldSpec":
        """Build from what `to_json` returned.

        Raises:
            CheckpointError: if the content is something else.
        """
        check_keys(content, {"shape", "dtype"}, "field")
        if not isinstance(content["shape"], list) or not isinstance(content["dtype"], str):
            raise malformed("field", f"shape={content['shape']!r}, dtype={content['dtype']!r}")
        try:
            return cls(tuple(content["shape"]), content["dtype"])
        except ConfigError as error:
            raise malformed("field", error.message) from error


@dataclass(frozen=True)
class DataSpec:
    """What a data set holds.

    Args:
        task: what is to be learnt: "classification", "language_modelling", ...
        fields: name -> shape and dtype of one sample's field; "inputs" and "targets".
        class_names: name of class 0, 1, ...; empty where there are no classes.
        class_counts: number of samples of each class.
        transform: the evaluation transform in the string language; None for a Python callable.
        normalization: what is applied to uint8 images on the device; None where inputs are floats.
        tokenizer: the JSON text of what made tokens from text; None where nothing did.
        pad_token: the token that fills sequences up; None where all are of one length.
        document_token: the token that begins a document which does not see those before; None where
            a sequence is one document.
        separator_token: the token that stands between the two sentences of a sample; None where a
            sample is one.
        tasks: name -> what the data hold for each of several tasks; empty where there is one.
        features: what the columns of a table mean, fitted; None where the data are no table.
        reading: how the files of the table were read.
        min_score: from which score on a model of such data reports what it finds, 0..1, as its
            validation settled it; None where it has not.
    """

    task: str
    fields: dict[str, FieldSpec]
    class_names: tuple[str, ...] = ()
    class_counts: tuple[int, ...] = ()
    transform: str | None = None
    normalization: Normalization | None = None
    tokenizer: str | None = None
    pad_token: int | None = None
    document_token: int | None = None
    separator_token: int | None = None
    tasks: dict[str, "DataSpec"] = field(default_factory=dict)
    features: FeatureSpec | None = None
    reading: TableOptions = field(default_factory=TableOptions)
    min_score: float | None = None

    def __post_init__(self) -> None:
        if len(self.class_counts) != len(self.class_names):
            raise ConfigError(
                f"class_counts has {len(self.class_counts)} entries for"
                f" {len(self.class_names)} class_names",
                fix="give one count for each class name",
            )
        if len(set(self.class_names)) != len(self.class_names):
            raise ConfigError(
                f"class_names={self.class_names!r} has a name twice", fix="name each class once"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def to_json(self) -> dict:
        """Return a JSON-able dict; `from_json` reads it back."""
        text = {name: getattr(self, name) for name in _TEXT_KEYS}
        return {
            "task": self.task,
            "fields": {name: own.to_json() for name, own in self.fields.items()},
            "class_names": list(self.class_names),
            "class_counts": list(self.class_counts),
            "transform": self.transform,
            "normalization": self.normalization.to_json() if self.normalization else None,
            **{name: value for name, value in text.items() if value is not None},
            **(
                {"tasks": {n: own.to_json() for n, own in self.tasks.items()}} if self.tasks else {}
            ),
            **({"features": self.features.to_json()} if self.features is not None else {}),
            **({"reading": reading} if (reading := self.reading.to_json()) else {}),
            **({"min_score": self.min_score} if self.min_score is not None else {}),
        }

    @classmethod
    def from_json(cls, content: Mapping) -> "DataSpec":
        """Build from what `to_json` returned.

        Raises:
            CheckpointError: if the content is something else.
        """
        keys = {"task", "fields", "class_names", "class_counts", "transform", "normalization"}
        given = {*content} if isinstance(content, Mapping) else set()
        check_keys(content, keys | given & {*_TEXT_KEYS, *_OTHER_KEYS}, "data spec")
        text = {name: content[name] for name in given & {*_TEXT_KEYS}}
        tasks = content.get("tasks", {})
        if not isinstance(tasks, Mapping) or any(
            not isinstance(own, Mapping) or "tasks" in own for own in tasks.values()
        ):
            raise malformed("data spec", f"tasks={str(tasks)[:40]!r}")
        for name, value in text.items():
            if not (isinstance(value, str) if name == "tokenizer" else _is_int(value)):
                raise malformed("data spec", f"{name}={str(value)[:40]!r}")
        min_score = content.get("min_score")
        if min_score is not None and not (_is_number(min_score) and 0 <= min_score <= 1):
            raise malformed("data spec", f"min_score={str(min_score)[:40]!r}")
        task, transform, fields = content["task"], content["transform"], content["fields"]
        if not isinstance(task, str) or not isinstance(transform, str | None):
            raise malformed("data spec", f"task={task!r}, transform={transform!r}")
        if not isinstance(fields, Mapping):
            raise malformed("data spec", f"fields={fields!r}")
        names = _typed_list(content["class_names"], "class_names", lambda x: isinstance(x, str))
        counts = _typed_list(content["class_counts"], "class_counts", _is_int)
        normalization, features = content["normalization"], content.get("features")
        try:
            return cls(
                task=task,
                fields={str(name): FieldSpec.from_json(own) for name, own in fields.items()},
                class_names=tuple(names),
                class_counts=tuple(counts),
                transform=transform,
                normalization=_read_normalization(normalization),
                tasks={str(name): cls.from_json(own) for name, own in tasks.items()},
                features=None if features is None else FeatureSpec.from_json(features),
                reading=TableOptions.from_json(content.get("reading", {})),
                min_score=min_score,
                **text,
            )
        except ConfigError as error:
            raise malformed("data spec", error.message) from error


def check_keys(content: object, keys: set[str], what: str) -> None:
    """Check that `content` is a mapping with exactly these keys.

    Raises:
        CheckpointError: if it is not; names the keys that are missing or unknown.
    """
    if not isinstance(content, Mapping):
        raise malformed(what, f"it is a {type(content).__name__}, not a mapping")
    missing, unknown = keys - content.keys(), content.keys() - keys
    if missing or unknown:
        raise malformed(what, f"missing={sorted(missing)}, unknown={sorted(map(str, unknown))}")


def malformed(what: str, found: str) -> CheckpointError:
    """Return the error for stored content that is not what `to_json` wrote."""
    return CheckpointError(
        f"the stored {what} is malformed: {found}",
        fix="read a file written by this library, with this version or an older one",
    )


def _read_normalization(content: object) -> Normalization | None:
    if content is None:
        return None
    check_keys(content, {"mean", "std"}, "normalization")
    values = dict(content) if isinstance(content, Mapping) else {}
    mean = _typed_list(values["mean"], "mean", _is_number)
    std = _typed_list(values["std"], "std", _is_number)
    return Normalization(tuple(map(float, mean)), tuple(map(float, std)))


def _typed_list(content: object, what: str, fits) -> Sequence:
    if not isinstance(content, list) or not all(fits(item) for item in content):
        raise malformed("data spec", f"{what}={content!r}")
    return content


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
