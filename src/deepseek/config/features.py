"""What the columns of a table mean: `FeatureSpec`, written by hand or found from the data.

```yaml
sparse:                       # a category: one id
  user: {column: user_id}
  ad: {column: ad_id, encoding: hash, buckets: 100000}
dense:                        # a number
  price: {column: price, log: true}
sequence:                     # several categories in their order
  history: {column: last_items, separator: " ", shares: ad}
cross:                        # a pair of categories as one
  user_ad: {of: [user, ad], buckets: 100000}
label:                        # what is learnt
  click: {column: clicked}
```
`column` is the feature's name where it is left out. What `fit` finds (vocabularies, means, edges)
stands in the same entries, so that a spec is all that is needed to compute features anywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from deepseek.config.settings import Number, Settings, Switch, Whole, unit
from deepseek.config.validation import validate_settings
from deepseek.errors import ConfigError
from deepseek.registry import did_you_mean

MISSING, UNKNOWN, FIRST = 0, 1, 2
"""Ids of an empty cell (and of what fills sequences up), of a rare or new value, of the first."""
SECTIONS = ("sparse", "dense", "sequence", "cross", "label")
Buckets = Annotated[Whole, Field(ge=1, le=2**40, json_schema_extra=unit("ids"))]
Name = Annotated[str, Field(min_length=1)]


class Categories(Settings):
    """How the values of a column become ids."""

    column: str = ""
    """Column of the table; the feature's own name if empty."""
    encoding: Literal["vocabulary", "hash", "open"] = "vocabulary"
    """`vocabulary`: a number for each value seen; `hash`: one of `buckets`; `open`: the hash itself
    (63 bits), for tables that grow.
    """
    buckets: Buckets = 100_000
    """Ids of `hash`."""
    min_count: Whole = Field(default=2, ge=1, json_schema_extra=unit("rows"))
    """Of `vocabulary`: rarer values share the id of unknown ones."""
    max_size: Whole = Field(default=1_000_000, ge=1, json_schema_extra=unit("values"))
    """Of `vocabulary`: the most frequent values are kept."""
    shares: Name | None = None
    """A sparse feature whose ids and embeddings are this one's too."""
    vocabulary: tuple[str, ...] | None = None
    """The values in the order of their ids; found by `fit`."""

    @property
    def is_fitted(self) -> bool:
        """Whether ids can be computed."""
        return self.encoding != "vocabulary" or bool(self.shares) or self.vocabulary is not None

    @property
    def num_ids(self) -> int:
        """Ids, those of missing and unknown values too; 0 where they are open."""
        if self.encoding == "open":
            return 0
        return FIRST + (self.buckets if self.encoding == "hash" else len(self.vocabulary or ()))


class SparseFeature(Categories):
    """A category: one id."""


class SequenceFeature(Categories):
    """Several categories in their order, the newest last."""

    separator: str | None = Field(default=None, min_length=1)
    """What stands between them in a cell of text; `null` where cells are lists."""
    max_length: Whole = Field(default=50, ge=1, json_schema_extra=unit("values"))
    """Of a longer one the last are kept."""


class DenseFeature(Settings):
    """A number."""

    column: str = ""
    """Column of the table; the feature's own name if empty."""
    log: Switch = False
    """Whether it is `sign(x) log(1 + |x|)` that counts."""
    standardise: Switch = True
    """Whether the mean is taken off, and the rest divided by the standard deviation."""
    buckets: Whole = Field(default=0, ge=0, le=65536, json_schema_extra=unit("ids"))
    """Above 0: the number becomes an id, of one of so many ranges with as many rows each."""
    indicator: Switch | None = None
    """Whether a second number says that the first is missing. `null`: where `fit` sees one."""
    mean: Number | None = None
    """Of the numbers that are there, after `log`; found by `fit`."""
    std: Number | None = None
    """Likewise."""
    edges: tuple[float, ...] | None = None
    """Where ranges end, ascending; found by `fit`."""

    @property
    def is_fitted(self) -> bool:
        """Whether it can be computed."""
        if self.buckets:
            return self.edges is not None
        is_scaled = not self.standardise or (self.mean is not None and self.std is not None)
        return is_scaled and self.indicator is not None

    @property
    def num_ids(self) -> int:
        """Ids of ranges, and those of missing and unknown values."""
        return FIRST + len(self.edges or ()) + 1


