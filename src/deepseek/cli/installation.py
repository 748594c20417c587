"""Whether the `deepseek` that runs is ours alone.

PyPI has an unrelated distribution called `deepseek` (a client of a web service) that installs a
package of the same name. Whichever is installed last overwrites files of the other, and the errors
that follow name neither. So every command looks before it starts.
"""

import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from deepseek.errors import ConfigError

FOREIGN = "deepseek"
"""Name of the distribution that is not ours; ours is `deepseek-framework`."""
FIX = "pip uninstall -y deepseek && pip install --force-reinstall --no-deps deepseek-framework"


def require_own_package(
    paths: Iterable[str] | None = None, package: Path = Path(__file__).parents[1]
) -> None:
    """Do nothing if no other `deepseek` is about.

    Args:
        paths: folders that Python imports from; `sys.path` by default.
        package: folder of our own package.

    Raises:
        ConfigError: names the foreign files and says how to be rid of them.
    """
    paths = list(sys.path if paths is None else paths)
    for found in foreign_distributions(paths):
        version = found.metadata["Version"]
        where = Path(str(found.locate_file("")))
        raise ConfigError(
            f"the unrelated PyPI package deepseek {version} is installed in {where}"
            f"{_overwritten(found, package)}: it and this framework share the name `deepseek`",
            fix=FIX,
            see="docs/errors.md#foreign-package",
        )
    for file in foreign_modules(paths, package):
        raise ConfigError(
            f"another package named deepseek, {file}, is on the import path; ours is {package}",
            fix=f"rename or remove {file}, or take {file.parent} off PYTHONPATH",
            see="docs/errors.md#foreign-package",
        )


def foreign_distributions(paths: Iterable[str]) -> Iterator[Distribution]:
    """Yield the installed distributions that are called `deepseek` and are not ours."""
    for found in distributions(name=FOREIGN, path=[path or "." for path in paths]):
        if found.metadata["Name"].lower() == FOREIGN:
            yield found


def foreign_modules(paths: Iterable[str], package: Path) -> Iterator[Path]:
    """Yield the `deepseek.py` and `deepseek/__init__.py` on the import path that are not ours."""
    own = package.resolve()
    for path in paths:
        folder = Path(path or ".") / FOREIGN
        for file in (folder / "__init__.py", folder.with_suffix(".py")):
            if file.is_file() and file.resolve().parent != own:
                yield file if file.name != "__init__.py" else folder


def _overwritten(found: Distribution, package: Path) -> str:
    files = [Path(str(found.locate_file(file))) for file in found.files or ()]
    shared = [file for file in files if file.resolve().is_relative_to(package.resolve())]
    return f" and has written {len(shared)} files into ours ({shared[0]}, ...)" if shared else ""
