"""HTML in strings: escaping, and the few shapes that every section of the report uses.

Everything that comes from a run folder (class names, file names, settings) is hostile until it
went through `text`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Section:
    """A part of the page: `body` is HTML; `reason` says, in plain text, why there is none."""

    id: str
    title: str
    body: str = ""
    reason: str = ""

    def render(self) -> str:
        """Return the HTML of the section."""
        body = self.body or f'<p class="omitted">Left out: {text(self.reason)}</p>'
        return (
            f'<section id="{self.id}" aria-labelledby="{self.id}-title">'
            f'<h2 id="{self.id}-title">{text(self.title)}</h2>\n{body}\n</section>'
        )


def text(value: object) -> str:
    """Return `value` as text that is safe between tags and in a quoted attribute."""
    # Lone surrogates (file names that are no UTF-8) cannot be written to a file.
    return escape(str(value).encode("utf-8", "replace").decode("utf-8"), quote=True)


def shorten(value: object, length: int = 60) -> str:
    """Return `value` as text of at most `length` characters."""
    words = str(value)
    return words if len(words) <= length else words[: length - 1] + "…"


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str,
    numeric: Sequence[int] = (),
    is_sortable: bool = False,
    foot: Iterable[Sequence[str]] = (),
) -> str:
    """Return a table whose first column names the rows.

    Args:
        head: column names, plain text.
        rows: cells, HTML.
        caption: what the table shows, plain text; read aloud, not drawn.
        numeric: positions of the columns that hold numbers.
        is_sortable: whether a click on a column name sorts by it.
        foot: rows that stay at the end.
    """
    names = []
    for at, name in enumerate(head):
        kind = ' class="num"' if at in numeric else ""
        label = text(name)
        if is_sortable:
            label = f'<button type="button" class="sort">{label}</button>'
        names.append(f'<th scope="col"{kind}>{label}</th>')
    sortable = " data-sortable" if is_sortable else ""
    end = "".join(_row(row, numeric) for row in foot)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">'
        f'<table class="data"{sortable}><caption>{text(caption)}</caption>'
        f"<thead><tr>{''.join(names)}</tr></thead>\n"
        f"<tbody>{''.join(_row(row, numeric) for row in rows)}</tbody>"
        + (f"<tfoot>{end}</tfoot>" if end else "")
        + "</table></div>"
    )


def bar(share: float, label: str) -> str:
    """Return a cell's content: `label` over a bar that fills `share` (0..1) of the cell."""
    width = 100 * min(max(share, 0.0), 1.0)
    return f'<span class="bar" style="--share:{width:.1f}%">{text(label)}</span>'


def fold(title: str, body: str, *, is_open: bool = False) -> str:
    """Return `body` (HTML) behind a line that opens it."""
    state = " open" if is_open else ""
    return f"<details{state}><summary>{text(title)}</summary>{body}</details>"


def card(title: str, body: str) -> str:
    """Return `body` (HTML) in a box with a title."""
    return f'<div class="card"><h3>{text(title)}</h3>{body}</div>'


def _row(cells: Sequence[str], numeric: Sequence[int]) -> str:
    out = [f'<th scope="row">{cells[0]}</th>']
    for at, cell in enumerate(cells[1:], 1):
        out.append(f'<td class="num">{cell}</td>' if at in numeric else f"<td>{cell}</td>")
    return f"<tr>{''.join(out)}</tr>\n"