class CrossFeature(Settings):
    """A pair of categories, or more of them, as one."""

    of: tuple[Name, ...] = Field(min_length=2)
    """Names of sparse features."""
    buckets: Buckets = 100_000
    """Ids that the pairs are hashed into."""

    @property
    def num_ids(self) -> int:
        """Ids, with the two that pairs do not have."""
        return FIRST + self.buckets


class LabelFeature(Settings):
    """What is to be learnt from a row."""

    column: str = ""
    """Column of the table; the task's own name if empty."""
    kind: Literal["binary", "number"] = "binary"
    """Yes or no, or a number."""
    positive: tuple[str, ...] | None = None
    """Of `binary`: the values that mean yes. `null`: 1 and 0, or true and false."""
    negative: tuple[str, ...] | None = None
    """Beside `positive`: the values that mean no; any other is an error. `null`: all others."""
    at_least: Number | None = None
    """Of `binary`: the number from which on it means yes."""
    missing: Literal["error", "mask"] = "error"
    """What a row without this label is: an error, or one that does not count for the task."""


E = TypeVar("E", SparseFeature, DenseFeature, SequenceFeature, CrossFeature, LabelFeature)
_KINDS: dict[str, type[Settings]] = {
    "sparse": SparseFeature,
    "dense": DenseFeature,
    "sequence": SequenceFeature,
    "cross": CrossFeature,
    "label": LabelFeature,
}


