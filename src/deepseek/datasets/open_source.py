"""From a path to the source that reads what is there."""

import os
from collections.abc import Sequence
from pathlib import Path

from deepseek.datasets.digits_source import DigitsSource
from deepseek.datasets.folder_source import FolderSource
from deepseek.datasets.source import ImageSource
from deepseek.errors import DataError


def open_source(
    path: str | os.PathLike,
    *,
    class_names: Sequence[str] | None,
    image_column: str | None,
    label_column: str,
    path_column: str,
) -> ImageSource:
    """Detect the layout of `path`, and open it."""
    if str(path) == "digits" and not Path(path).exists():
        return DigitsSource(class_names)
    folder = Path(path).expanduser()
    if folder.is_dir():
        return FolderSource(folder, class_names)
    raise DataError(f"{path} does not exist", fix="check the path")
