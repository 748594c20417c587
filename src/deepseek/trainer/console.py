"""What the console shows: three lines, a table line per epoch, a pinned bar on a terminal.

Off a terminal there are no escape codes, and between epochs at most one line in 30 seconds.
Everything permanent also goes to `log.txt`.
"""

import os
import sys
from contextlib import suppress
from io import TextIOBase
from pathlib import Path
from time import perf_counter
from typing import TextIO

QUIET_LINE_EVERY_S = 30.0
BAR_EVERY_S = 0.1
BAR_WIDTH = 24
MIB = 2**20


class Console:
    """Writes a run's progress.

    Args:
        log: the run's `log.txt`.
        shown: print as well; without it only the log is written.
        stream: where to print; stdout by default.
        sample: what a sample is called in the table.
    """

    def __init__(
        self,
        log: Path,
        shown: bool = True,
        stream: TextIO | TextIOBase | None = None,
        sample: str = "img",
    ) -> None:
        self.sample = sample
        self._log = log
        self._shown = shown
        self._stream = stream if stream is not None else sys.stdout
        is_dumb = os.environ.get("TERM") == "dumb" or "NO_COLOR" in os.environ or "CI" in os.environ
        self.is_live = shown and self._stream.isatty() and not is_dumb
        self._drawn_at = self._lined_at = perf_counter()
        self._has_header = False

    def line(self, text: str) -> None:
        """Write a permanent line; of a file's name that is no UTF-8 the bytes are escaped."""
        text = text.encode("utf-8", "backslashreplace").decode()
        # a full disk: the line is on the screen
        with suppress(OSError), self._log.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        if self._shown:
            self._stream.write(("\r\x1b[2K" if self.is_live else "") + text + "\n")
            self._stream.flush()
        self._lined_at = perf_counter()

    def epoch(self, record: dict, num_epochs: int | None, monitor: str, is_best: bool) -> None:
        """Write the table line of an epoch, with the header before the first."""
        columns = [
            ("epoch", of_all(record["epoch"], num_epochs), 8),
            ("loss", f"{record['loss']:.4f}", 9),
        ]
        if "val_loss" in record:
            columns.append(("val_loss", f"{record['val_loss']:.4f}", 9))
        if monitor in record and monitor != "val_loss":
            mark = "*" if is_best else " "
            shown_name = monitor.replace("accuracy", "acc")
            columns.append(
                (shown_name, f"{record[monitor]:.4f}{mark}", max(9, len(shown_name) + 1))
            )
        columns += [
            ("lr", f"{record['lr']:.1e}", 8),
            (f"{self.sample}/s", f"{record['samples_per_s']:,.0f}", 8),
            ("data%", f"{100 * record['data_wait_share']:.0f}%", 6),
            ("mem MiB", f"{record['memory_bytes'] / MIB:,.0f}", 8),
        ]
        if "grad_norm" in record:
            columns.append(("grad", f"{record['grad_norm']:.2f}", 7))
        columns += [
            ("time", format_seconds(record["epoch_s"]), 7),
            ("total ETA", format_seconds(record["eta_s"]), 10),
        ]
        if not self._has_header:
            self.line("".join(f"{name:>{width}}" for name, _, width in columns))
            self._has_header = True
        self.line("".join(f"{value:>{width}}" for _, value, width in columns))

    def wants_progress(self) -> bool:
        """Return whether it is time to call `progress` again. Cheap enough for every step."""
        now = perf_counter()
        if self.is_live:
            return now - self._drawn_at >= BAR_EVERY_S
        return self._shown and now - self._lined_at >= QUIET_LINE_EVERY_S

    def progress(self, head: str, done: int, total: int, tail: str) -> None:
        """Draw the bar on a terminal; write one plain line elsewhere."""
        self._drawn_at = perf_counter()
        if not self.is_live:
            self.line(f"{head} {done}/{total}  {tail}")
            return
        filled = BAR_WIDTH * done // max(1, total)
        bar = "━" * filled + "╸" * (filled < BAR_WIDTH) + " " * (BAR_WIDTH - filled - 1)
        width = os.get_terminal_size(self._stream.fileno()).columns
        text = f"{head} {bar} {done}/{total}  {tail}"[: max(20, width - 1)]
        self._stream.write(f"\r\x1b[2K{text}")
        self._stream.flush()


def of_all(number: int, count: int | None) -> str:
    """Return `3/10`, or `3` where nobody knows of how many."""
    return f"{number}" if count is None else f"{number}/{count}"


def format_seconds(seconds: float) -> str:
    """Return `8.2s`, `1m16s` or `2h05m`."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def format_count(value: float) -> str:
    """Return `11.2 M`, `1.82 G`, ... with three digits."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {letter}"
    return f"{value:.0f} "