@dataclass(frozen=True)
class FeatureSpec:
    """What the columns of a table mean; an entry for each feature, by name and in order.

    Raises:
        ConfigError: an entry names a feature that is not there, or a name is taken twice.
    """

    sparse: Mapping[str, SparseFeature] = field(default_factory=dict)
    dense: Mapping[str, DenseFeature] = field(default_factory=dict)
    sequence: Mapping[str, SequenceFeature] = field(default_factory=dict)
    cross: Mapping[str, CrossFeature] = field(default_factory=dict)
    label: Mapping[str, LabelFeature] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for section in SECTIONS:
            named = {
                name: entry
                if isinstance(entry, CrossFeature) or entry.column
                else entry.model_copy(update={"column": name})
                for name, entry in getattr(self, section).items()
            }
            object.__setattr__(self, section, named)
        _check(self)

    @property
    def is_fitted(self) -> bool:
        """Whether features can be computed."""
        entries = [*self.sparse.values(), *self.dense.values(), *self.sequence.values()]
        return all(entry.is_fitted for entry in entries)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the features are computed from, without those of the labels."""
        entries = [*self.sparse.values(), *self.dense.values(), *self.sequence.values()]
        return tuple(dict.fromkeys(entry.column for entry in entries))

    @property
    def ids(self) -> dict[str, int]:
        """Number of ids of each column of `sparse` in a batch, in order; 0: open."""
        return {
            **{name: self.source(entry).num_ids for name, entry in self.sparse.items()},
            **{name: entry.num_ids for name, entry in self.dense.items() if entry.buckets},
            **{name: entry.num_ids for name, entry in self.cross.items()},
        }

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the columns of `dense` in a batch, in order."""
        found: list[str] = []
        for name, entry in self.dense.items():
            if not entry.buckets:
                found += [name, f"{name}.missing"] if entry.indicator else [name]
        return tuple(found)

    def source(self, entry: Categories) -> Categories:
        """Return the entry that the ids of `entry` are of: its own, or the one it shares."""
        return entry if entry.shares is None else self.sparse[entry.shares]

    def without(self, *names: str) -> "FeatureSpec":
        """Return the spec without some features or labels, and without crosses of them.

        Raises:
            ConfigError: there is none of such a name.
        """
        known = [name for section in SECTIONS for name in getattr(self, section)]
        for name in names:
            if name not in known:
                raise ConfigError(f"there is no feature {name!r}", fix=did_you_mean(name, known))
        kept = {
            section: {n: e for n, e in getattr(self, section).items() if n not in names}
            for section in SECTIONS
        }
        kept["cross"] = {n: e for n, e in kept["cross"].items() if not {*e.of} & {*names}}
        return FeatureSpec(**kept)

    def updated(self, section: str, **entries: Settings) -> "FeatureSpec":
        """Return the spec with entries of a section added or replaced."""
        return replace(self, **{section: {**getattr(self, section), **entries}})

    def to_json(self) -> dict[str, dict]:
        """Return a JSON-able dict with what differs from the defaults; `from_json` reads it."""
        found = {}
        for section in SECTIONS:
            if entries := getattr(self, section):
                found[section] = {
                    name: entry.model_dump(mode="json", exclude_defaults=True)
                    for name, entry in entries.items()
                }
        return found

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "FeatureSpec":
        """Build from a mapping as it stands in a file.

        Raises:
            ConfigError: a section, an entry or a setting is unknown or out of its range.
        """
        sections: dict[str, dict[str, Settings]] = {}
        if not isinstance(content, Mapping):
            raise ConfigError(
                f"a feature spec is a mapping, not a {type(content).__name__}",
                fix=f"write the sections {', '.join(SECTIONS)}",
            )
        for section, entries in content.items():
            if section not in _KINDS:
                raise ConfigError(
                    f"a feature spec has no section {section!r}",
                    fix=did_you_mean(section, SECTIONS),
                )
            if not isinstance(entries, Mapping):
                raise ConfigError(
                    f"{section} is a {type(entries).__name__}, not a mapping",
                    fix="write NAME: {...} for each feature",
                )
            sections[section] = {
                str(name): _entry(section, str(name), given) for name, given in entries.items()
            }
        return cls(**sections)  # pyright: ignore[reportArgumentType]


def _entry(section: str, name: str, given: object) -> Settings:
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(
            f"{section}.{name} is a {type(given).__name__}, not a mapping",
            fix=f"write {name}: {{column: ...}}",
        )
    try:
        return validate_settings(_KINDS[section], given or {})
    except ConfigError as error:
        raise ConfigError(f"{section}.{name}: {error.message}", fix=error.fix) from error


def _check(spec: FeatureSpec) -> None:
    problems = []
    seen: set[str] = set()
    for section in ("sparse", "dense", "sequence", "cross"):
        for name in getattr(spec, section):
            if name in seen:
                problems.append(f"the name {name!r} is taken twice")
            seen.add(name)
    for name, entry in [*spec.sparse.items(), *spec.sequence.items()]:
        target = None if entry.shares is None else spec.sparse.get(entry.shares)
        if entry.shares is not None and (target is None or target.shares is not None):
            problems.append(
                f"{name} shares {entry.shares!r}, which is no sparse feature of its own"
            )
    for name, entry in spec.cross.items():
        for part in entry.of:
            if part not in spec.sparse:
                problems.append(f"{name} crosses {part!r}, which is no sparse feature")
    for name, entry in spec.label.items():
        if entry.kind == "number" and (entry.positive is not None or entry.at_least is not None):
            problems.append(f"the label {name} is a number, and has positive or at_least")
        if entry.positive is not None and entry.at_least is not None:
            problems.append(f"the label {name} has both positive and at_least")
        if entry.negative is not None and entry.positive is None:
            problems.append(f"the label {name} has negative and no positive")
        if both := set(entry.positive or ()) & set(entry.negative or ()):
            problems.append(f"the label {name} has {min(both)!r} as positive and as negative")
    if problems:
        raise ConfigError("; ".join(problems), fix="correct the feature spec")
