"""Real tables, where they are."""

import importlib.util
import os
from pathlib import Path

import pytest

from deepseek.recsys import read_movielens


@pytest.fixture(scope="session")
def movielens():
    """MovieLens-100K: in the folder named by `DEEPSEEK_ML100K`, or in an installed recbole."""
    found = importlib.util.find_spec("recbole")
    inside = "" if found is None or found.origin is None else str(Path(found.origin).parent)
    folder = Path(os.environ.get("DEEPSEEK_ML100K") or f"{inside}/dataset_example/ml-100k")
    if not (folder / "ml-100k.inter").is_file():
        pytest.skip("no MovieLens-100K: unpack the wheel of recbole, set DEEPSEEK_ML100K")
    return read_movielens(folder)
