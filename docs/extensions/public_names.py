"""The directive `public-names`: a table of a package's public names, and each with its docstring.

```{public-names} deepseek.trainer
```
The names are those that the package exports. Docstrings are Google style with Markdown inside
(fences, links, names in backticks); here they become reStructuredText.
"""

import importlib
import inspect
import re
from collections.abc import Mapping
from types import ModuleType

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from pydantic import BaseModel

from deepseek.registry import Registry

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*) *$")
LITERAL = re.compile(r"(?<!`)`([^`\n]+)`(?![`_])")
LINK = re.compile(r"\[([^\]]+)\]\((https?://[^)\s]+)\)")
LONE_STAR = re.compile(r"(?<![\w*\\])\*(?=[\w*])(?!\w[^*]*\w\*)")


class PublicNames(Directive):
    """Lists what a package exports."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the table and of every entry."""
        name = self.arguments[0]
        module = importlib.import_module(name)
        lines = ["````{eval-rst}", f".. currentmodule:: {name}", "", ".. list-table::", ""]
        names = exported(module)
        for entry in names:
            lines += [f"   * - :py:obj:`{entry}`", f"     - {first_line(getattr(module, entry))}"]
        lines.append("")
        for entry in names:
            lines += described(module, entry)
        lines.append("````")
        parent = nodes.container()
        self.state.nested_parse(StringList(lines, name), self.content_offset, parent)
        return parent.children


def exported(module: ModuleType) -> list[str]:
    """Return `__all__`, what a package imports under its name, or what a module defines."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not name.startswith("_")]
    is_package = hasattr(module, "__path__")
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and (is_package or is_defined_in(module, value))
    ]


def is_defined_in(module: ModuleType, value: object) -> bool:
    """Return whether a class or function is the module's own."""
    return (inspect.isroutine(value) or inspect.isclass(value)) and (
        value.__module__ == module.__name__
    )


def first_line(value: object) -> str:
    """Return what the table says of a name."""
    if isinstance(value, Registry):
        return f"The names of each {value.kind}."
    if isinstance(value, Mapping | tuple):
        return f"A table of {len(value)}."
    return as_inline((inspect.getdoc(value) or "").partition("\n")[0])


def described(module: ModuleType, name: str) -> list[str]:
    """Return the directive that fits one name."""
    value = getattr(module, name)
    if inspect.isclass(value):
        hidden = []  # settings have tables of their own, with their defaults: docs/config.md
        if issubclass(value, BaseModel):
            hidden = ["model_config", "model_post_init", *value.model_fields]
        options = [f"   :exclude-members: {', '.join(hidden)}"] if hidden else []
        return [f".. autoclass:: {name}", *options, ""]
    if inspect.isroutine(value):
        return [f".. autofunction:: {name}", ""]
    if isinstance(value, Registry):
        text = f"Registry of each {value.kind}: " + ", ".join(f"``{n}``" for n in value.names())
    elif isinstance(value, Mapping):
        text = ", ".join(f"``{key}``" for key in value)
    else:
        text = first_line(value)
    return [f".. py:data:: {name}", "", f"   {text}", ""]


def as_inline(line: str) -> str:
    """Return a line of Markdown as reStructuredText."""
    line = LITERAL.sub(r"``\1``", LINK.sub(r"`\1 <\2>`__", line))
    parts = re.split(r"(``.+?``)", line)
    parts[::2] = [LONE_STAR.sub(r"\*", part) for part in parts[::2]]
    return "".join(parts)


def as_restructured_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Turn the Markdown of a docstring into reStructuredText, in place."""
    del app, what, name, obj, options
    found: list[str] = []
    fence: str | None = None
    for line in lines:
        match = FENCE.match(line)
        if match and fence is None:
            fence = match["indent"]
            found += ["", f"{fence}.. code-block:: {match['language'] or 'text'}", ""]
        elif match:
            fence = None
            found.append("")
        elif fence is not None:
            found.append(f"   {line}" if line.strip() else "")
        else:
            found.append(as_inline(line))
    lines[:] = found


def short_signature(app, what, name, obj, options, signature, return_annotation):
    """Leave out the signature of a pydantic model, which is every setting with its checks."""
    del app, name, options, signature, return_annotation
    if what == "class" and inspect.isclass(obj) and issubclass(obj, BaseModel):
        return "", None
    return None


def setup(app) -> dict:
    """Register the directive and what mends docstrings."""
    app.add_directive("public-names", PublicNames)
    app.connect("autodoc-process-docstring", as_restructured_text, priority=100)
    app.connect("autodoc-process-signature", short_signature)
    return {"parallel_read_safe": True}
