"""Where what was made from data once is kept for the next run."""

import os
from pathlib import Path

CACHE_VARIABLE = "DEEPSEEK_CACHE"


def cache_folder(cache: str | os.PathLike, kind: str) -> Path | None:
    """Return the folder, `None` for "off".

    Args:
        cache: "auto": a folder of the user's cache, or of `DEEPSEEK_CACHE`; "off"; or a folder.
        kind: what is kept, a name for a folder: "tokens", "volumes".
    """
    if cache == "off":
        return None
    if cache != "auto":
        return Path(cache).expanduser()
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given).expanduser() / kind
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "deepseek" / kind
