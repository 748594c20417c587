"""How far a long command is, where somebody looks on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(
    what: str, count_all: Callable[[], int | None] = lambda: None
) -> Iterator[Callable[[int], None]]:
    """Show how many are done, of how many, and the time that is left; on a terminal only.

    Args:
        what: is counted, such as `rows`.
        count_all: how many there will be, or `None`; not asked where nobody looks on.

    Yields:
        What to call with how many are done.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done: None
        return
    total = count_all()
    of_all = "" if total is None else f" of {total:,}"
    count = TextColumn(f"{{task.completed:,.0f}}{of_all} {what}")
    if total is None:
        columns = (SpinnerColumn(), count, TimeElapsedColumn())
    else:
        columns = (BarColumn(), count, TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task("", total=total)
        yield lambda done: shown.update(task, completed=done)
