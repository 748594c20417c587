"""Names that users write, and what they stand for.

A `Registry` maps a name to a factory. Built-in entries may be given as `"module:attribute"`,
imported on first use, so that listing names costs nothing and a lower layer can name a higher one
without importing it. Third parties add entries from the entry-point group `deepseek.plugins`: each
entry point is a function without arguments that registers what it brings.
"""

import importlib
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Generic, TypeVar, cast

from deepseek.errors import ConfigError, MissingExtraError

T = TypeVar("T")
PLUGIN_GROUP = "deepseek.plugins"
_plugins_loaded = False
_broken_plugin = ""


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return up to `count` of the `known` names that look most like `name`, best first."""
    known = list(known)
    by_lower = {entry.lower(): entry for entry in known}
    matches = get_close_matches(name.lower(), by_lower, n=count, cutoff=0.55)
    return [by_lower[match] for match in matches]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `did you mean "x", "y"?`, or the first known names where none is near."""
    known = sorted(known)
    close = nearest(name, known)
    if close:
        return "did you mean " + ", ".join(f'"{entry}"' for entry in close) + "?"
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"choose one of: {shown}"


def import_extra(module: str, extra: str):
    """Import an optional dependency; what it warns of on the way is its own affair.

    Raises:
        MissingExtraError: if it is not installed; names the extra that brings it.
    """
    quiet = nullcontext() if module in sys.modules else _QUIET
    try:
        with quiet, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is not installed (or does not import: {error})",
            fix=f"pip install 'deepseek-framework[{extra}]'",
        ) from error


class _Quiet:
    """Keeps warnings from the logs, as long as any thread is inside."""

    def __init__(self) -> None:
        self._lock, self._num_inside, self._before = threading.Lock(), 0, logging.NOTSET

    def __enter__(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._before = logging.root.manager.disable
                logging.disable(max(self._before, logging.WARNING))
            self._num_inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                logging.disable(self._before)


_QUIET = _Quiet()


class Registry(Generic[T]):
    """Named factories of one kind.

    Args:
        kind: what an entry is, for messages: "model", "optimizer", ...
        builtin: entries given as `"module:attribute"`, imported on first use.
    """

    def __init__(self, kind: str, builtin: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self._builtin = dict(builtin or {})
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its argument as `name`.

        Raises:
            ConfigError: if the name is taken; a second registration never wins silently.
        """

        def add(entry: T) -> T:
            if name in self._entries or name in self._builtin:
                raise ConfigError(
                    f"{self.kind} {name!r} is registered already",
                    fix="register it under another name",
                )
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """Return the entry called `name`.

        Raises:
            ConfigError: if there is none; the message has the nearest names.
        """
        if name not in self:
            raise ConfigError(f"unknown {self.kind} {name!r}", fix=did_you_mean(name, self.names()))
        if name not in self._entries:
            module, _, attribute = self._builtin[name].partition(":")
            self._entries[name] = cast(T, getattr(importlib.import_module(module), attribute))
        return self._entries[name]

    def names(self) -> list[str]:
        """Return every name, sorted, plug-ins included."""
        load_plugins()
        return sorted({*self._builtin, *self._entries})

    def __contains__(self, name: str) -> bool:
        load_plugins()
        return name in self._entries or name in self._builtin


def load_plugins() -> None:
    """Run every entry point of `deepseek.plugins`, once per process.

    Raises:
        ConfigError: one of them fails, or did before: what it and those behind it bring is missing.
    """
    global _plugins_loaded, _broken_plugin
    if _broken_plugin:
        raise _broken(_broken_plugin)
    if _plugins_loaded:
        return
    _plugins_loaded = True  # before the loop: a plug-in's own look-ups must not start over
    for entry_point in entry_points(group=PLUGIN_GROUP):
        try:
            entry_point.load()()
        except Exception as error:
            name = f"{entry_point.name!r} ({entry_point.value})"
            _broken_plugin = f"the plug-in {name} fails: {type(error).__name__}: {error}"
            raise _broken(_broken_plugin) from error


def _broken(what: str) -> ConfigError:
    return ConfigError(what, fix="mend the package that brings it, or uninstall it")
