"""The feature spec and the settings that `deepseek init table` writes, found in the table.

Imported by the command when it runs, never at start-up.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from deepseek.config.feature_file import write_features
from deepseek.config.features import LabelFeature
from deepseek.datasets import ColumnSource, infer_features
from deepseek.datasets.feature_encoder import missing_feature_column
from deepseek.datasets.feature_inference import LABEL_NAMES, TIME_NAMES
from deepseek.datasets.feature_values import distinct, numbers_of, token_of
from deepseek.datasets.table_reading import TableOptions
from deepseek.errors import ConfigError, DataError

_YES_OR_NO = frozenset({"0", "1", "true", "false"})


def fill_table(
    text: str,
    data: Path,
    features: Path,
    labels: Sequence[str],
    settings: Sequence[str],
    *,
    replaces: bool,
) -> str:
    """Return a template with what was found in a table, and write its feature spec.

    Args:
        text: of the template.
        data: the table.
        features: file to write the spec to.
        labels: columns to learn; none: the first that is called as labels are.
        settings: how its files are read: see `TableOptions.changed`.
        replaces: whether a file that is there is replaced.

    Raises:
        ConfigError: there is no label, the file is there, or a label is of a kind that is not
            learnt.
        DataError: a column is not there.
    """
    if features.exists() and not replaces:
        raise ConfigError(f"{features} is there already", fix="give --force to replace it")
    options = TableOptions().changed(settings)
    source = ColumnSource(data, options)
    named = list(labels) or [name for name in LABEL_NAMES if name in source.columns][:1]
    if not named:
        raise ConfigError(
            f"none of the columns of {data} is called {', '.join(LABEL_NAMES)}",
            fix=f"say what is to be learnt: --label NAME, of {', '.join(source.columns)}; if these"
            " are no names, the file has no header: column_names=NAME,NAME,... or"
            " layout=criteo",
        )
    entries = {name: _label_of(source, name) for name in named}
    spec = infer_features(source, entries)
    features.parent.mkdir(parents=True, exist_ok=True)
    write_features(spec, features)
    time = next((name for name in TIME_NAMES if name in source.columns), None)
    words = {
        "LABELS": ", ".join(named),
        "FEATURES_FILE": str(features),
        "ARCHITECTURE": "deepfm" if len(named) == 1 else "mmoe",
        "LAYERS_LINE": "hidden_dims: [64, 32]   # widths of the hidden layers"
        if len(named) == 1
        else "tower_dims: [32]        # widths of the layers that each label has of its own",
        "VAL_REASON": "a fifth, drawn by the seed"
        if time is None
        else "the last fifth of the time",
        "READING_LINES": "".join(
            f"  {name}: {json.dumps(value)}\n" for name, value in options.to_json().items()
        ),
        "TIME_LINE": "" if time is None else f"  time_column: {json.dumps(time)}\n",
    }
    for word, found in words.items():
        text = text.replace(word, found)
    return text


def _label_of(source: ColumnSource, name: str) -> LabelFeature:
    """Return what a column means as a label: yes or no, one of two values, or a number."""
    if name not in source.columns:
        raise missing_feature_column(name, dict.fromkeys(source.columns))
    counts: dict[str, int] = {}
    is_number = True
    for chunk in source.chunks([name]):
        values, places = distinct(chunk[name])
        for token, place in zip(map(token_of, values), range(len(values)), strict=True):
            if token is not None:
                counts[token] = counts.get(token, 0) + int((places == place).sum())
        is_number = is_number and _is_number(chunk[name], name)
    if {token.lower() for token in counts} <= _YES_OR_NO and len(counts) <= 2:
        return LabelFeature(column=name)
    if len(counts) == 2:
        rare, often = sorted(counts, key=lambda token: counts[token])
        return LabelFeature(column=name, positive=(rare,), negative=(often,))
    if is_number and counts:
        return LabelFeature(column=name, kind="number")
    raise ConfigError(
        f"the label {name} has {len(counts)} values, such as {', '.join(sorted(counts)[:3])}",
        fix="a label is yes or no, or a number: say which values are a yes in a column of its own",
    )


def _is_number(column: object, name: str) -> bool:
    try:
        numbers_of(column, name)  # pyright: ignore[reportArgumentType]
    except DataError:
        return False
    return True
