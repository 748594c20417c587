"""Values -> settings, or every problem with them at once."""

from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from deepseek.config.expectation import choices, expectation
from deepseek.config.problems import Code, Path, Problem, counted
from deepseek.config.settings import Settings
from deepseek.config.spelling import distance, meant
from deepseek.errors import ConfigError

S = TypeVar("S", bound=Settings)


def validate_settings(cls: type[S], values: Mapping[str, Any]) -> S:
    """Return `cls(**values)`.

    Raises:
        ConfigError: with every problem that `values` has, and the nearest key for an unknown one.
    """
    settings, problems = check_settings(cls, values)
    if settings is not None:
        return settings
    if len(problems) == 1:
        raise ConfigError(problems[0].sentence(), fix=problems[0].advice())
    lines = [f"{counted(problems)} in {cls.__name__}:"]
    for problem in problems:
        advice = problem.advice()
        lines.append(f"  {problem.sentence()}" + (f"; {advice}" if advice else ""))
    raise ConfigError("\n".join(lines), fix="correct them all; nothing was started")


def check_settings(cls: type[S], values: Mapping[str, Any]) -> tuple[S | None, list[Problem]]:
    """Return `(settings, [])` if `values` are right, else `(None, problems)`."""
    tree = _copied(cls, values)
    try:
        return cls.model_validate(tree), []
    except ValidationError as error:
        problems = _problems(cls, tree, error)
    for problem in problems:
        _prune(tree, problem.path)
    # Rules between settings are checked only where the settings themselves are right: once more,
    # without the wrong ones, so that these show at the first try too.
    try:
        cls.model_validate(tree)
    except ValidationError as error:
        seen = {problem.name for problem in problems}
        later = _problems(cls, tree, error)
        problems += [p for p in later if p.code == "contradiction" and p.name not in seen]
    return None, problems


def sections(cls: type[Settings], values: Any = None) -> dict[str, type[Settings]]:
    """Return the fields of `cls` that are settings themselves.

    Of a field that may be of several kinds, the kind is what `values` say, or else the first.
    """
    found = {}
    for name, field in cls.model_fields.items():
        if kinds := _kinds(field):
            found[name] = _chosen(kinds, _value_at(values, (name,)))
    return found


def _kinds(field: FieldInfo) -> list[type[Settings]]:
    """Return the settings that a field may hold."""
    options = get_args(field.annotation) or (field.annotation,)
    plain = [get_args(option)[0] if get_args(option) else option for option in options]
    return [kind for kind in plain if isinstance(kind, type) and issubclass(kind, Settings)]


def _chosen(kinds: list[type[Settings]], values: Any) -> type[Settings]:
    """Return the kind whose `format` is the one of `values`."""
    given = _value_at(values, ("format",))
    for kind in kinds[1:]:
        if given in get_args(kind.model_fields["format"].annotation):
            return kind
    return kinds[0]


def field_at(cls: type[Settings], path: Path, tree: Any = None) -> FieldInfo | None:
    """Return the field that `path` leads to in `tree`, `None` if there is none."""
    owner = _owner(cls, path, tree)
    return owner.model_fields.get(str(path[-1])) if path and owner is not None else None


def _owner(cls: type[Settings], path: Path, tree: Any) -> type[Settings] | None:
    """Return the settings that the last key of `path` is of."""
    owner: type[Settings] | None = cls
    for depth, part in enumerate(path[:-1]):
        if owner is None:
            return None
        owner = sections(owner, _value_at(tree, path[:depth])).get(str(part))
    return owner


def unknown_key(root: type[Settings], path: Path, value: Any = None, tree: Any = None) -> Problem:
    """Return the problem of a key at `path` that no settings of `root` have there."""
    owner = _owner(root, path, tree) or root
    word = str(path[-1])
    allowed = tuple(owner.model_fields)
    if (name := _format_with(root, path, tree)) is not None:
        suggestion = f"it goes with `{path[0]}.format: {name}`"
        return Problem("unknown-key", path, "is unknown", suggestion, allowed, value)
    elsewhere = _elsewhere(root, owner, word, tree)
    here = meant(word, allowed)
    if elsewhere is not None and (here is None or not _is_near(word, here)):
        suggestion = f"did you mean `{elsewhere}`?"
    else:
        suggestion = f"did you mean `{here}`?" if here else None
    return Problem("unknown-key", path, "is unknown", suggestion, allowed, value)


