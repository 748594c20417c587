"""Writes `llms.txt` (https://llmstxt.org): the pages of the table of contents, a line each.

A page is listed under the caption that it has in `index.md`, with its first sentence. The address
is that of its Markdown, which Sphinx keeps beside the pages; where that only says what to
include, it is the page's.
"""

from pathlib import Path

from docutils import nodes
from sphinx import addnodes

MAX_CHARACTERS = 160


def first_sentence(document: nodes.document) -> str:
    """Return the first sentence of a page, cut at `MAX_CHARACTERS`."""
    for paragraph in document.findall(nodes.paragraph):
        if not isinstance(paragraph.parent, nodes.section):
            continue  # a cell of a table, an item of a list
        text = " ".join(paragraph.astext().split())
        sentence = text.split(". ")[0].rstrip(".:")
        if len(sentence) > MAX_CHARACTERS:
            sentence = sentence[:MAX_CHARACTERS].rsplit(" ", 1)[0] + " ..."
        return sentence
    return ""


def pages_below(app, name: str) -> list[str]:
    """Return a page and all that it leads to, in the order of the table of contents."""
    found = [name]
    for child in app.env.toctree_includes.get(name, []):
        found += pages_below(app, child)
    return found


def address_of(app, name: str) -> str:
    """Return where a page can be read, beside `llms.txt`."""
    source = Path(app.env.doc2path(name)).read_text(encoding="utf-8")
    if "```{include}" in source or "```{public-names}" in source:
        return app.builder.get_target_uri(name)
    return f"_sources/{name}.md.txt"


def write(app, error: Exception | None) -> None:
    """Write the file beside the pages."""
    if error is not None or app.builder.format != "html":
        return
    root = app.config.root_doc
    index = app.env.get_doctree(root)
    lines = [f"# {app.config.project}", "", f"> {first_sentence(index)}.", ""]
    for tree in index.findall(addnodes.toctree):
        lines += [f"## {tree['caption'] or app.config.project}", ""]
        for _, entry in tree["entries"]:
            for name in pages_below(app, entry):
                title = app.env.titles[name].astext()
                about = first_sentence(app.env.get_doctree(name))
                line = f"- [{title}]({address_of(app, name)})"
                lines.append(line + (f": {about}" if about else ""))
        lines.append("")
    Path(app.outdir, "llms.txt").write_text("\n".join(lines), encoding="utf-8")


def setup(app) -> dict:
    """Write the file once the pages are built."""
    app.connect("build-finished", write)
    return {"parallel_read_safe": True}
