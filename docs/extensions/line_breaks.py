"""Where lines break: long names in tables, and Chinese text.

A long name in a cell may break anywhere, so that the columns beside it are seen. A line break
between two Chinese characters is no space; beside letters of another script it is one, as within a
line; beside punctuation, which is as wide as a character, none.
"""

import re

from docutils import nodes

LONG = 40  # characters
PUNCTUATION = re.compile("[\u2014-\u2026\u3000-\u303f\uff00-\uffef]")
CHARACTER = re.compile("[\u2014-\u2026\u3000-\u303f\u3400-\u9fff\uff00-\uffef]")


def mark_long_names(document: nodes.document) -> None:
    """Give long names in tables the class that `deepseek.css` lets break."""
    for cell in document.findall(nodes.entry):
        for name in cell.findall(nodes.literal):
            if len(name.astext()) > LONG:
                name["classes"].append("long")


def is_no_space(before: str, after: str) -> bool:
    """Return whether a line break between two characters stands for nothing."""
    if PUNCTUATION.match(before) or PUNCTUATION.match(after):
        return True
    return bool(CHARACTER.match(before) and CHARACTER.match(after))


def join_lines(document: nodes.document) -> None:
    """Take out the breaks that are no spaces; MyST makes each a node of its own."""
    for text in [text for text in document.findall(nodes.Text) if text == "\n"]:
        line = text.parent
        place = next(number for number, node in enumerate(line) if node is text)
        if 0 < place < len(line) - 1:
            before, after = line[place - 1].astext()[-1:], line[place + 1].astext()[:1]
            if is_no_space(before, after):
                del line[place]


def set_breaks(app, document: nodes.document) -> None:
    """Set the breaks of a page that was read."""
    mark_long_names(document)
    if app.env.docname.startswith("zh/"):
        join_lines(document)


def setup(app) -> dict:
    """Set breaks once a page is read."""
    app.connect("doctree-read", set_breaks)
    return {"parallel_read_safe": True, "version": "1"}
