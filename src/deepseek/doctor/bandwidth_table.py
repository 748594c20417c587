"""Prints what the bandwidth test measures, in the columns of nccl-tests."""

from deepseek.doctor.bandwidth import Bandwidth, Measurement
from deepseek.doctor.message_sizes import size_text

COLUMNS = ("size", "time", "algbw", "busbw", "#wrong")
UNITS = ("", "us", "GB/s", "GB/s", "")
WIDTHS = (10, 12, 9, 9, 7)


def header(found: Bandwidth) -> str:
    """Return what was measured on, before the first row."""
    facts = found.facts
    hosts = facts.get("num_hosts", 1)
    return (
        f"{facts.get('backend')} on {facts.get('device')}, {facts.get('world_size')} processes,"
        f" {hosts} machine{'s' * (hosts > 1)}, torch {facts.get('torch')}, float32"
    )


def column_heads(collective: str) -> str:
    """Return the heads of the columns, for the rows of one collective."""
    lines = (COLUMNS, UNITS)
    first, second = (
        "".join(word.rjust(width) for word, width in zip(words, WIDTHS, strict=True))
        for words in lines
    )
    return f"\n{collective}\n{first}\n{second.rstrip()}"


def row_text(row: Measurement) -> str:
    """Return a row."""
    cells = (
        size_text(row.size_bytes),
        f"{row.time_us:.1f}",
        f"{row.algorithm_gbs:.3f}",
        f"{row.bus_gbs:.3f}",
        str(row.num_wrong),
    )
    return "".join(cell.rjust(width) for cell, width in zip(cells, WIDTHS, strict=True))