def _format_with(root: type[Settings], path: Path, tree: Any) -> str | None:
    """Return the `format` with which the section would have the key at `path`."""
    word, above = str(path[-1]), field_at(root, path[:-1], tree)
    for kind in _kinds(above) if above is not None else []:
        if word in kind.model_fields:
            return get_args(kind.model_fields["format"].annotation)[0]
    return None


def _is_near(word: str, here: str) -> bool:
    return distance(word.lower(), here) <= 1


def _elsewhere(root: type[Settings], owner: type[Settings], word: str, tree: Any) -> str | None:
    """Return where else in `root` a key like `word` belongs, `trainer.lr`."""
    places: dict[str, str] = {}
    for section, inner in sections(root, tree).items():
        if inner is not owner:
            places.update({key: f"{section}.{key}" for key in inner.model_fields})
    if root is not owner:
        places.update({key: key for key in root.model_fields})
    found = meant(word, places)
    return places[found] if found else None


def _copied(cls: type[Settings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the sections of `values`; an empty one (`trainer:`) is `{}`, but where it may lack."""
    inner = sections(cls, values)
    tree = {}
    for key, value in values.items():
        if key in inner and value is None and cls.model_fields[key].default is not None:
            value = {}
        if key in inner and isinstance(value, Mapping):
            value = _copied(inner[key], value)
        tree[key] = value
    return tree


def _prune(tree: dict[str, Any], path: Path) -> None:
    for part in path[:-1]:
        inner = tree.get(str(part))
        if not isinstance(inner, dict):
            return
        tree = inner
    tree.pop(str(path[-1]), None)


def _problems(cls: type[Settings], tree: dict[str, Any], error: ValidationError) -> list[Problem]:
    found: dict[Path, Problem] = {}
    for entry in error.errors(include_url=False):
        for problem in _translated(cls, tree, dict(entry)):
            found.setdefault(problem.path, problem)
    return list(found.values())


def _translated(cls: type[Settings], tree: dict[str, Any], entry: dict[str, Any]) -> list[Problem]:
    kind, location = entry["type"], entry["loc"]
    if kind == "contradiction":
        context = entry["ctx"]
        place = _path(cls, location, tree)
        keys = [(*place, *key.split(".")) for key in context["keys"]]
        return [Problem("contradiction", keys[0], entry["msg"], context["fix"])]
    path = _path(cls, location, tree)
    if kind == "told":
        return [Problem("value", path, entry["msg"], entry["ctx"]["fix"], value=entry["input"])]
    if kind == "extra_forbidden":
        return [unknown_key(cls, path, entry["input"], tree)]
    field = field_at(cls, path, tree)
    if field is None:
        return [Problem("type", path, entry["msg"], value=entry["input"])]
    if kind == "missing" and location[-1] == path[-1]:
        about = (field.description or "").split("\n")[0].rstrip(".")
        return [Problem("missing", path, about)]
    return [_wrong_value(cls, path, tree, kind)]


def _wrong_value(cls: type[Settings], path: Path, tree: Any, kind: str) -> Problem:
    schema, value = _schema_at(cls, path, tree), _value_at(tree, path)
    named = choices(schema)
    near = meant(value, named) if isinstance(value, str) and named else None
    code: Code = "type" if kind.endswith("_type") or kind == "float_parsing" else "value"
    return Problem(
        code,
        path,
        f"expected {expectation(schema)}",
        f"did you mean `{near}`?" if near else None,
        value=value,
    )


def _schema_at(cls: type[Settings], path: Path, tree: Any) -> dict[str, Any]:
    owner = _owner(cls, path, tree)
    if owner is None or str(path[-1]) in sections(owner):
        return {"type": "object"}
    return owner.model_json_schema()["properties"][str(path[-1])]


def _value_at(tree: Any, path: Path) -> Any:
    for part in path:
        tree = tree[part] if isinstance(tree, Mapping) and part in tree else None
    return tree


def _path(cls: type[Settings], location: tuple[str | int, ...], tree: Any) -> Path:
    """Return the keys of `location`, without what pydantic adds for unions and lists."""
    path: list[str | int] = []
    owner: type[Settings] | None = cls
    is_tag = False
    for part in location:
        if is_tag:  # the kind of settings that pydantic has chosen
            is_tag = False
            continue
        if owner is None:
            break
        field = owner.model_fields.get(str(part))
        is_tag = field is not None and len(_kinds(field)) > 1
        owner = sections(owner, _value_at(tree, tuple(path))).get(str(part))
        path.append(part)
    return tuple(path)
