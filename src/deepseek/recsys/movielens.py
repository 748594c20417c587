"""MovieLens-100K as one table: 100,000 ratings of 943 users and 1,682 films, in time order.

GroupLens does not let it be passed on; the files are read as RecBole packs them (its wheel holds
`recbole/dataset_example/ml-100k`): `ml-100k.inter`, `.item` and `.user`.
"""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from deepseek.datasets.column_source import ColumnSource
from deepseek.datasets.feature_values import numbers_of
from deepseek.errors import DataError

LIKED = 4
"""A rating from which on a film counts as clicked."""
_KINDS = (("inter", None), ("item", "item_id"), ("user", "user_id"))


def read_movielens(folder: str | os.PathLike) -> dict[str, pa.Array | np.ndarray]:
    """Return the ratings with what is known of user and film, in the order of time.

    Columns: `user_id`, `item_id`, `rating`, `time` (seconds), `click` (1 from 4 stars on), `genres`
    (lists), `genre` (the first), `release_year`, `movie_title`, `age`, `gender`, `occupation`,
    `zip_code`. Ratings of one second stay in the order of the file.

    Args:
        folder: with the three files.

    Raises:
        DataError: a file is missing, or a rating is of an unknown user or film.
    """
    tables = {}
    for kind, _ in _KINDS:
        path = Path(folder) / f"ml-100k.{kind}"
        if not path.is_file():
            raise DataError(
                f"{path} is missing",
                fix="unpack recbole/dataset_example/ml-100k from the wheel of recbole",
            )
        parts = list(ColumnSource(path).chunks())
        tables[kind] = {name: pa.concat_arrays([part[name] for part in parts]) for name in parts[0]}
    columns: dict = dict(tables["inter"])
    for kind, key in _KINDS[1:]:
        places = _places(columns[key], tables[kind][key], key)
        found = {name: array.take(places) for name, array in tables[kind].items() if name != key}
        columns |= found
    time = numbers_of(columns.pop("timestamp"), "timestamp")
    order = np.argsort(time, kind="stable")
    columns = {name: array.take(pa.array(order)) for name, array in columns.items()}
    genres = [(text or "").split() for text in columns.pop("class").to_pylist()]
    rating = numbers_of(columns["rating"], "rating")
    return {
        **columns,
        "rating": rating,
        "time": time[order],
        "click": (rating >= LIKED).astype(np.int64),
        "genres": pa.array(genres, pa.list_(pa.string())),
        "genre": pa.array([names[0] if names else None for names in genres], pa.string()),
    }


def _places(wanted: pa.Array, known: pa.Array, name: str) -> pa.Array:
    places = {key: place for place, key in enumerate(known.to_pylist())}
    found = [places.get(key, -1) for key in wanted.to_pylist()]
    if -1 in found:
        raise DataError(
            f"{name}={wanted[found.index(-1)].as_py()} has a rating, and no row of its own",
            fix="get the files again",
        )
    return pa.array(found)
