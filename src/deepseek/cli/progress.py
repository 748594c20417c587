"""How far a long command is, where somebody looks on."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import typer


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


@contextmanager
def measurements(of_what: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show one measurement after the other: a line for each, and on a terminal how far it is.

    Args:
        of_what: is measured, such as `perplexity`.

    Yields:
        What to call with a measurement's name, the samples done (0 at first), and of how many.
    """
    with ExitStack() as opened:
        shown: list[Callable[[int], None]] = []

        def tell(name: str, done: int, total: int) -> None:
            if done == 0:
                typer.echo(f"measuring {of_what} ({name}): {total:,} samples", err=True)
                shown[:] = [opened.enter_context(progress("samples", lambda: total))]
            shown[0](done)
            if done >= total:
                opened.close()

        yield tell
